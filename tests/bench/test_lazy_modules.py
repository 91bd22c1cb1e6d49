"""Test lazy modules: they have their shapes before anything counts, times or trains them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sema_bench.errors import ProbeError
from sema_bench.spec.cell import Cell
from sema_bench.worker.build_model import build_model
from sema_bench.worker.probes.macs import MacsProbe
from sema_bench.worker.probes.params import ParamsProbe
from sema_bench.worker.workload import Workload

_FILE = """
from torch import nn

class Classifier(nn.Module):
    def __init__(self, aside):
        super().__init__()
        self.stem = nn.Sequential(nn.LazyConv2d(8, 4, 4), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConvTranspose2d(6, 2))
        self.head = nn.LazyLinear(10)
        self.aside = aside
    def forward(self, x):
        return self.head(self.stem(x).flatten(1))

def build():
    return Classifier(None)

def beside():
    return Classifier(nn.LazyLinear(3))

class Late(nn.Module):
    def forward(self, x):
        if not hasattr(self, "head"):
            self.head = nn.Linear(x.shape[-1], 10)
        return self.head(x.mean((1, 2)))

def late():
    return Late()

def broken():
    return nn.Sequential(nn.LazyConv2d(8, 64))
"""


def model_file(folder: Path, function: str) -> str:
    path = folder / "lazy_models.py"
    path.write_text(_FILE)
    return f"{path}:{function}"


def lazy_workload(folder: Path, function: str, **axes: object) -> Workload:
    return Workload(Cell(model=model_file(folder, function), height=32, width=40, **axes))


def test_lazy_modules_count_as_what_they_become(tmp_path: Path) -> None:
    workload = lazy_workload(tmp_path, "build")
    values = {m.metric: m.value for probe in (ParamsProbe, MacsProbe) for m in probe().measure(workload).measurements}
    grid, upsampled = 8 * 10, 9 * 11
    assert values["params"] == (3 * 16 + 1) * 8 + 2 * 8 + 8 * 6 * 4 + 6 + (6 * upsampled + 1) * 10
    assert values["params"] == values["params_total"]
    assert values["macs"] == grid * 3 * 8 * 16 + grid * 8 * 6 * 4 + 6 * upsampled * 10


def test_layers_that_a_model_makes_as_it_runs_are_counted(tmp_path: Path) -> None:
    values = {m.metric: m.value for m in ParamsProbe().measure(lazy_workload(tmp_path, "late")).measurements}
    assert values == dict.fromkeys(("params", "params_total"), 40 * 10 + 10)


@pytest.mark.parametrize("axes", [{}, {"step": "train"}, {"dtype": "bfloat16", "batch": 2}], ids=str)
def test_lazy_modules_run_in_every_form_with_the_weights_of_the_seed(tmp_path: Path, axes: dict[str, object]) -> None:
    first, second = (lazy_workload(tmp_path, "build", **axes) for _ in range(2))
    assert torch.isfinite(first.forward()).all()
    second.forward()
    weights = [workload.network.state_dict() for workload in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_trained_model_is_no_longer_lazy(tmp_path: Path) -> None:
    model = build_model(model_file(tmp_path, "build"), (32, 40), classes=None)
    assert not any(torch.nn.parameter.is_lazy(p) for p in model.parameters())
    torch.optim.AdamW(model.parameters())
    assert not any(name.startswith("Lazy") for name in (type(module).__name__ for module in model.modules()))


def test_a_lazy_module_that_no_forward_pass_reaches_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"no shape to aside\.weight, aside\.bias; replace"):
        ParamsProbe().measure(lazy_workload(tmp_path, "beside"))


def test_a_forward_pass_that_fails_says_what_it_was_for(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"lazy modules get their shapes from a forward pass .* RuntimeError: .*size"):
        ParamsProbe().measure(lazy_workload(tmp_path, "broken"))
