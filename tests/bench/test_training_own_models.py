"""Test training of models that are not ours: what cannot be trained is refused before a run begins."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from command_support import invoke
from training_support import recipe, start

from sema_bench.spec.weights_source import WEIGHTS_FILE
from sema_bench.training.checkpoint import read_checkpoint
from sema_bench.training.metrics_log import read_metrics
from sema_bench.training.preflight import every_parameter_learns
from sema_bench.training.state import new_state
from sema_bench.training.trainer import METRICS_LOG, STATE

MODELS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, outputs, after=lambda module, logits: logits, first=None):
        super().__init__()
        self.mix = nn.Linear(3, 3)
        self.again = first or self.mix
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, outputs)
        self.after = after

    def forward(self, x):
        x = self.mix(x.mean((2, 3)))
        if self.again is self.mix:
            x = self.again(x)
        return self.after(self, self.head(self.norm(x)))


def fail(module, logits):
    raise RuntimeError("no\\nway")


def tied(num_classes):
    return Net(num_classes)


def unused(num_classes):
    return Net(num_classes, first=nn.Linear(3, 3))


def fixed():
    return Net(7)


def failing(num_classes):
    return Net(num_classes, fail)


def two(num_classes):
    return Net(num_classes, lambda module, logits: (logits, logits) if module.training else logits)


def detached(num_classes):
    return Net(num_classes, lambda module, logits: logits.detach())


def frozen(num_classes):
    return Net(num_classes).requires_grad_(False)


def nothing(num_classes):
    return None
"""
SMALL = (
    *("--data", "digits:field,images=32", "--res", "64", "--epochs", "1", "--batch", "8"),
    *("--set", "epoch_images=16", "--set", "warmup_epochs=0.5", "--set", "ema=0.9"),
)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(MODELS)
    return path


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fixed", "the model gives 7 classes and the data has 10; let its function take num_classes"),
        ("failing", "cannot be trained at this size: RuntimeError: no"),
        ("two", "the model gives tuple; expected one tensor (2, classes), or (2, classes, 64, 64)"),
        ("detached", "its logits give no parameter a gradient"),
        ("frozen", "has no parameters that can be trained"),
        ("nothing", "returned NoneType"),
    ],
)
def test_a_model_that_cannot_be_trained_says_why_and_leaves_no_run(models: Path, function: str, message: str) -> None:
    out = models.parent / "results"
    code, _, err = invoke("train", "--model", f"{models}:{function}", *SMALL, "--out", str(out))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert list(out.iterdir()) == []


def test_tied_weights_are_averaged_saved_and_gone_on_with(models: Path) -> None:
    out = models.parent / "results"
    code, _, err = invoke("train", "--model", f"{models}:tied", *SMALL, "--out", str(out), "--run", "r")
    assert code == 0, err
    tensors, _ = read_checkpoint(out / "r" / STATE)
    for kind in ("model", "average"):
        assert tensors[f"{kind}.mix.weight"].equal(tensors[f"{kind}.again.weight"])
    assert not tensors["average.mix.weight"].equal(tensors["model.mix.weight"])
    (out / "r" / WEIGHTS_FILE).unlink()
    code, _, err = invoke("train", "--resume", "r", "--out", str(out))
    assert code == 0, err


def test_the_average_of_a_tied_weight_is_not_a_copy_of_its_last_value() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.append(model[0])
    average = new_state(model, recipe(ema=0.5), torch.device("cpu")).average
    assert average is not None
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    average.update(model)
    assert average.module.state_dict()["1.weight"].allclose(before + 0.5)


def test_a_trial_leaves_the_model_as_it_was(models: Path) -> None:
    from sema_bench.worker.build_model import build_model

    name = f"{models}:unused"
    model = build_model(name, (32, 32), classes=10).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert not every_parameter_learns(name, model, (32, 32), classes=10, device=torch.device("cpu"))
    assert model.training
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_two_processes_train_a_model_with_a_parameter_that_is_not_used(models: Path) -> None:
    out = models.parent / "results"
    together = start(out, "--model", f"{models}:unused", *SMALL, "--name", "r", processes=2)
    _, err = together.communicate(timeout=120)
    assert together.returncode == 0, err
    assert all(math.isfinite(entry["loss"]) for entry in read_metrics(out / "r" / METRICS_LOG) if "loss" in entry)
