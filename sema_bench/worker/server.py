"""A worker: a process that holds one model and does what the executor asks, one JSON object per line.

``python -m sema_bench.worker.server --allocator retain`` reads requests on stdin and answers on stdout. What
the model or a library prints goes to stderr. A worker dies with its parent, however the parent dies,
and offers itself to the kernel first when memory runs out.

Requests: ``inspect`` {cell, seed, weights, probes}; ``prepare`` {cell, seed, weights, time_limit_s, warmup_limit_s};
``sample`` {count, settle}; ``evaluate`` {cell, seed, weights, tally, seconds, settings}; ``clocks`` {count};
``release`` {}; ``origin`` {}; ``peaks`` {device, dtype, tf32, threads}. Each has a ``number``, which its answer
repeats. The first line out is {"ready": true}; an answer is {"number", "ok": …} or {"number", "error": {"status",
"message", "traceback"}}, with "unknown" where there is no such model.

A model's code can do more than compute. Each cell starts from the settings of torch that the worker started with; one
whose model changes them, or forks, ends in an error. A forked child never answers.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sema_bench.machine.processes import die_with_parent, let_libraries_warn
from sema_bench.spec.cell import Cell
from sema_bench.worker.allocator import set_allocator, trim_heap


class _Forks:
    """Counts how often this process forks. ``subprocess`` starts another program and does not count."""

    count = 0

    @classmethod
    def add(cls) -> None:
        cls.count += 1


os.register_at_fork(after_in_parent=_Forks.add)


class Session:
    """What a worker holds between requests: the workload of the current cell and its stopwatch."""

    def __init__(self) -> None:
        from sema_bench.machine.torch_settings import read_settings

        self._settings_at_start = read_settings()
        self._settings = self._settings_at_start
        self._forks = _Forks.count
        self._workload: Any = None
        self._stopwatch: Any = None
        self._evaluation: tuple[Cell, Any] | None = None

    def inspect(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run inspect probes on a cell."""
        from sema_bench.spec.probes import PROBES

        workload = self._workload_of(request)
        measurements: list[dict[str, Any]] = []
        details: dict[str, Any] = {}
        for name in request["probes"]:
            findings = PROBES.load(name)().measure(workload)
            measurements += [dataclasses.asdict(m) for m in findings.measurements]
            details |= findings.details
        if not all(PROBES.load(name).on_meta for name in request["probes"]):  # no setting changes a count of shapes
            self._check_process(workload.cell)
        return {"measurements": measurements, "details": details | _model_files(workload)}

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Build a cell, run it for the first time and warm it up."""
        from sema_bench.worker.probes.throughput import Stopwatch

        workload = self._workload_of(request)
        if request.get("extra_work"):
            from sema_bench.worker.extra_work import slow_down

            slow_down(workload, request["extra_work"])
        self._stopwatch = Stopwatch(workload)
        first, fresh = self._stopwatch.first_forward()
        enough_time = first < request["time_limit_s"] or workload.cell.compiled
        times, warm = self._stopwatch.warm_up(request["warmup_limit_s"]) if enough_time else ([], False)
        self._check_process(workload.cell)
        traffic = workload.weights_bytes() + workload.input.nbytes + self._stopwatch.output_bytes
        return {
            "first_forward_s": first,
            "fresh": fresh,
            "warmup_s": times,
            "warm": warm,
            "traffic_bytes": traffic,
            "details": _model_files(workload)
            | ({"kernels": workload.model.kernels} if workload.cell.mode == "optimized" else {}),
        }

    def peaks(self, request: dict[str, Any]) -> dict[str, Any]:
        """Measure what this device can do at most."""
        import torch

        from sema_bench.worker.peak_rates import measure_peaks

        torch.set_num_threads(request["threads"])
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = request["tf32"]
        return measure_peaks(torch.device(request["device"]), getattr(torch, request["dtype"])).to_json()

    def sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Time forward passes; ``settle`` untimed ones come first."""
        self._stopwatch.sample(request["settle"])
        samples = self._stopwatch.sample(request["count"])
        self._check_process(self._stopwatch.workload.cell)
        return dataclasses.asdict(samples)

    def origin(self, request: dict[str, Any]) -> dict[str, Any]:
        """Tell where the models come from."""
        import torch

        import sema

        return {"sema": sema.__file__, "torch": torch.__version__}

    def clocks(self, request: dict[str, Any]) -> dict[str, Any]:
        """Time the same passes with two clocks."""
        found: dict[str, Any] = self._stopwatch.two_clocks(request["count"])
        return found

    def evaluate(self, request: dict[str, Any]) -> dict[str, Any]:
        """Go on with the evaluation of a cell for some seconds; starts it, at the tally given, if it is another one."""
        from sema_bench.worker.evaluation import Tally, accuracy_measurements, evaluation_of

        cell = Cell(**request["cell"])
        if self._evaluation is None or self._evaluation[0] != cell:
            self._evaluation = None
            tally = Tally(**(request["tally"] or {}))
            found = evaluation_of(self._workload_of(request), tally=tally, **request["settings"])
            self._evaluation = (cell, found)
        evaluation = self._evaluation[1]
        try:
            done = evaluation.advance(request["seconds"])
            self._check_settings()
        except Exception:
            self._evaluation = None
            raise
        tally = evaluation.tally
        if not done:
            return {"done": False, "tally": dataclasses.asdict(tally), "images": evaluation.images}
        self._evaluation = None
        measurements = [dataclasses.asdict(m) for m in accuracy_measurements(tally)]
        return {"done": True, "measurements": measurements, "details": evaluation.stated()}

    def release(self, request: dict[str, Any]) -> dict[str, Any]:
        """Drop the input and free what can be freed; the model stays for the next size."""
        from sema_bench.worker.workload import free_memory

        self._stopwatch = None
        if self._workload is not None:
            self._workload.reset_size()
        free_memory()
        trim_heap()
        return {}

    def _workload_of(self, request: dict[str, Any]) -> Any:
        from sema_bench.machine.torch_settings import THREADS, put_back, read_settings
        from sema_bench.worker.workload import Workload, apply_global_settings

        cell = Cell(**request["cell"])
        put_back({**self._settings_at_start, THREADS: cell.threads})  # the last model may have changed them
        apply_global_settings(cell)
        self._settings, self._forks = read_settings(), _Forks.count
        held = self._workload
        if held is not None and _same_model(held.cell, cell):
            self._workload = held.resized(cell)
        else:
            self._workload = None
            weights = request.get("weights")
            self._workload = Workload(cell, seed=request["seed"], weights=Path(weights) if weights else None)
        return self._workload

    def _check_process(self, cell: Cell) -> None:
        """Refuse a cell whose model changed this process; a compiler may fork processes of its own.

        Raises:
            ProbeError: what it changed.
        """
        from sema_bench.errors import ProbeError

        if _Forks.count > self._forks and not cell.compiled:
            raise ProbeError("the model forked the worker; a cell is measured in one process; take os.fork out of it")
        self._check_settings()

    def _check_settings(self) -> None:
        from sema_bench.errors import ProbeError
        from sema_bench.machine.torch_settings import first_change

        if change := first_change(self._settings):
            raise ProbeError(change)


