"""Test fine-tuning of trained weights: another size, other classes, a frozen backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_support import invoke
from training_support import ALONE, DATA, MODEL, Quiet, recipe

import sema
from sema_bench.errors import UsageError
from sema_bench.spec.data_source import DataSpec
from sema_bench.spec.files import sha256_of
from sema_bench.spec.weights_source import WEIGHTS_FILE
from sema_bench.training.checkpoint import read_checkpoint, write_checkpoint
from sema_bench.training.finetune import classifier_of
from sema_bench.training.job import Job
from sema_bench.training.trainer import STATE, Trainer
from sema_bench.worker.build_model import build_model

DIGITS = [str(digit) for digit in range(10)]


def written(path: Path, model: str, *, size: int = 64, classes: list[str] = DIGITS) -> str:
    """Write random weights as a training does; return their name."""
    torch.manual_seed(7)
    tensors = build_model(model, (size, size), classes=len(classes)).state_dict()
    write_checkpoint(path, tensors, {"model": model, "classes": classes})
    return f"{path}@{sha256_of(path)}"


def trainer(folder: Path, init: str, *, model: str = MODEL, data: DataSpec = DATA, **changes: object) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(Job(model, data, recipe(**changes), 0, 0, init), folder, ALONE, Quiet(last=2))


def test_a_training_begins_with_the_weights_and_resumes_without_them(tmp_path: Path) -> None:
    init = written(tmp_path / "w.safetensors", MODEL)
    training = trainer(tmp_path / "run", init)
    stored = read_checkpoint(tmp_path / "w.safetensors")[0]
    assert all(torch.equal(value, stored[key]) for key, value in training._model.state_dict().items())
    assert training.notes == ()
    assert training.run() is False
    (tmp_path / "w.safetensors").unlink()
    resumed = trainer(tmp_path / "run", init)
    assert resumed._done == 2
    with pytest.raises(UsageError, match=r"holds another training \(init: .*, not \)"):
        trainer(tmp_path / "run", "")


def test_the_classifier_starts_anew_if_the_classes_are_others(tmp_path: Path) -> None:
    for name, classes in (("more", [*DIGITS, "letter"]), ("renamed", [f"digit {each}" for each in DIGITS])):
        init = written(tmp_path / f"{name}.safetensors", MODEL, classes=classes)
        training = trainer(tmp_path / name, init)
        fresh = trainer(tmp_path / name, "")._model.state_dict()
        stored = read_checkpoint(tmp_path / f"{name}.safetensors")[0]
        head = classifier_of(MODEL, (64, 64), 10)
        assert len(head) == 2
        for key, value in training._model.state_dict().items():
            assert torch.equal(value, (fresh if key in head else stored)[key]), key
        assert "the classifier" in training.notes[-1]
        assert "starts anew" in training.notes[-1]


@pytest.mark.parametrize("model", ["deit_tiny", "vminet_ti", "sema_micro[window,window_size=5]"])
def test_a_larger_size_begins_with_the_same_function(tmp_path: Path, model: str) -> None:
    """Positions of another grid and windows of another size are interpolated, as when a checkpoint is tested."""
    init = written(tmp_path / "w.safetensors", model.replace(",window_size=5", ""))
    training = trainer(tmp_path / "run", init, model=model, res=96)
    tested = build_model(model, (96, 96), classes=10)
    sema.load_checkpoint(tested, tmp_path / "w.safetensors")
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(training._model.eval()(image), tested.eval()(image), rtol=1e-5, atol=1e-5)


def test_a_frozen_backbone_keeps_its_weights_and_statistics(tmp_path: Path) -> None:
    init = written(tmp_path / "w.safetensors", MODEL)
    probe = trainer(tmp_path / "run", init, freeze_backbone=True)
    before = {key: value.clone() for key, value in probe._model.state_dict().items()}
    probe._watcher = Quiet()
    assert probe.run()
    head = classifier_of(MODEL, (64, 64), 10)
    for key, value in read_checkpoint(tmp_path / "run" / WEIGHTS_FILE)[0].items():
        assert torch.equal(value, before[key]) == (key not in head), key
    moments = [key for key in read_checkpoint(tmp_path / "run" / STATE)[0] if key.endswith("exp_avg")]
    assert len(moments) == len(head)


def test_another_library_is_fine_tuned_too(tmp_path: Path) -> None:
    model = "timm:vit_tiny_patch16_224[depth=1]"
    init = written(tmp_path / "w.safetensors", model, classes=["a", "b"])
    probe = trainer(tmp_path / "run", init, model=model, freeze_backbone=True, res=96, epochs=1, epoch_images=8)
    assert probe._model.pos_embed.shape[1] == 1 + 36
    assert [name for name, value in probe._model.named_parameters() if value.requires_grad] == [
        "head.weight",
        "head.bias",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--init", "other"), "has the weights of sema_micro[window,head=max]; train that model, or give other"),
        (("--init", "torn"), "is not a complete safetensors file"),
        (("--init", "gone"), "cannot be read: No such file or directory"),
        (("--init", "unnamed"), "does not fit"),
        (("--init", "good", "--freeze-backbone", "--set", "ema=0.9"), "ema does nothing for a frozen backbone"),
        (("--freeze-backbone",), "a frozen backbone needs trained weights; give them with --init CHECKPOINT"),
        (("--freeze-backbone", "--set", "freeze_backbone=true"), "--freeze-backbone and --set freeze_backbone=… are"),
        (("--recipe", "swim"), "did you mean 'swin'"),
        (("--recipe", "suites/quick.toml"), "is no recipe; expected a table [training]"),
        (("--resume", "r", "--init", "good"), "drop --init"),
        (("--resume", "r", "--freeze-backbone"), "drop --freeze-backbone"),
    ],
)
def test_a_wrong_beginning_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    written(tmp_path / "good", MODEL)
    written(tmp_path / "other", "sema_micro[window,head=max]")
    (tmp_path / "torn").write_bytes((tmp_path / "good").read_bytes()[:5000])
    write_checkpoint(tmp_path / "unnamed", build_model("deit_tiny", (64, 64), classes=10).state_dict(), {})
    files = [
        str(tmp_path / each) if each in ("good", "other", "torn", "gone", "unnamed") else each for each in arguments
    ]
    asked = () if "--resume" in files else ("--model", MODEL, "--data", str(DATA), "--res", "64", "--batch", "8")
    code, _, err = invoke("train", *asked, *files, "--out", str(tmp_path / "results"))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_without_the_extra_a_training_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    code, _, err = invoke("train", "--model", MODEL, "--data", str(DATA), "--out", str(tmp_path))
    assert code == 2
    assert err == "sema-bench: training needs timm; pip install 'sema-bench[train]'\n"
