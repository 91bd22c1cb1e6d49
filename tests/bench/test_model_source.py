"""Models that are not ours: files, entry points and timm; nothing of theirs runs before a worker asks for it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sema_bench import model_source
from sema_bench.cli import app
from sema_bench.errors import UsageError
from sema_bench.model_source import parse_source
from sema_bench.plan import Plan, build_plan
from sema_bench.probes.base import ProbeError
from sema_bench.schema import Cell
from sema_bench.subject import Subject
from sema_bench.suite import parse_suite

MODELS = """
from torch import nn

print("imported")


def build():
    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def sized(img_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * img_size[0] * img_size[1], 5))


def raises():
    raise RuntimeError("boom")


def leaves():
    raise SystemExit(3)


def number():
    return 3


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Maps(nn.Module):
    def forward(self, x):
        return x


constant = 3
"""


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "models.py"
    path.write_text(MODELS, encoding="utf-8")
    return path


def records(folder: Path) -> dict[str, dict[str, object]]:
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return {f"{r['cell']['model']} {r['cell']['height']}": r for r in map(json.loads, lines)}


def test_a_file_is_named_with_its_digest_and_not_run(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = parse_source("models.py:build")
    assert (source.kind, source.target, source.function) == ("file", "models.py", "build")
    assert source.name.startswith("models.py:build@")
    assert parse_source(source.name) == source, "the name of a record is a name that can be given again"
    before = source.name
    model_file.write_text(MODELS + "\n# changed\n", encoding="utf-8")
    assert parse_source("models.py:build").name != before
    with pytest.raises(UsageError, match=r"models\.py has changed since this run was planned"):
        parse_source(before)
    assert capsys.readouterr().out == ""


def test_a_plan_with_a_file_survives_its_json(model_file: Path) -> None:
    suite = parse_suite(
        {"name": "own", "claim": "", "cost": "", "models": ["models.py:build", "sema_tiny"], "res": "64"}, source="test"
    )
    plan = build_plan(suite, device="cpu", threads=1)
    assert plan.cells[0].model == parse_source("models.py:build").name
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py:build", r"model file 'nowhere\.py' cannot be read: No such file"),
        ("models.py:bild", r"unknown function of models\.py 'bild'; did you mean 'build'"),
        ("models.py:", "after the colon stands a function"),
        ("models.py:1st", "after the colon stands a function"),
        ("models.py", r"write NAME, NAME\[ATTENTION\], path/to/file\.py:function or timm:NAME"),
        ("models.txt:build", "bad model name"),
        ("broken.py:build", r"model file 'broken\.py' is not valid Python \(line 1\)"),
        ("binary.py:build", "is not valid Python"),
        (".:build", "bad model name"),
        ("timm:", "write timm:NAME"),
        ("timm:a b", "write timm:NAME"),
        ("x" * 400, "bad model name"),
        ("a\nb", "bad model name"),
        ("sema_tny", "did you mean 'sema_tiny'"),
    ],
)
def test_a_bad_name_is_refused_in_one_line(model_file: Path, name: str, message: str) -> None:
    (model_file.parent / "broken.py").write_text("def build(:\n", encoding="utf-8")
    (model_file.parent / "binary.py").write_bytes(b"\x00\xff\xfe")
    with pytest.raises(UsageError, match=message) as caught:
        parse_source(name)
    assert "\n" not in str(caught.value)


def test_timm_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_source.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs timm, which is not installed; pip install 'sema-bench\[timm\]'"):
        parse_source("timm:resnet18")


def scale(
    models: str, folder: Path, *, env: dict[str, str] | None = None, res: str = "32,64", probes: str = "throughput"
) -> dict[str, object]:
    command = [sys.executable, "-m", "sema_bench", "scale", "--models", models, "--res", res, "--run", "own"]
    done = subprocess.run(
        [*command, "--time-limit", "0.2", "--out", "out", "--probes", probes],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **(env or {})},
        timeout=300,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    return {"code": done.returncode, "records": records(folder / "out" / "own")}


def test_models_of_a_file_are_measured_and_broken_ones_are_errors_with_a_reason(model_file: Path) -> None:
    result = scale("models.py:build,models.py:sized,models.py:leaves", model_file.parent)
    assert result["code"] == 1, "a cell ended in an error"
    found: dict[str, tuple[object, object]] = {}
    for key, record in result["records"].items():  # type: ignore[attr-defined]
        found[key.split(":")[1].replace("@" + key.split("@")[1].split()[0], "")] = (record["status"], record["reason"])
    assert found["build 32"] == found["build 64"] == found["sized 32"] == found["sized 64"] == ("ok", "")
    status, said = found["leaves 32"]
    assert status == "error"
    assert "raised SystemExit: 3" in str(said)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises", "raised RuntimeError: boom"),
        ("leaves", "raised SystemExit: 3"),
        ("number", "returned int; expected an nn.Module that takes (B, 3, H, W)"),
        ("Pair", "the model gives tuple; expected one tensor (B, classes)"),
        ("Maps", "the model gives a tensor (1, 3, 32, 32); expected (B, classes) with B = 1"),
        ("constant", "is int; expected a function"),
    ],
)
def test_what_is_no_model_is_an_error_with_its_reason(model_file: Path, name: str, reason: str) -> None:
    cell = Cell(model=parse_source(f"models.py:{name}").name, height=32, width=32)
    with pytest.raises(ProbeError, match=re.escape(reason)):
        Subject(cell).forward()


def test_counts_of_a_foreign_model_come_from_two_counters(model_file: Path) -> None:
    result = scale("models.py:build", model_file.parent, res="32", probes="macs")
    (record,) = result["records"].values()  # type: ignore[attr-defined]
    values = {m["metric"]: m["value"] for m in record["measurements"]}
    macs = 4 * 4 * 4 * 3 * 8 * 8 + 4 * 5
    assert values["macs"] == values["macs_fvcore"] == values["macs_flop_counter"] == macs
    assert (values["macs_attention"], values["macs_projection"], values["macs_convolution"]) == (0, 4 * 5, macs - 4 * 5)


def test_an_installed_package_brings_models_by_entry_point(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = model_file.parent / "site"
    info = package / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[sema_bench.models]\nmine = mine_models:build\n", encoding="utf-8")
    (package / "mine_models.py").write_text(MODELS, encoding="utf-8")
    result = scale("mine", model_file.parent, env={"PYTHONPATH": str(package)}, res="32")
    (record,) = result["records"].values()  # type: ignore[attr-defined]
    assert record["status"] == "ok"
    monkeypatch.syspath_prepend(str(package))
    assert importlib.metadata.entry_points(group=model_source.ENTRY_POINTS)
    assert "mine" in CliRunner().invoke(app, ["list", "models"]).stdout
    with pytest.raises(UsageError, match="installed: mine"):
        parse_source("mien")


FAKE_TIMM = """
from torch import nn
__version__ = "1.0.fake"

