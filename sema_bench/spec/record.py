"""Store the outcome of a cell: measurements, environment, record. A record goes to JSON and back without loss."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sema_bench.errors import NewerReleaseError
from sema_bench.spec.cell import Cell
from sema_bench.spec.metrics import METRICS, Metric
from sema_bench.text.plain_json import read_json

SCHEMA_VERSION = 1

STATUSES = ("ok", "skipped", "oom", "timeout", "crashed", "error")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One metric of one cell."""

    metric: str
    value: int | float  # the metric's statistic, in its unit
    ci_low: float | None = None  # 95 % confidence interval of ``value``
    ci_high: float | None = None
    p10: float | None = None  # percentiles of the samples
    p90: float | None = None
    samples: tuple[float, ...] = ()  # in the order they were taken; none for exact metrics

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}; add it to sema_bench/spec/metrics.py")
        bounds = (self.ci_low, self.ci_high, self.p10, self.p90)
        numbers = (self.value, *(bound for bound in bounds if bound is not None), *self.samples)
        if not _are_sound(numbers):
            raise ValueError(f"{self.metric} is {self.value}; a measurement must be finite")
        if self.definition.is_whole and not abs(self.value) < 2**63:
            raise ValueError(f"{self.metric} is {self.value}; a count must fit into 63 bits")

    @property
    def definition(self) -> Metric:
        return METRICS[self.metric]


def measurements_of(values: Mapping[str, float | None]) -> tuple[Measurement, ...]:
    """Make a measurement of each metric whose value is known."""
    return tuple(Measurement(metric=name, value=value) for name, value in values.items() if value is not None)


_MEASUREMENT_FIELDS = frozenset(f.name for f in dataclasses.fields(Measurement))


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The machine and the software that a record was measured with."""

    hardware: Mapping[str, Any]
    software: Mapping[str, Any]
    context: Mapping[str, Any] = field(default_factory=dict)  # for people to read: load, commit, command

    @property
    def fingerprint(self) -> str:
        """12 hex digits over hardware and software; equal fingerprints are comparable machines."""
        text = json.dumps([dict(self.hardware), dict(self.software)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The outcome of one attempt at a cell; a failure is also a record."""

    cell: Cell
    status: str  # one of ``STATUSES``
    reason: str = ""  # one line; empty if the status is ``ok``
    measurements: Mapping[str, Measurement] = field(default_factory=dict)  # by metric
    details: Mapping[str, Any] = field(default_factory=dict)  # stop rule, interleaved models, uncovered operators, …
    environment: str = ""  # fingerprint of the Environment in run.json
    started_at: str = ""  # UTC, ISO 8601
    duration_s: float = 0.0

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"unknown status {self.status!r}; known: {', '.join(STATUSES)}")
        texts = (self.reason, self.environment, self.started_at)
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.details, Mapping):
            raise ValueError("record: reason, environment and started_at are text, details is a mapping")
        if not _is_finite(self.duration_s):
            raise ValueError(f"record: duration_s is {self.duration_s!r}; expected seconds")

    def value(self, metric: str) -> float | None:
        """Return the value of a metric, None if it was not measured."""
        measurement = self.measurements.get(metric)
        return None if measurement is None else measurement.value

    @property
    def sampled_s(self) -> float:
        """Total seconds of the timed samples."""
        latency = self.measurements.get("latency_s")
        return math.fsum(latency.samples) if latency else 0.0

    def result(self, metric: str) -> Measurement | None:
        """Return the measurement to show; a cell that is not ``ok`` shows only exact counts."""
        measurement = self.measurements.get(metric)
        exact = measurement is not None and measurement.definition.statistic == "exact"
        return measurement if self.status == "ok" or exact else None

    def to_json(self) -> str:
        """Write the record as one line of JSON (no NaN, no line break)."""
        body = dataclasses.asdict(self)
        body["measurements"] = [
            {key: value for key, value in dataclasses.asdict(m).items() if value not in (None, ())}
            | {key: getattr(m.definition, key) for key in ("unit", "higher_is_better", "statistic")}
            for m in self.measurements.values()
        ]
        return json.dumps({"schema_version": SCHEMA_VERSION, **body}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Record:
        """Read a record from a line of JSON; raise ValueError, or its subclass NewerReleaseError, for other text."""
        body = read_json(line, constant=_refuse_constant)
        if not isinstance(body, dict) or type(body.get("schema_version")) is not int:
            raise ValueError("not a record: no schema_version")
        version = body.pop("schema_version")
        check_schema_version(version)
        if version != SCHEMA_VERSION:
            raise ValueError(f"not a record: no release wrote schema version {version}")
        try:
            items = [{key: item[key] for key in _MEASUREMENT_FIELDS & item.keys()} for item in body["measurements"]]
            measurements = [Measurement(**{**item, "samples": tuple(item.get("samples", ()))}) for item in items]
            return cls(**{**body, "cell": Cell(**body["cell"]), "measurements": {m.metric: m for m in measurements}})
        except (KeyError, TypeError, AttributeError, OverflowError) as problem:
            raise ValueError(f"not a record: {problem}") from None


def check_schema_version(version: object, *, path: Path | None = None) -> None:
    """Raise NewerReleaseError for the schema of a newer release, which this one may misread."""
    if type(version) is int and version > SCHEMA_VERSION:
        raise NewerReleaseError(
            f"{f'{path}: ' if path else ''}written by a newer release of sema-bench: schema version {version} is not "
            f"readable by this one, which reads up to {SCHEMA_VERSION}; update sema-bench"
        )


def _are_sound(numbers: Sequence[Any]) -> bool:
    """Check that all are finite numbers with finite products, without a loop: there are many samples."""
    if not set(map(type, numbers)) <= {int, float}:
        return all(_is_finite(number) and (number == 0 or 1e-100 < abs(number) < 1e100) for number in numbers)
    sizes = [abs(number) for number in numbers if number]
    return not sizes or (sum(sizes) < math.inf and min(sizes) > 1e-100 and max(sizes) < 1e100)


def _is_finite(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"not a record: {text} is not a number")
