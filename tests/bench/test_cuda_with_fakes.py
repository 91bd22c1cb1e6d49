"""The CUDA paths on a machine without CUDA: the calls and the arithmetic, with fakes in place of driver and device."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sema_bench.driver.local import CellAttempt
from sema_bench.driver.memory_fit import fits_beside
from sema_bench.errors import UsageError, is_out_of_memory
from sema_bench.machine import devices
from sema_bench.machine.devices import free_device_bytes, gpus, resolve_device
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Environment, Measurement
from sema_bench.worker import memory
from sema_bench.worker import workload as workload_module
from sema_bench.worker.stopwatch import Stopwatch
from sema_bench.worker.workload import CapturedForward, Workload, apply_global_settings

CUDA_CELL = Cell(model="sema_tiny", height=32, width=32, device="cuda:0")


class FakeNvml:
    """Two cards of 80 GB; what pynvml would say of them."""

    NVMLError = RuntimeError
    NVML_CLOCK_SM = 1

    def __init__(self, free: int = 10 * 2**30) -> None:
        self.free = free
        self.asked: list[int | str] = []

    def nvmlInit(self) -> None: ...  # noqa: N802 - NVML's names
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "570.1"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self.asked.append(index)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:  # noqa: N802
        raise self.NVMLError("not supported")

    def nvmlDeviceGetMaxClockInfo(self, handle: int, clock: int) -> int:  # noqa: N802
        return 1980

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"Card {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=80 * 10**9, free=self.free)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        import os

        return [SimpleNamespace(pid=1, usedGpuMemory=5), SimpleNamespace(pid=os.getpid(), usedGpuMemory=77)]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setattr(devices, "pynvml", fake)
    monkeypatch.setattr(memory, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def with_devices(count: int) -> Environment:
    return Environment(hardware={}, software={"cuda_devices": count})


def test_auto_takes_a_gpu_where_there_is_one(nvml: FakeNvml) -> None:
    assert resolve_device("auto") == "cuda:0"
    assert resolve_device("auto", with_devices(2)) == "cuda:0"
    assert resolve_device("auto", with_devices(0)) == "cpu"
    assert resolve_device("cpu", with_devices(2)) == "cpu"


def test_cuda_is_the_first_device_and_an_index_must_exist(nvml: FakeNvml) -> None:
    assert resolve_device("cuda", with_devices(2)) == "cuda:0"
    assert resolve_device("cuda:1", with_devices(2)) == "cuda:1"
    with pytest.raises(UsageError, match="the last of 2 here is cuda:1"):
        resolve_device("cuda:2", with_devices(2))
    with pytest.raises(UsageError, match="this build of torch cannot use the GPU"):
        resolve_device("cuda", with_devices(0))


def test_cuda_absent_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", list)
    with pytest.raises(UsageError, match="no GPU was found; use --device cpu"):
        resolve_device("cuda:0", with_devices(0))


def test_gpus_are_named_with_memory_and_driver(nvml: FakeNvml) -> None:
    common = {"memory_bytes": 80 * 10**9, "driver": "570.1", "power_limit_w": None, "max_sm_clock_mhz": 1980}
    assert gpus() == [{"name": f"Card {i}", **common} for i in range(2)]


def test_a_dry_run_sees_the_cards_that_cuda_will_see(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_device("auto") == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert resolve_device("auto") == "cuda:0"


def test_free_memory_is_that_of_the_visible_card(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_device_bytes("cuda:1") == nvml.free
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    free_device_bytes("cuda:0")
    free_device_bytes("cuda:1")
    assert nvml.asked == [1, 5, "GPU-abc"]


def test_models_share_a_card_only_while_they_fit(nvml: FakeNvml) -> None:
    reserved = Measurement(metric="peak_reserved_bytes", value=4 * 2**30)
    attempt = CellAttempt(CUDA_CELL, measurements={"peak_reserved_bytes": reserved})
    assert fits_beside(attempt)
    nvml.free = 5 * 2**30
    assert not fits_beside(attempt)


def test_event_time_is_the_sample_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("synchronise")

        def elapsed_time(self, end: Event) -> float:
            return 12.5  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: __import__("contextlib").nullcontext())
    workload = Workload(CUDA_CELL)
    workload.step = lambda: calls.append("forward")
    samples = Stopwatch(workload).sample(2)
    assert samples.wall_s == (0.0125, 0.0125)
    assert calls == ["record", "forward", "record", "synchronise"] * 2


def test_a_cuda_graph_is_recorded_once_after_a_warm_up_aside_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    @contextlib.contextmanager
    def aside(name: str) -> Iterator[None]:
        calls.append(f"{name} begins")
        yield
        calls.append(f"{name} ends")

    stream = SimpleNamespace(wait_stream=lambda other: calls.append("wait"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda which: aside("side stream"))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: aside("recording"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: calls.append("replay")))

    def model(batch: torch.Tensor) -> torch.Tensor:
        calls.append("forward")
        assert torch.is_inference_mode_enabled()
        return batch + 1

    captured = CapturedForward(model, torch.zeros(1))
    assert calls == ["wait", "side stream begins", *["forward"] * 3, "side stream ends", "wait",
                     "recording begins", "forward", "recording ends"]  # fmt: skip
    calls.clear()
    assert captured().item() == captured().item() == 1.0
    assert calls == ["replay", "replay"]


def test_the_mode_cuda_graphs_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload_module, "CapturedForward", lambda model, batch: lambda: torch.ones(1, 1000))
    workload = Workload(Cell(model="sema_tiny", height=32, width=32, mode="cuda-graphs"))
    assert torch.equal(workload.forward(), torch.ones(1, 1000))


def test_cuda_memory_is_read_from_allocator_and_nvml(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: order.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="abc"))
    workload = SimpleNamespace(
        device=torch.device("cuda:0"), forward=lambda: order.append("forward"), synchronise=lambda: order.append("sync")
    )
    values = memory._measure_cuda(workload)
    assert values == {"peak_memory_bytes": 1000, "peak_reserved_bytes": 2000, "device_process_bytes": 77}
    assert order == ["forward", "sync", "reset", "forward", "sync"], "the peak is that of a pass after the first"
    assert nvml.asked == ["GPU-abc"]


def test_tf32_is_what_the_cell_says() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for tf32 in (True, False):
            apply_global_settings(dataclasses.replace(CUDA_CELL, tf32=tf32))
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (tf32, tf32)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(
    ("problem", "is_oom"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(problem: BaseException, is_oom: bool) -> None:
    assert is_out_of_memory(problem) == is_oom
