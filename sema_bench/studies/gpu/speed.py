"""Checks 11, 15, 16 and 17: peaks, every mode, the noise floor with the gate, and the claim itself, small."""

from __future__ import annotations

import functools
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
from sema_bench.spec.cell import MODES
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.recipe import parse_recipe
from sema_bench.spec.sampling import Sampling
from sema_bench.spec.suite import GateTable
from sema_bench.studies.gpu.check import Answers, Card, Finding, between, holds, ratio, result, stated, status_of
from sema_bench.studies.selftest.selftest import Spread
from sema_bench.training.job import Job, missing_libraries
from sema_bench.training.metrics_log import read_metrics
from sema_bench.worker.peak_rates import best_time
from sema_bench.worker.protocol import MeasurePeaks
from sema_bench.worker.workload import apply_global_settings, on_device

#: Card → dense rates of its data sheet in FLOP/s (float32, TF32, bfloat16), and bytes per second.
_DATA_SHEETS = {
    "H100 80GB HBM3": (67e12, 495e12, 989e12, 3.35e12),
    "H200": (67e12, 495e12, 989e12, 4.8e12),
    "A100-SXM4-80GB": (19.5e12, 156e12, 312e12, 2.039e12),
    "A100-SXM4-40GB": (19.5e12, 156e12, 312e12, 1.555e12),
}
#: Slowdown injected to test the gate.
_SLOWER = 0.10
_LINEAR = ("sema_tiny", "swin_tiny", "vmamba_tiny_s1l8[scan=triton]")
_QUADRATIC = ("deit_small",)
#: From this share of host time on, a curve follows launches, not arithmetic.
_LAUNCH_BOUND = 0.9


