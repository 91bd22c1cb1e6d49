"""The messages between driver and worker: a frozen dataclass for each request and each answer, one line of JSON each.

A request is ``{"number": 3, "do": "sample", "count": 5, "settle": 1}``. Its answer repeats the number and holds its
fields under ``ok``, or those of a ``Failure`` under ``error``. The first line of a worker is ``READY``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from sema_bench.analysis.roofline import Peaks
from sema_bench.spec.cell import Cell
from sema_bench.spec.sampling import EvaluationSettings
from sema_bench.text.plain_json import read_json
from sema_bench.worker.probes.base import Findings

READY = '{"ready": true}'

A = TypeVar("A")
T = TypeVar("T")
_requests: dict[str, type[Request[Any]]] = {}


class Request(Generic[A]):
    """A request; ``A`` is the type of its answer, and ``do`` names the method of the worker's session."""

    do: ClassVar[str]
    answer: ClassVar[type[Any]]

    def __init_subclass__(cls, do: str) -> None:
        cls.do = do
        (cls.answer,) = get_args(vars(cls)["__orig_bases__"][0])
        _requests[do] = cls


@dataclass(frozen=True)
class WorkloadSpec:
    """A cell to build, the seed of its weights and its input, and its checkpoint if it has one."""

    cell: Cell
    seed: int
    weights: Path | None = None


@dataclass(frozen=True)
class Inspect(Request[Findings], do="inspect"):
    """Run the inspect probes of these names."""

    workload: WorkloadSpec
    probes: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """A workload that is ready to be sampled.

    Attributes:
        first_forward_s: wall time of the first step, compilation included.
        warmup_s: wall times of the steps after it.
        warm: whether the last three of them agree.
        fresh: whether no compiler cache shortened the first step.
        traffic_bytes: lower bound of the bytes to move: weights, input and output.
    """

    first_forward_s: float
    warmup_s: tuple[float, ...]
    warm: bool
    fresh: bool = False
    traffic_bytes: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def latency_s(self) -> float:
        """Wall time of the latest step."""
        return self.warmup_s[-1] if self.warmup_s else self.first_forward_s


@dataclass(frozen=True)
class Prepare(Request[Prepared], do="prepare"):
    """Build a workload, take its first step and, unless that takes longer than ``time_limit_s``, warm it up.

    To test the gate, ``extra_work`` slows each step down by that share of its time.
    """

    workload: WorkloadSpec
    time_limit_s: float
    warmup_limit_s: float
    extra_work: float = 0.0


@dataclass(frozen=True)
class Samples:
    """Raw samples, one entry per step: wall time (CPU) or event time (CUDA); CPU time of all threads of the worker.

    Page faults are minor ones, and context switches involuntary ones. ``launch_s`` is the host's time to launch the
    step (CUDA). ``backbone_s`` and ``neck_s`` are parts of a detector's or segmenter's time; the rest is the head's.
    """

    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    page_faults: tuple[int, ...]
    switches: tuple[int, ...]
    launch_s: tuple[float, ...] = ()
    backbone_s: tuple[float, ...] = ()
    neck_s: tuple[float, ...] = ()

    def __add__(self, later: Samples) -> Samples:
        return Samples(*(getattr(self, name) + getattr(later, name) for name in self.__dataclass_fields__))


NO_SAMPLES = Samples((), (), (), ())


@dataclass(frozen=True)
class Sample(Request[Samples], do="sample"):
    """Take ``settle`` steps untimed, then time ``count``; stop early once they exceed ``limit_s``."""

    count: int
    settle: int = 0
    limit_s: float | None = None


@dataclass(frozen=True)
class Tally:
    """The counts of an evaluation over the images before ``position``.

    Attributes:
        unreadable_named: (name, reason) of the first unreadable images.
        waited_s: part of ``took_s`` spent waiting for images.
        mark: identity of the image set; an evaluation is never resumed on different images.
        areas: of segmentations, flat; see ``worker.overlap``.
    """

    position: int = 0
    correct: int = 0
    correct_top5: int = 0
    seen: int = 0
    unreadable: int = 0
    unreadable_named: tuple[tuple[str, str], ...] = ()
    waited_s: float = 0.0
    took_s: float = 0.0
    mark: str = ""
    areas: tuple[int, ...] = ()


