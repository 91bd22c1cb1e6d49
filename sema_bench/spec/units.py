"""Numbers as people read them. Files keep SI units; only what is printed or drawn passes through here.

Three significant digits: the precision of a measurement is one per cent, more digits would only claim more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sema_bench.spec.metrics import METRICS, Metric

#: What a table shows where nothing was measured; never 0.
EMPTY = "–"


@dataclass(frozen=True)
class Unit:
    """A unit to show values in: ``shown = value / factor``."""

    symbol: str
    factor: float


_TIME = (Unit("ns", 1e-9), Unit("µs", 1e-6), Unit("ms", 1e-3), Unit("s", 1.0))
_BYTES = (Unit("B", 1.0), Unit("KiB", 2.0**10), Unit("MiB", 2.0**20), Unit("GiB", 2.0**30), Unit("TiB", 2.0**40))
_LADDERS: dict[str, tuple[Unit, ...]] = {
    "s": _TIME,
    "B": _BYTES,
    "MAC": tuple(Unit(f"{p}MAC" if p else "MACs", f) for p, f in (("", 1.0), ("M", 1e6), ("G", 1e9), ("T", 1e12))),
    "FLOP": tuple(Unit(f"{p}FLOP" if p else "FLOPs", f) for p, f in (("", 1.0), ("M", 1e6), ("G", 1e9), ("T", 1e12))),
    "1": (Unit("", 1.0), Unit("M", 1e6), Unit("G", 1e9)),
    "images/s": (Unit("img/s", 1.0),),
    "FLOP/s": tuple(Unit(f"{p}FLOP/s", f) for p, f in (("", 1.0), ("M", 1e6), ("G", 1e9), ("T", 1e12))),
    "share": (Unit("%", 0.01),),
    "Hz": tuple(Unit(f"{p}Hz", f) for p, f in (("", 1.0), ("M", 1e6), ("G", 1e9))),
    "J": (Unit("mJ", 1e-3), Unit("J", 1.0)),
}


def unit_for(metric: Metric | str, values: Iterable[float]) -> Unit:
    """Return one unit for all of ``values``: the largest in which the middle of their range (in log) is at least 1."""
    unit = (metric if isinstance(metric, Metric) else METRICS[metric]).unit
    ladder = _LADDERS.get(unit, (Unit(unit, 1.0),))
    magnitudes = [abs(value) for value in values if value]
    middle = math.sqrt(min(magnitudes)) * math.sqrt(max(magnitudes)) if magnitudes else 0.0
    return next((u for u in reversed(ladder) if middle >= u.factor * (1 - 1e-12)), ladder[0])


def number(value: float | None) -> str:
    """Return three significant digits, whole numbers in full: ``1.00``, ``12.3``, ``456``, ``12345``."""
    if value is None or not math.isfinite(value):
        return EMPTY
    if value == 0:
        return "0"
    # Rounding may carry into the next decade (9.999 is 10.0), so the decade is that of the rounded value.
    exponent = math.floor(math.log10(float(f"{abs(value):.2e}")))
    return f"{value:.{max(0, 2 - exponent)}f}"


def quantity(metric: Metric | str, value: float | None) -> str:
    """Return a value with the unit that suits it: ``12.3 ms``, ``1.50 GiB``, ``4.49 GMAC``, ``22.1 M``."""
    if value is None:
        return EMPTY
    unit = unit_for(metric, (value,))
    return f"{number(value / unit.factor)} {unit.symbol}".rstrip()


def seconds(value: float | None) -> str:
    """Return a time: ``850 µs``, ``12.3 ms``, ``4.20 s``."""
    return quantity("latency_s", value)


def size(value: float | None) -> str:
    """Return a number of bytes: ``512 B``, ``1.50 GiB``."""
    return quantity("peak_memory_bytes", value)


def macs(value: float | None) -> str:
    """Return multiply-accumulates: ``4.49 GMAC``."""
    return quantity("macs", value)


def count(value: float | None) -> str:
    """Return a plain count: ``22.1 M``, ``980``."""
    return quantity("params", value)


def counted(number: int, noun: str) -> str:
    """Return ``1 cell``, ``2 cells``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
