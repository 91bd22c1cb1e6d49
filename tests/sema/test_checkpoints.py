"""Test checkpoints: our files, the official layouts, and everything that can be wrong with a file."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from checkpoint_cases import NOTHING, official_mila, same, small_model, weights

import sema
from sema.checkpoint_layout import CheckpointLayout
from sema.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from sema.models.vim import Vim


def test_a_model_is_what_it_was_after_saving_and_loading(tmp_path):
    model, other = small_model(), small_model()
    model.apply(lambda m: m.running_mean.normal_() if isinstance(m, torch.nn.BatchNorm2d) else None)
    save_checkpoint(model, tmp_path / "model.safetensors")
    assert load_checkpoint(other, tmp_path / "model.safetensors") == NOTHING
    assert same(weights(other), weights(model))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"], "no temporary file is left"


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    model, path = small_model(), tmp_path / "model.safetensors"
    save_checkpoint(model, path)
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(small_model(), path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"model_ema": state},
        lambda state: {"model": {"state_dict": {f"_orig_mod.module.{key}": value for key, value in state.items()}}},
    ],
    ids=["bare", "model", "module prefix", "ema alone", "nested"],
)
def test_wrappers_and_prefixes_are_taken_off(wrap, tmp_path):
    model, other = small_model(), small_model()
    torch.save(wrap(weights(model)), tmp_path / "model.pth")
    for source in (wrap(weights(model)), tmp_path / "model.pth", str(tmp_path / "model.pth")):
        assert load_checkpoint(other, source) == NOTHING
        assert same(weights(other), weights(model))


def test_the_moving_average_is_taken_where_it_is_asked_for():
    plain, average, model = small_model(), small_model(), small_model()
    file = {"model": weights(plain), "model_ema": weights(average)}
    load_checkpoint(model, file)
    assert same(weights(model), weights(plain))
    load_checkpoint(model, file, ema=True)
    assert same(weights(model), weights(average))
    with pytest.raises(CheckpointError, match="holds no moving average of the weights"):
        load_checkpoint(model, {"model": weights(plain)}, ema=True)


def test_dtype_and_device_are_those_of_the_model():
    model, other = small_model(), small_model().bfloat16()
    load_checkpoint(other, weights(model))
    assert all(p.dtype == torch.bfloat16 for p in other.parameters())
    assert torch.equal(other.head.weight, model.head.weight.bfloat16())


def test_settings_beside_the_weights_are_read_without_running_them(tmp_path, monkeypatch):
    yacs = types.ModuleType("yacs.config")

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    yacs.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs.config", yacs)
    config = CfgNode(TYPE="swin")
    config.__dict__["_frozen"] = True
    model, other = small_model(), small_model()
    file = {"model": weights(model), "args": argparse.Namespace(lr=1e-3), "config": config}
    torch.save(file, tmp_path / "official.pth")
    assert load_checkpoint(other, tmp_path / "official.pth") == NOTHING
    assert same(weights(other), weights(model))


class Payload:
    """Writes a file when an unpickler runs what it reads."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path, writer):
    marker, path = tmp_path / "it-ran", tmp_path / "bad.pth"
    body = {"model": weights(small_model()), "extra": Payload(marker)}
    if writer == "torch":
        torch.save(body, path)
    else:
        path.write_bytes(pickle.dumps(body))
    with pytest.raises(CheckpointError, match="code in a checkpoint is never run") as caught:
        load_checkpoint(small_model(), path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def damaged(path: Path, suffix: str) -> Path:
    target = path / f"damaged{suffix}"
    if suffix == ".safetensors":
        save_checkpoint(small_model(), target)
    else:
        torch.save(weights(small_model()), target)
    target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    return target


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_refused_in_one_line(tmp_path, suffix):
    with pytest.raises(CheckpointError, match="damaged") as caught:
        load_checkpoint(small_model(), damaged(tmp_path, suffix))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "cannot be read as a checkpoint"),
        (b"<html>404</html>", "checkpoint"),
        (None, "is a folder; give the checkpoint file in it"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path, body, message):
    path = tmp_path / "download.pth"
    _ = path.mkdir() if body is None else path.write_bytes(body)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(small_model(), path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at '.*nowhere\.pth'"):
        load_checkpoint(small_model(), tmp_path / "nowhere.pth")


@pytest.mark.parametrize("body", [{}, {"epoch": 3, "lr": 0.1}, {"optimizer": {"state": {}}}])
def test_a_file_without_weights_is_refused(body):
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_checkpoint(small_model(), body)


def test_a_list_in_a_file_is_no_state_dict(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds list, not a state dict"):
        load_checkpoint(small_model(), tmp_path / "list.pth")


def test_missing_and_unexpected_keys_are_counted_and_the_first_named():
    state = weights(small_model())
    del state["head.weight"], state["head.bias"], state["norm.weight"], state["norm.bias"]
    state["head.fc.weight"] = torch.zeros(5, 16)
    with pytest.raises(
        CheckpointError, match=r"4 missing: norm\.weight, norm\.bias, head\.weight, …; 1 unexpected: head\.fc\.weight"
    ):
        load_checkpoint(small_model(), state)


def test_a_checkpoint_of_another_model_says_whose_it_is_and_changes_nothing():
    model = sema.create_model("sema_tiny")
    before = weights(model)
    with pytest.raises(CheckpointError, match=r"does not fit .*It looks like a checkpoint of 'mila_tiny'"):
        load_checkpoint(model, official_mila())
    assert same(weights(model), before)


@pytest.mark.parametrize(("version", "other"), [("vminet_ti", "vminet2_ti"), ("vminet2_ti", "vminet_ti")])
def test_the_two_versions_of_vminet_are_told_apart(version, other):
    with pytest.raises(CheckpointError, match=f"It looks like a checkpoint of '{other}'"):
        load_checkpoint(sema.create_model(version), weights(sema.create_model(other)))


def test_a_head_of_other_classes_says_how_many():
    with pytest.raises(CheckpointError, match="has 7 classes; build the model with num_classes=7"):
        load_checkpoint(small_model(), weights(small_model(num_classes=7)))


def test_without_strict_what_fits_is_loaded_and_the_rest_reported():
    model, other = small_model(), small_model(num_classes=7)
    state = weights(other) | {"extra": torch.zeros(1)}
    del state["norm.bias"]
    report = load_checkpoint(model, state, strict=False)
    assert report.missing == ("norm.bias",)
    assert report.unexpected == ("extra",)
    assert [key.partition(" ")[0] for key in report.mismatched] == ["head.weight", "head.bias"]
    assert torch.equal(model.norm.weight, other.norm.weight)
    with pytest.raises(CheckpointError, match="1 unexpected: other"):
        load_checkpoint(model, {"other": torch.zeros(1)}, strict=False)


def test_integers_are_not_taken_for_weights():
    state = weights(small_model())
    state["head.bias"] = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(CheckpointError, match=r"head\.bias \(torch\.int64 in the checkpoint, torch\.float32"):
        load_checkpoint(small_model(), state)


def test_one_key_in_two_layouts_is_refused():
    class Renamed(torch.nn.Linear):
        checkpoint_layout = CheckpointLayout(renames=((r"^old\.", ""),))

    with pytest.raises(CheckpointError, match="holds 'weight' twice"):
        load_checkpoint(Renamed(2, 2), {"old.weight": torch.zeros(2, 2), "weight": torch.zeros(2, 2)})


def test_a_convolution_of_one_pixel_is_a_linear_map():
    linear = torch.nn.Linear(3, 2)
    state = {"weight": torch.randn(2, 3, 1, 1), "bias": torch.zeros(2)}
    load_checkpoint(linear, state)
    assert torch.equal(linear.weight, state["weight"][:, :, 0, 0])


def test_a_model_on_the_meta_device_is_refused():
    with torch.device("meta"):
        model = small_model()
    with pytest.raises(CheckpointError, match="on the meta device"):
        load_checkpoint(model, weights(small_model()))


def test_positions_of_another_size_are_kept_and_interpolated_once():
    small, large = (Vim(dim=16, depth=4, num_classes=5, img_size=side).eval() for side in (64, 96))
    load_checkpoint(small, weights(large))
    image = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(small(image), large(image)), "at the checkpoint's size nothing is interpolated"
        assert small(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    assert small.pos_embed.shape == (1, 37, 16)
    state = weights(small) | {"pos_embed": torch.zeros(1, 12, 8)}
    with pytest.raises(CheckpointError, match=r"pos_embed \(positions must be \(1, 1 \+ N, 16\)"):
        load_checkpoint(small, state)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.eye(3).to_sparse(), "weight is a sparse tensor; save dense tensors"),
        (torch.empty(3, 3, device="meta"), r"weight is a tensor without values \(meta\)"),
    ],
)
def test_tensors_that_hold_no_plain_values_are_refused_before_anything_is_copied(value, message):
    model = torch.nn.Linear(3, 3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, {"bias": torch.ones(3), "weight": value}, strict=False)
    assert all(tensor.equal(before[key]) for key, tensor in model.state_dict().items())


def test_tied_weights_are_saved(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.append(model[0])
    save_checkpoint(model, tmp_path / "tied.safetensors")
    other = torch.nn.Sequential(torch.nn.Linear(2, 2))
    other.append(other[0])
    load_checkpoint(other, tmp_path / "tied.safetensors")
    assert other[1].weight.equal(model[0].weight)
