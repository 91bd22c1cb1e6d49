"""Make the hostile input that a table of text cannot hold: pipes, damaged files, images, shards, odd runs."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import SCHEMA_VERSION, Measurement, Record
from sema_bench.spec.sampling import Sampling

#: Acts on a terminal, a spreadsheet, a page, a Markdown comment, TeX and GitHub's log, unless it is escaped.
NASTY = (
    "=cmd|\x1b[31mred\x07\u202egnp.exe|[x](javascript:alert(1))|<script>alert(2)</script>|\\input{/etc/passwd}"
    "|\u2028::error::x\n::error::y\n@SUM(1)"
)
_NO_TEXT = os.fsdecode(b"\xff")
_ODD_DETAILS = {
    "seeds": "many",
    "warmups": 2**70,
    "uncovered_operators": 5,
    "counting_notes": 5,
    "accuracy": {"weights_dropped": 5, "unreadable": 5},
    "telemetry": {"disturbances": {"x": 2**70}},
}
_LATENCIES = tuple(0.01 + 0.0001 * (k % 7) for k in range(40))


def _run(
    path: Path,
    *,
    model: str = "sema_micro",
    reason: str = "",
    status: str = "ok",
    version: int = SCHEMA_VERSION,
    environment: dict[str, Any] | None = None,
    details: dict[str, Any] | None = None,
    **changes: Any,
) -> None:
    """Write a run of two cells as a driver leaves it; the second cell has ``status`` and ``reason``."""
    cells = [Cell(model=model, height=side, width=side) for side in (64, 96)]
    plan = Plan("odd", tuple((cell,) for cell in cells), ("params", "macs"), Sampling()).to_json()
    facts = {"fingerprint": "0" * 12, "hardware": {"cpu": "x"}, "software": {"torch": "2"}, "context": {}}
    metadata = {
        "schema_version": version,
        "created_at": "2026-01-02T03:04:05Z",
        "plan": plan,
        "environment": environment or facts,
        "suite": {"name": "odd"},
    }
    path.mkdir(parents=True)
    (path / "run.json").write_text(
        json.dumps({key: value for key, value in {**metadata, **changes}.items() if value is not None})
    )
    latency = Measurement(metric="latency_s", value=0.0103, ci_low=0.0102, ci_high=0.0104, samples=_LATENCIES)
    measurements = {"params": Measurement(metric="params", value=10), "latency_s": latency}
    records = [
        Record(cell=cells[0], status="ok", measurements=measurements, details=details or {}),
        Record(cell=cells[1], status=status, reason=reason, measurements=measurements if status == "ok" else {}),
    ]
    lines = [json.dumps({**json.loads(record.to_json()), "schema_version": version}) for record in records]
    (path / "records.jsonl").write_text("".join(f"{line}\n" for line in lines))


def _training(path: Path, *, seed: object) -> None:
    training = {"recipe": {}, "model": "sema_micro", "data": "digits:field", "seed": seed}
    _run(path, plan=None, suite=None, training=training)
    file = path / "run.json"
    file.write_text(file.read_text().replace("Infinity", "1e999"))


def _nasty_run(path: Path, *, model: str = f"{NASTY}.py:build") -> None:
    """Write a run with hostile text in every text field."""
    facts = {"fingerprint": NASTY, "hardware": {"cpu": NASTY}, "software": {"torch": NASTY, NASTY: NASTY}}
    context = {"commit": NASTY, "code": NASTY, "governor": NASTY}
    details = {
        "stop_reason": NASTY,
        "untraced": {"fvcore": NASTY},
        "uncovered_operators": [NASTY],
        "counting_notes": [NASTY],
        "interleaved_with": [NASTY],
        "telemetry": {"disturbances": {NASTY: 3}},
    }
    texts = {"command": NASTY, "created_at": NASTY, "suite": {"name": NASTY, "claim": NASTY}, "sema_bench": NASTY}
    environment = {**facts, "context": context}
    _run(path, model=model, status="error", reason=NASTY, environment=environment, details=details, **texts)


def _broken(path: Path, **files: Callable[[Path], None]) -> None:
    """Write a run, and let makers replace the named files."""
    _run(path)
    for name, make in files.items():
        file = path / {"run": "run.json", "records": "records.jsonl", "table": "table.csv"}[name]
        file.unlink(missing_ok=True)
        make(file)


def _with_lines(*lines: str) -> Callable[[Path], None]:
    """Return a maker of a run with more lines in records.jsonl; the last line has no line break."""

    def make(path: Path) -> None:
        _run(path)
        with (path / "records.jsonl").open("a") as file:
            file.write("\n".join(lines))

    return make


def _odd_record(**changes: Any) -> str:
    """Return the line of a record with ``changes``; the name of a cell's field changes the cell."""
    body = json.loads(Record(cell=Cell(model="sema_micro", height=128, width=128), status="ok").to_json())
    cell = {key: changes.pop(key) for key in list(changes) if key in body["cell"]}
    return json.dumps({**body, "cell": {**body["cell"], **cell}, **changes})


