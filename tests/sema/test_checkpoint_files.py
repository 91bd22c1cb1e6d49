"""Test checkpoint files: they are recognized by content, and a pickle may hold more than weights."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import functools
import gzip
import io
import json
import operator
import os
import pathlib
import pickle
import random
import re
import socket
import struct
import subprocess
import tarfile
import types
import uuid
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from sema.checkpoints import CheckpointError, load_checkpoint

WEIGHTS = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}


def saved(body: object, *, legacy: bool = False, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(body, buffer, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return buffer.getvalue()


def zipped(files: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def edited(content: bytes, member: str, old: bytes, new: bytes) -> bytes:
    """Return the zip archive ``content`` with bytes replaced in one of its files."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in files if name.endswith(member))
    assert old in files[name]
    return zipped(files | {name: files[name].replace(old, new)})


def load(path: Path) -> dict[str, torch.Tensor]:
    model = nn.Linear(2, 1)
    report = load_checkpoint(model, path)
    assert report.fits
    return model.state_dict()


def check_loads(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    loaded = load(path)
    assert all(loaded[key].equal(value) for key, value in WEIGHTS.items())


def refusal(path: Path) -> str:
    """Return the message that refuses a file; check that it is one line and the model is unchanged."""
    model = nn.Linear(2, 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path)
    assert "\n" not in str(caught.value)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    return str(caught.value)


# Formats


@pytest.mark.parametrize("name", ["model.bin", "model.pth", "x.SAFETENSORS", "x.sft", "model", "model.pth.tar"])
def test_any_format_loads_under_any_name(tmp_path: Path, name: str) -> None:
    for content in (save(WEIGHTS), saved(WEIGHTS), saved(WEIGHTS, legacy=True)):
        check_loads(tmp_path / name, content)
        check_loads(tmp_path / "x.safetensors", content)


def test_a_safetensors_header_as_long_as_the_sign_of_an_archive_is_one(tmp_path: Path) -> None:
    """Its length is 0x4b50, so the file begins with the letters PK."""
    plain = save(WEIGHTS)
    length = int.from_bytes(plain[:8], "little")
    header = plain[8 : 8 + length].ljust(0x4B50)
    check_loads(tmp_path / "model", struct.pack("<Q", len(header)) + header + plain[8 + length :])


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.zeros(3))
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return buffer.getvalue()


INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "git-LFS pointer.*run git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page.*download"),
        (b"\n <HTML><body>404", "web page.*download"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error>", "web page.*download"),
        (b"", "empty"),
        (b"Entry not found", "text that begins with 'Entry not found'"),
        (gzip.compress(b"weights"), "gzip archive; unpack it"),
        (tar(), "tar archive; unpack it"),
        (
            zipped({"a/model.pth": b"", "a/README": b""}),
            r"zip archive of 2 files \(a/model\.pth, a/README\); unpack it",
        ),
        (zipped({"config.json": b"", "model.weights.h5": b""}), "Keras model"),
        (npz(), "NumPy"),
        (
            json.dumps(INDEX).encode(),
            r"index of weights in 2 files \(model-00001-of-00002\.safetensors, .*; merge them",
        ),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.0.1:", "ONNX"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5.*Keras"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (pickle.dumps({"a": 1}), "pickle that torch.save did not write, and code in a checkpoint is never run"),
        (bytes(64), "00 00 00 00"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_kind_of_file_is_named_under_any_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    text = refusal(tmp_path / name)
    assert name in text
    assert re.search(message, text), text


@pytest.mark.filterwarnings("ignore")
def test_programs_are_refused_and_never_run(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 1)), tmp_path / "model.pth")
    assert "is a program of TorchScript, and code in a checkpoint is never run" in refusal(tmp_path / "model.pth")
    (tmp_path / "model.pt2").write_bytes(zipped({"model/archive_format": b"pt2"}))
    assert "is a program of torch.export" in refusal(tmp_path / "model.pt2")