def serve(requests: Any, answers: Any) -> None:
    """Answer requests until the input ends."""
    session, process = Session(), os.getpid()
    for line in requests:
        request = json.loads(line)
        handler: Callable[[dict[str, Any]], dict[str, Any]] = getattr(session, request["do"])
        try:
            answer: dict[str, Any] = {"ok": handler(request)}
        except Exception as problem:  # any failure of a model or a probe is the cell's result
            answer = {"error": _describe(problem)}
        if os.getpid() != process:  # a model forked, and this is the child: one process answers
            os._exit(1)
        answers.write(json.dumps({"number": request.get("number"), **answer}, allow_nan=False) + "\n")
        answers.flush()


def main() -> None:
    """Start a worker on this process's stdin and stdout."""
    parser = argparse.ArgumentParser(prog="sema_bench.worker.server")
    parser.add_argument("--allocator", required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    die_with_parent(options.parent)
    let_libraries_warn()
    _volunteer_for_oom_kill()
    set_allocator(options.allocator)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # a stray print must not corrupt the protocol
        importlib.import_module("sema_bench.worker.workload")  # torch, while the executor starts the next worker
        answers.write('{"ready": true}\n')
        answers.flush()
        serve(sys.stdin, answers)


def _model_files(workload: Any) -> dict[str, Any]:
    from sema_bench.spec.model_code import MODEL_FILES

    return {MODEL_FILES: files} if (files := workload.model_files()) else {}


def _same_model(a: Cell, b: Cell) -> bool:
    return dataclasses.replace(a, height=b.height, width=b.width, batch=b.batch) == b


def _describe(problem: Exception) -> dict[str, str]:
    from sema_bench.errors import ProbeError, UsageError
    from sema_bench.worker.foreign_model import SizeNotSupportedError
    from sema_bench.worker.workload import free_memory, is_out_of_memory

    lines = [line.strip() for line in str(problem).strip().splitlines() if line.strip()]
    first = lines[0] if lines else type(problem).__name__
    if isinstance(problem, SizeNotSupportedError):
        return {"status": "skipped", "message": first[:500], "traceback": ""}
    if is_out_of_memory(problem):
        free_memory()
        trim_heap()
        return {"status": "oom", "message": first[:500], "traceback": ""}
    message = first if isinstance(problem, (ProbeError, UsageError)) else f"{type(problem).__name__}: {first}"
    told = {"status": "error", "message": message[:500], "traceback": traceback.format_exc()[-8000:]}
    return {**told, "unknown": "yes"} if isinstance(problem, UsageError) else told


def _volunteer_for_oom_kill() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