def measure_peaks(card: Card) -> dict[str, Any]:
    """Measure peaks as the roofline does, then one more product and one more copy to compare with them."""
    device, side = torch.device(card.device), card.size(8192)
    precisions: dict[str, Any] = {}
    for name, axes in card.precisions.items():
        cell = card.cell("sema_tiny", 224, **axes)
        with card.worker() as worker:
            peaks = worker.ask(MeasurePeaks(cell), timeout_s=300.0)
        apply_global_settings(cell)
        with torch.inference_mode(), on_device(device):
            a = torch.randn(side, side, device=device).to(getattr(torch, cell.dtype))
            took = best_time(functools.partial(torch.mm, a, a), device)
        precisions[name] = {"peaks": peaks.to_json(), "product_flop_per_s": 2 * side**3 / took}
    with torch.inference_mode(), on_device(device):
        source = torch.ones(2**30 // card.shrink**4, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        rate = 2 * source.nbytes / best_time(lambda: target.copy_(source), device)
    name = torch.cuda.get_device_properties(device).name
    return {"card": name, "precisions": precisions, "copy_bytes_per_s": rate}


def judge_peaks(answers: Answers) -> Iterator[Finding]:
    """Judge shares of the peaks, and the peaks against the data sheet."""
    sheet = next((rates for name, rates in _DATA_SHEETS.items() if name in answers["card"]), (None,) * 4)
    peaks = {name: Peaks.from_json(measured["peaks"]) for name, measured in answers["precisions"].items()}
    for number, (name, measured) in enumerate(answers["precisions"].items()):
        # a peak is the best of several shapes, and clocks move by a per cent between two measurements
        peak = peaks[name].flop_per_s
        yield between(f"{name}: a product / peak", measured["product_flop_per_s"] / peak, 0.85, 1.02)
        share = ratio(peak, sheet[number])
        yield between(f"{name}: peak ({peak / 1e12:.3g} TFLOP/s) / data sheet, if known", share, 0.7, 1.02)
    bandwidth = peaks["float32"].memory_bytes_per_s
    yield between("a copy / peak", answers["copy_bytes_per_s"] / bandwidth, 0.85, 1.02)
    share = ratio(bandwidth, sheet[-1])
    yield between(f"bandwidth ({bandwidth / 1e12:.3g} TB/s) / data sheet, if known", share, 0.7, 1.02)


def measure_modes(card: Card) -> dict[str, Any]:
    """Run sema_micro in every mode, compile two sizes, and train it with both kinds of autocast."""
    cells = [card.cell("sema_micro", 224, mode=mode) for mode in MODES]
    cells.append(card.cell("sema_micro", 256, mode="compile"))
    cells += [card.cell("sema_micro", 224, step="train", checkpointing=saves) for saves in (False, True)]
    records = card.run([[cell] for cell in cells], ("memory", "throughput"), time_limit_s=1.0)
    plain, checkpointed = (record.value("peak_memory_bytes") for record in records[-2:])
    return {
        "modes": {record.cell.id: status_of(record) for record in records},
        "compile_s": [record.value("compile_s") for record in records if record.cell.mode == "compile"],
        "peak_bytes": {"train": plain, "checkpointing": checkpointed},
        "losses": {amp: _losses(card, amp) for amp in ("bfloat16", "float16")},
    }


def _losses(card: Card, amp: str) -> list[float]:
    """Train sema_micro on digits for some steps; return the losses, none without the extra ``train``."""
    if missing_libraries():
        return []
    from sema_bench.training.devices import Distributed  # these need that extra
    from sema_bench.training.trainer import METRICS_LOG, Trainer

    sizes = {"res": 64, "epochs": card.count(4), "epoch_images": 64, "batch": 8}
    body = {**sizes, "lr": 1e-3, "warmup_epochs": 0.5, "amp": amp}
    job = Job("sema_micro[head=max]", parse_data("digits:field,images=32"), parse_recipe(body, source="gpu"), 0, 0)
    with tempfile.TemporaryDirectory() as folder, TrainingDisplay(quiet=True) as display:
        Trainer(job, Path(folder), Distributed(0, 1, torch.device(card.device)), display).run()
        entries = read_metrics(Path(folder) / METRICS_LOG)
    return [float(entry["loss"]) for entry in entries if "loss" in entry]


def judge_modes(answers: Answers) -> Iterator[Finding]:
    """Check that every mode runs, each size compiles afresh, and training learns."""
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
    """Measure copies of a cell side by side, and a gate whose head is known to be slower."""
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
    (verdict,) = trial.verdicts.values()
    ratios = [judgement.ratio for judgement in judge(trial.evidence).values()]  # none if time ran out before that
    return {"copies": copies, "gate": {"verdict": verdict, "ratio": ratios[0] if ratios else None}}


def judge_noise(answers: Answers) -> Iterator[Finding]:
    """Check that copies agree, and that the gate finds the injected slowdown."""
    for name, measured in answers["copies"].items():
        ok = all(status == "ok" for status in measured["statuses"])
        half_width = 100 * Spread(tuple(measured["medians_s"]), interval=None).half_width if ok else math.nan
        yield between(f"five copies of sema_tiny 224 {name}: 95 % half-width", half_width, None, 1, " %")
    gate = answers["gate"]
    yield holds(f"gate, {_SLOWER:.0%} injected", gate["verdict"] == REGRESSION, gate["verdict"], REGRESSION)
    slower = None if gate["ratio"] is None else 100 * (gate["ratio"] - 1)
    yield between("its estimate of the slowdown", slower, 8, 12, " %")


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
    return {
        "cells": [
            {
                "model": record.cell.model,
                "batch": record.cell.batch,
                "pixels": record.cell.resolution.pixels,
                **result(record, "latency_s", "launch_share"),
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
        name = f"{model} b{batch}: exponent of latency"
        failed = [f"{cell['pixels']} pixels: {cell['status']}" for cell in cells if cell["status"] != "ok"]
        out_of_memory = all(cell["status"].startswith(("ok", "oom")) for cell in cells)
        if failed:
            yield holds(name, None if out_of_memory else False, failed, "all sizes run")
            continue
        if any((cell["launch_share"] or 0.0) >= _LAUNCH_BOUND for cell in cells):
            yield stated(name, "not judged: bound by kernel launches")
            continue
        exponent = fit_power_law((cell["pixels"], cell["latency_s"]) for cell in cells).exponent.value
        yield between(name, exponent, None, 1.15) if model in _LINEAR else stated(name, exponent)
