"""How much memory a worker may count on."""

from __future__ import annotations

from sema_bench.environment import available_memory_bytes, free_device_bytes

#: What a worker takes beside its tensors: torch itself on a CPU, a CUDA context on a GPU.
WORKER_BYTES = 2**29


def capacity_bytes(device: str) -> int | None:
    """Return the memory that is free on ``device``; None for meta, which has no limit, and where nobody can tell."""
    if device == "meta":
        return None
    return available_memory_bytes() if device == "cpu" else free_device_bytes(device)
