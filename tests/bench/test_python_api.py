"""Test ``import sema_bench``: run a suite and read a run from Python."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from comparison_support import record, write_run

import sema_bench
from sema_bench.errors import SuiteError, UsageError
from sema_bench.report import notebook
from sema_bench.store.load import load_runs
from sema_bench.store.table import column_types


def test_a_suite_runs_and_is_read_as_frames(tmp_path: Path) -> None:
    suite = {"models": ["sema_micro"], "res": "64,96,128", "probes": ["params", "macs"]}
    run = sema_bench.run_suite(suite, root=tmp_path, name="mine")
    loaded = run.read()
    table = loaded.table()
    assert list(table["height"]) == [64, 96, 128]
    assert set(table["status"]) == {"ok"}
    pd.testing.assert_frame_equal(table, pd.read_csv(run.folder.path / "table.csv", dtype=column_types()))
    growth = loaded.scaling().set_index("metric")
    assert 0.9 < growth.loc["macs", "exponent"] < 1.1
    again = sema_bench.read_run("mine", root=tmp_path)
    assert again.records == loaded.records


@pytest.mark.parametrize(("root", "name"), [(".", "z.json"), ("results", "x")])
def test_a_run_in_the_working_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = {"models": ["sema_micro"], "res": "64", "probes": ["params"], "device": "meta"}
    run = sema_bench.run_suite(suite, root=root, name=name, quiet=True)
    assert run.read().name == name
    assert sema_bench.read_run(f"{root}/{name}").records == run.read().records


def test_what_was_asked_of_a_run_before_does_not_disturb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "one", [record("a", 224, 0.1)])
    runs = load_runs(tmp_path, ["one"])
    assert runs[0].planned
    monkeypatch.setattr(notebook, "load_runs", lambda root, names: runs)
    assert sema_bench.read_run("one", root=tmp_path).planned == runs[0].planned


def test_runs_compare_as_the_command_does(tmp_path: Path) -> None:
    write_run(tmp_path, "one", [record("a", 224, 0.1)])
    write_run(tmp_path, "two", [record("a", 224, 0.2)])
    one, two = (sema_bench.read_run(tmp_path / name) for name in ("one", "two"))
    row, mean = one.compare(two, metric="latency_s").to_dict(orient="records")
    assert (row["base"], row["other"]) == ("one", "two")
    assert row["ratio"] == mean["ratio"] == pytest.approx(0.5)
    assert mean["verdict"] == "geometric mean of 1"
    with pytest.raises(UsageError, match="unknown metric 'latency'"):
        one.compare(two, metric="latency")


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="unknown key 'resolutions'"):
        sema_bench.run_suite({"models": ["sema_micro"], "resolutions": "64"}, root=tmp_path)
    with pytest.raises(UsageError, match="no run 'gone'"):
        sema_bench.read_run("gone", root=tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'run_suites'"):
        _ = sema_bench.run_suites


def test_the_stub_declares_what_the_package_exports() -> None:
    stub = Path(sema_bench.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    declared = {line.rpartition(" as ")[2] for line in stub.splitlines() if " as " in line}
    assert declared == set(sema_bench.__all__)
    assert all(getattr(sema_bench, name).__name__ == name for name in sema_bench.__all__)
