"""The messages between driver and worker: a frozen dataclass for each request and each answer, one line of JSON each.

A request is ``{"number": 3, "do": "sample", "count": 5, "settle": 1}``. Its answer repeats the number and holds its
fields under ``ok``, or those of a ``Failure`` under ``error``. A field is a number, text, a path, ``X | None``, a tuple
or another dataclass; only ``details`` are free. The first line of a worker is ``READY``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast, get_args, get_origin, get_type_hints

from sema_bench.analysis.roofline import Peaks
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement
from sema_bench.spec.sampling import EvaluationSettings

READY = '{"ready": true}'

A = TypeVar("A")
_requests: dict[str, type[Request[Any]]] = {}


class Request(Generic[A]):
    """A request; ``A`` is the type of its answer.

    Attributes:
        do: its name on the wire and in messages; the worker's session has a method of this name.
        answer: the type of its answer.
    """

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
class Inspected:
    """The results of inspect probes."""

    measurements: tuple[Measurement, ...]
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Inspect(Request[Inspected], do="inspect"):
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
        fresh: whether no compiler's cache made the first step short.
        traffic_bytes: bytes to move at least: weights, input and output.
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
    """Build a workload, take its first step and warm it up.

    Attributes:
        time_limit_s: a first step that takes longer gets no warm-up.
        warmup_limit_s: the longest warm-up.
        extra_work: share of its time by which each step is made slower, to test the gate.
    """

    workload: WorkloadSpec
    time_limit_s: float
    warmup_limit_s: float
    extra_work: float = 0.0


@dataclass(frozen=True)
class Samples:
    """Raw samples, one entry per step.

    Attributes:
        wall_s: wall time (CPU) or event time (CUDA).
        cpu_s: CPU time of the worker, all threads.
        page_faults: minor page faults of the worker.
        switches: involuntary context switches of the worker.
    """

    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    page_faults: tuple[float, ...]
    switches: tuple[float, ...]

    def __add__(self, later: Samples) -> Samples:
        return Samples(
            self.wall_s + later.wall_s,
            self.cpu_s + later.cpu_s,
            self.page_faults + later.page_faults,
            self.switches + later.switches,
        )


NO_SAMPLES = Samples((), (), (), ())


@dataclass(frozen=True)
class Sample(Request[Samples], do="sample"):
    """Take ``settle`` steps untimed, then time ``count``."""

    count: int
    settle: int = 0


@dataclass(frozen=True)
class Tally:
    """The counts of an evaluation over the images before ``position``.

    Attributes:
        unreadable_named: (name, reason) of the first unreadable images.
        waited_s, took_s: time spent waiting for images, and in all.
        mark: identity of the image set; an evaluation is never resumed on different images.
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


@dataclass(frozen=True)
class Evaluated:
    """How far an evaluation has come; it has measurements and details once it is done."""

    done: bool
    tally: Tally
    images: int
    measurements: tuple[Measurement, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluate(Request[Evaluated], do="evaluate"):
    """Continue the evaluation of a cell for some seconds; start it from ``tally`` if the worker has another one."""

    workload: WorkloadSpec
    tally: Tally | None
    seconds: float
    settings: EvaluationSettings


@dataclass(frozen=True)
class ClockReadings:
    """The same steps, timed by two clocks.

    Attributes:
        names: of both clocks; the first is the one that samples are taken with.
        first_s, second_s: one entry per step.
        resolution_s: smallest step of the first clock.
    """

    names: tuple[str, str]
    first_s: tuple[float, ...]
    second_s: tuple[float, ...]
    resolution_s: float


@dataclass(frozen=True)
class CompareClocks(Request[ClockReadings], do="clocks"):
    """Time the same steps with two clocks."""

    count: int


@dataclass(frozen=True)
class Released:
    """The workload is gone."""


@dataclass(frozen=True)
class Release(Request[Released], do="release"):
    """Drop the input and free what can be freed; the model stays for the next size."""


@dataclass(frozen=True)
class Origin:
    """Where the models come from: the file of ``sema``, and the version of torch."""

    sema: str | None
    torch: str


@dataclass(frozen=True)
class FindOrigin(Request[Origin], do="origin"):
    """Say where the models come from."""


@dataclass(frozen=True)
class MeasurePeaks(Request[Peaks], do="peaks"):
    """Measure the peak rates of a device."""

    device: str
    dtype: str
    tf32: bool
    threads: int


@dataclass(frozen=True)
class Failure:
    """A request that failed.

    Attributes:
        status: the cell's status.
        message: one line.
        traceback: more of it, for ``error``.
        unknown: whether there is no such model.
    """

    status: str
    message: str
    traceback: str = ""
    unknown: bool = False


def encode_request(number: int, request: Request[Any]) -> str:
    """Write a request as one line."""
    return json.dumps({"number": number, "do": request.do, **_fields(request)}, default=_to_json) + "\n"


def decode_request(line: str) -> tuple[int, Request[Any]]:
    """Read the line of a request."""
    body = json.loads(line)
    return body["number"], from_json(_requests[body["do"]], body)


def encode_answer(number: int, answer: object) -> str:
    """Write the answer to request ``number`` as one line."""
    key = "error" if isinstance(answer, Failure) else "ok"
    return json.dumps({"number": number, key: answer}, default=_to_json, allow_nan=False) + "\n"


def decode_answer(line: bytes, number: int, request: Request[A]) -> A | Failure:
    """Read the answer to request ``number``.

    Raises:
        ValueError: the line is something else; the message goes on from "the worker".
    """
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("sent something that is not JSON") from None
    if not isinstance(body, dict) or body.get("number") != number:
        raise ValueError("sent an answer to another request; a model's code may not fork or write to its pipe")
    for kind, fields in ((Failure, body.get("error")), (request.answer, body.get("ok"))):
        if isinstance(fields, dict) and not _missing(kind, fields):
            try:
                return cast("A | Failure", from_json(kind, fields))
            except (ValueError, TypeError) as problem:
                raise ValueError(f"sent an answer to {request.do!r} that is wrong: {problem}") from None
    missing = _missing(request.answer, body.get("ok"))
    raise ValueError(f"sent an answer to {request.do!r} without {', '.join(missing) or 'a result'}")


def from_json(kind: Any, value: Any) -> Any:
    """Make a ``kind`` of plain JSON.

    Raises:
        ValueError, TypeError: the value is something else.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if hasattr(kind, "__dataclass_fields__"):
        if missing := _missing(kind, value):
            raise ValueError(f"{getattr(kind, '__name__', kind)} without {', '.join(missing)}")
        return kind(**{name: from_json(each, value[name]) for name, each in _kinds(kind).items() if name in value})
    if type(None) in arguments:
        return None if value is None else from_json(arguments[0], value)
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(from_json(each, item) for each, item in zip(kinds, value, strict=True))
    if kind is Path:
        return Path(value)
    if not isinstance(value, (int, float) if kind is float else origin or kind):
        raise TypeError(f"got {type(value).__name__}, expected {getattr(kind, '__name__', kind)}")
    return value


def _to_json(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else _fields(value)


def _fields(value: Any) -> dict[str, Any]:
    return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}


@functools.cache
def _kinds(kind: Any) -> dict[str, Any]:
    """Map each field of a dataclass to its type."""
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in dataclasses.fields(kind)}


def _missing(kind: Any, body: object) -> list[str]:
    """List the fields without a default that ``body`` lacks."""
    have = body if isinstance(body, dict) else {}
    none = dataclasses.MISSING
    required = (each.name for each in dataclasses.fields(kind) if each.default is none and each.default_factory is none)
    return sorted(name for name in required if name not in have)
