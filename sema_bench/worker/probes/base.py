"""The contract of a probe: it measures one family of metrics.

Four kinds exist. An ``inspect`` probe counts or traces: it runs once, in the inspector of its model. A ``timed`` probe
is sampled again and again, interleaved with the other models of its group, in a process that never counts or traces. A
``derived`` probe runs nothing: it combines the results of others. An ``evaluated`` probe runs the model over a set of
images, which may take long: it reports its progress, and resumes where it was stopped.

The driver loads a probe for its declarations, so its file must not import torch at the top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sema_bench.spec.record import Measurement

if TYPE_CHECKING:
    from sema_bench.worker.workload import Workload


@dataclass(frozen=True)
class Findings:
    """The results of probes: numbers, and facts that explain the numbers."""

    measurements: tuple[Measurement, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    def __add__(self, other: Findings) -> Findings:
        return Findings(self.measurements + other.measurements, {**self.details, **other.details})


class Probe:
    """Base of every probe."""

    kind: ClassVar[Literal["inspect", "timed", "derived", "evaluated"]] = "inspect"
    #: It needs only shapes (the meta device), so it can measure a cell that is too large to run.
    on_meta: ClassVar[bool] = False

    def measure(self, workload: Workload) -> Findings:
        """Measure ``workload`` once (inspect probes); raise ProbeError if the result contradicts itself."""
        raise TypeError(f"{type(self).__name__} is not an inspect probe")


class TelemetryProbe(Probe):
    """State of the machine while this cell was timed: power, clocks, temperature, disturbances; needs throughput."""

    kind = "derived"


class AccuracyProbe(Probe):
    """Top-1 and top-5 with Wilson 95 % intervals, of trained weights on the run's data."""

    kind = "evaluated"
