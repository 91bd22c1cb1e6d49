"""Checks 4, 6 and 7: graphs keep no stale memory, the columns of memory are right, and running out of it is ``oom``."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

import sema
from sema.kernels.scan_backends import load_scan
from sema.layers.selective_scan import selective_scan
from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.errors import first_line, is_out_of_memory
from sema_bench.machine.devices import free_device_bytes
from sema_bench.spec.cell import MAX_BATCH, Cell
from sema_bench.studies.gpu.check import Answers, Card, Finding, between, error_of, holds, stated, status_of
from sema_bench.worker.protocol import Inspect, Prepare, Release, WorkloadSpec
from sema_bench.worker.workload import CapturedForward, Workload, free_memory, on_device

_GIB = 2**30
_FAMILIES = ("sema_tiny", "swin_tiny", "deit_small", "mila_tiny")
#: A batch above 2 × the chosen one can still fit into the tenth that a search leaves free; above this it cannot.
_SURELY_TOO_MUCH = 2.5


def measure_graphs(card: Card) -> dict[str, Any]:
    """Replay a graph after its weights changed and after another size; run out of memory inside a capture."""
    workload = Workload(card.cell("sema_tiny", 224, mode="cuda-graphs"))
    model, batch = workload.network, workload.input
    with on_device(workload.device), torch.inference_mode():
        step = CapturedForward(model, batch)
        errors = {"replay": error_of(step(), model(batch))}
        for weight in model.parameters():
            weight.mul_(1.01)
        errors["after new weights in place"] = error_of(step(), model(batch))
        other = torch.randn(2, 3, card.size(256), card.size(256), device=workload.device)
        errors["of another size"] = error_of(CapturedForward(model, other)(), model(other))
        errors["after another size"] = error_of(step(), model(batch))
    del step, model, batch, other, workload
    free_memory()
    return {"errors": errors, "statuses": _capture_without_memory(card)}


def _capture_without_memory(card: Card) -> list[str]:
    """Fill the card except for 1 GiB, and ask a worker for a small capture, one too large, and the small one again."""
    small, large = (card.cell("sema_tiny", 224, batch=batch, mode="cuda-graphs") for batch in (1, card.count(512)))
    device = torch.device(card.device)
    with card.worker() as worker:
        statuses = [_prepared(worker, small)]
        free = torch.cuda.mem_get_info(device)[0]
        filler = torch.empty(max(0, free - _GIB) // card.shrink**4, dtype=torch.uint8, device=device)
        statuses += [_prepared(worker, large), _prepared(worker, small)]
        del filler
    free_memory()
    return statuses


def _prepared(worker: WorkerProcess, cell: Cell) -> str:
    try:
        worker.ask(Prepare(WorkloadSpec(cell, 0), 60.0, 1.0), timeout_s=120.0)
    except CellFailure as failure:
        return status_of(failure)
    finally:
        with contextlib.suppress(CellFailure):
            worker.ask(Release(), timeout_s=60.0)
    return "ok"


def judge_graphs(answers: Answers) -> Iterator[Finding]:
    """Judge outputs against eager ones, and the statuses."""
    for name, error in answers["errors"].items():
        yield between(f"replay against eager, {name}", error, None, 1e-5)
    first, large, again = answers["statuses"]
    yield holds("capture with 1 GiB left", (first, large.split(":")[0]) == ("ok", "oom"), large, "oom")
    yield holds("the same worker afterwards", again == "ok", again, "ok")


def measure_memory(card: Card) -> dict[str, Any]:
    """Measure and forecast the memory of four families; see one GiB appear and disappear."""
    cells: dict[str, Any] = {}
    with card.worker() as worker:
        for model in card.some(_FAMILIES):
            for pixels in card.some((224, 1024)):
                for step in ("infer", "train"):
                    cell = card.cell(model, pixels, step=step)
                    try:
                        findings = worker.ask(Inspect(WorkloadSpec(cell, 0), ("memory", "forecast")), timeout_s=300.0)
                        cells[cell.id] = {each.metric: each.value for each in findings.measurements}
                    except CellFailure as failure:
                        cells[cell.id] = {"failure": status_of(failure)}
                    worker.ask(Release(), timeout_s=60.0)
    device = torch.device(card.device)
    before, free_before = torch.cuda.memory_allocated(device), free_device_bytes(card.device)
    size = _GIB // card.shrink**4
    tensor = torch.ones(size, dtype=torch.uint8, device=device)
    torch.cuda.synchronize(device)
    free = free_device_bytes(card.device)
    answers = {
        "cells": cells,
        "tensor_bytes": size,
        "allocated_bytes": torch.cuda.memory_allocated(device) - before,
        "used_bytes": None if free is None or free_before is None else free_before - free,
    }
    del tensor
    free_memory()
    return answers | {"left_bytes": torch.cuda.memory_allocated(device) - before}


def judge_memory(answers: Answers) -> Iterator[Finding]:
    """Judge measured peaks against forecasts, and the process's bytes against the allocator's."""
    mib, size = 2**20, answers["tensor_bytes"]
    for name, values in answers["cells"].items():
        if "predicted_peak_bytes" not in values:
            yield holds(name, False, values.get("failure", "no forecast"), "ok, with a forecast")
            continue
        workspace = values["workspace_bytes"]
        measured, predicted = values["peak_memory_bytes"], values["predicted_peak_bytes"]
        figure = f"{measured / mib:.1f} MiB, forecast {predicted / mib:.1f} MiB"
        close = abs(measured - predicted) <= 0.05 * predicted + workspace
        yield holds(name, close, figure, f"5 % + {workspace / mib:.0f} MiB")
        if process := values.get("device_process_bytes"):
            reserved = values["peak_reserved_bytes"]
            figure = f"{process / mib:.0f} MiB, {reserved / mib:.0f} MiB reserved"
            yield holds(f"{name}: NVML's bytes of the process", process >= reserved, figure, "≥ reserved")
    for key in ("allocated_bytes", "used_bytes"):
        value = answers[key]
        ok = None if value is None else abs(value - size) <= 2 * mib
        yield holds(f"a tensor of {size // mib} MiB, {key}", ok, value, f"{size} ± {2 * mib}")
    yield holds("allocated after it died", answers["left_bytes"] == 0, answers["left_bytes"], "0")


def measure_limits(card: Card) -> dict[str, Any]:
    """Search the largest batch, exceed it, and launch grids of more than 65,535 blocks."""
    probes = ("memory", "throughput")
    (largest,) = card.run([[card.cell("sema_tiny", 224, batch=0, batch_policy="max")]], probes, time_limit_s=6.0)
    beyond: dict[str, str] = {}
    for factor in (1.3, _SURELY_TOO_MUCH):
        batch = round(factor * largest.cell.batch)
        if largest.status == "ok" and batch <= MAX_BATCH:
            (record,) = card.run([[card.cell("sema_tiny", 224, batch=batch)]], probes, time_limit_s=6.0)
            beyond[f"{factor:g}"] = status_of(record)
    shapes = {
        **{f"{windows} windows, {dtype}": functools.partial(_attend_in_windows, card, windows, dtype)
           for windows in ("of one image", "of many images") for dtype in ("float32", "bfloat16")},
        "scan of 8192²": functools.partial(_scan, card),
    }  # fmt: skip
    return {
        "status": status_of(largest),
        "batch": largest.cell.batch,
        "beyond": beyond,
        "shapes": {name: _error_or_problem(work) for name, work in shapes.items()},
    }


def _error_or_problem(work: Callable[[], float]) -> float | str:
    try:
        return work()
    except Exception as problem:  # any failed launch is the answer
        free_memory()
        return f"{'oom: ' if is_out_of_memory(problem) else ''}{type(problem).__name__}: {first_line(problem)}"


@torch.inference_mode()
def _attend_in_windows(card: Card, windows: str, dtype: str) -> float:
    """Attend in 256 × 257 = 65,792 windows; return the error of the last one, compared with that one alone."""
    attention = sema.create_attention("window", dim=32, num_heads=1, window_size=7).eval().to(card.device)
    attention = attention.to(getattr(torch, dtype))
    across, down = card.size(256), card.size(256) + 1
    shape = (1, 7 * across, 7 * down, 32) if windows == "of one image" else (across * down, 7, 7, 32)
    x = torch.randn(shape, device=card.device, dtype=getattr(torch, dtype))
    last = x[-1:, -7:, -7:]
    return error_of(attention(x)[-1:, -7:, -7:], attention(last))


@torch.inference_mode()
def _scan(card: Card) -> float:
    """Scan the 2048² tokens of an image of 8192²; return the error against PyTorch's scan."""
    side, device = card.size(2048), card.device
    directions, channels, states = 2, 4, 1
    u = torch.randn(directions, 1, side, side, channels, device=device)
    delta = 0.3 * torch.rand(directions, 1, side, side, channels, device=device)
    a = -0.1 - 2 * torch.rand(directions, channels, states, device=device)
    b, c = (torch.randn(directions, 1, side, side, states, device=device) for _ in range(2))
    return error_of(load_scan("triton")(u, delta, a, b, c), selective_scan(u, delta, a, b, c))


def judge_limits(answers: Answers) -> Iterator[Finding]:
    """Check that the chosen batch runs, memory runs out far beyond it, and no launch is refused."""
    yield holds(f"--batch max: {answers['batch']}", answers["status"] == "ok", answers["status"], "ok")
    beyond = dict(answers["beyond"])
    last = beyond.pop(f"{_SURELY_TOO_MUCH:g}", None)
    for factor, status in beyond.items():
        yield holds(f"{factor} × that batch", status.split(":")[0] in ("ok", "oom"), status, "ok or oom")
    ok = None if last is None else last.startswith("oom")
    yield holds(f"{_SURELY_TOO_MUCH:g} × that batch", ok, last or "beyond the largest batch of a plan", "oom")
    for name, error in answers["shapes"].items():
        if isinstance(error, str) and error.startswith("oom"):
            yield stated(name, error)
        else:
            limit = 2e-2 if "bfloat16" in name else 1e-4
            ok = not isinstance(error, str) and error <= limit
            yield holds(name, ok, error, f"runs; error ≤ {limit:g}")