def is_model(name):
    return name in ("fixed", "free")

def list_models():
    return ["fixed", "free"]

class Fixed(nn.Module):
    def __init__(self, img_size):
        super().__init__()
        assert img_size[0] % 16 == 0, "img_size must be a multiple of 16"
        self.img_size = img_size
        self.head = nn.Linear(3, 5)
    def forward(self, x):
        assert tuple(x.shape[2:]) == tuple(self.img_size), "wrong input size"
        return self.head(x.mean((2, 3)))

class Free(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 5)
    def forward(self, x):
        if x.shape[2] < 40:
            raise RuntimeError("map too small")
        return self.head(x.mean((2, 3)))

def create_model(name, pretrained, in_chans, **kwargs):
    assert not pretrained and in_chans == 3
    return Fixed(**kwargs) if name == "fixed" else Free(**kwargs)
"""


def test_timm_models_are_built_for_each_size_and_skip_what_they_cannot(model_file: Path) -> None:
    (model_file.parent / "timm.py").write_text(FAKE_TIMM, encoding="utf-8")
    environment = {"PYTHONPATH": str(model_file.parent)}
    result = scale("timm:fixed,timm:free,timm:fred", model_file.parent, env=environment, res="32,40,48")
    found = {key: (r["status"], r["reason"]) for key, r in result["records"].items()}  # type: ignore[attr-defined]
    assert found["timm:fixed 32"] == found["timm:fixed 48"] == found["timm:free 48"] == ("ok", "")
    status, reason = found["timm:fixed 40"]
    assert (status, reason) == ("skipped", "timm cannot build it for this size: img_size must be a multiple of 16")
    assert found["timm:free 32"] == ("skipped", "it does not run at this size: map too small")
    status, reason = found["timm:fred 32"]
    assert status == "error"
    assert "timm 1.0.fake has no model 'fred'; did you mean free" in reason


@pytest.mark.skipif(model_source.importlib.util.find_spec("timm") is None, reason="needs the package timm")
def test_our_models_register_with_timm() -> None:
    import timm
    import torch

    import sema

    assert sema.register_with_timm() == sema.register_with_timm() == sema.list_models()
    model = timm.create_model("vminet_ti", num_classes=7, drop_path_rate=0.1)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    with pytest.raises(ValueError, match="no pretrained weights"):
        timm.create_model("vminet_ti", pretrained=True)
    with pytest.raises(TypeError, match="has no option 'foo'"):
        timm.create_model("vminet_ti", foo=1)


def test_registering_without_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sema

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'sema-bench\[timm\]'"):
        sema.register_with_timm()
