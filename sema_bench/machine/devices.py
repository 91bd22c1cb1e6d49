"""Find the devices of this machine, and read their free memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import pynvml

from sema_bench.errors import UsageError
from sema_bench.spec.record import Environment


def resolve_device(requested: str, environment: Environment | None = None) -> str:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:<index>`` or ``meta`` into ``cpu``, ``cuda:<index>`` or ``meta``.

    Without an environment (a dry run) NVML counts the devices, which needs no torch. An unknown name or CUDA device
    raises UsageError.
    """
    if environment is not None:
        count = int(environment.software.get("cuda_devices", 0))
    else:
        visible = _visible_devices()
        count = len(gpus() if visible is None else gpus()[: len(visible)])
    if requested == "auto":
        return "cuda:0" if count else "cpu"
    if requested in ("cpu", "meta"):
        return requested
    kind, colon, index = requested.partition(":")
    if kind != "cuda" or (colon and not index.isdecimal()):
        raise UsageError(f"unknown device {requested!r}; known: auto, cpu, cuda, cuda:<index>, meta")
    if not count:
        why = "no GPU was found" if not gpus() else "this build of torch cannot use the GPU"
        raise UsageError(f"device {requested!r} asked for, but {why}; use --device cpu")
    position = int(index or 0)
    if position >= count:
        raise UsageError(f"device {requested!r} asked for, but the last of {count} here is cuda:{count - 1}")
    return f"cuda:{position}"


def _visible_devices() -> list[str] | None:
    """Read the entries of CUDA_VISIBLE_DEVICES; None if it is not set."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if text is None else [item.strip() for item in text.split(",") if item.strip()]


def gpus() -> list[dict[str, Any]]:
    """Describe each NVIDIA GPU by name, memory, limits and driver; an empty list without a driver."""
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            return [
                {
                    "name": pynvml.nvmlDeviceGetName(handle),
                    "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                    "power_limit_w": _number(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle, divisor=1000),
                    "max_sm_clock_mhz": _number(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
                    "driver": pynvml.nvmlSystemGetDriverVersion(),
                }
                for handle in map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
            ]
        finally:
            pynvml.nvmlShutdown()
    return []


def _number(query: Callable[..., Any], *arguments: Any, divisor: int = 1) -> int | None:
    """Query NVML for a number; None if the card or the container hides it."""
    try:
        return int(query(*arguments)) // divisor
    except pynvml.NVMLError:
        return None


def nvml_handle(device: str) -> Any:
    """Look up NVML's handle of ``cuda:<index>`` under CUDA_VISIBLE_DEVICES, after ``nvmlInit``."""
    visible = _visible_devices()
    index = int(device.partition(":")[2] or 0)
    name = visible[index] if visible and index < len(visible) else str(index)
    if name.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)


def free_device_bytes(device: str) -> int | None:
    """Query NVML for the free memory of ``cuda:<index>``; None if it is unknown."""
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(nvml_handle(device)).free)
    except pynvml.NVMLError:
        return None
