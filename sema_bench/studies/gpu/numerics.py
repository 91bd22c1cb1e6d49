"""Checks 5, 12, 13 and 14: TF32, backends of fused attention, scans and inference forms do what their names say."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import profile

from sema_bench.errors import first_line, is_out_of_memory
from sema_bench.spec.cell import SDPA_BACKENDS
from sema_bench.studies.gpu.check import Answers, Card, Finding, NotHereError, between, error_of, holds, result, stated
from sema_bench.worker.stopwatch import Stopwatch, event_seconds
from sema_bench.worker.workload import Workload, apply_global_settings, free_memory, on_device

#: SDPA backend → the operator that torch dispatches to.
_OPERATORS = {
    "flash": "flash_attention",
    "efficient": "efficient_attention",
    "cudnn": "cudnn_attention",
    "math": "attention_math",
}
_SDPA = "aten::_scaled_dot_product_"


def measure_precisions(card: Card) -> dict[str, Any]:
    """Compute a product and the logits of sema_tiny in each precision, against float64."""
    device, side = torch.device(card.device), card.size(4096)
    answers: dict[str, Any] = {"capability": list(torch.cuda.get_device_capability(device)), "precisions": {}}
    with torch.inference_mode(), on_device(device):
        a, b = (torch.randn(side, side, device=device) for _ in range(2))
        exact_product = a.double() @ b.double()
        plain = Workload(card.cell("sema_tiny", 224))
        image = plain.input.double()
        exact_logits = plain.network.double()(image)
        for name, axes in card.precisions.items():
            workload = Workload(card.cell("sema_tiny", 224, **axes))  # it applies the cell's settings
            multiply = functools.partial(torch.mm, a.to(workload.dtype), b.to(workload.dtype))
            event_seconds(multiply, 3)
            took, product, _ = event_seconds(multiply, card.count(50))
            answers["precisions"][name] = {
                "flop_per_s": 2 * side**3 * card.count(50) / took,
                "product_error": error_of(product, exact_product),
                "logits_error": error_of(workload.forward(), exact_logits),
            }
        apply_global_settings(plain.cell)
        answers["off_again_error"] = error_of(a @ b, exact_product)
    return answers


def judge_precisions(answers: Answers) -> Iterator[Finding]:
    """Judge errors, and the rate that TF32 gains."""
    measured = answers["precisions"]
    # a float32 sum of 4096 products, added one after the other, has an error of 1.2e-6
    for name, product, logits in (("float32", 3e-6, 1e-6), ("TF32", 1e-3, 1e-3), ("bfloat16", 1e-2, 1e-2)):
        yield between(f"{name}: product against float64", measured[name]["product_error"], None, product)
        yield between(f"{name}: logits against float64", measured[name]["logits_error"], None, logits)
    yield between("float32 after TF32: product against float64", answers["off_again_error"], None, 3e-6)
    gain = measured["TF32"]["flop_per_s"] / measured["float32"]["flop_per_s"]
    if tuple(answers["capability"]) < (8, 0):
        yield stated("TF32 / float32", f"{gain:.2f} × (a card below 8.0 has no TF32)")
        return
    yield between("TF32 / float32", gain, 3, None, " ×")
    rounding = measured["TF32"]["product_error"] / measured["float32"]["product_error"]
    yield between("TF32 rounds: its error / that of float32", rounding, 10, None, " ×")


def measure_sdpa(card: Card) -> dict[str, Any]:
    """Run three models with every SDPA backend, and note the operators and kernels that ran."""
    ran: list[dict[str, Any]] = []
    for model in card.some(("deit_small", "swin_tiny", "sema_tiny")):
        for dtype in card.some(("float32", "bfloat16")):
            for backend in SDPA_BACKENDS:
                workload = Workload(card.cell(model, 224, dtype=dtype, sdpa=backend))
                entry: dict[str, Any] = {"model": model, "dtype": dtype, "sdpa": backend}
                try:
                    entry |= _fused_operators(workload)
                except RuntimeError as problem:
                    if is_out_of_memory(problem):
                        raise
                    entry["refusal"] = first_line(problem)
                ran.append(entry)
                del workload
        free_memory()
    return {"ran": ran}


def _fused_operators(workload: Workload) -> dict[str, list[str]]:
    """Run a forward pass; name the operators of fused attention, and the kernels of the card that took longest."""
    workload.forward()
    with profile() as profiler:
        workload.forward()
        workload.synchronise()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    return {
        "operators": sorted(event.key for event in events if event.key.startswith(_SDPA)),
        "kernels": [event.key[:100] for event in events if event.device_type.name == "CUDA"][:3],
    }


def judge_sdpa(answers: Answers) -> Iterator[Finding]:
    """Check that each backend ran its own operator, or that torch refused it."""
    for entry in answers["ran"]:
        name = f"{entry['model']} {entry['dtype']} --sdpa {entry['sdpa']}"
        if "refusal" in entry:
            ok = None if entry["sdpa"] not in ("auto", "math") else False  # these two always run
            yield holds(name, ok, f"refused: {entry['refusal']}", "runs, or torch refuses")
            continue
        wanted = _OPERATORS.get(entry["sdpa"], "")
        operators = [each.removeprefix(_SDPA) for each in entry["operators"]]
        ok = all(wanted in each for each in operators) if operators else None
        yield holds(name, ok, operators or "no fused attention in this model", wanted or "any")


def measure_scans(card: Card) -> dict[str, Any]:
    """Run VMamba with the Triton scan and with PyTorch's: logits and times."""
    sizes: dict[str, Any] = {}
    for pixels in card.some((224, 1024)):
        for dtype in card.some(("float32", "bfloat16")):
            times, logits = {}, {}
            for scan in ("torch", "triton"):
                cell = card.cell(f"vmamba_tiny_s1l8[scan={scan}]", pixels, dtype=dtype)
                watch = Stopwatch(Workload(cell))
                try:
                    watch.first_forward()
                except ImportError as problem:
                    raise NotHereError(first_line(problem)) from None
                times[f"{scan}_s"] = statistics.median(watch.sample(card.count(10)).wall_s)
                logits[scan] = watch.workload.forward()
                del watch
            sizes[f"{pixels} {dtype}"] = {**times, "logits_error": error_of(logits["triton"], logits["torch"])}
            del logits
            free_memory()
    return {"sizes": sizes}


