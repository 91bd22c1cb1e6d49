"""Test adding an axis: a field of ``Cell`` is enough for suites, options, plans, comparisons, headings and columns."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sema_bench

PACKAGE = Path(sema_bench.__file__).parent
FIELD = """
    prefetch: str = Axis(
        default="off",
        description="where the input waits",
        choices=("off", "pinned"),
        cuda_only=("pinned",),
        why_cuda="is memory for copies to a card; use off",
        help="Where the input waits: off or pinned.",
        key="/prefetch-{}".format,
        word="prefetch {}".format,
        unspoken="off",
    ).field
"""
BEFORE = "    batch_policy: str = Axis("
#: A script that runs with the field; each part checks a place that knows axes.
CHECKS = """
import dataclasses
import json

import pytest

from sema_bench.analysis.comparison import compare
from sema_bench.analysis.conditions import Conditions, short_name
from sema_bench.errors import StoreError, SuiteError, UsageError
from sema_bench.report.formats import column_descriptions
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan, build_plan
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.suite import parse_suite
from sema_bench.store.stored_run import StoredRun
from sema_bench.store.table import records_frame

off = Cell(model="sema_tiny", height=64, width=64)
pinned = dataclasses.replace(off, prefetch="pinned")
assert off.id == "sema_tiny@64x64/b1/float32/channels_last/eager/cpu/t1/retain"
assert pinned.id == off.id + "/prefetch-pinned"

body = {"name": "s", "models": ["sema_tiny"], "res": "64", "prefetch": ["off", "pinned"]}
suite = parse_suite(body, source="s.toml")
plan = build_plan(suite, device="cuda:0", threads=1)
assert [cell.prefetch for cell in plan.cells] == ["off", "pinned"]
with pytest.raises(UsageError, match="prefetch pinned is memory for copies"):
    build_plan(suite, device="cpu", threads=1)
with pytest.raises(SuiteError, match=r"key 'prefetch', entry 1.*'off' or 'pinned'; got 'of'"):
    parse_suite({**body, "prefetch": ["of"]}, source="s.toml")

written = plan.to_json()
assert Plan.from_json(json.loads(json.dumps(written))) == plan
with pytest.raises(StoreError, match="unknown prefetch 'zzz'"):
    Plan.from_json({**written, "groups": [[{**written["groups"][0][0], "prefetch": "zzz"}]]})
line = json.loads(Record(cell=off, status="ok").to_json())
del line["cell"]["prefetch"]
assert Record.from_json(json.dumps(line)).cell == off

assert Conditions.of(pinned).text == Conditions.of(off).text + " · prefetch pinned"
assert Conditions.of(pinned).slug(["prefetch"]) == "prefetchpinned"
assert short_name(pinned) == "prefetch pinned"

macs = {"macs": Measurement(metric="macs", value=1)}
one, two = (
    StoredRun(name, (Record(cell=cell, status="ok", measurements=macs),), {"cpu": "a"}, {"os": "b"})
    for name, cell in (("one", off), ("two", pinned))
)
(refused,) = compare(one, two, metric="macs").unmatched_as("refused")
assert refused.reason == "prefetch off | pinned"
assert len(compare(one, two, metric="macs", allow=["prefetch"]).ratios) == 1

assert records_frame([Record(cell=pinned, status="ok")])["prefetch"].tolist() == ["pinned"]
assert column_descriptions()["prefetch"] == ("string", "", "where the input waits")
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of ``sema_bench`` with one more field on ``Cell``."""
    root = tmp_path_factory.mktemp("new_axis")
    shutil.copytree(PACKAGE, root / "sema_bench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PACKAGE.parent / "suites", root / "suites")
    path = root / "sema_bench" / "spec" / "cell.py"
    source = path.read_text(encoding="utf-8")
    assert source.count(BEFORE) == 1
    path.write_text(source.replace(BEFORE, FIELD.lstrip("\n") + BEFORE), encoding="utf-8")
    return root


def run(copy: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_suites_plans_comparisons_headings_and_columns_know_a_new_field(copy: Path) -> None:
    run(copy, "-c", CHECKS)


def test_commands_have_an_option_for_a_new_field(copy: Path) -> None:
    assert "Where the input waits: off or pinned." in run(copy, "-m", "sema_bench", "scale", "--help")
    command = ("scale", "--dry-run", "--models", "sema_tiny", "--res", "64", "--device", "meta", "--prefetch", "off")
    (shown,) = run(copy, "-m", "sema_bench", *command).splitlines()
    assert shown.startswith("sema_tiny@64x64/b1/float32/channels_last/eager/meta/")
