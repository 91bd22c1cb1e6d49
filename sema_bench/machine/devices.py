"""Find the GPUs of this machine as CUDA numbers them, and read their free memory.

NVML and CUDA number cards the same way, because every command and worker sets CUDA_DEVICE_ORDER=PCI_BUS_ID. CUDA skips
cards that it may not open and uses one slice of a card in MIG mode. ``resolve_device`` compares the UUIDs with torch's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import pynvml

from sema_bench.errors import UsageError
from sema_bench.machine.environment import capture
from sema_bench.spec.record import Environment
from sema_bench.spec.target import Card
from sema_bench.text.console import warn

#: Device files of the drivers: on a PC, on WSL, on embedded boards.
_DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-ctrl-gpu", "/dev/nvgpu")
_COMPUTE_MODES = ("DEFAULT", "EXCLUSIVE_THREAD", "PROHIBITED", "EXCLUSIVE_PROCESS")  # by NVML's numbers


def resolve_device(requested: str, environment: Environment | None = None) -> str:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:<index>`` or ``meta`` into ``cpu``, ``cuda:<index>`` or ``meta``.

    Without an environment (a dry run) NVML counts the devices, or torch where NVML cannot. Raise UsageError if
    the device is unknown or missing, if torch has no kernels for it, or if NVML takes another card for it.
    """
    if environment is None and requested not in ("cpu", "meta") and _only_torch_sees_gpus():
        environment = capture()
    count = int(environment.software.get("cuda_devices", 0)) if environment else len(gpus())
    if requested == "auto":
        if not count:
            if environment and environment.hardware.get("gpus"):
                warn(f"{_why_no_device(environment)}; --device auto takes the CPU")
            return "cpu"
        requested = "cuda:0"
    if requested in ("cpu", "meta"):
        return requested
    kind, colon, index = requested.partition(":")
    if kind != "cuda" or (colon and not index.isdecimal()):
        raise UsageError(f"unknown device {requested!r}; known: auto, cpu, cuda, cuda:<index>, meta")
    if not count:
        raise UsageError(f"device {requested!r} asked for, but {_why_no_device(environment)}; or use --device cpu")
    position = int(index or 0)
    if position >= count:
        raise UsageError(f"device {requested!r} asked for, but the last of {count} here is cuda:{count - 1}")
    device = f"cuda:{position}"
    if environment:
        _check_usable(device, environment)
    return device


def check_torch_uses(device: str) -> None:
    """Refuse a CUDA device as a run does, after asking torch in a separate process; other devices pass."""
    if device.startswith("cuda"):
        resolve_device(device, capture())


