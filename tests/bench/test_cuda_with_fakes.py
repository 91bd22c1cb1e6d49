"""Test the CUDA paths on a machine without CUDA: calls and arithmetic, with a fake driver and device."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_nvml import FakeCard, FakeNvml, uuid_of

from sema_bench.errors import is_out_of_memory
from sema_bench.spec.cell import Cell
from sema_bench.worker import extra_work, memory
from sema_bench.worker import workload as workload_module
from sema_bench.worker.parts import PARTS
from sema_bench.worker.stopwatch import Stopwatch, event_seconds
from sema_bench.worker.workload import CapturedForward, Workload, apply_global_settings

CUDA_CELL = Cell(model="sema_tiny", height=32, width=32, device="cuda:0")


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return FakeNvml(FakeCard(processes=(1, os.getpid()))).install(monkeypatch, memory)


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
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    peaks = iter((300, 700, 1000, 900))  # before the first part, then during each part
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(peaks))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=uuid_of(0)))
    notes: list[Callable[[], None]] = []

    def forward() -> None:
        order.append("forward")
        for note in notes * len(PARTS):
            note()

    workload = SimpleNamespace(
        device=torch.device("cuda:0"),
        forward=forward,
        synchronise=lambda: order.append("sync"),
        parts=PARTS,
        noting_parts=lambda note: contextlib.nullcontext(notes.append(note)),
    )
    values = memory._measure_cuda(workload, known=100)
    assert values.pop("workspace_bytes") == 200
    of_parts = {"peak_backbone_bytes": 700, "peak_neck_bytes": 1000, "peak_head_bytes": 900}
    assert values == {"peak_memory_bytes": 1000, "peak_reserved_bytes": 2000, "device_process_bytes": 77, **of_parts}
    passes = ["forward", "sync", "reset", "forward", *["reset"] * len(PARTS), "sync"]
    assert order == passes, "the peak is that of a pass after the first"
    assert ("HandleByUUID", nvml.cards[0].uuid) in nvml.asked


def test_tf32_is_what_the_cell_says() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for tf32 in (True, False):
            apply_global_settings(dataclasses.replace(CUDA_CELL, tf32=tf32))
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (tf32, tf32)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_cudnn_benchmark_is_what_the_cell_says() -> None:
    before = torch.backends.cudnn.benchmark
    try:
        for benchmark in (True, False):
            apply_global_settings(dataclasses.replace(CUDA_CELL, cudnn_benchmark=benchmark))
            assert torch.backends.cudnn.benchmark == benchmark
    finally:
        torch.backends.cudnn.benchmark = before


class SimulatedCard:
    """A card and its host, each with its own clock: the host runs ahead, and kernels run in order."""

    def __init__(self) -> None:
        self.host = self.card = 0.0

    def launch(self, kernel_s: float) -> None:
        self.host += 5e-6
        self.card = max(self.card, self.host) + kernel_s

    def wait(self) -> None:
        self.host = max(self.host, self.card)

    def event(self, enable_timing: bool) -> Any:
        event = SimpleNamespace(synchronize=self.wait)
        event.record = lambda: setattr(event, "at", max(self.card, self.host))
        event.elapsed_time = lambda end: 1e3 * (end.at - event.at)
        return event


@pytest.mark.parametrize("product_s", [2e-6, 9e-6], ids=["short products", "long products"])
@pytest.mark.parametrize(
    ("kernels", "kernel_s"), [(200, 1e-6), (200, 5e-5), (1, 5e-3)], ids=["bound by launches", "by kernels", "a graph"]
)
def test_the_gate_injects_its_share_on_a_card(
    monkeypatch: pytest.MonkeyPatch, kernels: int, kernel_s: float, product_s: float
) -> None:
    """If a step did not wait for the products, they would run beside its launches and add less."""
    card, output = SimulatedCard(), torch.zeros(1)

    def step() -> torch.Tensor:
        for _ in range(kernels):
            card.launch(kernel_s)
        return output

    device = torch.device("cuda:0")
    workload: Any = SimpleNamespace(device=device, step=step, forward=step, synchronise=card.wait)
    monkeypatch.setattr(torch, "randn", lambda *shape, device: torch.zeros(shape))
    monkeypatch.setattr(torch, "mm", lambda a, b: card.launch(product_s))
    monkeypatch.setattr(torch.cuda, "Event", card.event)
    monkeypatch.setattr(extra_work, "time", SimpleNamespace(perf_counter=lambda: card.host))
    alone = event_seconds(step)[0]
    extra_work.slow_down(workload, 0.1)
    card.wait()
    took, result, _ = event_seconds(workload.step)
    assert result is output
    assert 0.08 <= took / alone - 1 <= 0.12  # the limits of selftest --gpu


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
def test_out_of_memory_is_distinguished_from_other_errors(problem: BaseException, is_oom: bool) -> None:
    assert is_out_of_memory(problem) == is_oom