def test_what_is_not_a_file_is_refused_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # the path of a socket may have 107 characters
        listener.bind("socket")
        for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null"), Path("socket")):
            assert "is not a file but a pipe, a socket or a device" in refusal(path)


# Files that lie about their size, and damaged ones


@pytest.mark.parametrize("length", [2**63, 2**40, 99_999_999])
def test_a_header_of_absurd_length_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + b'{"weight":')
    assert "is not a complete safetensors file" in refusal(tmp_path / "x.safetensors")


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    body = {"weight": torch.zeros(300), "bias": torch.zeros(1)}
    number, absurd = b"M\x2c\x01", b"J\x00\x00\x00\x7f"  # 300 and 2,130,706,432 as pickles write them
    (tmp_path / "zip.pth").write_bytes(edited(saved(body), "data.pkl", number, absurd))
    (tmp_path / "legacy.pth").write_bytes(saved(body, legacy=True).replace(number, absurd))
    for name in ("zip.pth", "legacy.pth"):
        assert name in refusal(tmp_path / name)


def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path: Path) -> None:
    files = {"a/data.pkl": pickle.dumps({}, 2), "a/version": b"3", "a/data/0": bytes(1 << 22)}
    (tmp_path / "bomb.pth").write_bytes(zipped(files, compression=zipfile.ZIP_DEFLATED))
    assert "claims to unpack to 4194" in refusal(tmp_path / "bomb.pth")


