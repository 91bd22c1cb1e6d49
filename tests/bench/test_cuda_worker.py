"""Test a worker on a GPU without a GPU: fakes replace torch.cuda, the compiler and the driver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.executor import ignore
from sema_bench.driver.inspector import Inspector
from sema_bench.errors import ProbeError, is_out_of_memory
from sema_bench.machine.processes import COMPILER_CACHE
from sema_bench.spec.cell import Cell
from sema_bench.worker import stopwatch as stopwatch_module
from sema_bench.worker import workload as workload_module
from sema_bench.worker.memory import measure_memory
from sema_bench.worker.probes.throughput import summarise
from sema_bench.worker.protocol import Failure, Prepare, Sample, WorkloadSpec
from sema_bench.worker.session import Session, _describe
from sema_bench.worker.stopwatch import Stopwatch
from sema_bench.worker.workload import CapturedForward, Workload

GIB = 2**30
RECORDING_FAILED = "CUDA error: operation failed due to a previous error during capture"
FULL_CARD = (
    "Unable to find a valid cuDNN algorithm to run convolution",
    "FIND was unable to find an engine to execute this computation",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
)


def a_cell(**changes: Any) -> Cell:
    return Cell(model="sema_tiny", **{"height": 32, "width": 32, "device": "cuda:1", **changes})


class Card:
    """The card ``cuda:1``: the values that torch.cuda reports, and the calls made."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.total, self.reserved, self.allocated, self.peak = 16 * GIB, GIB, 0, 0
        self.free = 8 * GIB


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    fake = Card()
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: 2.0)  # ms
    answers = {
        "Event": lambda enable_timing: event,
        "device": lambda device: contextlib.nullcontext(),
        "synchronize": lambda device: None,
        "set_device": lambda device: fake.asked.append(("current", device)),
        "is_initialized": lambda: True,
        "empty_cache": lambda: None,
        "mem_get_info": lambda: (fake.free, fake.total),
        "memory_allocated": lambda device: fake.allocated,
        "max_memory_allocated": lambda device: fake.peak,
        "max_memory_reserved": lambda device: fake.reserved,
        "reset_peak_memory_stats": lambda device: None,
        "get_device_properties": lambda device: SimpleNamespace(total_memory=fake.total, uuid="abc"),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return fake


def prepared(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> tuple[Session, Prepare]:
    """Return a session and a request; its workload runs on the CPU but believes it is on the card."""
    workload = Workload(cell)
    network, batch = nn.Linear(4, 10), torch.zeros(1, 4)
    workload.__dict__ |= {"network": network, "model": network, "input": batch, "step": lambda: torch.ones(1, 10)}
    monkeypatch.setattr(Session, "_build", lambda self, spec: workload)
    return Session(), Prepare(WorkloadSpec(cell, 0), 1.0, 0.0)


def skip_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setitem(counters["inductor"], "cudagraph_skips", counters["inductor"]["cudagraph_skips"] + 1)


@pytest.mark.parametrize("part", ["network", "input", "model"])
def test_the_card_is_the_current_one_before_anything_is_moved_to_it(
    card: Card, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(tensor_or_model: Any, *where: Any, **options: Any) -> Any:
        card.asked.append("moved")
        return tensor_or_model

    monkeypatch.setattr(nn.Module, "to", moved)
    monkeypatch.setattr(torch.Tensor, "to", moved)
    monkeypatch.setattr(Workload, "_build", lambda self: nn.Linear(1, 1))
    monkeypatch.setattr(workload_module.sema, "optimize_for_inference", lambda model, **options: model)
    getattr(Workload(a_cell(mode="optimized" if part == "model" else "eager")), part)
    assert card.asked[:2] == [("current", torch.device("cuda:1")), "moved"]


def test_a_worker_that_only_counts_opens_no_context_on_the_card(card: Card) -> None:
    Workload(a_cell()).parameters_on_shapes()
    assert card.asked == []


def test_memory_that_runs_out_while_a_graph_is_recorded_is_oom(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def recording(graph: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError(RECORDING_FAILED)  # as torch.cuda.graph does when it ends the recording

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, answer in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda which: contextlib.nullcontext(),
        "CUDAGraph": object,
        "graph": recording,
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    passes = iter([None, None, None, torch.cuda.OutOfMemoryError("CUDA out of memory")])

    def model(batch: torch.Tensor) -> torch.Tensor:
        if problem := next(passes):
            raise problem
        return batch

    with pytest.raises(RuntimeError, match="during capture") as caught:
        CapturedForward(model, torch.zeros(1))
    failure = _describe(caught.value)
    assert failure.status == "oom"
    largest = CellAttempt(a_cell(batch=8, batch_policy="max", mode="cuda-graphs"))
    assert largest.halve(failure), "--batch max halves it"
    assert largest.cell.batch == 4


def test_an_error_that_hides_its_context_is_no_out_of_memory() -> None:
    problem = RuntimeError("a later fault")
    problem.__context__ = MemoryError()
    assert is_out_of_memory(problem)
    problem.__suppress_context__ = True  # raise … from None
    assert not is_out_of_memory(problem)


@pytest.mark.parametrize("message", FULL_CARD)
def test_what_libraries_say_without_memory_is_oom_on_a_full_card_alone(card: Card, message: str) -> None:
    card.free = card.total // 25
    assert is_out_of_memory(RuntimeError(message))
    card.free = card.total // 10
    assert not is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize("message", FULL_CARD)
def test_a_card_that_does_not_answer_is_not_full(message: str, card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lost)
    assert not is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize(
    "message",
    [
        "cuFFT error: CUFFT_ALLOC_FAILED",
        *(f"cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_{where}_ALLOCATION_FAILED" for where in ("HOST", "DEVICE")),
    ],
)
def test_a_library_that_names_its_allocation_is_out_of_memory(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


def test_each_compiled_cell_has_its_own_folder_for_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMPILER_CACHE, str(tmp_path))
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "before")
    seen = []
    for side in (32, 64):
        workload_module._isolate_compile_cache(a_cell(mode="compile", height=side, width=side))
        folders = [Path(workload_module.os.environ[name]) for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")]
        assert folders[0] == folders[1] / "triton"
        seen += folders
    assert len(set(seen)) == 4


def test_a_kernel_that_another_worker_compiled_shortens_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMPILER_CACHE, str(tmp_path))
    workload = Workload(a_cell(device="cpu", mode="compile"))
    workload.step = lambda: torch.ones(1, 10)
    assert workload.first_step()[2]
    kernel = workload_module._compiler_cache(workload.cell) / "triton" / "0" / "kernel.cubin"
    kernel.parent.mkdir(parents=True)
    kernel.touch()
    assert not workload.first_step()[2]


@pytest.mark.parametrize("mode", ["compile-reduce-overhead", "compile-max-autotune"])
def test_a_mode_that_promises_graphs_fails_where_the_compiler_skips_them(
    card: Card, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.utils.is_big_gpu", lambda device: True)
    session, request = prepared(a_cell(mode=mode), monkeypatch)
    assert session.prepare(request).details["cudagraph_skips"] == 0
    skip_a_graph(monkeypatch)
    with pytest.raises(ProbeError, match=f"skipped 1 CUDA graph, which mode {mode} is for; use mode compile"):
        session.sample(Sample(1))


def test_a_record_has_the_number_of_parts_that_are_replayed_as_graphs(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cudagraph_trees

    session, request = prepared(a_cell(mode="compile-reduce-overhead"), monkeypatch)
    managers: dict[int, object] = {}
    monkeypatch.setattr(cudagraph_trees, "get_manager", lambda index, create_if_none_exists: managers.get(index))
    assert session.prepare(request).details["cudagraph_partitions"] is None
    managers[session._prepared().workload.device.index] = SimpleNamespace(ids_to_funcs={0: "forward", 1: "its rest"})
    assert session.prepare(request).details["cudagraph_partitions"] == 2


@pytest.mark.parametrize("changes", [{"mode": "compile"}, {"mode": "compile-max-autotune", "device": "cpu"}])
def test_a_mode_without_graphs_may_skip_them(
    card: Card, changes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, request = prepared(a_cell(**changes), monkeypatch)
    skip_a_graph(monkeypatch)
    assert "cudagraph_skips" not in session.prepare(request).details


@pytest.mark.parametrize("big", [True, False])
def test_max_autotune_records_whether_the_card_is_large_enough(
    card: Card, big: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.utils.is_big_gpu", lambda device: big)
    session, request = prepared(a_cell(mode="compile-max-autotune"), monkeypatch)
    assert session.prepare(request).details["products_tuned"] is big


def test_memory_that_spilled_into_the_host_is_oom(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    session, request = prepared(a_cell(), monkeypatch)
    session.prepare(request)
    card.reserved = 24 * GIB
    with pytest.raises(MemoryError) as caught:
        session.sample(Sample(1))
    failure = _describe(caught.value)
    assert isinstance(failure, Failure)
    assert failure.status == "oom"
    assert failure.message.startswith(
        "it reserved 24.0 GiB on a card of 16.0 GiB: the driver moved the rest to the host"
    )


@pytest.mark.parametrize("mode", ["eager", "cuda-graphs"])
def test_workspaces_are_apart_from_activations(card: Card, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 32 MiB that cuBLAS takes in the first pass are not activations; the output of a recorded pass is."""
    logits = torch.ones(1, 10)
    session, _ = prepared(a_cell(mode=mode), monkeypatch)
    workload = session._build(None)
    workload.step = lambda: logits
    weights, batch, workspace, activations = workload.weights_bytes(), workload.input.nbytes, 2**25, 5000
    card.allocated = weights + batch + workspace + (logits.nbytes if mode == "cuda-graphs" else 0)
    card.peak = weights + batch + workspace + activations
    values = measure_memory(workload)
    assert values["workspace_bytes"] == workspace
    assert values["activation_bytes"] == activations
    assert values["peak_memory_bytes"] == card.peak


def test_replayed_graphs_have_no_workspace_of_their_own(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = prepared(a_cell(mode="compile-reduce-overhead"), monkeypatch)
    values = measure_memory(session._build(None))
    assert values["peak_reserved_bytes"] == card.reserved
    assert not {"peak_memory_bytes", "workspace_bytes", "activation_bytes"} & values.keys()


@pytest.mark.parametrize(("launch_ms", "share"), [(0.5, 0.25), (1.9, 0.95)])
def test_a_sample_holds_the_time_to_launch(
    card: Card, launch_ms: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _ = prepared(a_cell(), monkeypatch)
    clock = iter([0, int(launch_ms * 1e6)] * 6)
    monkeypatch.setattr(stopwatch_module.time, "perf_counter_ns", lambda: next(clock))
    samples = Stopwatch(session._build(None)).sample(6)
    assert samples.launch_s == (launch_ms / 1e3,) * 6
    metrics = {m.metric: m for m in summarise(samples, batch=1, first_forward_s=1.0, yardstick=None, seed=0)}
    assert metrics["launch_share"].value == pytest.approx(share)


@pytest.mark.parametrize(("device", "role", "ends"), [
    ("cuda:1", "inspector", True), ("cpu", "inspector", False), ("cuda:1", "counter 1", False),
])  # fmt: skip
def test_an_inspector_on_a_card_ends_when_its_cell_is_inspected(device: str, role: str, ends: bool) -> None:
    """Its context holds some 0.5 GiB, which only its end gives back."""
    calls: list[str] = []

    def ask(role: str, attempt: CellAttempt, request: Any) -> Any:
        calls.append(request.do)
        return SimpleNamespace(measurements=(), details={})

    pool: Any = SimpleNamespace(ask=ask, workload=lambda cell: None, end=lambda role, cell: calls.append("end"))
    Inspector(pool, ignore).at_its_batch(CellAttempt(a_cell(device=device)), ("memory",), role)
    assert calls == ["inspect", "end" if ends else "release"]


@pytest.mark.parametrize("why", ["", "the package triton is not installed"])
def test_a_record_says_which_scan_a_model_took(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    monkeypatch.setattr("sema.attention.base.auto_scan", lambda device, states: ("torch", why))
    details = Workload(Cell(model="sema_micro[vim]", height=32, width=32)).mode_details()
    assert details == {"kernels": {"selective_scan": f"torch ({why})" if why else "torch"}}
    assert Workload(Cell(model="sema_micro", height=32, width=32)).mode_details() == {}
