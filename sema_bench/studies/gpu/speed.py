"""Checks 11, 15, 16 and 17: peaks, every mode, the noise floor with the gate, and the claim itself, small."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from sema_bench.analysis.roofline import Peaks
from sema_bench.analysis.scaling import fit_power_law
from sema_bench.gate.arms import Arm
from sema_bench.gate.rule import REGRESSION, judge
from sema_bench.gate.selftest import run_trials
from sema_bench.report.progress import TrainingDisplay
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.recipe import parse_recipe
from sema_bench.spec.sampling import Sampling
from sema_bench.spec.suite import GateTable
from sema_bench.studies.gpu.check import PRECISIONS, Answers, Card, Finding, between, holds, ratio, stated, status_of
from sema_bench.studies.selftest.selftest import Spread
from sema_bench.training.job import Job, missing_libraries
from sema_bench.training.metrics_log import read_metrics
from sema_bench.worker.protocol import MeasurePeaks
from sema_bench.worker.stopwatch import event_seconds
from sema_bench.worker.workload import apply_global_settings, on_device

#: Card → dense rates of its data sheet in FLOP/s (float32, TF32, bfloat16), and bytes per second.
_DATA_SHEETS = {
    "H100 80GB HBM3": (67e12, 495e12, 989e12, 3.35e12),
    "H200": (67e12, 495e12, 989e12, 4.8e12),
    "A100-SXM4-80GB": (19.5e12, 156e12, 312e12, 2.039e12),
    "A100-SXM4-40GB": (19.5e12, 156e12, 312e12, 1.555e12),
}
#: Injected slowdown of the gate.
_SLOWER = 0.10
_LINEAR = ("sema_tiny", "swin_tiny", "vmamba_tiny_s1l8[scan=triton]")
_QUADRATIC = ("deit_small",)
#: A larger share of host time than this, and a curve tells launches, not arithmetic.
_LAUNCH_BOUND = 0.9


def measure_peaks(card: Card) -> dict[str, Any]:
    """Measure peaks as the roofline does, then one more product and one more copy to hold against them."""
    device = torch.device(card.device)
    precisions: dict[str, Any] = {}
    for name, axes in PRECISIONS.items():
        cell = card.cell("sema_tiny", 224, **axes)
        with card.worker() as worker:
            peaks = worker.ask(MeasurePeaks(cell), timeout_s=300.0)
        apply_global_settings(cell)
        with torch.inference_mode(), on_device(device):
            side = card.size(8192)
            a = torch.randn(side, side, device=device).to(getattr(torch, cell.dtype))
            event_seconds(lambda: a @ a, 3)  # noqa: B023 - called at once
            rate = 2 * side**3 * 10 / min(event_seconds(lambda: a @ a, 10)[0] for _ in range(3))  # noqa: B023
        precisions[name] = {"peaks": peaks.to_json(), "product_flop_per_s": rate}
    with torch.inference_mode(), on_device(device):
        source = torch.ones(2**30 // card.shrink**4, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        event_seconds(lambda: target.copy_(source), 3)
        copy = min(event_seconds(lambda: target.copy_(source), 10)[0] for _ in range(3)) / 10
    name = torch.cuda.get_device_properties(device).name
    return {"card": name, "precisions": precisions, "copy_bytes_per_s": 2 * source.nbytes / copy}


def judge_peaks(answers: Answers) -> Iterator[Finding]:
    """Judge shares of the peaks, and the peaks by the data sheet."""
    sheet = next((rates for name, rates in _DATA_SHEETS.items() if name in answers["card"]), None)
    peaks = {name: Peaks.from_json(found["peaks"]) for name, found in answers["precisions"].items()}
    for number, (name, found) in enumerate(answers["precisions"].items()):
        # a peak is the best of several shapes, and clocks move by a per cent between two measurements
        yield between(f"{name}: a product / peak", found["product_flop_per_s"] / peaks[name].flop_per_s, 0.85, 1.02)
        rate = f"{peaks[name].flop_per_s / 1e12:.3g} TFLOP/s"
        if sheet is None:
            yield stated(f"{name}: peak", f"{rate}; no data sheet of {answers['card']} is known")
        else:
            yield between(f"{name}: peak ({rate}) / data sheet", peaks[name].flop_per_s / sheet[number], 0.7, 1.02)
    bandwidth = peaks["float32"].memory_bytes_per_s
    yield between("a copy / peak", answers["copy_bytes_per_s"] / bandwidth, 0.85, 1.02)
    if sheet is not None:
        yield between(f"bandwidth ({bandwidth / 1e12:.3g} TB/s) / data sheet", bandwidth / sheet[-1], 0.7, 1.02)


def measure_modes(card: Card) -> dict[str, Any]:
    """Run sema_micro in every mode, compile two sizes, and train it with both kinds of autocast."""
    shapes: list[tuple[int, dict[str, Any]]] = [
        (224, {"mode": "eager"}),
        (224, {"mode": "optimized"}),
        (224, {"mode": "cuda-graphs"}),
        (224, {"mode": "compile"}),
        (256, {"mode": "compile"}),
        (224, {"mode": "compile-reduce-overhead"}),
        (224, {"step": "train"}),
        (224, {"step": "train", "checkpointing": True}),
    ]
    cells = [card.cell("sema_micro", pixels, **axes) for pixels, axes in shapes]
    records = card.run([[cell] for cell in cells], ("memory", "throughput"), time_limit_s=1.0)
    compiled = [record.value("compile_s") for record in records if record.cell.mode == "compile"]
    return {
        "modes": {record.cell.id: status_of(record) for record in records},
        "compile_s": compiled,
        "peak_bytes": {
            "train": records[-2].value("peak_memory_bytes"),
            "checkpointing": records[-1].value("peak_memory_bytes"),
        },
        "losses": {amp: _losses(card, amp) for amp in ("bfloat16", "float16")},
    }


def _losses(card: Card, amp: str) -> list[float]:
    """Train sema_micro on digits for some steps; return the losses, none without the extra ``train``."""
    if missing_libraries():
        return []
    from sema_bench.training.devices import Distributed  # these need that extra
    from sema_bench.training.trainer import METRICS_LOG, Trainer

    body = {
        "res": 64,
        "epochs": card.count(4),
        "epoch_images": 64,
        "batch": 8,
        "lr": 1e-3,
        "warmup_epochs": 0.5,
        "amp": amp,
    }
    job = Job("sema_micro[head=max]", parse_data("digits:field,images=32"), parse_recipe(body, source="gpu"), 0, 0)
    with tempfile.TemporaryDirectory() as folder, TrainingDisplay(quiet=True) as display:
        Trainer(job, Path(folder), Distributed(0, 1, torch.device(card.device)), display).run()
        entries = read_metrics(Path(folder) / METRICS_LOG)
    return [float(entry["loss"]) for entry in entries if "loss" in entry]


def judge_modes(answers: Answers) -> Iterator[Finding]:
    """Every mode runs, each size compiles afresh, and a training learns."""
    for name, status in answers["modes"].items():
        yield holds(name, status == "ok", status, "ok")
    first, second = answers["compile_s"]
    yield between("compile_s of the second size / of the first", ratio(second, first), 0.5, None)
    peaks = answers["peak_bytes"]
    yield between("peak with checkpointing / without", ratio(peaks["checkpointing"], peaks["train"]), None, 1)
    for amp, losses in answers["losses"].items():
        quarter = max(1, len(losses) // 4)
        early, late = (sum(part) / quarter for part in (losses[:quarter], losses[-quarter:]))
        yield between(f"training in {amp}: last losses / first", late / early if losses else None, None, 0.999)


def measure_noise(card: Card) -> dict[str, Any]:
    """Measure copies of a cell beside each other, and a gate whose head is known to be slower."""
    copies: dict[str, Any] = {}
    for batch in card.some((1, 32)):
        records = card.copies(card.cell("sema_tiny", 224, batch=card.count(batch)), 5, time_limit_s=2.0)
        medians = [record.value("latency_s") for record in records]
        copies[f"b{batch}"] = {"statuses": [status_of(record) for record in records], "medians_s": medians}
    cell = card.cell("sema_tiny", 224, batch=card.count(32))
    (trial,) = run_trials(
        [cell],
        [("alone", _SLOWER, 0)],
        sampling=Sampling(time_limit_s=card.seconds(2.0)),
        settings=GateTable(budget_s=card.seconds(180.0)),
        command=card.worker_command or Arm.command,
    )
    (judgement,) = judge(trial.evidence).values()
    return {"copies": copies, "gate": {"verdict": judgement.verdict, "ratio": judgement.ratio}}


def judge_noise(answers: Answers) -> Iterator[Finding]:
    """Copies agree, and the gate finds what was injected."""
    for name, found in answers["copies"].items():
        ok = all(status == "ok" for status in found["statuses"])
        half_width = 100 * Spread(tuple(found["medians_s"]), interval=None).half_width if ok else math.nan
        yield between(f"five copies of sema_tiny 224 {name}: 95 % half-width", half_width, None, 1, " %")
    gate = answers["gate"]
    yield holds(f"gate, {_SLOWER:.0%} injected", gate["verdict"] == REGRESSION, gate["verdict"], REGRESSION)
    slower = None if gate["ratio"] is None else 100 * (gate["ratio"] - 1)
    yield between("slowdown that it found", slower, 8, 12, " %")


def measure_curve(card: Card) -> dict[str, Any]:
    """Measure four models over three sizes and two batches, in bfloat16 under CUDA graphs."""
    groups = [
        [
            card.cell(model, pixels, batch=card.count(batch), dtype="bfloat16", mode="cuda-graphs")
            for model in card.some((*_LINEAR, *_QUADRATIC))
        ]
        for batch in card.some((1, 32))
        for pixels in (224, 512, 1024)
    ]
    records = card.run(groups, ("throughput",), time_limit_s=2.0)
    metrics = ("latency_s", "launch_share")
    return {
        "cells": [
            {
                "model": record.cell.model,
                "batch": record.cell.batch,
                "pixels": record.cell.resolution.pixels,
                "status": status_of(record),
                **{name: measured.value for name in metrics if (measured := record.measurements.get(name))},
            }
            for record in records
        ]
    }


def judge_curve(answers: Answers) -> Iterator[Finding]:
    """Fit the exponent of each curve; those of linear models are judged."""
    curves: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for cell in answers["cells"]:
        curves[cell["model"], cell["batch"]].append(cell)
    for (model, batch), cells in curves.items():
        name = f"{model} b{batch}"
        failed = [f"{cell['pixels']} pixels: {cell['status']}" for cell in cells if cell["status"] != "ok"]
        out_of_memory = all(cell["status"].startswith(("ok", "oom")) for cell in cells)
        if failed:
            yield holds(f"{name}: all sizes run", None if out_of_memory else False, failed, "ok")
            continue
        if any(cell.get("launch_share", 0.0) >= _LAUNCH_BOUND for cell in cells):
            yield stated(f"{name}: exponent of latency", "not judged: bound by kernel launches")
            continue
        exponent = fit_power_law((cell["pixels"], cell["latency_s"]) for cell in cells).exponent.value
        if model in _LINEAR:
            yield between(f"{name}: exponent of latency", exponent, None, 1.15)
        else:
            yield stated(f"{name}: exponent of latency", exponent)
