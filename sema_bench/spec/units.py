"""Format numbers for people, with three significant digits: a measurement has a precision of about one per cent."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sema_bench.spec.metrics import METRICS, Metric

#: Text of a value that was not measured; never 0.
EMPTY = "–"


@dataclass(frozen=True)
class Unit:
    """A unit to show values in: ``shown = value / factor``."""

    symbol: str
    factor: float


def _decimal(unit: str, prefixes: str, plain: str = "") -> tuple[Unit, ...]:
    return (Unit(plain or unit, 1.0), *(Unit(prefix + unit, 1e6 * 1e3**i) for i, prefix in enumerate(prefixes)))


_LADDERS: dict[str, tuple[Unit, ...]] = {
    "s": (Unit("ns", 1e-9), Unit("µs", 1e-6), Unit("ms", 1e-3), Unit("s", 1.0)),
    "B": tuple(Unit(symbol, 2.0 ** (10 * i)) for i, symbol in enumerate(("B", "KiB", "MiB", "GiB", "TiB"))),
    "MAC": _decimal("MAC", "MGT", plain="MACs"),
    "FLOP": _decimal("FLOP", "MGT", plain="FLOPs"),
    "1": _decimal("", "MG"),
    "images/s": (Unit("img/s", 1.0),),
    "FLOP/s": _decimal("FLOP/s", "MGT"),
    "share": (Unit("%", 0.01),),
    "Hz": _decimal("Hz", "MG"),
    "J": (Unit("mJ", 1e-3), Unit("J", 1.0)),
}


def unit_for(metric: Metric | str, values: Iterable[float]) -> Unit:
    """Choose one unit for all of ``values``: the largest in which their geometric middle is at least 1."""
    unit = (metric if isinstance(metric, Metric) else METRICS[metric]).unit
    ladder = _LADDERS.get(unit, (Unit(unit, 1.0),))
    magnitudes = [abs(value) for value in values if value]
    middle = math.sqrt(min(magnitudes)) * math.sqrt(max(magnitudes)) if magnitudes else 0.0
    return next((u for u in reversed(ladder) if middle >= u.factor * (1 - 1e-12)), ladder[0])


def number(value: float | None) -> str:
    """Format three significant digits, whole numbers in full: ``1.00``, ``12.3``, ``456``, ``12345``."""
    if value is None or not math.isfinite(value):
        return EMPTY
    if value == 0:
        return "0"
    # Rounding may carry into the next decade (9.999 is 10.0), so take the decade of the rounded value.
    exponent = math.floor(math.log10(float(f"{abs(value):.2e}")))
    return f"{value:.{max(0, 2 - exponent)}f}"


def quantity(metric: Metric | str, value: float | None) -> str:
    """Format a value with the unit that suits it: ``12.3 ms``, ``1.50 GiB``, ``4.49 GMAC``, ``22.1 M``."""
    if value is None:
        return EMPTY
    unit = unit_for(metric, (value,))
    return f"{number(value / unit.factor)} {unit.symbol}".rstrip()


#: Format a time (``4.20 s``), bytes (``1.50 GiB``), multiply-accumulates (``4.49 GMAC``), a plain count (``22.1 M``).
seconds = functools.partial(quantity, "latency_s")
size = functools.partial(quantity, "peak_memory_bytes")
macs = functools.partial(quantity, "macs")
count = functools.partial(quantity, "params")


def duration(seconds: float) -> str:
    """Format a waiting time: ``48 s``, ``5 min``."""
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def counted(number: int, noun: str) -> str:
    """Format a count of things: ``1 cell``, ``2 cells``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """Join words as a sentence does: ``a, b and c``."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