@pytest.mark.parametrize(
    "content", [save(WEIGHTS), saved(WEIGHTS), saved(WEIGHTS, legacy=True)], ids=["st", "zip", "old"]
)
def test_a_damaged_file_is_refused_or_loads(tmp_path: Path, content: bytes) -> None:
    """No damage raises anything else. Many bytes do not matter, such as those of the weights."""
    generator = random.Random(0)
    damaged = [content[:length] for length in range(0, len(content), max(1, len(content) // 40))]
    for _ in range(80):
        copy = bytearray(content)
        copy[generator.randrange(len(copy))] = generator.randrange(256)
        damaged.append(bytes(copy))
    path = tmp_path / "damaged"
    messages = []
    for body in damaged:
        path.write_bytes(body)
        try:
            load_checkpoint(nn.Linear(2, 1), path)
        except CheckpointError as problem:
            messages.append(str(problem))
    assert len(messages) >= 40
    assert not any("\n" in message for message in messages)


# Other contents beside the weights


class Node(dict):
    """A mapping of settings with attributes, like those of yacs, easydict and mmcv."""


class Tracker:
    """An object of a class that only the training script knows."""

    def __init__(self) -> None:
        self.best = Path("/tmp")

    def __setstate__(self, state: object) -> None:
        raise AssertionError("code of a checkpoint has run")


def node() -> Node:
    settings = Node(lr=0.1, inner=Node(depth=2))
    settings.frozen = True
    return settings


PLAIN = {
    "numpy scalars": [np.float32(1), np.int64(1), np.bool_(True), np.str_("a"), np.datetime64(1, "s")],
    "numpy arrays": [np.arange(3.0), np.array(["a"]), np.array(["a", None], dtype=object), np.zeros(1, dtype="f4,i8")],
    "numpy types": [np.dtype("f4"), np.float32, np.random.default_rng(0)],
    "defaultdict": [collections.defaultdict(list, {1: [2]}), collections.defaultdict(float, a=1.0)],
    "collections": [collections.Counter("aab"), collections.OrderedDict(a=1), collections.deque([1, 2], 3)],
    "sets": [{1, 2}, frozenset([1]), {Path("a")}],
    "namespaces": [
        argparse.Namespace(lr=1e-3, out=Path("/tmp")),
        types.SimpleNamespace(a=1),
        collections.UserDict(a=1),
    ],
    "paths": [Path("a"), pathlib.PureWindowsPath("a"), {Path("a"): 1}],
    "times": [
        datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
        datetime.date(2024, 1, 1),
        datetime.timedelta(1),
    ],
    "numbers": [decimal.Decimal("0.1"), fractions.Fraction(1, 3), 1j, 2**70, uuid.UUID(int=1), range(3), slice(1)],
    "bytes": [b"", b"a\xff", bytearray(b"a")],
    "torch": [torch.Size([1]), torch.float16, torch.device("cpu"), torch.strided, nn.functional.relu],
    "settings": [node()],
    "objects": [Tracker(), Tracker],
    "optimizer": [torch.optim.AdamW([nn.Parameter(torch.zeros(1))])],
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", PLAIN)
def test_plain_data_beside_the_weights_is_read_and_forgotten(tmp_path: Path, kind: str, legacy: bool) -> None:
    check_loads(tmp_path / "model.pth", saved({"state_dict": WEIGHTS, "beside": PLAIN[kind]}, legacy=legacy))


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numbers_of_numpy_1_and_2_are_read(tmp_path: Path, module: bytes) -> None:
    content = saved({"state_dict": WEIGHTS, "loss": np.float64(1), "history": np.arange(3)})
    written = np.float64(1).__reduce__()[0].__module__.encode()
    check_loads(tmp_path / "model.pth", edited(content, "data.pkl", written, module))


def test_data_is_read_whatever_the_process_allows_its_own_files(tmp_path: Path) -> None:
    with torch.serialization.safe_globals([np.dtype, argparse.Namespace]):
        before = set(torch.serialization.get_safe_globals())
        check_loads(tmp_path / "model.pth", saved({"state_dict": WEIGHTS, "loss": np.float64(1)}))
        assert set(torch.serialization.get_safe_globals()) == before


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def touch(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "call",
    [
        lambda path: Call(os.system, f"touch {path}"),
        lambda path: Call(eval, f"open({path!r}, 'w')"),
        lambda path: Call(exec, f"open({path!r}, 'w')"),
        lambda path: Call(subprocess.Popen, ["touch", path]),
        lambda path: Call(open, path, "w"),
        lambda path: Call(touch, path),
        lambda path: Call(Path.touch, Path(path)),
        lambda path: Call(functools.partial, touch, path),
        lambda path: Call(operator.methodcaller, "touch"),
        lambda path: Call(torch.load, path),
        lambda path: Call(np.load, path),
        lambda path: Call(__import__, "os"),
        lambda path: Call(collections.defaultdict, os.system),
        lambda path: Call(collections.defaultdict, Call(functools.partial, eval, "1")),
        lambda path: {Call(touch, path): 1},
    ],
)
def test_a_call_is_refused_and_not_made(tmp_path: Path, call, legacy: bool) -> None:
    marker = tmp_path / "it-ran"
    (tmp_path / "bad.pth").write_bytes(saved({"state_dict": WEIGHTS, "extra": call(str(marker))}, legacy=legacy))
    assert "code in a checkpoint is never run" in refusal(tmp_path / "bad.pth")
    assert not marker.exists()


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"args": Tracker(), "model": model}])
def test_a_whole_model_is_refused_by_the_name_of_its_class(tmp_path: Path, wrap) -> None:
    (tmp_path / "model.pth").write_bytes(saved(wrap(nn.Linear(2, 1))))
    message = refusal(tmp_path / "model.pth")
    assert "an object of class torch.nn.modules.linear.Linear in place of weights" in message
    assert "code in a checkpoint is never run; save its state dict" in message


def test_another_pickle_protocol_is_refused_in_words(tmp_path: Path) -> None:
    for legacy in (False, True):
        (tmp_path / "model.pth").write_bytes(saved(WEIGHTS, legacy=legacy, protocol=4))
        assert "of another pickle_protocol" in refusal(tmp_path / "model.pth")
