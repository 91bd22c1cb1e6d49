"""Test exports: one schema in every format, read back unchanged, and no text that another program would run."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from command_support import invoke
from typer.testing import CliRunner

from sema_bench.cli import app
from sema_bench.errors import UsageError
from sema_bench.report.export import to_latex, to_wide_latex
from sema_bench.report.formats import FORMATS, RECORD_FORMATS, column_descriptions, runs_frame
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.store.pytest_benchmark_file import load_pytest_benchmark
from sema_bench.store.run_folder import RunFolder
from sema_bench.store.stored_run import StoredRun
from sema_bench.store.table import column_types
from sema_bench.text.escape import for_latex

NASTY = "=1+1|<b>[red]::error::%_{}\\"


def around(value: float) -> dict[str, float]:
    return {"ci_low": value * 0.9, "ci_high": value * 1.1}


def records() -> list[Record]:
    made = []
    for model in ("m", NASTY):
        for side, latency in ((224, 0.1), (448, 1 / 3)):
            measured = [
                Measurement(
                    metric="latency_s",
                    value=latency,
                    ci_low=latency * 0.9,
                    ci_high=latency * 1.1,
                    samples=(latency,) * 7,
                ),
                Measurement(metric="macs", value=2**53 + 2),
            ]
            cell = Cell(model=model, height=side, width=side)
            made.append(Record(cell=cell, status="ok", measurements={m.metric: m for m in measured}))
    failed = Record(cell=Cell(model="m", height=896, width=896), status="oom", reason="@out of\nmemory, | all of it")
    return [*made, failed]


@pytest.fixture
def runs() -> list[StoredRun]:
    return [StoredRun(name, tuple(records()), {"cpu": "x"}, {"python": "3"}) for name in ("one", "two")]


def test_a_csv_opens_in_pandas_with_its_types(runs: list[StoredRun]) -> None:
    frame = runs_frame(runs)
    types = {"run": "string", **column_types()}
    back = pd.read_csv(io.StringIO(FORMATS["csv"](frame)), dtype=types)
    guarded = back["model"].str.removeprefix("'"), back["reason"].str.removeprefix("'")
    pd.testing.assert_frame_equal(back.assign(model=guarded[0], reason=guarded[1]), frame)
    assert back["macs"][0] == 2**53 + 2
    assert back["latency_s"].isna().sum() == 2


def test_json_and_parquet_give_the_same_rows(runs: list[StoredRun]) -> None:
    frame = runs_frame(runs)
    rows = json.loads(FORMATS["json"](frame))
    assert rows[0]["latency_s"] == 0.1
    assert rows[1]["latency_s"] == 1 / 3
    assert rows[0]["macs"] == 2**53 + 2
    assert (rows[4]["latency_s"], rows[4]["status"], rows[3]["model"]) == (None, "oom", NASTY)
    pytest.importorskip("pyarrow")
    back = pd.read_parquet(io.BytesIO(FORMATS["parquet"](frame)))
    pd.testing.assert_frame_equal(back.astype(frame.dtypes.to_dict()), frame)
    assert str(back["macs"].dtype) == "Int64"


def test_pytest_benchmark_gives_the_records_back(runs: list[StoredRun], tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(RECORD_FORMATS["pytest-benchmark"](runs[:1]))
    back = load_pytest_benchmark(path)
    assert list(back.records) == records()[:4]
    assert (back.hardware, back.software) == (runs[0].hardware, runs[0].software)
    far = dataclasses.replace(runs[1], hardware={"cpu": "y"})
    with pytest.raises(UsageError, match="these runs come from different machines"):
        RECORD_FORMATS["pytest-benchmark"]([runs[0], far])
    shown = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", str(path)],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "m[224x224]" in shown.stdout


def test_bencher_gets_values_with_bounds_of_what_ended_well(runs: list[StoredRun]) -> None:
    body = json.loads(RECORD_FORMATS["bmf"](runs[:1]))
    assert len(body) == 4
    assert len(json.loads(RECORD_FORMATS["bmf"](runs))) == 8
    entry = next(iter(body.values()))
    assert entry["latency_s"] == {"value": 0.1, "lower_value": pytest.approx(0.09), "upper_value": pytest.approx(0.11)}


def test_a_wide_table_has_a_column_for_each_value_and_resolution(runs: list[StoredRun]) -> None:
    wide = runs_frame(runs, wide=True)
    assert len(wide) == 4
    assert list(wide.columns[-6:]) == [f"{v}@{s}x{s}" for v in ("latency_s", "macs") for s in (224, 448, 896)]
    assert wide["macs@448x448"].dtype == "Int64"
    assert wide["latency_s@896x896"].isna().all()
    chosen = runs_frame(runs, wide=True, columns=["status"])
    assert list(chosen["status@896x896"].fillna("none")) == ["oom", "none", "oom", "none"]


def test_a_wide_table_for_a_paper_states_common_conditions_once(runs: list[StoredRun]) -> None:
    comment, begin, _, header, *_ = to_wide_latex(runs_frame(runs[:1], wide=True, columns=["latency_s"])).splitlines()
    assert comment.startswith("% in every row: run ")
    assert "dtype float32" in comment
    assert begin == r"\begin{tabular}{lrrr}"
    assert header == r"model & latency\_s@224x224 & latency\_s@448x448 & latency\_s@896x896 \\"


def test_latex_holds_no_command_of_a_name(runs: list[StoredRun]) -> None:
    text = to_latex(runs_frame(runs, columns=["model", "latency_s", "reason"]))
    assert r"=1+1\textbar{}\textless{}b\textgreater{}[red]::error::\%\_\{\}\textbackslash{}" in text
    assert text.count(r" \\") == 11
    assert for_latex("a~b^c–d") == r"a\textasciitilde{}b\textasciicircum{}c--d"


def test_every_column_is_described() -> None:
    assert all(text for _, _, text in column_descriptions().values())


# The command


@pytest.fixture
def root(tmp_path: Path) -> Path:
    run = RunFolder.create(tmp_path, "s", "one", metadata={})
    with run.lock():
        for record in records():
            run.append(dataclasses.replace(record, reason=record.reason.replace("\n", " ")))
    return tmp_path


def test_the_command_writes_where_it_is_asked_to(root: Path) -> None:
    code, shown, err = invoke("export", "one", "--out", str(root), "--columns", "model,latency_s")
    assert (code, err) == (0, "")
    assert shown.splitlines()[:2] == ["model,latency_s", "m,0.1"]
    for name in (*FORMATS, *RECORD_FORMATS):
        if name == "parquet":
            pytest.importorskip("pyarrow")
        code, shown, err = invoke("export", "one", "--out", str(root), "--format", name, "-o", str(root / "file"))
        assert (code, shown, err) == (0, "", "")
        assert (root / "file").stat().st_size > 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone",), "no run 'gone'"),
        (("one", "--format", "cvs"), "did you mean 'csv'"),
        (("one", "--columns", "latancy_s"), "did you mean 'latency_s'"),
        (("one", "--format", "bmf", "--wide"), "drop --wide"),
        (("one", "--wide", "--columns", "model"), "model is not a value"),
    ],
)
def test_a_wrong_request_gets_one_line(root: Path, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = invoke("export", *arguments, "--out", str(root))
    assert (code, message in err, err.count("\n")) == (2, True, 1), err


def test_a_run_is_not_written_over_by_its_own_export(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "s", "r", metadata={})
    with run.lock():
        for each in records():
            run.append(each)
    before = run.records_path.read_bytes()
    for arguments in (("export", "r"), ("compare", "r", "r", "--metric", "macs")):
        option = "-o" if arguments[0] == "export" else "--csv"
        result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path), option, str(run.records_path)])
        assert (result.exit_code, "is part of a run" in result.stderr) == (2, True), result.stderr
    assert run.records_path.read_bytes() == before


@pytest.mark.parametrize(("after", "code"), [("| (exec <&-; sleep 2)", 141), (">&-", 0)])
def test_output_that_nobody_reads_has_its_own_code(tmp_path: Path, after: str, code: int) -> None:
    tool = f"{shlex.quote(sys.executable)} -m sema_bench list models"
    command = f"{tool} {after}; echo ${{PIPESTATUS[0]}} >&2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == str(code)


@pytest.mark.parametrize("name", ["[bold]m", "*m"])
def test_a_row_begins_with_no_option_of_the_line_break_before_it(name: str) -> None:
    assert for_latex(name).startswith("{}")
