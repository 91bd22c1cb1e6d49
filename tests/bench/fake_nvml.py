"""A fake ``pynvml`` with fake cards: its errors are pynvml's own, and any query of any card may fail."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pynvml
import pytest

GIB = 2**30


def uuid_of(number: int) -> str:
    """Return the part of a UUID that torch also shows."""
    return f"{number:08d}-1111-2222-3333-444444444444"


@dataclass(eq=False)
class FakeCard:
    """A card, or a MIG slice of one; it is its own handle.

    Attributes:
        fails: query (without ``nvmlDeviceGet``) → NVML's error number; "handle" refuses the card itself.
        processes: pids that compute on it.
        graphics: pids that draw on it.
        at_work: pid → utilization in percent since the last sample; empty: NVML has no samples.
    """

    number: int = 0
    name: str = "NVIDIA H100 80GB HBM3"
    prefix: str = "GPU-"
    capability: tuple[int, int] = (9, 0)
    total: int = 80 * GIB
    free: int = 10 * GIB
    compute_mode: int = pynvml.NVML_COMPUTEMODE_DEFAULT
    power_limits_w: tuple[int, int] = (700, 700)  # default, enforced
    reasons: int = 0x1
    slices: Sequence[FakeCard] = ()
    fails: Mapping[str, int] = field(default_factory=dict)
    processes: Sequence[int] = ()
    graphics: Sequence[int] = ()
    at_work: Mapping[int, int] = field(default_factory=dict)
    joules: int = 0

    @property
    def uuid(self) -> str:
        return self.prefix + uuid_of(self.number)

    def answer(self, query: str, *arguments: Any) -> Any:
        if query in self.fails or (self.prefix == "MIG-" and query in _NOT_OF_SLICES):
            raise pynvml.NVMLError(self.fails.get(query, pynvml.NVML_ERROR_NOT_SUPPORTED))
        return getattr(self, f"_{query}")(*arguments)

    def _Name(self) -> str:  # noqa: N802 - NVML's names
        return self.name

    def _UUID(self) -> str:  # noqa: N802
        return self.uuid

    def _MemoryInfo(self) -> Any:  # noqa: N802
        return SimpleNamespace(total=self.total, free=self.free, used=self.total - self.free)

    def _CudaComputeCapability(self) -> tuple[int, int]:  # noqa: N802
        return self.capability

    def _ComputeMode(self) -> int:  # noqa: N802
        return self.compute_mode

    def _PowerManagementDefaultLimit(self) -> int:  # noqa: N802
        return 1000 * self.power_limits_w[0]

    def _EnforcedPowerLimit(self) -> int:  # noqa: N802
        return 1000 * self.power_limits_w[1]

    def _MaxClockInfo(self, clock: int) -> int:  # noqa: N802
        return 1980

    def _ClockInfo(self, clock: int) -> int:  # noqa: N802
        return 1980 if clock == pynvml.NVML_CLOCK_SM else 2619

    def _PowerUsage(self) -> int:  # noqa: N802
        return 300_000

    def _Temperature(self, sensor: int) -> int:  # noqa: N802
        return 61

    def _TotalEnergyConsumption(self) -> int:  # noqa: N802
        self.joules += 75
        return 1000 * self.joules

    def _CurrentClocksEventReasons(self) -> int:  # noqa: N802
        return self.reasons

    def _ComputeRunningProcesses(self) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=77 if pid == os.getpid() else None) for pid in self.processes]

    def _GraphicsRunningProcesses(self) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=5) for pid in self.graphics]

    def _ProcessUtilization(self, since_us: int) -> list[Any]:  # noqa: N802
        if not self.at_work:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return [SimpleNamespace(pid=pid, smUtil=use, timeStamp=since_us + 1) for pid, use in self.at_work.items()]

    def _MigMode(self) -> list[int]:  # noqa: N802
        if not self.slices:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [1, 1]

    def _MaxMigDeviceCount(self) -> int:  # noqa: N802
        return 7

    def _MigDeviceHandleByIndex(self, index: int) -> FakeCard:  # noqa: N802
        if index >= len(self.slices):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self.slices[index]


#: Queries that NVML does not answer for a slice.
_NOT_OF_SLICES = {
    "PowerUsage", "EnforcedPowerLimit", "PowerManagementDefaultLimit", "TotalEnergyConsumption", "ClockInfo", "MigMode",
    "Temperature", "CurrentClocksEventReasons", "ProcessUtilization", "CudaComputeCapability", "ComputeMode",
}  # fmt: skip


class FakeNvml:
    """The module ``pynvml`` on a machine with ``cards``; ``driver=None``: no driver."""

    def __init__(self, *cards: FakeCard, driver: str | None = "570.1") -> None:
        self.cards, self.driver = cards, driver
        self.asked: list[tuple[str, Any]] = []  # query and its last argument

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            return getattr(pynvml, name)  # errors and constants
        if not name.startswith("nvmlDeviceGet"):
            return getattr(self, f"_{name}")
        own = f"_{name}"
        query = name.removeprefix("nvmlDeviceGet")

        def ask(*arguments: Any) -> Any:
            self._nvmlInit()
            self.asked.append((query, arguments[-1] if arguments else None))
            if hasattr(type(self), own):
                return getattr(self, own)(*arguments)
            return arguments[0].answer(query, *arguments[1:])

        return ask

    def install(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> FakeNvml:
        """Replace pynvml with this in ``modules``, on a machine that hides no card."""
        for module in modules:
            monkeypatch.setattr(module, "pynvml", self)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return self

    def _nvmlInit(self) -> None:  # noqa: N802
        if self.driver is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    def _nvmlShutdown(self) -> None: ...  # noqa: N802

    def _nvmlSystemGetDriverVersion(self) -> str | None:  # noqa: N802
        return self.driver

    def _nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def _nvmlDeviceGetHandleByIndex(self, index: int) -> FakeCard:  # noqa: N802
        if index >= len(self.cards):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        card = self.cards[index]
        if "handle" in card.fails:
            raise pynvml.NVMLError(card.fails["handle"])
        return card

    def _nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeCard:  # noqa: N802
        for handle in (*self.cards, *(part for card in self.cards for part in card.slices)):
            if handle.uuid == uuid:
                return handle
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def _nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, part: FakeCard) -> FakeCard:  # noqa: N802
        return next(card for card in self.cards if part in card.slices)