def judge_scans(answers: Answers) -> Iterator[Finding]:
    """Check that logits are equal, and state the times, which decide the default."""
    for name, size in answers["sizes"].items():
        limit = 2e-2 if "bf" in name else 1e-4
        yield between(f"{name}: logits of triton against torch", size["logits_error"], None, limit)
        times = ", ".join(f"{scan} {1e3 * size[f'{scan}_s']:.3g} ms" for scan in ("torch", "triton"))
        yield stated(f"{name}: torch / triton", f"{size['torch_s'] / size['triton_s']:.1f} × ({times})")


def measure_forms(card: Card) -> dict[str, Any]:
    """Run four families eager and optimized, in both layouts, and with cuDNN's search for kernels."""
    forms: tuple[dict[str, Any], ...] = ({"mode": "eager"}, {"mode": "optimized"})
    variants = [{**form, **axes} for axes in card.precisions.values() for form in forms]
    variants += [{"layout": "contiguous"}, {"cudnn_benchmark": True}]  # in float32
    cells = [
        card.cell(model, 224, batch=card.count(32), **variant)
        for model in card.some(("sema_tiny", "swin_tiny", "deit_small", "mila_tiny"))
        for variant in variants
    ]
    records = card.run([[cell] for cell in cells], ("throughput",), time_limit_s=0.5)
    return {
        "forms": [
            {
                "model": cell.model,
                "precision": "TF32" if cell.tf32 else cell.dtype,
                "form": f"{cell.mode} {cell.layout}{' cudnn_benchmark' if cell.cudnn_benchmark else ''}",
                **result(record, "latency_s"),
            }
            for cell, record in ((record.cell, record) for record in records)
        ]
    }


def judge_forms(answers: Answers) -> Iterator[Finding]:
    """Check that every form runs, and state the ratios, which decide which form is worth it."""
    baseline: dict[tuple[str, str], float | None] = {}
    for entry in answers["forms"]:
        key = (entry["model"], entry["precision"])
        baseline.setdefault(key, entry["latency_s"])
        eager, own = baseline[key], entry["latency_s"]
        times = f"{1e3 * own:.3g} ms, {eager / own:.2f} × eager channels_last" if eager and own else ""
        figure = times or entry["status"]
        yield holds(f"{' '.join(key)}, {entry['form']}", entry["status"] == "ok", figure, "ok")
