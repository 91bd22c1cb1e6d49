"""Test ``sema-bench show``: it prints a run again, and every command counts the failures alike."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_support import invoke
from comparison_support import failed, record, write_run

from sema_bench.report.html import page_data
from sema_bench.report.remarks import precision_note
from sema_bench.report.summary import failures, retry_hint, sampling_sentence
from sema_bench.spec.record import STATUSES, Measurement, Record
from sema_bench.spec.suite import load_suite, override
from sema_bench.store.load import load_run


@pytest.fixture(autouse=True)
def no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the width that workers of pytest-xdist set, so that lines are not wrapped."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    records = [record(m, side, v * side**2 / 1e6) for side in (224, 320, 448, 640) for m, v in (("a", 1), ("b", 2))]
    write_run(tmp_path, "swept", [*records, failed("c", 224)])
    return tmp_path


def test_a_run_is_printed_again(root: Path) -> None:
    code, brief, err = invoke("show", "swept", "--out", str(root))
    assert (code, err) == (0, "")
    assert "growth" in brief
    assert "Fastest: a at every size." in brief
    assert "1 of 9 cells gave no result: c at 224 (crashed: it [bold]died[/])." in brief
    assert invoke("show", str(root / "swept"))[1] == brief
    code, full, _ = invoke("show", "swept", "--details", "--out", str(root))
    assert full.startswith(brief)
    assert "latency against a" in full


def test_a_run_says_which_share_of_its_time_was_sampled_and_older_runs_say_nothing(root: Path) -> None:
    assert "Timed samples" not in invoke("show", "swept", "--out", str(root))[1]
    path = root / "swept/run.json"
    facts = {"wall_s": 60.0, "sampled_s": 45.0, "stop_reasons": {"[bold]\x1b": 8}, "ratios": 4, "ratios_known": 1}
    path.write_text(json.dumps({**json.loads(path.read_text()), "sampling": facts}))
    code, shown, err = invoke("show", "swept", "--out", str(root))
    assert (code, err) == (0, "")
    ratios = "1 of 4 ratios to the first model is known to ±0.0%. Timed samples took 75% of 60 s."
    assert shown.splitlines()[-1] == ratios
    late = {**facts, "stop_reasons": {"precision": 5, "time limit": 41}, "time_limit_s": 15.0}
    advice = "41 of 46 cells stopped at the time limit; for narrower intervals: --time-limit 30."
    assert sampling_sentence(late) == f"{advice} {ratios}"


def test_a_run_that_is_not_finished_says_so_and_how_to_resume(root: Path) -> None:
    assert "not measured yet" not in invoke("show", "swept", "--out", str(root))[1]
    cells = [dataclasses.asdict(record(m, 224, 0.1).cell) for m in ("a", "b", "d", "e")]
    path = root / "swept/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "plan": {"groups": [cells]}}))
    last = invoke("show", "swept", "--out", str(root))[1].splitlines()[-1]
    assert last == f"2 of 4 cells are not measured yet; resume with sema-bench run --resume swept --out {root}"
    ((_, sentences),) = page_data([load_run(root, "swept")])["runs"][0]["summary"][-1:]
    assert sentences == ["2 of 4 cells are not measured yet."]
    (root / "swept/records.jsonl").write_text("")
    code, _, err = invoke("show", "swept", "--out", str(root))
    assert (code, f"measure its 4 cells with sema-bench run --resume swept --out {root}\n" in err) == (2, True)


def test_an_unknown_run_is_one_line(root: Path) -> None:
    code, shown, err = invoke("show", "gone", "--out", str(root))
    assert (code, shown, err.count("\n")) == (2, "", 1)


def test_a_terminal_of_80_columns_is_never_exceeded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, shown, _ = invoke("show", "swept", "--details", "--out", str(root))
    assert max(map(len, shown.splitlines())) <= 80


def test_a_pipe_gets_all_sizes_however_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    sides = range(32, 6464, 32)
    write_run(tmp_path, "swept", [record(m, side, side / 1e4) for side in sides for m in ("a", "b")])
    _, shown, _ = invoke("show", "swept", "--out", str(tmp_path))
    assert "no room" not in shown
    assert set(map(str, sides)) <= set(shown.splitlines()[1].split())


def test_only_cells_that_may_end_better_are_worth_another_try() -> None:
    cell = record("a", 224, 0.1).cell
    records = [Record(cell=cell, status=status) for status in STATUSES]
    assert retry_hint(records, "again") == "measure the 5 cells without a result again: again"
    assert retry_hint([r for r in records if r.status in ("ok", "skipped", "oom")], "again") == ""


def test_every_status_but_ok_is_a_cell_without_result(root: Path) -> None:
    cell = record("a", 224, 0.1).cell
    assert failures([Record(cell=cell, status=status) for status in STATUSES]).startswith("5 of 6 cells")
    _, shown, _ = invoke("history", "--out", str(root))
    assert any(line.split()[0] == "swept" and line.split()[2:4] == ["8", "1"] for line in shown.splitlines()[2:])


@pytest.mark.parametrize(
    ("statuses", "code"), [(("ok", "timeout"), 0), (("skipped", "oom", "timeout"), 4), (("ok", "crashed"), 1), ((), 4)]
)
def test_a_run_without_any_result_is_incomplete(
    statuses: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = record("a", 224, 0.1).cell
    records = [Record(cell=cell, status=status) for status in statuses]
    run = SimpleNamespace(execute=lambda **options: records, folder=SimpleNamespace(name="r"))
    monkeypatch.setattr("sema_bench.cli.runs.Run.start", lambda *given, **options: run)
    assert invoke("run", "quick")[0] == code


def test_counts_beside_no_result_are_named() -> None:
    cell, params = record("a", 224, 0.1).cell, Measurement(metric="params", value=5.0)
    assert failures([Record(cell=cell, status="timeout")]) == "No cell gave a result: a at 224 (timeout)."
    counted = Record(cell=cell, status="timeout", measurements={"params": params})
    assert failures([counted]).endswith("(timeout). Figures above are counts alone.")


def test_the_reason_of_an_error_is_not_cut() -> None:
    reason = "103% of what this device can do at most: the count, the clock or the peak is wrong"
    cell = record("a", 224, 0.1).cell
    assert f"(error: {reason})" in failures([Record(cell=cell, status="error", reason=reason)])


def test_a_suite_takes_the_limits_that_messages_advise() -> None:
    code, _, err = invoke("run", "quick", "--time-limit", "7", "--dry-run")
    assert (code, "; 7 s of sampling per cell" in err) == (0, True)
    code, _, err = invoke("run", "--resume", "r", "--time-limit", "7")
    assert (code, "drop --time-limit, or start a new run with it" in err) == (2, True)


def test_the_help_names_the_defaults_of_scale_and_lists_what_evaluate_needs_first() -> None:
    suite, text = load_suite("scaling"), " ".join(invoke("scale", "--help")[1].split())
    assert f"--precision {suite.precision}, --time-limit {suite.time_limit_s:g}." in text
    assert (len(suite.models), suite.res) == (6, "224..1024")
    text = invoke("evaluate", "--help")[1]
    assert text.index("--checkpoint") < text.index("--protocol") < text.index("--device")


def test_a_claim_stays_with_the_models_it_is_about() -> None:
    suite = load_suite("scaling")
    assert override(suite, {"models": ["deit_small"]}).claim == ""
    assert override(suite, {"res": "224"}).claim == override(suite, {"models": suite.models}).claim == suite.claim != ""


def test_one_width_of_an_interval_is_not_printed_twice() -> None:
    cells = [record("a", 224, 0.1), record("b", 224, 0.1)]
    assert "typically" not in precision_note(cells[:1])
    assert precision_note(cells[:1]).endswith("(a at 224)")
