"""Test checkpoints of models that are not ours: their classes, dropped keys, and paths that are not files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from command_support import invoke
from PIL import Image

from sema_bench.errors import ProbeError, UsageError
from sema_bench.spec.weights_source import check_weights_of, digest_of, read_about
from sema_bench.store.run_folder import RunFolder
from sema_bench.training.checkpoint import write_checkpoint
from sema_bench.worker.build_model import build_with_weights, dropped_weights, read_weights

#: A network whose classifier is called ``last.1``. One function takes the number of classes, the other does not.
MODELS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, 8)
        self.last = nn.Sequential(nn.Dropout(), nn.Linear(8, classes))
    def forward(self, x):
        return self.last(self.stem(x).mean((2, 3)))

def build(num_classes=10):
    return Net(num_classes)

def fixed():
    return Net(10)
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(MODELS)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Weights for 4 classes as a training loop saves them, with the weights of its loss."""
    state = {
        "model.stem.weight": torch.zeros(8, 3, 8, 8),
        "model.stem.bias": torch.zeros(8),
        "model.last.1.weight": torch.zeros(4, 8),
        "model.last.1.bias": torch.arange(4.0),
        "criterion.weight": torch.ones(4),
    }
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "trained.bin")
    return tmp_path / "trained.bin"


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "deit_tiny_distilled_patch16_224"])
def test_a_timm_model_is_built_for_the_classes_of_its_checkpoint(tmp_path: Path, name: str) -> None:
    """Their classifiers are called ``fc``, ``classifier``, and ``head`` with ``head_dist``."""
    timm = pytest.importorskip("timm")
    torch.save({"state_dict": timm.create_model(name, num_classes=4).state_dict()}, tmp_path / "four.pth")
    model = build_with_weights(f"timm:{name}", (224, 224), read_weights(tmp_path / "four.pth"))
    assert model.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 4)


def test_a_function_that_takes_no_number_of_classes_is_named(models: Path, checkpoint: Path) -> None:
    weights = read_weights(checkpoint)
    assert build_with_weights(f"{models}:build", (64, 64), weights)(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    with pytest.raises(ProbeError, match=r"has 4 classes and .*:fixed.* does not build that many; .* num_classes"):
        build_with_weights(f"{models}:fixed", (64, 64), weights)


def test_named_classes_that_the_function_does_not_build_are_refused_in_the_same_words(
    models: Path, tmp_path: Path
) -> None:
    state = build_with_classes(models, 4)
    write_checkpoint(tmp_path / "named.safetensors", state, {"classes": list("abcd")})
    with pytest.raises(ProbeError, match=r"has 4 classes and .*:fixed.* does not build that many"):
        build_with_weights(f"{models}:fixed", (64, 64), read_weights(tmp_path / "named.safetensors"))


def build_with_classes(models: Path, classes: int) -> dict[str, torch.Tensor]:
    namespace: dict[str, object] = {}
    exec(models.read_text(), namespace)
    return namespace["build"](classes).state_dict()


def test_what_a_checkpoint_holds_beside_the_model_is_in_the_record(
    tmp_path: Path, models: Path, checkpoint: Path
) -> None:
    for label in "abcd":
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "images" / label / "0.png")
    given = ("--model", f"{models}:build", "--checkpoint", str(checkpoint), "--data", f"folder:{tmp_path / 'images'}")
    options = ("--res", "64", "--batch", "4", "--workers", "0", "--threads", "1", "--run", "r")
    code, _, err = invoke("evaluate", *given, *options, "--out", str(tmp_path / "results"))
    assert code == 0, err
    (record,) = RunFolder.open(tmp_path / "results", "r").records()
    assert record.value("top1") == pytest.approx(0.25), "the bias of the checkpoint favours the last class"
    assert record.details["accuracy"]["weights_dropped"] == ["state_dict.criterion.*"]


def test_a_model_whose_checkpoint_holds_nothing_else_states_nothing(models: Path, tmp_path: Path) -> None:
    torch.save(build_with_classes(models, 10), tmp_path / "plain.pth")
    assert dropped_weights(build_with_weights(f"{models}:build", (64, 64), read_weights(tmp_path / "plain.pth"))) == {}


def test_what_a_checkpoint_says_of_itself_is_read_under_any_name(tmp_path: Path) -> None:
    about = {"model": "sema_micro", "classes": ["a", "b"]}
    for name in ("weights.safetensors", "weights.SAFETENSORS", "weights.bin", "weights"):
        write_checkpoint(tmp_path / name, {"weight": torch.zeros(1)}, about)
        assert read_about(tmp_path / name)["classes"] == ["a", "b"]
        with pytest.raises(UsageError, match="has the weights of sema_micro"):
            check_weights_of("deit_tiny", tmp_path / name)
    torch.save({}, tmp_path / "weights.safetensors")
    assert read_about(tmp_path / "weights.safetensors") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n",
            "it is a git-LFS pointer, not the weights; run",
        ),
        (b"<!doctype html>", "it is a web page"),
        (b"", "it is empty"),
    ],
)
def test_a_file_that_is_no_checkpoint_ends_before_anything_begins(
    tmp_path: Path, models: Path, content: bytes, message: str
) -> None:
    for name in ("model.pth", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        given = ("--model", f"{models}:build", "--checkpoint", str(tmp_path / name), "--data", "digits:field")
        code, _, err = invoke("evaluate", *given, "--res", "64", "--out", str(tmp_path / "results"))
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_path_that_is_no_file_ends_before_it_is_opened(tmp_path: Path, models: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    model = f"{models}:build"
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        for command in (
            ("evaluate", "--model", model, "--checkpoint", str(path)),
            ("scale", "--models", model, "--probes", "accuracy", "--checkpoint", f"{model}={path}"),
        ):
            code, _, err = invoke(*command, "--data", "digits:field", "--res", "64", "--out", str(tmp_path / "results"))
            assert code == 2, err
            assert ("is a folder" if path == tmp_path else "is not a file but a pipe, a socket or a device") in err
        for read in (digest_of, read_about):
            with pytest.raises(UsageError):
                read(path)
