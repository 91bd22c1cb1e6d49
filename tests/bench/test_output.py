"""Test the output of commands: it never controls a terminal, commands a CI system or overwrites a run."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from pathlib import Path

import pandas as pd
import pytest
from command_support import invoke
from comparison_support import loaded, record, write_run
from rich.text import Text

from sema_bench.cli.output import check_output, put_out
from sema_bench.errors import UsageError
from sema_bench.gate.suites import suite_of_the_repository
from sema_bench.report.export import to_latex, to_markdown
from sema_bench.report.html import page_data
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.sampling import Sampling
from sema_bench.spec.suite import load_suite
from sema_bench.store.load import load_run
from sema_bench.store.run_folder import RunFolder
from sema_bench.text.escape import for_markdown


def test_control_characters_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    put_out(lambda console: console.print(Text("\x1b]0;title \x9b2J \x1b[31A")))
    assert capsys.readouterr().out == "\\x1b]0;title \\x9b2J \\x1b[31A\n"


@pytest.mark.parametrize("line", ["::error::x", "##[error]x", "##[command]x"])
def test_on_github_no_line_is_a_command(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    put_out(lambda console: console.print(Text(line)))
    first, middle, last = capsys.readouterr().out.splitlines()
    assert middle == line
    assert first.removeprefix("::stop-commands::") == last.strip(":")


@pytest.mark.parametrize("name", ["records.jsonl", "run.json"])
def test_no_output_goes_over_a_run(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, "a", [record("m", 224, 0.2)])
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a" / name)
    for path in (tmp_path / "a" / name, link):
        with pytest.raises(UsageError, match="is part of a run"):
            check_output(str(path))
        code, _, err = invoke("report", "a", "-o", str(path), "--out", str(tmp_path))
        assert (code, "is part of a run" in err) == (2, True)


def test_a_page_goes_to_stdout_alone(tmp_path: Path) -> None:
    write_run(tmp_path, "a", [record("m", 224, 0.2)])
    code, shown, _ = invoke("report", "a", "-o", "-", "--out", str(tmp_path))
    assert (code, shown.startswith("<!doctype html>"), shown.rstrip().endswith("</html>")) == (0, True, True)
    code, _, err = invoke("report", "a", "-o", "-", "--open", "--out", str(tmp_path))
    assert (code, "--open shows a file" in err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_baseline_that_cannot_be_read_is_named_and_hides_no_other(tmp_path: Path) -> None:
    write_run(tmp_path, "a", [record("m", 224, 0.2)])
    assert invoke("baseline", "save", "a", "kept", "--out", str(tmp_path))[0] == 0
    broken = tmp_path / "baselines" / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    code, shown, err = invoke("baseline", "list", "--out", str(tmp_path))
    assert (code, shown.startswith("kept  1 cells"), err.startswith("left out: ")) == (0, True, True)


def test_a_run_may_be_called_like_a_file(tmp_path: Path) -> None:
    write_run(tmp_path, "v1.json", [record("m", 224, 0.2)])
    code, shown, err = invoke("export", "v1.json", "--columns", "model", "--out", str(tmp_path))
    assert (code, shown) == (0, "model\nm\n"), err


def test_a_column_is_asked_for_once(tmp_path: Path) -> None:
    write_run(tmp_path, "a", [record("m", 224, 0.2)])
    code, _, err = invoke("export", "a", "--columns", "model,model", "--format", "parquet", "--out", str(tmp_path))
    assert (code, "a column is listed twice" in err) == (2, True)


def test_a_gate_in_a_subfolder_takes_thesuite_of_the_repository(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "deep" / "down").mkdir(parents=True)
    monkeypatch.chdir(repository / "deep" / "down")
    assert suite_of_the_repository() == "suites/gate.toml"
    (repository / "suites").mkdir()
    (repository / "suites" / "gate.toml").write_text("")
    assert Path(suite_of_the_repository()).samefile(repository / "suites" / "gate.toml")


def test_a_bar_of_one_size_is_meant_whichever_way_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        'claim = "c"\ncost = "1 s"\nmodels = ["sema_micro"]\nres = "64"\n[gate]\n'
        'deltas = { "sema_micro@64" = 0.1, "sema_micro@64x96" = 0.2, "sema_micro" = 0.3 }\n'
    )
    assert load_suite(str(path)).gate.deltas == {"sema_micro@64x64": 0.1, "sema_micro@64x96": 0.2, "sema_micro": 0.3}


def test_rows_come_in_the_order_of_the_plan(tmp_path: Path) -> None:
    records = [record(model, side, 0.2) for side in (224, 448) for model in ("b", "a", "c")]
    plan = Plan("s", tuple(tuple(r.cell for r in records[i : i + 3]) for i in (0, 3)), ("params",), Sampling())
    run = RunFolder.create(tmp_path, "s", "a", metadata={"plan": plan.to_json()})
    with run.lock():
        for each in (records[i] for i in (5, 1, 0, 4, 2, 3)):
            run.append(each)
    assert list(load_run(tmp_path, "a").records) == records


def test_the_newest_runs_are_the_newest(tmp_path: Path) -> None:
    for age, name in ((3, "z"), (2, "2026-01-01"), (1, "b")):
        write_run(tmp_path, name, [])
        os.utime(tmp_path / name / "run.json", (1e9 - age, 1e9 - age))
    code, _, err = invoke("export", "gone", "--out", str(tmp_path))
    assert (code, "newest runs: b, 2026-01-01, z" in err) == (2, True), err
    code, _, err = invoke("export", "gone", "--out", str(tmp_path / "table.csv"))
    assert (code, "-o the file that is written" in err) == (2, True), err


def test_seeds_are_compared_as_their_mean(tmp_path: Path) -> None:
    def trained(name: str, *shares: float) -> None:
        cells = [Cell(model="m", height=64, width=64, data="d", weights=f"seed {n}@abc") for n in range(len(shares))]
        measured = [Measurement(metric="top1", value=share, ci_low=share - 0.1, ci_high=share) for share in shares]
        write_run(
            tmp_path,
            name,
            [Record(cell=c, status="ok", measurements={"top1": m}) for c, m in zip(cells, measured, strict=True)],
        )

    trained("three", 0.5, 0.6, 0.7)
    trained("others", 0.8, 0.9, 0.7)
    trained("one", 0.9)
    given = ("--metric", "top1", "--csv", "-", "--out", str(tmp_path))
    code, shown, err = invoke("compare", "three", "others", *given)
    assert code == 0, err
    row, *_ = csv.DictReader(io.StringIO(shown))
    assert (row["weights"], float(row["ratio"])) == ("3 seeds@abc", pytest.approx(0.8 / 0.6))
    code, _, err = invoke("compare", "three", "one", *given)
    assert (code, "weights 3 seeds@abc | seed 0@abc; --allow FIELD" in err) == (2, True), err
    assert invoke("compare", "three", "one", "--allow", "weights", *given)[0] == 0


def test_why_nothing_can_be_compared_is_reported(tmp_path: Path) -> None:
    write_run(tmp_path, "a", [record("m", 224, 0.2)])
    write_run(tmp_path, "b", [record("n", 224, 0.2)])
    for arguments, why in (
        (("a", "b"), "no model at the same size in common"),
        (("a", "a", "--metric", "top1"), "m at 224, base: no top1; --metric NAME"),
    ):
        code, _, err = invoke("compare", *arguments, "--out", str(tmp_path))
        assert (code, why in err) == (2, True), err


def test_whole_numbers_stay_whole_in_papers() -> None:
    frame = pd.DataFrame({"macs": [4598882304.0, 0.123456789]})
    assert "4598882304 " in to_latex(frame)
    assert "| 4598882304 |" in to_markdown(frame)
    assert "0.123457" in to_latex(frame)
    assert for_markdown("latency_s@64x64, @someone") == "latency_s@64x64, @\u200bsomeone"


def test_what_was_disturbed_is_marked_in_the_page() -> None:
    shaky = record("m", 224, 0.2)
    share = Measurement(metric="disturbed_share", value=0.9)
    shaky = dataclasses.replace(shaky, measurements={**shaky.measurements, "disturbed_share": share})
    body = page_data([loaded("a", [shaky, record("n", 224, 0.2)])])
    (run,) = body["runs"]
    assert [cell["disturbed"] for cell in run["groups"][0]["cells"]] == [True, False]
    assert "1 of 2 cells (!) were disturbed" in str(run["summary"])


def test_a_page_of_accuracies_opens_on_them() -> None:
    top1 = Measurement(metric="top1", value=0.5, ci_low=0.4, ci_high=0.6)
    macs = Measurement(metric="macs", value=1e9)
    record = Record(cell=Cell(model="m", height=64, width=64), status="ok", measurements={"macs": macs, "top1": top1})
    body = page_data([loaded("a", [record])])
    assert list(body["metrics"]) == ["top1", "macs"]
    assert not any("Latencies" in line for line in body["method"])
