"""Test torch settings that a model changes: its cell is an error, and the next model does not inherit them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sema_bench.machine.torch_settings import first_change, put_back, read_settings
from sema_bench.spec.cell import Cell
from sema_bench.spec.model_source import parse_source
from sema_bench.worker.protocol import Inspect, Prepare, Request, Sample, WorkloadSpec, encode_request
from sema_bench.worker.session import Session, serve

MODEL = """
import torch
from torch import nn

{imported}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 10)
        self.passes = 0
        {built}

    def forward(self, x):
        self.passes += 1
        {run}
        return self.head(self.conv(x).mean((2, 3)))


def build():
    return Net()
"""

CHANGES = {
    "torch.set_num_threads(3)": "torch's threads to 3; the cell is measured with 1;",
    "torch.set_num_threads(64)": "torch's threads to 64; the cell is measured with 1;",
    "torch.backends.cudnn.benchmark = True": "torch.backends.cudnn.benchmark to True",
    "torch.backends.cudnn.deterministic = True": "torch.backends.cudnn.deterministic to True",
    "torch.backends.cudnn.enabled = False": "torch.backends.cudnn.enabled to False",
    "torch.backends.cudnn.allow_tf32 = True": "torch.backends.cudnn.allow_tf32 to True",
    "torch.set_float32_matmul_precision('medium')": "torch's float32 matmul precision (allow_tf32) to medium",
    "torch.backends.cuda.matmul.allow_tf32 = True": "torch's float32 matmul precision (allow_tf32) to high",
    "torch.use_deterministic_algorithms(True)": "torch's deterministic algorithms to True",
    "torch.set_grad_enabled(False)": "torch's gradient mode to False",
    "torch.backends.cuda.enable_flash_sdp(False)": "torch's flash backend of SDPA to False",
}
#: Only newer torch has these.
NEWER_CHANGES = {
    f"torch.backends.{path} = '{value}'": f"torch.backends.{path} to {value}"
    for path, value in {
        "fp32_precision": "tf32",
        "cudnn.fp32_precision": "tf32",
        "cudnn.conv.fp32_precision": "tf32",
        "cuda.matmul.fp32_precision": "tf32",
        "mkldnn.matmul.fp32_precision": "bf16",
    }.items()
}
if hasattr(torch.backends, "fp32_precision"):
    CHANGES |= NEWER_CHANGES
#: With the last two a model does not run as it is, but they outlive it like the others.
ALL_CHANGES = [*CHANGES, "torch.set_default_dtype(torch.float64)", "torch.set_default_device('meta')"]


@pytest.fixture(autouse=True)
def settings_of_the_tests() -> Iterator[dict[str, Any]]:
    before = read_settings()
    yield before
    put_back(before)


def model(folder: Path, name: str = "m", *, imported: str = "", built: str = "pass", run: str = "pass") -> str:
    path = folder / f"{name}.py"
    path.write_text(MODEL.format(imported=imported, built=built, run=run), encoding="utf-8")
    return parse_source(f"{path}:build").name


def workload(name: str) -> WorkloadSpec:
    return WorkloadSpec(Cell(model=name, height=16, width=16), seed=0)


def prepare(name: str) -> Prepare:
    return Prepare(workload(name), time_limit_s=10.0, warmup_limit_s=0.0)


def inspect(name: str, probe: str) -> Inspect:
    return Inspect(workload(name), (probe,))


def ask(*requests: Request[Any]) -> list[dict[str, Any]]:
    """Answer as one worker does, in this process."""
    answers = io.StringIO()
    serve([encode_request(1, each) for each in requests], answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("statement", "when"),
    [
        (statement, when)
        for statement in CHANGES
        for when in ("imported", "built", "run")
        if not (when == "run" and "grad" in statement)  # leaving inference mode restores the gradient mode
    ],
)
def test_a_cell_whose_model_changes_a_setting_is_an_error_that_names_it(
    tmp_path: Path, statement: str, when: str
) -> None:
    (answer,) = ask(prepare(model(tmp_path, **{when: statement})))
    assert answer["error"]["status"] == "error"
    assert answer["error"]["message"].startswith(f"the model set {CHANGES[statement]}")
    assert answer["error"]["message"].endswith("take that out of the model's code")


def test_a_default_dtype_that_the_model_set_and_ran_with_is_named(tmp_path: Path) -> None:
    (answer,) = ask(prepare(model(tmp_path, imported="torch.set_default_dtype(torch.float64)")))
    assert "the model set torch's default dtype to torch.float64" in answer["error"]["message"]


def test_a_setting_that_changes_while_samples_are_taken_is_an_error_too(tmp_path: Path) -> None:
    name = model(tmp_path, run="if self.passes == 20: torch.set_num_threads(3)")
    prepared, early, late = ask(prepare(name), Sample(1), Sample(30))
    assert "ok" in prepared
    assert "ok" in early
    assert "torch's threads to 3" in late["error"]["message"]


def test_a_model_that_sets_what_the_cell_says_is_measured(tmp_path: Path) -> None:
    (answer,) = ask(prepare(model(tmp_path, built="torch.set_num_threads(1)")))
    assert "ok" in answer


def test_memory_is_refused_under_other_settings_and_a_count_of_shapes_is_not(tmp_path: Path) -> None:
    name = model(tmp_path, built="torch.set_num_threads(3)")
    counted, measured = ask(inspect(name, "params"), inspect(name, "memory"))
    assert counted["ok"]["measurements"][0]["metric"] == "params"
    assert "torch's threads to 3" in measured["error"]["message"]


@pytest.mark.parametrize("statement", ALL_CHANGES)
def test_the_next_model_of_a_worker_gets_the_settings_that_the_worker_started_with(
    tmp_path: Path, statement: str
) -> None:
    session, quiet = Session(), model(tmp_path, "quiet")
    session.inspect(inspect(quiet, "params"))
    before = read_settings()
    session.inspect(inspect(model(tmp_path, "loud", imported=statement), "params"))
    assert first_change(before), "a count of shapes leaves the setting as the model made it"
    session.inspect(inspect(quiet, "params"))
    assert read_settings() == before


@pytest.mark.parametrize("statement", ALL_CHANGES)
def test_a_setting_is_read_named_and_put_back(statement: str, settings_of_the_tests: dict[str, Any]) -> None:
    assert first_change(settings_of_the_tests) == ""
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    before = read_settings()
    exec(statement, {"torch": torch})
    assert first_change(before)
    put_back(before)
    assert read_settings() == before
