"""Test models that are not ours: files, entry points and timm; their code does not run before a worker needs it."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import io
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sema_bench.cli import app
from sema_bench.errors import UsageError
from sema_bench.spec import model_source
from sema_bench.spec.cell import Cell
from sema_bench.spec.model_source import parse_source
from sema_bench.spec.plan import Plan, build_plan
from sema_bench.spec.suite import parse_suite
from sema_bench.worker.protocol import Inspect, Prepare, Request, WorkloadSpec, encode_request
from sema_bench.worker.session import serve

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
        return x[:, :, ::2, ::2]


constant = 3
"""


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "models.py"
    path.write_text(MODELS, encoding="utf-8")
    return path


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


def test_a_file_may_import_its_function_from_another(model_file: Path) -> None:
    model_file.with_name("reexport.py").write_text(f"from {model_file.stem} import build\n")
    assert parse_source(f"{model_file.with_name('reexport.py')}:build").function == "build"


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
        ("modles.py:build", r"cannot be read: No such file or directory; did you mean 'models\.py'\?$"),
        ("models.py:nothing", "known: Maps, Pair, build, leaves, number, raises, sized$"),
        ("models.py:bild", r"unknown function of models\.py 'bild'; did you mean 'build'"),
        ("models.py:", "write a function after the colon"),
        ("models.py:1st", "write a function after the colon"),
        ("models.py", r"write NAME, NAME\[ATTENTION\], path/to/file\.py:function, timm:NAME or torchvision:NAME"),
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


def ask_worker(name: str, side: int, *probes: str) -> dict[str, Any]:
    """Inspect or prepare a cell as a worker does, in this process."""
    workload = WorkloadSpec(Cell(model=parse_source(name).name, height=side, width=side), seed=0)
    request: Request[Any] = Inspect(workload, probes) if probes else Prepare(workload, 0.0, 0.0)
    answers = io.StringIO()
    serve([encode_request(1, request)], answers)
    return json.loads(answers.getvalue())


def test_models_of_a_file_are_measured_and_broken_ones_are_errors_with_a_reason(model_file: Path) -> None:
    models = "models.py:sized,models.py:leaves"
    command = [sys.executable, "-m", "sema_bench", "scale", "--models", models, "--res", "32,64", "--run", "own"]
    done = subprocess.run(
        [*command, "--time-limit", "0.2", "--out", "out", "--probes", "throughput"],
        capture_output=True, text=True, cwd=model_file.parent, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1, "a cell ended in an error"
    assert "Traceback" not in done.stderr
    lines = (model_file.parent / "out" / "own" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    records = {(r["cell"]["model"].split(":")[1].split("@")[0], r["cell"]["height"]): r for r in map(json.loads, lines)}
    assert {key: r["status"] for key, r in records.items() if key[0] != "leaves"} == {
        ("sized", side): "ok" for side in (32, 64)
    }
    assert records["leaves", 32]["status"] == "error"
    assert "raised SystemExit: 3" in records["leaves", 32]["reason"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises", "raised RuntimeError: boom"),
        ("leaves", "raised SystemExit: 3"),
        ("number", "returned int; expected an nn.Module that takes (B, 3, H, W)"),
        ("Pair", "the model gives tuple; expected one tensor (1, classes), or (1, classes, 32, 32)"),
        ("Maps", "the model gives a tensor (1, 3, 16, 16); expected one tensor (1, classes), or (1, classes, 32, 32)"),
        ("constant", "is int; expected a function"),
    ],
)
def test_what_is_no_model_is_an_error_with_its_reason(model_file: Path, name: str, reason: str) -> None:
    error = ask_worker(f"models.py:{name}", 32)["error"]
    assert error["status"] == "error"
    assert reason in error["message"]


def test_counts_of_a_foreign_model_come_from_two_counters(model_file: Path) -> None:
    inspected = ask_worker("models.py:build", 32, "macs")["ok"]
    values = {m["metric"]: m["value"] for m in inspected["measurements"]}
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
    monkeypatch.syspath_prepend(str(package))
    assert importlib.metadata.entry_points(group=model_source.ENTRY_POINTS)
    assert "ok" in ask_worker("mine", 32)
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


def test_timm_models_are_built_for_each_size_and_skip_what_they_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("timm")
    fake.__spec__ = importlib.machinery.ModuleSpec("timm", None)
    exec(FAKE_TIMM, fake.__dict__)
    monkeypatch.setitem(sys.modules, "timm", fake)
    for name, side in (("fixed", 32), ("fixed", 48), ("free", 48)):
        assert "ok" in ask_worker(f"timm:{name}", side)
    for name, side, message in (
        ("fixed", 40, "timm cannot build it for this size: img_size must be a multiple of 16"),
        ("free", 32, "it does not run at this size: map too small"),
    ):
        error = ask_worker(f"timm:{name}", side)["error"]
        assert (error["status"], error["message"]) == ("skipped", message)
    error = ask_worker("timm:fred", 32)["error"]
    assert error["status"] == "error"
    assert "timm 1.0.fake has no model 'fred'; did you mean free" in error["message"]


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