def _only_torch_sees_gpus() -> bool:
    """Check for a GPU driver without NVML, as in some containers and on some boards."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return any(map(os.path.exists, _DRIVER_FILES))
    return False


def _why_no_device(environment: Environment | None) -> str:
    """Say why torch sees no GPU, and what to do."""
    cards = environment.hardware.get("gpus") if environment else None
    if not environment or not cards:
        return "no GPU was found; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    torch, cuda = environment.software.get("torch"), environment.software.get("cuda")
    if not cuda:
        return f"torch {torch} is built without CUDA, so it cannot use {cards[0].get('name')}; install one with CUDA"
    return (
        f"torch {torch} cannot use {cards[0].get('name')}: driver {cards[0].get('driver')} may be too old for its CUDA "
        f"{cuda}; update the driver, or install a torch for an older CUDA"
    )


def _check_usable(device: str, environment: Environment) -> None:
    """Raise UsageError if torch has no kernels for ``device``, or NVML takes another card for it."""
    facts = gpu_facts(device, environment)
    if facts.get("kernels") is False:
        raise UsageError(
            f"torch {environment.software.get('torch')} has no kernels for {facts.get('name')} (compute capability "
            f"{facts.get('capability')}); install a torch that is built for it, or use --device cpu"
        )
    seen, known = facts.get("torch_uuid"), (facts.get("uuid"), facts.get("mig_of"))
    if seen and known[0] and not any(str(uuid).endswith(seen) for uuid in known):
        raise UsageError(
            f"torch's {device} is GPU-{seen}, but NVML takes {known[0]} for it; unset CUDA_DEVICE_ORDER, or set "
            f"CUDA_VISIBLE_DEVICES=GPU-{seen} and use cuda:0"
        )


def card_of(device: str, environment: Environment | None = None) -> Card:
    """Describe what the GPU ``device`` can do; without an environment, ask NVML; unknown facts are None."""
    if not device.startswith("cuda"):
        return Card()
    facts = gpu_facts(device, environment)
    major, dot, minor = str(facts.get("capability") or "").partition(".")
    return Card(
        name=str(facts.get("name") or device),
        capability=(int(major), int(minor)) if dot else None,
        compute_mode=facts.get("compute_mode"),
    )


def gpu_facts(device: str, environment: Environment | None) -> Mapping[str, Any]:
    """Return the facts of one GPU; empty if they are unknown."""
    if environment:
        cards = environment.context.get("gpus") or environment.hardware.get("gpus") or []
    else:
        cards = [{**card, **state} for card, state in zip(gpus(), gpu_states(), strict=False)]
    return dict(cards[position]) if (position := _position(device)) < len(cards) else {}


def _position(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def gpus() -> list[dict[str, Any]]:
    """Describe the GPUs that CUDA sees, in its order, by facts that stay the same between runs; None: hidden."""
    return [
        {
            "name": _ask(pynvml.nvmlDeviceGetName, handle),
            "capability": ".".join(map(str, _ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle) or ())) or None,
            "memory_bytes": _ask(_memory, "total", handle),
            "power_limit_w": _watts(pynvml.nvmlDeviceGetPowerManagementDefaultLimit, handle),
            "max_sm_clock_mhz": _ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
            "driver": _ask(pynvml.nvmlSystemGetDriverVersion),
        }
        for handle in _handles()
    ]


def gpu_states() -> list[dict[str, Any]]:
    """Read the identity of each card in ``gpus``, and the settings that an administrator may change.

    ``mig_of`` is the UUID of the card, if the GPU is a slice of it. Laptops change the enforced power limit themselves.
    """
    states = []
    for handle in _handles():
        uuid, mode = _ask(pynvml.nvmlDeviceGetUUID, handle), _ask(pynvml.nvmlDeviceGetComputeMode, handle)
        card = _ask(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle) if is_slice(uuid) else None
        states.append(
            {
                "uuid": uuid,
                "mig_of": None if card is None else _ask(pynvml.nvmlDeviceGetUUID, card),
                "compute_mode": None if mode is None else _COMPUTE_MODES[mode],
                "enforced_power_limit_w": _watts(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle),
            }
        )
    return states


def _memory(kind: str, handle: Any) -> int:
    return int(getattr(pynvml.nvmlDeviceGetMemoryInfo(handle), kind))


def _watts(query: Callable[..., Any], handle: Any) -> int | None:
    milliwatts = _ask(query, handle)
    return None if milliwatts is None else milliwatts // 1000


def _ask(query: Callable[..., Any], *arguments: Any) -> Any:
    """Query NVML; None if the card, the driver or the container hides the answer."""
    try:
        return query(*arguments)
    except pynvml.NVMLError:
        return None


def _handles() -> list[Any]:
    """List NVML's handles of the GPUs that CUDA sees, in CUDA's order; empty without a driver."""
    cards = []
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            with contextlib.suppress(pynvml.NVMLError):  # CUDA does not count a card that is refused or lost
                cards.append(pynvml.nvmlDeviceGetHandleByIndex(index))
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        wanted, all_cards, cards = named.split(","), cards, []
        for name in map(str.strip, wanted):
            handle = _named(name, all_cards)
            if handle is None:
                break  # CUDA ignores an unknown name and those after it
            cards.append(handle)
    return list(map(_slice_in_use, cards))


def _named(name: str, cards: list[Any]) -> Any:
    """Find the GPU with this entry of CUDA_VISIBLE_DEVICES: a number, or the beginning of exactly one UUID."""
    if name.isdecimal():
        return cards[int(name)] if int(name) < len(cards) else None
    if is_slice(name):
        return _ask(pynvml.nvmlDeviceGetHandleByUUID, name)
    matches = [card for card in cards if str(_ask(pynvml.nvmlDeviceGetUUID, card)).startswith(name)]
    return matches[0] if name and len(matches) == 1 else None


def _slice_in_use(card: Any) -> Any:
    """Return the first slice of a card in MIG mode, which CUDA uses, or the card itself."""
    if (_ask(pynvml.nvmlDeviceGetMigMode, card) or (0, 0))[0]:
        for index in range(_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, card) or 0):
            part = _ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, card, index)
            if part is not None:
                return part
    return card


def is_slice(uuid: str | None) -> bool:
    """Check whether a UUID is that of a MIG slice."""
    return str(uuid).startswith("MIG-")


def nvml_handle(device: str) -> Any:
    """Look up NVML's handle of ``cuda:<index>``; raise NVMLError if there is none."""
    pynvml.nvmlInit()
    handles = _handles()
    if _position(device) >= len(handles):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
    return handles[_position(device)]


def gpu_identity(device: str) -> str:
    """Name a GPU identically in all processes of this machine: by its UUID, or without NVML by CUDA_VISIBLE_DEVICES."""
    if uuid := _ask(lambda: pynvml.nvmlDeviceGetUUID(nvml_handle(device))):
        return str(uuid)
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return f"GPU {visible[position] if (position := _position(device)) < len(visible) else position}"


def free_device_bytes(device: str) -> int | None:
    """Query NVML for the free memory of ``cuda:<index>``; None if it is unknown."""
    free: int | None = _ask(lambda: _memory("free", nvml_handle(device)))
    return free
