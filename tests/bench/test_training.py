"""Test training steps as cells: what a step does, what checkpointing saves, what it needs."""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import sema
from sema_bench.errors import ProbeError
from sema_bench.machine.processes import COMPILER_CACHE
from sema_bench.spec.cell import Cell
from sema_bench.worker.probes.forecast import ForecastProbe
from sema_bench.worker.probes.memory import MemoryProbe
from sema_bench.worker.stopwatch import Stopwatch
from sema_bench.worker.training_step import TrainingStep, checkpoint_blocks
from sema_bench.worker.workload import Workload, apply_global_settings

CELL = Cell(model="sema_tiny", height=64, width=64, batch=2, step="train")


class ConvNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(self.conv(x)).relu()


def values(findings: object) -> dict[str, float]:
    return {m.metric: m.value for m in findings.measurements}


def test_a_step_moves_every_parameter_and_leaves_no_gradient() -> None:
    workload = Workload(CELL)
    before = [p.detach().clone() for p in workload.network.parameters()]
    logits = workload.forward()
    assert logits.shape == (2, 1000)
    assert not logits.requires_grad
    assert workload.network.training
    pairs = zip(before, workload.network.parameters(), strict=True)
    still = sum(torch.equal(old, new) for old, new in pairs)
    assert still <= 0.05 * len(before), "only what stochastic depth left out this time"
    assert all(p.grad is None for p in workload.network.parameters())


def test_a_step_is_that_of_torchs_own_loop() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    theirs = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    theirs.load_state_dict(ours.state_dict())
    batch = torch.randn(3, 3, 2, 2)
    step = TrainingStep(ours, batch)
    optimiser = torch.optim.AdamW(theirs.parameters(), lr=1e-5)
    for _ in range(3):
        step()
        optimiser.zero_grad()
        nn.functional.cross_entropy(theirs(batch), torch.tensor([0, 1, 2])).backward()
        optimiser.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["sema_tiny", "deit_tiny", "swin_tiny", "vmamba_tiny_s1l8"])
def test_checkpointing_changes_no_gradient(name: str) -> None:
    torch.manual_seed(0)
    plain = sema.create_model(name, num_classes=7).train()
    torch.manual_seed(0)
    lean = sema.create_model(name, num_classes=7).train()
    checkpoint_blocks(lean)
    assert any("Block" in type(module).__name__ for module in lean.modules() if "forward" in vars(module))
    batch = torch.randn(2, 3, 64, 64)
    for model in (plain, lean):
        torch.manual_seed(1)  # the same paths are dropped
        model(batch).square().sum().backward()
    for mine, other in zip(plain.parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def running_statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {key: value for key, value in model.state_dict().items() if key.endswith(names)}


@pytest.mark.parametrize("name", ["sema_micro", "vminet_ti", "sima_nano_12_p16", "cvt_13"])  # families with batch norms
def test_checkpointing_changes_no_running_statistic(name: str) -> None:
    torch.manual_seed(0)
    plain = sema.create_model(name, num_classes=7).train()
    before = {key: value.clone() for key, value in running_statistics(plain).items()}
    assert before
    lean = copy.deepcopy(plain)
    checkpoint_blocks(lean)
    batch = torch.randn(2, 3, 64, 64)
    for model in (plain, lean):
        torch.manual_seed(1)  # the same paths are dropped
        model(batch).square().sum().backward()
    expected, got = running_statistics(plain), running_statistics(lean)
    assert all(not torch.equal(value, before[key]) for key, value in expected.items())
    # A second update with momentum 0.1 would change a tenth.
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_compiled_checkpointing_changes_no_running_statistic() -> None:
    torch.compiler.reset()
    model = nn.Sequential(ConvNorm(), ConvNorm()).train()
    checkpoint_blocks(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(torch.randn(2, 4, 8, 8)).sum().backward()
    assert [block.norm.num_batches_tracked.item() for block in model] == [1, 1]


def test_a_model_without_repeated_blocks_is_refused() -> None:
    with pytest.raises(ProbeError, match="no repeated blocks"):
        checkpoint_blocks(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)))


