"""Tests that need a GPU: graphs, compiled modes, SDPA backends, inference forms, energy, models side by side."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch

from sema_bench.driver.local import LocalExecutor
from sema_bench.errors import is_out_of_memory
from sema_bench.machine.gpu_telemetry import GpuWatch
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan
from sema_bench.spec.sampling import Sampling
from sema_bench.worker.workload import Workload, skipped_graphs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def cell(model: str = "sema_micro", **axes: Any) -> Cell:
    return Cell(model=model, height=96, width=64, device="cuda:0", allocator="default", **axes)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def test_a_cuda_graph_gives_what_eager_gives_also_after_new_weights_and_another_size() -> None:
    graphs, eager = Workload(cell(mode="cuda-graphs")), Workload(cell())
    assert relative_error(graphs.forward(), eager.forward()) < 1e-5
    with torch.no_grad():
        for workload in (graphs, eager):
            for weight in workload.network.parameters():
                weight.mul_(1.01)
    assert relative_error(graphs.forward(), eager.forward()) < 1e-5, "a graph reads the weights where they are"
    other = Cell(model="sema_micro", height=64, width=128, device="cuda:0", allocator="default", mode="cuda-graphs")
    graphs.resized(other).forward()
    assert relative_error(graphs.forward(), eager.forward()) < 1e-5


@pytest.mark.parametrize("mode", ["compile", "compile-reduce-overhead"])
def test_a_compiled_mode_gives_what_eager_gives_and_skips_no_graph(mode: str) -> None:
    before = skipped_graphs()
    compiled = Workload(cell(mode=mode))
    for _ in range(3):  # graphs are recorded on the second pass
        got = compiled.forward().clone()
    assert relative_error(got, Workload(cell()).forward()) < 1e-4, "a compiler adds in another order"
    assert skipped_graphs() == before


@pytest.mark.parametrize("model", ["deit_small", "swin_tiny"])
@pytest.mark.parametrize("backend", ["flash", "efficient", "cudnn", "math"])
def test_an_sdpa_backend_gives_the_logits_of_auto_or_is_refused_by_torch(model: str, backend: str) -> None:
    expected = Workload(cell(model, dtype="bfloat16")).forward()
    try:
        got = Workload(cell(model, dtype="bfloat16", sdpa=backend)).forward()
    except RuntimeError as refusal:
        if is_out_of_memory(refusal) or backend == "math":  # the plain form always runs
            raise
        return
    assert relative_error(got, expected) < 3e-2  # each backend rounds its scores elsewhere


@pytest.mark.parametrize(
    ("axes", "tolerance"),
    [({}, 1e-4), ({"tf32": True}, 5e-3), ({"dtype": "bfloat16"}, 3e-2)],
    ids=["float32", "TF32", "bfloat16"],
)
@pytest.mark.parametrize("model", ["sema_micro", "swin_tiny"])
def test_the_optimized_form_gives_what_eager_gives(model: str, axes: dict[str, Any], tolerance: float) -> None:
    form = Workload(cell(model, mode="optimized", **axes)).forward()
    assert relative_error(form, Workload(cell(model, **axes)).forward()) < tolerance


def test_an_energy_window_reads_a_card_at_work() -> None:
    a = torch.randn(4096, 4096, device="cuda:0")
    watch = GpuWatch("cuda:0")
    watch.start()
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        a @ a
        torch.cuda.synchronize()
    window = watch.stop(os.getpid())
    if window.power_w is None or window.energy_j is None:
        assert watch.absent, "what a card does not report has a reason"
    assert window.power_w is None or window.power_w > 1
    assert window.energy_j is None or window.energy_j > 2


def test_two_models_are_sampled_side_by_side() -> None:
    cells = (cell("sema_micro"), cell("swin_tiny"))
    plan = Plan("test", (cells,), ("memory", "throughput", "telemetry"), Sampling(time_limit_s=1.0))
    executor = LocalExecutor(plan)
    try:
        records = list(executor.run([(cells, {})]))
    finally:
        executor.cancel()
    assert [(record.status, record.reason) for record in records] == [("ok", ""), ("ok", "")]
    others = {record.cell.model: record.details["interleaved_with"] for record in records}
    assert others == {"sema_micro": ["swin_tiny"], "swin_tiny": ["sema_micro"]}
