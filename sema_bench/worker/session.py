"""Hold the workload of one cell at a time and answer requests about it.

A model's code can do more than compute. Each cell starts from the settings of torch that the worker started with; a
cell whose model changes them, or forks, ends in an error. A forked child never answers.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
import traceback
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import torch

import sema
from sema_bench.analysis.roofline import Peaks
from sema_bench.errors import ProbeError, UsageError, first_line, is_out_of_memory
from sema_bench.machine.torch_settings import THREADS, first_change, put_back, read_settings
from sema_bench.spec import units as fmt
from sema_bench.spec.cell import Cell
from sema_bench.spec.probes import PROBES
from sema_bench.worker import protocol
from sema_bench.worker.build_model import SizeNotSupportedError, why_too_small_to_train
from sema_bench.worker.cell_evaluation import evaluation_of
from sema_bench.worker.evaluation import Evaluation, accuracy_measurements
from sema_bench.worker.extra_work import slow_down
from sema_bench.worker.peak_rates import measure_peaks
from sema_bench.worker.probes.base import Findings
from sema_bench.worker.stopwatch import Stopwatch
from sema_bench.worker.workload import Workload, apply_global_settings, free_memory, graph_partitions, skipped_graphs

#: One entry for each fork of this process. ``subprocess`` starts another program and does not count.
_forks: list[None] = []
os.register_at_fork(after_in_parent=lambda: _forks.append(None))


class Session:
    """The state of a worker between requests, with a method for each kind of request."""

    def __init__(self) -> None:
        self._settings_at_start = read_settings()
        self._settings = self._settings_at_start
        self._forks_before, self._skipped_before = len(_forks), skipped_graphs()
        self._workload: Workload | None = None
        self._stopwatch: Stopwatch | None = None
        self._evaluation: tuple[Cell, Evaluation] | None = None

    def inspect(self, request: protocol.Inspect) -> Findings:
        workload = self._build(request.workload)
        probes = [PROBES.load(name)() for name in request.probes]
        findings = functools.reduce(operator.add, [probe.measure(workload) for probe in probes], Findings(()))
        if not all(probe.on_meta for probe in probes):  # no setting changes a count of shapes
            self._check_process(workload)
        return findings + Findings((), workload.model_details())

    def prepare(self, request: protocol.Prepare) -> protocol.Prepared:
        workload = self._build(request.workload)
        if request.extra_work:
            slow_down(workload, request.extra_work)
        stopwatch = self._stopwatch = Stopwatch(workload)
        first, fresh = stopwatch.first_forward()
        enough_time = first < request.time_limit_s or workload.cell.compiled
        times, warm = stopwatch.warm_up(request.warmup_limit_s) if enough_time else ([], False)
        self._check_process(workload)
        graphs: dict[str, int | None] = {}
        if workload.replays_graphs:
            partitions = graph_partitions(workload.device)
            graphs = {"cudagraph_skips": self._skipped(), "cudagraph_partitions": partitions}
        winograd = {"winograd": True} if workload.may_use_winograd() else {}
        return protocol.Prepared(
            first_forward_s=first,
            warmup_s=tuple(times),
            warm=warm,
            fresh=fresh,
            traffic_bytes=workload.weights_bytes() + workload.input.nbytes + stopwatch.output_bytes,
            details=workload.model_details() | workload.mode_details() | graphs | winograd,
        )

    def sample(self, request: protocol.Sample) -> protocol.Samples:
        stopwatch = self._prepared()
        stopwatch.sample(request.settle)
        samples = stopwatch.sample(request.count, limit_s=request.limit_s)
        self._check_process(stopwatch.workload)
        return samples

    def clocks(self, request: protocol.CompareClocks) -> protocol.ClockReadings:
        return self._prepared().two_clocks(request.count)

    def evaluate(self, request: protocol.Evaluate) -> protocol.Evaluated:
        cell = request.workload.cell
        if self._evaluation is None or self._evaluation[0] != cell:
            self._evaluation = None
            self._evaluation = (cell, evaluation_of(self._build(request.workload), request.tally, request.settings))
        evaluation, unfinished = self._evaluation[1], self._evaluation
        self._evaluation = None  # unless it is to be continued
        done = evaluation.advance(request.seconds)
        self._check_settings()
        if done:
            findings = Findings(accuracy_measurements(evaluation.tally), evaluation.stated())
            return protocol.Evaluated(evaluation.tally, evaluation.total, findings)
        self._evaluation = unfinished
        return protocol.Evaluated(evaluation.tally, evaluation.total)

    def release(self, request: protocol.Release) -> None:
        self._stopwatch = None
        if self._workload is not None:
            self._workload.reset_size()
        free_memory()

    def origin(self, request: protocol.FindOrigin) -> protocol.Origin:
        return protocol.Origin(sema.__file__, torch.__version__)

    def peaks(self, request: protocol.MeasurePeaks) -> Peaks:
        self._apply_settings(request.cell)
        return measure_peaks(torch.device(request.cell.device), getattr(torch, request.cell.dtype))

    def memory(self, request: protocol.ReadFreeMemory) -> protocol.FreeMemory:
        return protocol.FreeMemory(torch.cuda.mem_get_info(request.device)[0])

    def _prepared(self) -> Stopwatch:
        if self._stopwatch is None:
            raise ProbeError("nothing is prepared")
        return self._stopwatch

    def _apply_settings(self, cell: Cell) -> None:
        put_back({**self._settings_at_start, THREADS: cell.threads})  # the last model may have changed them
        apply_global_settings(cell)
        self._settings = read_settings()
        self._forks_before, self._skipped_before = len(_forks), skipped_graphs()

    def _build(self, spec: protocol.WorkloadSpec) -> Workload:
        cell = spec.cell
        self._apply_settings(cell)
        held, self._workload = self._workload, None
        if held is not None and _same_model(held.cell, cell):
            self._workload = held.resized(cell)
        else:
            del held  # two models may not fit
            self._workload = Workload(cell, seed=spec.seed, weights=spec.weights)
        return self._workload

    def _check_process(self, workload: Workload) -> None:
        """Raise an error if what ran is not the cell that was asked for.

        Raises:
            ProbeError: the model forked (a compiler may) or changed a setting, or a compiler skipped CUDA graphs.
            MemoryError: the card's memory spilled into the host's.
        """
        if len(_forks) > self._forks_before and not workload.cell.compiled:
            raise ProbeError("the model forked the worker; a cell is measured in one process; take os.fork out of it")
        if workload.replays_graphs and self._skipped():
            raise ProbeError(
                f"the compiler skipped {fmt.counted(self._skipped(), 'CUDA graph')}, which mode {workload.cell.mode} "
                "is for; use mode compile, or run with TORCH_LOGS=cudagraphs to see why"
            )
        workload.check_spill()
        self._check_settings()

    def _skipped(self) -> int:
        """Count the CUDA graphs skipped since this cell was built."""
        return skipped_graphs() - self._skipped_before

    def _check_settings(self) -> None:
        if change := first_change(self._settings):
            raise ProbeError(change)


def serve(requests: Iterable[str], answers: TextIO) -> None:
    """Answer requests until the input ends."""
    session, process = Session(), os.getpid()
    for line in requests:
        number, request = protocol.decode_request(line)
        handler: Callable[[Any], object] = getattr(session, request.do)
        try:
            answer = handler(request)
        except Exception as problem:  # any failure of a model or a probe is the cell's result
            answer = _describe(problem)
        if os.getpid() != process:  # a model forked, and this is the child: only one process answers
            os._exit(1)
        answers.write(protocol.encode_answer(number, answer))
        answers.flush()


def _same_model(a: Cell, b: Cell) -> bool:
    return dataclasses.replace(a, height=b.height, width=b.width, batch=b.batch) == b


def _describe(problem: Exception) -> protocol.Failure:
    line = first_line(problem, most=500)
    if reason := line if isinstance(problem, SizeNotSupportedError) else why_too_small_to_train(problem):
        return protocol.Failure("skipped", reason)
    if is_out_of_memory(problem):
        free_memory()
        return protocol.Failure("oom", line)
    message = line if isinstance(problem, (ProbeError, UsageError)) else f"{type(problem).__name__}: {line}"
    unknown = {"unknown": "yes"} if isinstance(problem, UsageError) else {}
    return protocol.Failure("error", message[:500], {"traceback": traceback.format_exc()[-8000:], **unknown})