@pytest.mark.parametrize(
    ("model", "checkpointing"),
    [("sema_tiny", False), ("deit_small", True), pytest.param("vim_tiny", False, marks=pytest.mark.slow)],
)
def test_memory_of_a_step_is_measured_in_all_its_parts_and_forecast(model: str, checkpointing: bool) -> None:
    cell = dataclasses.replace(CELL, model=model, height=96, width=96, checkpointing=checkpointing)
    measured = values(MemoryProbe().measure(Workload(cell)))
    predicted = values(ForecastProbe().measure(Workload(cell)))
    parameters = sum(p.numel() for p in Workload(cell).meta_model().parameters())
    assert measured["optimizer_bytes"] == pytest.approx(8 * parameters, rel=0.01), "two moments in float32"
    parts = ("weights_bytes", "input_bytes", "optimizer_bytes", "activation_bytes")
    assert measured["peak_memory_bytes"] == sum(measured[part] for part in parts)
    assert measured["activation_bytes"] > 4 * parameters, "gradients are in it"
    assert predicted["predicted_peak_bytes"] == pytest.approx(measured["peak_memory_bytes"], rel=0.1)
    assert predicted["optimizer_bytes"] == pytest.approx(measured["optimizer_bytes"], rel=0.01)


def test_checkpointing_saves_memory() -> None:
    cell = dataclasses.replace(CELL, height=224, width=224, batch=4)
    plain = values(ForecastProbe().measure(Workload(cell)))
    lean = values(ForecastProbe().measure(Workload(dataclasses.replace(cell, checkpointing=True))))
    assert lean["predicted_peak_bytes"] < 0.6 * plain["predicted_peak_bytes"]


def test_a_training_cell_is_timed_like_any_other() -> None:
    watch = Stopwatch(Workload(CELL))
    watch.first_forward()
    assert len(watch.sample(3).wall_s) == 3


def test_inference_keeps_no_graph() -> None:
    assert not Workload(dataclasses.replace(CELL, step="infer")).forward().requires_grad


def test_every_compiled_cell_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(COMPILER_CACHE, str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "restored afterwards")
    folders = set()
    for changes in ({}, {"sdpa": "math"}, {"threads": 2}, {"height": 96}):
        cell = dataclasses.replace(CELL, mode="compile", **changes)
        Workload(cell).model  # noqa: B018 - a lazy property
        folders.add(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    Workload(CELL)
    assert len(folders) == 4
    assert {Path(folder).parent for folder in folders} == {tmp_path}


def test_an_sdpa_backend_is_used_alone_and_all_come_back() -> None:
    q = torch.randn(1, 2, 16, 8)

    def kernels() -> set[str]:
        with torch.profiler.profile() as profiler:
            torch.nn.functional.scaled_dot_product_attention(q, q, q)
        return {event.key for event in profiler.key_averages()}

    try:
        for backend, kernel in (("math", "attention_math"), ("flash", "flash_attention_for_cpu")):
            apply_global_settings(dataclasses.replace(CELL, sdpa=backend))
            assert f"aten::_scaled_dot_product_{kernel}" in kernels()
    finally:
        apply_global_settings(CELL)
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()


def test_a_cell_sets_its_sdpa_backend_and_counting_does_not_mind() -> None:
    try:
        workload = Workload(Cell(model="deit_tiny", height=64, width=64, sdpa="flash"))
        assert not torch.backends.cuda.math_sdp_enabled()
        assert workload.ledger().first_parting() is None
        assert not torch.backends.cuda.math_sdp_enabled()
        workload.forward()
    finally:
        Workload(CELL)
    assert torch.backends.cuda.math_sdp_enabled()


def test_the_peak_of_a_tuned_model_is_known_on_a_cpu() -> None:
    workload = Workload(dataclasses.replace(CELL, step="infer", mode="compile-max-autotune"))
    workload.__dict__["model"] = workload.network  # skip compiling, which takes minutes; the test needs what follows
    measured = values(MemoryProbe().measure(workload))
    assert measured["peak_memory_bytes"] > measured["weights_bytes"]
    assert measured["activation_bytes"] > 0
