"""Room in memory for one more model beside those that are measured already."""

from __future__ import annotations

from sema_bench.environment import free_device_bytes
from sema_bench.executors.draft import Draft
from sema_bench.host_memory import available_memory_bytes, memory_limit_bytes

#: Share of the machine's memory that interleaving leaves free.
MEMORY_RESERVE = 0.1
#: What a card's allocator may need beyond what a model was seen to reserve: a share of that, and bytes for its context.
_DEVICE_FACTOR, _CONTEXT_BYTES = 1.2, 2**30


def has_room_for(draft: Draft) -> bool:
    """Tell whether this model fits beside those already prepared, by what its inspection measured."""
    if draft.alone:
        return False
    if draft.cell.device != "cpu":
        need = _DEVICE_FACTOR * draft.value("peak_reserved_bytes") + _CONTEXT_BYTES
        return (free_device_bytes(draft.cell.device) or 0) > need
    need = max(draft.value("rss_growth_bytes"), draft.value("peak_memory_bytes"))
    return available_memory_bytes() > need + MEMORY_RESERVE * memory_limit_bytes()
