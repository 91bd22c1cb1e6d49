"""The devices of this machine: which there are, what a name means, how much memory is free."""

from __future__ import annotations

import os
from typing import Any

from sema_bench.errors import UsageError
from sema_bench.spec.record import Environment


def resolve_device(requested: str, environment: Environment | None = None) -> str:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:<index>`` or ``meta`` into ``cpu``, ``cuda:<index>`` or ``meta``.

    Without an environment (a dry run) only NVML is asked, which needs no torch.

    Raises:
        UsageError: CUDA was asked for and is not there, or the name is none of these.
    """
    visible = _visible_devices()
    if environment is not None:
        count = int(environment.software.get("cuda_devices", 0))
    else:
        count = len(gpus()) if visible is None else min(len(visible), len(gpus()))
    if requested == "auto":
        return "cuda:0" if count else "cpu"
    if requested in ("cpu", "meta"):
        return requested
    kind, colon, index = requested.partition(":")
    if kind != "cuda" or (colon and not index.isdecimal()):
        raise UsageError(f"unknown device {requested!r}; known: auto, cpu, cuda, cuda:<index>, meta")
    if not count:
        found = "no GPU was found" if not gpus() else "this build of torch cannot use the GPU"
        raise UsageError(f"device {requested!r} asked for, but {found}; use --device cpu")
    position = int(index or 0)
    if position >= count:
        raise UsageError(f"device {requested!r} asked for, but the last of {count} here is cuda:{count - 1}")
    return f"cuda:{position}"


def _visible_devices() -> list[str] | None:
    """Return the entries of CUDA_VISIBLE_DEVICES, None where it is not set."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if text is None else [item.strip() for item in text.split(",") if item.strip()]


def gpus() -> list[dict[str, Any]]:
    """Return name, memory and driver of each NVIDIA GPU that NVML sees (none without a driver)."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.append(
                {
                    "name": pynvml.nvmlDeviceGetName(handle),
                    "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                    "power_limit_w": _nvml(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle, 1000),
                    "max_sm_clock_mhz": _nvml(pynvml.nvmlDeviceGetMaxClockInfo, handle, 1, pynvml.NVML_CLOCK_SM),
                    "driver": driver,
                }
            )
        return found
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _nvml(query: Any, handle: Any, divisor: int, *arguments: Any) -> int | None:
    """Return what NVML answers, None where the card or the container does not tell."""
    import pynvml

    try:
        return int(query(handle, *arguments)) // divisor
    except pynvml.NVMLError:
        return None


def nvml_handle(device: str) -> Any:
    """Return NVML's handle of ``cuda:<index>``, CUDA_VISIBLE_DEVICES allowed for; NVML must be initialised.

    Raises:
        pynvml.NVMLError: it knows no such card.
    """
    import pynvml

    visible = _visible_devices()
    index = int(device.partition(":")[2] or 0)
    name = visible[index] if visible and index < len(visible) else str(index)
    by_index = name.isdecimal()
    return pynvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(name)


def free_device_bytes(device: str) -> int | None:
    """Return the free memory of ``cuda:<index>`` as NVML sees it; None where it cannot tell."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(nvml_handle(device)).free)
    except pynvml.NVMLError:
        return None
