"""Hold the workload of one cell at a time and answer requests about it.

A model's code can do more than compute. Each cell starts from the settings of torch that the worker started with; a
cell whose model changes them, or forks, ends in an error. A forked child never answers.
"""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import torch

import sema
from sema_bench.analysis.roofline import Peaks
from sema_bench.errors import ProbeError, UsageError, first_line, is_out_of_memory
from sema_bench.machine.torch_settings import THREADS, first_change, put_back, read_settings
from sema_bench.spec.cell import Cell
from sema_bench.spec.model_code import MODEL_FILES
from sema_bench.spec.probes import PROBES
from sema_bench.spec.record import Measurement
from sema_bench.worker.allocator import trim_heap
from sema_bench.worker.build_model import SizeNotSupportedError
from sema_bench.worker.evaluation import Evaluation, accuracy_measurements, evaluation_of
from sema_bench.worker.extra_work import slow_down
from sema_bench.worker.peak_rates import measure_peaks
from sema_bench.worker.protocol import (
    ClockReadings,
    CompareClocks,
    Evaluate,
    Evaluated,
    Failure,
    FindOrigin,
    Inspect,
    Inspected,
    MeasurePeaks,
    Origin,
    Prepare,
    Prepared,
    Release,
    Released,
    Sample,
    Samples,
    Tally,
    WorkloadSpec,
    decode_request,
    encode_answer,
)
from sema_bench.worker.stopwatch import Stopwatch
from sema_bench.worker.workload import Workload, apply_global_settings, free_memory


class _Forks:
    """Counts how often this process forks. ``subprocess`` starts another program and does not count."""

    count = 0

    @classmethod
    def add(cls) -> None:
        cls.count += 1


os.register_at_fork(after_in_parent=_Forks.add)


