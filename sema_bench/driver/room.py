"""Room in memory for one more model beside those that are measured already."""

from __future__ import annotations

from sema_bench.driver.attempt import CellAttempt
from sema_bench.machine.devices import free_device_bytes
from sema_bench.machine.host_memory import available_memory_bytes, memory_limit_bytes

#: Share of the machine's memory that interleaving leaves free.
MEMORY_RESERVE = 0.1
#: What a card's allocator may need beyond what a model was seen to reserve: a share of that, and bytes for its context.
_DEVICE_FACTOR, _CONTEXT_BYTES = 1.2, 2**30


def has_room_for(attempt: CellAttempt) -> bool:
    """Tell whether this model fits beside those already prepared, by what its inspection measured."""
    if attempt.alone:
        return False
    if attempt.cell.device != "cpu":
        need = _DEVICE_FACTOR * attempt.value("peak_reserved_bytes") + _CONTEXT_BYTES
        return (free_device_bytes(attempt.cell.device) or 0) > need
    need = max(attempt.value("rss_growth_bytes"), attempt.value("peak_memory_bytes"))
    return available_memory_bytes() > need + MEMORY_RESERVE * memory_limit_bytes()
