"""How much memory a worker may count on."""

from __future__ import annotations

from sema_bench.machine.devices import free_device_bytes
from sema_bench.machine.host_memory import available_memory_bytes
from sema_bench.spec.record import Environment

#: What a worker takes beside its tensors: torch itself on a CPU, a CUDA context on a GPU.
WORKER_BYTES = 2**29


def total_bytes(environment: Environment, device: str) -> int | None:
    """Return the memory of one device of machines with ``environment``; None where they do not tell."""
    if device == "cpu":
        return int(environment.hardware["memory_gib"]) * 2**30
    cards = environment.hardware.get("gpus") or [{}]
    found = cards[0].get("memory_bytes")
    return None if found is None else int(found)


def capacity_bytes(device: str) -> int | None:
    """Return the memory that is free on ``device``; None for meta, which has no limit, and where nobody can tell."""
    if device == "meta":
        return None
    return available_memory_bytes() if device == "cpu" else free_device_bytes(device)
