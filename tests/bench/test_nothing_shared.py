"""Test commands on runs that share nothing or are partly unreadable: they name the actual reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from command_support import invoke
from comparison_support import failed, loaded, record, write_run

from sema_bench.errors import UsageError
from sema_bench.gate.stored import judge_stored
from sema_bench.report.html import report_page
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.suite import GateTable
from sema_bench.store.history import read_history


def counted(model: str) -> Record:
    macs = Measurement(metric="macs", value=1e9)
    return Record(cell=Cell(model=model, height=224, width=224), status="ok", measurements={"macs": macs})


def few_samples(latency: float) -> Record:
    measured = record("m", 224, latency)
    short = dataclasses.replace(
        measured.measurements["latency_s"], ci_low=None, ci_high=None, samples=(latency, latency, latency)
    )
    return dataclasses.replace(measured, measurements={"latency_s": short})


# Nothing shared


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ([record("m", 224, 0.2, batch=8)], "m: batch 1 | 8; gate the suite of the baseline"),
        ([record("m", 224, 0.2, device="cuda:0")], "m: device cpu | cuda:0; gate"),
        ([record("m", 224, 0.2, dtype="bfloat16")], "m: dtype float32 | bfloat16; gate"),
    ],
)
def test_a_gate_of_other_conditions_names_them(head: Sequence[Record], why: str) -> None:
    base = [record("m", 224, 0.2)]
    with pytest.raises(UsageError) as problem:
        judge_stored(loaded("a", base), loaded("b", head), GateTable())
    assert f"a and b share no cell that was timed: {why}" in str(problem.value)


def test_a_base_in_which_nothing_ran_is_reported_by_an_example() -> None:
    head = [record("m", 224, 0.2), record("n", 224, 0.2)]
    with pytest.raises(UsageError) as problem:
        judge_stored(loaded("a", [failed("m", 224), failed("n", 224)]), loaded("b", head), GateTable())
    assert str(problem.value) == (
        "a and b share no cell that was timed: none of the 2 cells of a ended well "
        "(m at 224: crashed, it [bold]died[/]); measure that run again"
    )


@pytest.mark.parametrize(
    ("head", "note"),
    [
        ([record("n", 224, 0.2)], "no model at the same size in common: a has m at 224; b has n at 224"),
        ([record("m", 448, 0.2)], "no model at the same size in common: a has m at 224; b has m at 448"),
    ],
)
def test_cells_that_all_vanished_still_fail_the_gate_and_both_sides_are_listed(
    head: Sequence[Record], note: str
) -> None:
    result = judge_stored(loaded("a", [record("m", 224, 0.2)]), loaded("b", head), GateTable())
    assert (result.verdict, [note in each for each in result.notes]) == ("REGRESSION", [True])


@pytest.mark.parametrize(
    ("other", "metric", "why"),
    [
        ("models", "latency_s", "no model at the same size in common: a has m at 224; models has n at 224"),
        ("batch", "latency_s", "m: batch 1 | 8; --allow FIELD compares across one on purpose"),
        ("crashed", "top1", "the only cell of crashed did not end well (m at 224: crashed, it [bold]died[/])"),
        ("counted", "latency_s", "m at 224, other: no latency_s; --metric NAME compares another; both have macs"),
    ],
)
def test_compare_says_which_of_the_reasons_it_is(tmp_path: Path, other: str, metric: str, why: str) -> None:
    write_run(tmp_path, "a", [record("m", 224, 0.2) if metric == "latency_s" else failed("m", 224)])
    write_run(tmp_path, "models", [record("n", 224, 0.2)])
    write_run(tmp_path, "batch", [record("m", 224, 0.2, batch=8)])
    write_run(tmp_path, "crashed", [failed("m", 224)])
    write_run(tmp_path, "counted", [counted("m")])
    first = "crashed" if other == "crashed" else "a"
    code, _, err = invoke("compare", first, other, "--metric", metric, "--out", str(tmp_path))
    assert (code, why in err) == (2, True), err


@pytest.mark.parametrize("lost", ["empty", "missing"])
def test_a_baseline_without_records_names_its_file_and_the_way_to_a_new_one(tmp_path: Path, lost: str) -> None:
    write_run(tmp_path, "r", [record("m", 224, 0.2)])
    assert invoke("baseline", "save", "r", "main", "--out", str(tmp_path))[0] == 0
    for folder in (tmp_path / "baselines" / "main", tmp_path / "r"):
        records = folder / "records.jsonl"
        kept = records.read_text()
        records.write_text("") if lost == "empty" else records.unlink()
        name, kind = ("main", "baseline") if folder.name == "main" else ("r", "run")
        base, head = ("main", "r")
        code, _, err = invoke("gate", "stored", base, "--head-run", head, "--out", str(tmp_path))
        assert (code, err.count("\n")) == (2, 1)
        assert f"{kind} {name!r} has no records ({records} is {lost})" in err
        mend = "baseline save RUN main --replace" if kind == "baseline" else "run --resume r"
        assert f"sema-bench {mend}" in err
        records.write_text(kept)


def test_too_few_samples_are_counted_with_what_gives_more() -> None:
    result = judge_stored(loaded("a", [few_samples(0.2)]), loaded("b", [few_samples(1.2)]), GateTable())
    (judgement,) = result.judgements.values()
    assert (judgement.verdict, judgement.reason) == (
        "INCONCLUSIVE",
        "base: 3 samples are too few for an interval; 6 or more give one (a longer --time-limit)",
    )


# Lines that are not records


@pytest.fixture
def torn(tmp_path: Path) -> Callable[[int], Path]:
    """Make runs ``a`` and ``b``; ``a`` has lines that are not records."""

    def make(lines: int) -> Path:
        for name in ("a", "b"):
            write_run(tmp_path, name, [record("m", 224, 0.2)])
        with (tmp_path / "a" / "records.jsonl").open("a") as file:
            file.write("torn\n" * lines)
        return tmp_path

    return make


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "a", "-o", "-"),
        ("report", "a"),
        ("export", "a"),
        ("compare", "a", "b"),
        ("history",),
        ("history", "--model", "sema_tiny", "--res", "224"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    ("lines", "words"),
    [(1, "1 line of a is not a record and is left out"), (2, "2 lines of a are not records and are left out")],
)
def test_every_reader_tells_of_unreadable_lines_in_the_same_words(
    torn: Callable[[int], Path], arguments: tuple[str, ...], lines: int, words: str
) -> None:
    folder = torn(lines)
    if "--model" in arguments:
        run = folder / "a" / "records.jsonl"
        run.write_text(record("sema_tiny", 224, 0.2).to_json() + "\n" + "torn\n" * lines)
    code, _, err = invoke(*arguments, "--out", str(folder))
    assert code == 0, err
    assert err.splitlines()[0] == words
    assert err.count(words) == 1


def test_a_baseline_that_is_shown_tells_of_unreadable_lines(torn: Callable[[int], Path]) -> None:
    folder = torn(0)
    assert invoke("baseline", "save", "a", "main", "--out", str(folder))[0] == 0
    with (folder / "baselines" / "main" / "records.jsonl").open("a") as file:
        file.write("torn\n")
    for arguments in (("show", "main"), ("list",)):
        code, _, err = invoke("baseline", *arguments, "--out", str(folder))
        assert (code, err) == (0, "1 line of main is not a record and is left out\n")


def test_the_page_counts_unreadable_lines() -> None:
    page = report_page([dataclasses.replace(loaded("a", [record("m", 224, 0.2)]), unreadable=1)])
    assert '"unreadable":1' in page
    assert "1 line of this run is not a record and is left out." in page


def test_a_table_that_is_newer_than_the_records_is_read_without_them(torn: Callable[[int], Path]) -> None:
    folder = torn(1)
    assert invoke("export", "a", "-o", str(folder / "a" / "table.csv"), "--out", str(folder))[0] == 0
    runs = read_history(folder, on_skip=lambda problem: pytest.fail(problem))
    assert [(run.name, run.ok, run.unreadable) for run in runs] == [("a", 1, 0), ("b", 1, 0)]