@dataclass(frozen=True)
class Evaluated:
    """The progress of an evaluation over ``images``; it has findings once it is done."""

    tally: Tally
    images: int
    findings: Findings | None = None


@dataclass(frozen=True)
class Evaluate(Request[Evaluated], do="evaluate"):
    """Continue the evaluation of a cell for some seconds; a worker new to it resumes from ``tally``."""

    workload: WorkloadSpec
    tally: Tally
    seconds: float
    settings: EvaluationSettings


@dataclass(frozen=True)
class ClockReadings:
    """The same steps, timed by the clock of the samples, whose smallest tick is ``resolution_s``, and by another."""

    names: tuple[str, str]
    first_s: tuple[float, ...]
    second_s: tuple[float, ...]
    resolution_s: float


@dataclass(frozen=True)
class CompareClocks(Request[ClockReadings], do="clocks"):
    """Time the same steps with two clocks."""

    count: int


@dataclass(frozen=True)
class Release(Request[None], do="release"):
    """Drop the input and free what can be freed; the model stays for the next size."""


@dataclass(frozen=True)
class Origin:
    """The file that ``sema`` was imported from, and the version of torch."""

    sema: str | None
    torch: str


@dataclass(frozen=True)
class FindOrigin(Request[Origin], do="origin"):
    """Name the code that the models come from."""


@dataclass(frozen=True)
class MeasurePeaks(Request[Peaks], do="peaks"):
    """Measure the peak rates that apply to a cell."""

    cell: Cell


@dataclass(frozen=True)
class FreeMemory:
    """Memory of a card that no process holds."""

    free_bytes: int


@dataclass(frozen=True)
class ReadFreeMemory(Request[FreeMemory], do="memory"):
    """Read the free memory of a CUDA device through torch."""

    device: str


@dataclass(frozen=True)
class Failure:
    """A request that failed: the cell's status, one line, and details: a traceback, "unknown" for an unknown model."""

    status: str
    message: str
    details: Mapping[str, str] = field(default_factory=dict)


def encode_request(number: int, request: Request[Any]) -> str:
    """Write a request as one line."""
    return json.dumps({"number": number, "do": request.do, **_fields(request)}, default=_to_json) + "\n"


def decode_request(line: str) -> tuple[int, Request[Any]]:
    """Read the line of a request."""
    body = json.loads(line)
    kind: Any = _requests[body["do"]]  # to mypy a class is not hashable
    # not by ``from_json``: a path that is not UTF-8 has lone surrogates
    return body["number"], _adapter(kind).validate_python(body)


def encode_answer(number: int, answer: object) -> str:
    """Write the answer to request ``number`` as one line; raise ValueError if it holds NaN or infinity."""
    key = "error" if isinstance(answer, Failure) else "ok"
    return json.dumps({"number": number, key: answer}, default=_to_json, allow_nan=False) + "\n"


def decode_answer(line: bytes, number: int, request: Request[A]) -> A | Failure:
    """Read the answer to request ``number``; raise ValueError with the rest of a sentence about the worker."""
    try:
        body = read_json(line)
    except ValueError:
        raise ValueError("sent something that is not JSON") from None
    if not isinstance(body, dict) or body.get("number") != number:
        raise ValueError("sent an answer to another request; a model's code may not fork or write to its pipe")
    try:
        if "error" in body:
            return from_json(Failure, body["error"])
        answer: A = from_json(request.answer, body.get("ok", {}))
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"sent a wrong answer to {request.do!r}: {where and where + ': '}{first['msg']}") from None
    return answer


def from_json(kind: type[T], body: Any) -> T:
    """Make a ``kind`` of plain JSON; raise ValueError if ``body`` is something else. Text is not taken for a number."""
    made: T = _adapter(kind).validate_json(json.dumps(body), strict=True)  # type: ignore[arg-type] # not hashable
    return made


def _to_json(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else _fields(value)


def _fields(value: Any) -> dict[str, Any]:
    """List the fields of a dataclass; ``asdict`` would copy every sample while a cell is sampled."""
    return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