def _bytes(content: bytes | str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def _npz(images: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.savez(path, images=images, labels=np.arange(len(images)))


def _pipe(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def _link(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    return make


def _safetensors(header: object, content: bytes = b"\0" * 16, *, length: int | None = None) -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def _about(**about: object) -> Callable[[Path], None]:
    """Return a maker of a complete safetensors file with one tensor, and ``about`` as its metadata."""
    tensor = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    return _bytes(_safetensors({"__metadata__": {"sema_bench": json.dumps(about)}, **tensor} if about else tensor))


class _Evil:
    """Makes a folder in the working folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return (os.mkdir, ("pwned",))


def _archive(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return content.getvalue()


def _image(path: Path, *, mode: str = "RGB", size: tuple[int, int] = (40, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path, format="PNG")


def _png(width: int, height: int) -> bytes:
    """Return a PNG that claims these sides but has hardly a pixel."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(4))) + chunk(b"IEND", b"")


def _classes(*names: str) -> Callable[[Path], None]:
    """Return a maker of a folder with one folder per class and an image in each."""

    def make(path: Path) -> None:
        for name in names:
            _image(path / name / "a.png")

    return make


def _shard(*members: tuple[str, bytes | str]) -> Callable[[Path], None]:
    """Return a maker of a tar file; a member whose content is text is a link to that path."""

    def make(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, content in members:
                member = tarfile.TarInfo(name)
                if isinstance(content, str):
                    member.type, member.linkname = tarfile.SYMTYPE, content
                    tar.addfile(member)
                else:
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    return make


def _cut(make: Callable[[Path], None], size: int) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        make(path)
        with path.open("rb+") as file:
            file.truncate(size)

    return cut


_PIXEL = _png(1, 1)
_LATER = SCHEMA_VERSION + 1

_NPY_HEADER = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 999, 999), }\n"
_NPY_OF_A_HUGE_SHAPE = b"\x93NUMPY\x01\x00" + len(_NPY_HEADER).to_bytes(2, "little") + _NPY_HEADER

MAKERS: dict[str, Callable[[Path], None]] = {
    # Not regular files
    "pipe": _pipe,
    "device": _link("/dev/zero"),
    "full device": _link("/dev/full"),
    "folder": lambda path: path.mkdir(parents=True),
    "loop": lambda path: _link(path.name)(path),
    "link to nothing": _link("nothing-there"),
    "link to run.json": _link("results/r/run.json"),
    "link to mine": _link("../../mine"),
    # Bytes
    "binary": _bytes(b"\x00\xff\xfe\x80" * 50),
    "empty": _bytes(b""),
    "utf-16": _bytes("models = ['sema_micro']\n".encode("utf-16")),
    "nul": _bytes(b"models = ['sema_micro']\nres = '64'\0\n"),
    "deep toml": _bytes("res = " + "[" * 100_000),
    "deep json": _bytes("[" * 100_000),
    "deep python": _bytes(b"x = " + b"-" * 200_000 + b"1\n"),
    "long integer": _bytes("models = ['sema_micro']\nres = '64'\nseed = " + "9" * 6000 + "\n"),
    "many models": _bytes("res = '64'\nmodels = [" + "'sema_micro'," * 20_000 + "]\n"),
    # Runs
    "run": _run,
    "run of a newer release": lambda path: _run(path, version=_LATER),
    "run without cells": lambda path: _run(path, plan={"suite": "odd", "groups": [], "probes": []}),
    "run of a training": lambda path: _run(path, plan=None, suite=None, training={"recipe": {"lr": "fast"}}),
    "run of a training with an odd seed": lambda path: _training(path, seed=math.inf),
    "run with odd details": lambda path: _run(path, details=_ODD_DETAILS),
    "run with odd plan": lambda path: _run(path, plan=[1, {"groups": None}]),
    "run with odd environment": lambda path: _run(path, environment={"hardware": [1], "software": 3}),
    "run with odd gate": lambda path: _run(path, suite={"name": "odd", "gate": {"delta": "much"}}),
    "runs, one with a name that is no text": lambda path: (_run(path / "r"), _run(path / _NO_TEXT))[0],
    "nasty run": _nasty_run,
    "run with nasty facts": lambda path: _nasty_run(path, model="sema_micro"),
    "run with nasty reason": lambda path: _run(path, status="error", reason=NASTY),
    "torn run": _with_lines('{"schema_version": 1, "cell": {"mod'),
    "run with a newer record": _with_lines(_odd_record(schema_version=_LATER), ""),
    "run with odd records": _with_lines(
        *("null", "[]", '"x"', "1e999", "{}", '{"schema_version": true}', "NaN", "[" * 5000),
        *(_odd_record(schema_version=v) for v in (0, -1, 1.0, "1")),
        *(_odd_record(height=h) for h in (0, -1, 2**40, "64", None, True)),
        *(_odd_record(measurements=m) for m in (None, 3, [3], [{}], [{"metric": "latency_s", "value": "1"}])),
        *(_odd_record(measurements=[{"metric": "params", "value": v}]) for v in (10**400, None, "x", [1], True)),
        *(_odd_record(status=s) for s in ("fine", None, [], {})),
        *(_odd_record(**{key: 3}) for key in ("reason", "details", "environment", "started_at", "extra")),
        _odd_record(duration_s="1"),
        "\u2028",
        "",
    ),
    "run with no record": lambda path: _broken(path, records=_bytes("null\n")),
    "run with run.json a pipe": lambda path: _broken(path, run=_pipe),
    "run with run.json a folder": lambda path: _broken(path, run=Path.mkdir),
    "run with run.json a loop": lambda path: _broken(path, run=_link("run.json")),
    "run with run.json a device": lambda path: _broken(path, run=_link("/dev/zero")),
    "run with run.json empty": lambda path: _broken(path, run=_bytes("")),
    "run with run.json binary": lambda path: _broken(path, run=_bytes(b"\xff\xfe\x00")),
    "run with run.json deep": lambda path: _broken(path, run=_bytes("[" * 100_000)),
    "run with run.json a list": lambda path: _broken(path, run=_bytes("[1, 2]")),
    "run with records a pipe": lambda path: _broken(path, records=_pipe),
    "run with records a folder": lambda path: _broken(path, records=Path.mkdir),
    "run with records a loop": lambda path: _broken(path, records=_link("records.jsonl")),
    "run with records a device": lambda path: _broken(path, records=_link("/dev/zero")),
    "run without records": lambda path: _broken(path, records=lambda file: None),
    "run with empty records": lambda path: _broken(path, records=_bytes("")),
    "run with table a pipe": lambda path: _broken(path, table=_pipe),
    "run with table a folder": lambda path: _broken(path, table=Path.mkdir),
    "run with table a device": lambda path: _broken(path, table=_link("/dev/zero")),
    "run driven by nobody knows whom": lambda path: (
        _run(path),
        _bytes('{"host": null, "process": "../..", "renewed": "yesterday"}')(path / "driver.json"),
    )[0],
    "run with table binary": lambda path: _broken(path, table=_bytes(b"\xff\x00,\n")),
    # Checkpoints
    "weights": _about(),
    "weights of another model": _about(format=1, model="vim_tiny", classes=["a", "b"]),
    "weights with odd facts": _about(format=1, model=["x"], classes={"a": 1}, data=7),
    "weights of a newer release": _about(format=99, model="sema_micro"),
    "weights with nasty facts": _about(format=1, model=NASTY, classes=[NASTY], data=NASTY),
    "weights cut short": _cut(_about(), 100),
    "weights with a long header": _bytes(_safetensors(b"{", length=2**62)),
    "weights with a deep header": _bytes(_safetensors(b'{"a":' * 20_000)),
    "weights without tensors": _bytes(_safetensors({}, b"")),
    "weights beyond the end": _bytes(_safetensors({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**60]}})),
    "weights of overlapping tensors": _bytes(
        _safetensors({k: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for k in "ab"})
    ),
    "pickle with code": _bytes(pickle.dumps(_Evil())),
    "torch file with code": _bytes(_archive({"x/data.pkl": pickle.dumps(_Evil(), 2), "x/version": b"3\n"})),
    "zip without weights": _bytes(_archive({"readme.txt": b"hello"})),
    "zip cut short": _bytes(_archive({"x/data.pkl": b"\x80\x02}."})[:-10]),
    "npz with code": _npz(np.array([_Evil()] * 3, dtype=object)),
    "npz of a huge shape": _bytes(_archive({"images.npy": _NPY_OF_A_HUGE_SHAPE, "labels.npy": _NPY_OF_A_HUGE_SHAPE})),
    "tar": _shard(("weights.pt", b"x")),
    # Images
    "image": _image,
    "image cut short": _cut(_image, 60),
    "image of a huge size": _bytes(_png(60_000, 60_000)),
    "image without pixels": _bytes(_png(0, 0)),
    "classes": _classes("cat", "dog"),
    "classes in a loop": lambda path: (_classes("cat")(path), _link("..")(path / "cat" / "up"))[0],
    "classes and a pipe": lambda path: (_classes("cat")(path), _pipe(path / "cat" / "b.png"))[0],
    "classes with odd names": _classes("=1+1", "<b>", "a b", "\u202egnp", "x" * 200),
    "classes, one with a name that is no text": lambda path: _classes("cat", _NO_TEXT)(path),
    "many classes": _classes(*(f"c{k:04d}" for k in range(120))),
    # Shards
    "shard": _shard(("a.png", _PIXEL), ("a.cls", b"0")),
    "shard cut short": _cut(_shard(("a.png", _PIXEL), ("a.cls", b"0")), 700),
    "shard without labels": _shard(("a.png", _PIXEL)),
    "shard with odd members": _shard(
        ("../../escape.png", _PIXEL), ("../../escape.cls", b"0"), ("/etc/x.png", "/etc/passwd"), ("a/../b.cls", b"1")
    ),
    "shard with links alone": _shard(("a.png", "/etc/passwd"), ("a.cls", "/etc/hostname")),
    "shard with a word for a label": _shard(("a.png", _PIXEL), ("a.cls", b"cat")),
    "shard with a label below 0": _shard(("a.png", _PIXEL), ("a.cls", b"-1")),
    "shard with a huge label": _shard(("a.png", _PIXEL), ("a.cls", b"9" * 5000)),
    "shard with a deep label": _shard(("a.png", _PIXEL), ("a.json", b"[" * 100_000)),
    "gzip": _bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\3" + b"\0" * 20),
}
