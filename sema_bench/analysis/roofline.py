"""Place a cell under the roofline: the highest rate of this device for its arithmetic and traffic.

    attainable = min(peak rate of products, intensity × bandwidth),   intensity = FLOPs / bytes moved

FLOPs are 2 × MACs of the batch. Bytes are a lower bound: weights, input and output move once, and activations stay in
caches. So the share is a lower bound of how well the cell uses the device. A share far above 100 % is impossible: the
count, the clock or the peak is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Peaks:
    """The best rates of a device: of a large matrix product, and of copies, the small ones of which fit into caches."""

    flop_per_s: float
    #: (bytes read and written, bytes per second), smallest first.
    copies: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        if not self.copies or self.flop_per_s <= 0 or any(rate <= 0 for _, rate in self.copies):
            raise ValueError("peaks are positive rates")

    @property
    def memory_bytes_per_s(self) -> float:
        """Bandwidth of the largest copy, which fits into no cache."""
        return self.copies[-1][1]

    def bytes_per_s(self, traffic_bytes: float) -> float:
        """Return the bandwidth for ``traffic_bytes``: that of the largest copy up to this size."""
        return next((rate for size, rate in reversed(self.copies) if size <= traffic_bytes), self.copies[0][1])

    def best_of(self, other: Peaks) -> Peaks:
        """Take the higher of each rate."""
        rates = dict(other.copies)
        copies = tuple((size, max(rate, rates.get(size, 0.0))) for size, rate in self.copies)
        return Peaks(max(self.flop_per_s, other.flop_per_s), copies)

    def to_json(self) -> dict[str, Any]:
        return {"flop_per_s": self.flop_per_s, "copies": [list(pair) for pair in self.copies]}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Peaks:
        """Read peaks; raise ValueError, KeyError or TypeError if ``body`` holds none."""
        copies = tuple((int(size), float(rate)) for size, rate in body["copies"])
        return cls(float(body["flop_per_s"]), copies)


@dataclass(frozen=True)
class RooflinePoint:
    """A cell under the roofline."""

    intensity_flop_per_byte: float
    achieved_flop_per_s: float
    attainable_flop_per_s: float

    @property
    def share(self) -> float:
        return self.achieved_flop_per_s / self.attainable_flop_per_s


def roofline_point(*, flops: float, traffic_bytes: float, latency_s: float, peaks: Peaks) -> RooflinePoint:
    """Place ``flops`` in ``latency_s``, with at least ``traffic_bytes`` moved, under ``peaks``."""
    intensity = flops / traffic_bytes
    attainable = min(peaks.flop_per_s, intensity * peaks.bytes_per_s(traffic_bytes))
    return RooflinePoint(intensity, flops / latency_s, attainable)