class Session:
    """The state of a worker between requests, with a method for each kind of request."""

    def __init__(self) -> None:
        self._settings_at_start = read_settings()
        self._settings = self._settings_at_start
        self._forks = _Forks.count
        self._workload: Workload | None = None
        self._stopwatch: Stopwatch | None = None
        self._evaluation: tuple[Cell, Evaluation] | None = None

    def inspect(self, request: Inspect) -> Inspected:
        workload = self._build(request.workload)
        probes = [PROBES.load(name)() for name in request.probes]
        measurements: tuple[Measurement, ...] = ()
        details: dict[str, Any] = {}
        for probe in probes:
            findings = probe.measure(workload)
            measurements += findings.measurements
            details |= findings.details
        if not all(probe.on_meta for probe in probes):  # no setting changes a count of shapes
            self._check_process(workload.cell)
        return Inspected(measurements, details | _model_files(workload))

    def prepare(self, request: Prepare) -> Prepared:
        workload = self._build(request.workload)
        if request.extra_work:
            slow_down(workload, request.extra_work)
        stopwatch = self._stopwatch = Stopwatch(workload)
        first, fresh = stopwatch.first_forward()
        enough_time = first < request.time_limit_s or workload.cell.compiled
        times, warm = stopwatch.warm_up(request.warmup_limit_s) if enough_time else ([], False)
        self._check_process(workload.cell)
        kernels = {"kernels": workload.model.kernels} if workload.cell.mode == "optimized" else {}
        return Prepared(
            first_forward_s=first,
            warmup_s=tuple(times),
            warm=warm,
            fresh=fresh,
            traffic_bytes=workload.weights_bytes() + workload.input.nbytes + stopwatch.output_bytes,
            details=_model_files(workload) | kernels,
        )

    def sample(self, request: Sample) -> Samples:
        stopwatch = self._prepared()
        stopwatch.sample(request.settle)
        samples = stopwatch.sample(request.count)
        self._check_process(stopwatch.workload.cell)
        return samples

    def clocks(self, request: CompareClocks) -> ClockReadings:
        return self._prepared().two_clocks(request.count)

    def evaluate(self, request: Evaluate) -> Evaluated:
        cell = request.workload.cell
        if self._evaluation is None or self._evaluation[0] != cell:
            self._evaluation = None
            workload = self._build(request.workload)
            settings = request.settings
            evaluation = evaluation_of(
                workload, tally=request.tally or Tally(), batch=settings.batch, workers=settings.workers
            )
            self._evaluation = (cell, evaluation)
        evaluation = self._evaluation[1]
        try:
            done = evaluation.advance(request.seconds)
            self._check_settings()
        except Exception:
            self._evaluation = None
            raise
        if not done:
            return Evaluated(done, evaluation.tally, evaluation.images)
        self._evaluation = None
        measurements = accuracy_measurements(evaluation.tally)
        return Evaluated(done, evaluation.tally, evaluation.images, measurements, evaluation.stated())

    def release(self, request: Release) -> Released:
        self._stopwatch = None
        if self._workload is not None:
            self._workload.reset_size()
        free_memory()
        trim_heap()
        return Released()

    def origin(self, request: FindOrigin) -> Origin:
        return Origin(sema.__file__, torch.__version__)

    def peaks(self, request: MeasurePeaks) -> Peaks:
        torch.set_num_threads(request.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = request.tf32
        return measure_peaks(torch.device(request.device), getattr(torch, request.dtype))

    def _prepared(self) -> Stopwatch:
        if self._stopwatch is None:
            raise ProbeError("nothing is prepared")
        return self._stopwatch

    def _build(self, spec: WorkloadSpec) -> Workload:
        cell = spec.cell
        put_back({**self._settings_at_start, THREADS: cell.threads})  # the last model may have changed them
        apply_global_settings(cell)
        self._settings, self._forks = read_settings(), _Forks.count
        held, self._workload = self._workload, None
        if held is not None and _same_model(held.cell, cell):
            self._workload = held.resized(cell)
        else:
            del held  # two models may not fit
            self._workload = Workload(cell, seed=spec.seed, weights=spec.weights)
        return self._workload

    def _check_process(self, cell: Cell) -> None:
        """Refuse a cell whose model changed this process; a compiler may fork.

        Raises:
            ProbeError: the model forked, or changed a setting.
        """
        if _Forks.count > self._forks and not cell.compiled:
            raise ProbeError("the model forked the worker; a cell is measured in one process; take os.fork out of it")
        self._check_settings()

    def _check_settings(self) -> None:
        if change := first_change(self._settings):
            raise ProbeError(change)


def serve(requests: Iterable[str], answers: TextIO) -> None:
    """Answer requests until the input ends."""
    session, process = Session(), os.getpid()
    for line in requests:
        number, request = decode_request(line)
        handler: Callable[[Any], object] = getattr(session, request.do)
        try:
            answer = handler(request)
        except Exception as problem:  # any failure of a model or a probe is the cell's result
            answer = _describe(problem)
        if os.getpid() != process:  # a model forked, and this is the child: one process answers
            os._exit(1)
        answers.write(encode_answer(number, answer))
        answers.flush()


def _model_files(workload: Workload) -> dict[str, Any]:
    return {MODEL_FILES: files} if (files := workload.model_files()) else {}


def _same_model(a: Cell, b: Cell) -> bool:
    return dataclasses.replace(a, height=b.height, width=b.width, batch=b.batch) == b


def _describe(problem: Exception) -> Failure:
    line = first_line(problem, most=500)
    if isinstance(problem, SizeNotSupportedError):
        return Failure("skipped", line)
    if is_out_of_memory(problem):
        free_memory()
        trim_heap()
        return Failure("oom", line)
    message = line if isinstance(problem, (ProbeError, UsageError)) else f"{type(problem).__name__}: {line}"
    return Failure("error", message[:500], traceback.format_exc()[-8000:], unknown=isinstance(problem, UsageError))
