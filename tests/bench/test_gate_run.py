"""Test a gate from refs to its exit code, with fake workers."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from command_support import invoke
from rich.console import Console
from run_support import FAKE_WORKER
from typer.testing import CliRunner

from sema_bench.cli import app
from sema_bench.cli.gate_options import show_progress
from sema_bench.cli.output import put_out
from sema_bench.driver.worker_process import CellFailure
from sema_bench.errors import UsageError
from sema_bench.gate.arms import Arm
from sema_bench.gate.batch import Batch, Side
from sema_bench.gate.ci import gate_junit, github_annotations
from sema_bench.gate.inspection import Count, inspect_arms
from sema_bench.gate.report import gate_markdown, label_of, print_gate, summary_of
from sema_bench.gate.rule import INCOMPLETE, INCONCLUSIVE, PASS, REGRESSION, Judgement, judge
from sema_bench.gate.run import Gate, GateResult, result_to_json, with_counts
from sema_bench.gate.sampling import take_batch
from sema_bench.gate.selftest import missing_trials, run_trials
from sema_bench.gate.trace import Trial, append_trial, read_trace
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import measurements_of
from sema_bench.spec.sampling import Sampling
from sema_bench.spec.suite import GateTable
from sema_bench.worker.probes.base import Findings
from sema_bench.worker.protocol import Inspect, Origin, Request

SAMPLING = Sampling(time_limit_s=1.0)


def arm(name: str, **environment: str) -> Arm:
    return Arm(name, f"the {name}", command=FAKE_WORKER, environment=environment)


def cells(*models: str) -> list[Cell]:
    return [Cell(model=model, height=64, width=64) for model in models]


def gated(
    *models: str,
    head: dict[str, str] | None = None,
    base: dict[str, str] | None = None,
    counted: bool = True,
    **settings,
) -> GateResult:
    arms = arm("base", **(base or {})), arm("head", **(head or {}))
    return Gate(*arms, cells(*models), sampling=SAMPLING, settings=GateTable(**settings)).run(counted=counted)


def outcome(result: GateResult) -> dict[str, tuple[str, str]]:
    return {cell.model: (j.verdict, j.reason) for cell, j in result.judgements.items()}


def test_the_same_code_passes() -> None:
    result = gated("good", "good2")
    assert outcome(result) == {"good": (PASS, ""), "good2": (PASS, "")}
    assert result.verdict == PASS
    assert summary_of(result).startswith("PASS (2 PASS) in ")


def test_a_slower_head_is_a_regression_with_its_size() -> None:
    result = gated("good", head={"FAKE_SLOWER": "0.1"})
    assert outcome(result) == {"good": (REGRESSION, "10.0% slower (median time)")}
    (judgement,) = result.judgements.values()
    assert judgement.batches == 3
    assert judgement.ratio == pytest.approx(1.1)


@pytest.mark.parametrize(("uneven", "rounds"), [("0", 6), ("0.3", 16)])
def test_arms_that_are_uneven_get_more_rounds(tmp_path: Path, uneven: str, rounds: int) -> None:
    log = tmp_path / "log"
    arms = [arm(name, FAKE_UNEVEN=uneven, FAKE_LOG=str(log)) for name in ("base", "head")]
    ((_, batch),) = take_batch(arms, cells("good"), sampling=SAMPLING, chance=random.Random(0))
    assert isinstance(batch, Batch)
    assert len(log.read_text().splitlines()) == 2 * rounds


def test_a_cell_may_have_a_delta_of_its_own() -> None:
    slower = {"FAKE_SLOWER": "0.1"}
    result = gated("good", "good2", head=slower, deltas={"good": 0.3, "good2@64x64": 0.05})
    assert {model: verdict for model, (verdict, _) in outcome(result).items()} == {"good": PASS, "good2": REGRESSION}


def test_what_the_head_alone_cannot_run_is_a_regression() -> None:
    crash = [*FAKE_WORKER]
    head = dataclasses.replace(arm("head", FAKE_CRASH="good"), command=crash)
    result = Gate(arm("base"), head, cells("good", "good2"), sampling=SAMPLING, settings=GateTable()).run()
    verdict, reason = outcome(result)["good"]
    assert verdict == REGRESSION
    assert "the base runs it and the head does not: crashed: the worker exited with code 3" in reason
    assert outcome(result)["good2"][0] == PASS
    backwards = Gate(dataclasses.replace(head, name="base"), arm("head"), cells("good"), sampling=SAMPLING,
                     settings=GateTable()).run()  # fmt: skip
    assert outcome(backwards)["good"] == (INCOMPLETE, "base: crashed: the worker exited with code 3: about to crash")


def test_what_the_base_does_not_know_is_new_and_nothing_else_is() -> None:
    unknown = {"FAKE_UNKNOWN": "good"}
    result = gated("good", "good2", base=unknown)
    assert outcome(result)["good"] == (PASS, "new: the base has no such model (error: UsageError: unknown model)")
    assert result.verdict == PASS
    assert gated("good", base=unknown).verdict == INCOMPLETE  # nothing was compared
    short_of_memory = gated("oom64", "good", head={"FAKE_SLOWER": "0.2"})
    assert outcome(short_of_memory)["oom64"][0] == INCOMPLETE


def test_a_machine_that_fails_once_is_reported_and_convicts_no_one(tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.touch()
    result = gated("good", head={"FAKE_ONCE": str(once)})
    assert outcome(result) == {"good": (PASS, "")}
    assert not once.exists()
    once.touch()
    result = gated("good", head={"FAKE_ONCE": str(once)}, counted=False)
    assert outcome(result) == {"good": (PASS, "")}
    assert "tried again after the head failed: crashed" in gate_text(result)


def gate_text(result: GateResult) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_gate(result, console)
    return console.file.getvalue()


class CountingArm:
    """An arm whose worker counts, and fails at some probes."""

    def __init__(self, name: str, params: int, fails: dict[str, str]) -> None:
        self.name, self._params, self._fails = name, params, fails

    def start(self, cell: Cell) -> CountingArm:
        return self

    def ask(self, request: Request[Any], *, timeout_s: float) -> Findings | None:
        if not isinstance(request, Inspect):
            return None
        for probe in request.probes:
            if why := self._fails.get(probe):
                raise CellFailure("error", why)
        return Findings(measurements_of({"params": self._params} if "params" in request.probes else {}))

    def kill(self) -> None:
        """Do nothing: it holds no process."""


def test_a_probe_that_fails_takes_no_other_with_it() -> None:
    base, head = CountingArm("base", 1, {"macs": "no"}), CountingArm("head", 2, {"macs": "no", "memory": "boom"})
    ((_, inspection),) = inspect_arms((base, head), cells("good"), sampling=SAMPLING).items()
    assert inspection.counts == (Count("params", 1.0, 2.0),)
    assert inspection.lost == ["memory: error: boom"]
    assert with_counts(Judgement(PASS, ""), inspection).verdict == REGRESSION


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_arms_does_not_decide_who_fails(seed: int) -> None:
    (_, neither), (_, head) = take_batch(
        [arm("base"), arm("head", FAKE_CRASH="good")], cells("error", "good"), sampling=SAMPLING,
        chance=random.Random(seed),
    )  # fmt: skip
    assert (neither.arm, head.arm) == ("both", "head")


def test_what_neither_runs_is_incomplete() -> None:
    result = gated("error", "good")
    verdict, reason = outcome(result)["error"]
    assert (verdict, "no such thing" in reason) == (INCOMPLETE, True)
    assert result.verdict == INCOMPLETE


def test_other_counts_are_a_regression() -> None:
    result = gated("good", head={"FAKE_PARAMS": "1001"})
    assert outcome(result)["good"] == (REGRESSION, "params 1000 → 1001")


def test_a_budget_that_is_used_up_is_incomplete() -> None:
    ticks = iter(range(0, 10**6, 40))
    gate = Gate(arm("base"), arm("head", FAKE_SLOWER="0.028"), cells("good"), sampling=SAMPLING,
                settings=GateTable(budget_s=1000.0), clock=lambda: float(next(ticks)))  # fmt: skip
    result = gate.run()
    assert outcome(result)["good"][0] == INCONCLUSIVE
    assert result.out_of_time
    assert "the budget of time was used up" in gate_text(result)
    none = Gate(arm("base"), arm("head"), cells("good"), sampling=SAMPLING, settings=GateTable(budget_s=1e-9)).run()
    assert outcome(none)["good"] == (INCOMPLETE, "there was no time for it; raise --budget-s")


def test_the_gate_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now, shown = 0.0, []

    def take(arms: Sequence[Arm], chosen: Sequence[Cell], *, log: Any, **_: Any) -> Iterator[tuple[Cell, Batch]]:
        nonlocal now
        for number, each in enumerate(chosen):
            log(each)
            now += len(arms) * (2.0 + number / 2 + random.uniform(-0.5, 0.5))
            yield each, Batch(Side(1.0, 1.0), Side(1.1, 1.1))

    random.seed(28)
    monkeypatch.setattr("sema_bench.gate.run.take_batch", take)
    Gate(arm("base"), arm("head"), cells("good", "good2", "good3"), sampling=SAMPLING, settings=GateTable(),
         log=lambda line: shown.append((now, line)), clock=lambda: now).run(counted=False)  # fmt: skip
    assert len(shown) == 9
    assert "left" not in shown[0][1]
    for at, line in shown[1:]:
        left = re.search(r"about (\d+) s left, longer if", line)
        assert 1 / 1.5 <= int(left[1]) / (now - at) <= 1.5, line


def test_a_cell_that_is_clear_drops_out_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[str]] = []

    def take(arms: Sequence[Arm], chosen: Sequence[Cell], **_: Any) -> Iterator[tuple[Cell, Batch]]:
        taken.append([each.model for each in chosen])
        for each in chosen:
            head = math.exp({"same": 0.0, "slower": 0.1, "unclear": 0.025}[each.model])
            yield each, Batch(Side(1.0, 1.0), Side(head, head))

    monkeypatch.setattr("sema_bench.gate.run.take_batch", take)
    gate = Gate(arm("base"), arm("head"), cells("same", "slower", "unclear"), sampling=SAMPLING, settings=GateTable())
    verdicts = {model: verdict for model, (verdict, _) in outcome(gate.run(counted=False)).items()}
    assert verdicts == {"same": PASS, "slower": REGRESSION, "unclear": PASS}
    assert taken[:3] == [["same", "slower", "unclear"]] * 3
    assert taken[3:] == [["unclear"]] * (len(taken) - 3) != []


def test_the_time_left_of_a_gate_is_that_of_its_budget_at_most() -> None:
    gate = Gate(arm("base"), arm("head"), cells("good"), sampling=SAMPLING, settings=GateTable(budget_s=100.0),
                clock=iter([0.0, 80.0]).__next__)  # fmt: skip
    gate._cell_s = dict.fromkeys(cells("good"), 30.0)
    assert gate._left(cells("good")).startswith("; about 20 s left, longer if")


def test_a_pipe_shows_each_batch_once_and_again_when_its_time_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress() as log:
        log("b: main")
        log("batch 1 of 3: a 64")
        log("batch 1 of 3: b 64; about 9 s left")
        log("batch 1 of 3: c 64; about 8 s left")
        log("batch 2 of 3: a 64; about 7 s left")
    assert capsys.readouterr().err.splitlines() == [
        "b: main",
        "batch 1 of 3",
        "batch 1 of 3; about 9 s left",
        "batch 2 of 3; about 7 s left",
    ]


def test_no_cells_are_incomplete() -> None:
    assert gated().verdict == INCOMPLETE


def test_the_self_test_knows_the_truth() -> None:
    trials = list(
        run_trials(cells("good"), missing_trials(1, ["alone"], [0.0, 0.2], []), sampling=SAMPLING,
                   settings=GateTable(), command=FAKE_WORKER)
    )  # fmt: skip
    assert [(trial.level, *trial.verdicts.values()) for trial in trials] == [(0.0, PASS), (0.2, REGRESSION)]
    (evidence,) = trials[1].evidence.values()
    assert len(evidence.batches) == 3
    assert trials[1].took_s > 0


def test_a_self_test_goes_on_where_its_trace_ends(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"

    def trials(repeats: int) -> list[Trial]:
        missing = missing_trials(repeats, ["alone"], [0.0, 0.2], read_trace(trace))
        return list(run_trials(cells("good"), missing, sampling=SAMPLING, settings=GateTable(), command=FAKE_WORKER))

    for trial in (first := trials(1)):
        append_trial(trace, trial)
    again = read_trace(trace)
    assert [trial.key for trial in again] == [("alone", 0.0, 0), ("alone", 0.2, 0)]
    for before, after in zip(first, again, strict=True):
        assert {name: j.verdict for name, j in judge(after.evidence).items()} == before.verdicts == after.verdicts
    assert [trial.key for trial in trials(2)] == [("alone", 0.0, 1), ("alone", 0.2, 1)]


def test_a_line_that_is_no_trial_is_named(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"load": "alone"}\n')
    with pytest.raises(UsageError, match="line 1: not a trial of a gate"):
        read_trace(trace)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--levels", "5%"), "--levels takes shares from 0 to 1"),
        (("--loads", "idle"), "--loads: 'idle' is not one of alone, busy, tests"),
        (("--json", "x.json"), "No such option: --json"),
        (("--base", "HEAD"), "No such option: --base"),
    ],
)
def test_a_self_test_of_nothing_is_refused(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, ["gate", "selftest", "--repeats", "1", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_what_only_the_suite_of_the_base_has_is_a_regression() -> None:
    result = Gate(arm("base"), arm("head"), cells("good"), sampling=SAMPLING, settings=GateTable(),
                 vanished=cells("gone")).run()  # fmt: skip
    assert outcome(result)["gone"] == (REGRESSION, "vanished: only the suite of the base has it")
    assert result.verdict == REGRESSION


# Output for CI


def nasty_result() -> GateResult:
    result = gated("good", head={"FAKE_SLOWER": "0.2"})
    (cell,) = result.judgements
    other = dataclasses.replace(cell, model="a|<b>::error::%\x1b[1m")
    judgement = dataclasses.replace(result.judgements[cell], reason="one\n::error::two %0A \x00")
    return dataclasses.replace(
        result, judgements={other: judgement}, inspections={other: result.inspections[cell]},
        evidence={other: result.evidence[cell]},
    )  # fmt: skip


def test_junit_has_a_case_for_each_cell() -> None:
    root = ET.fromstring(gate_junit(nasty_result()))
    (case,) = root.iter("testcase")
    assert case.get("name", "").startswith("a|<b>::error::%")
    (failure,) = case.iter("failure")
    assert failure.get("type") == REGRESSION
    assert root.find("testsuite").get("failures") == "1"


def test_no_name_becomes_a_command_or_markup() -> None:
    lines = list(github_annotations(nasty_result()))
    assert [line.count("\n") for line in lines] == [0, 0]
    assert lines[0].startswith("::error title=REGRESSION%3A a|<b>%3A%3Aerror%3A%3A%25")
    assert lines[0].endswith("::one%0A::error::two %250A \\x00"), "a control character is shown as what it is"
    text = gate_markdown(nasty_result())
    assert "<b>" not in text
    assert "a\\|" in text


def test_the_json_holds_the_evidence() -> None:
    body = json.loads(json.dumps(result_to_json(nasty_result()), allow_nan=False))
    assert body["verdict"] == REGRESSION
    assert len(body["cells"][0]["evidence"]["batches"]) == 3


@pytest.mark.parametrize("counted", [True, False])
def test_the_json_says_whether_the_arms_were_counted(counted: bool) -> None:
    assert result_to_json(gated(counted=counted))["settings"]["counted"] is counted


# Refs


# The command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the base is missing; give --base REF"),
        (("--base", "HEAD", "--base-python", "x"), "give either --base REF, or both"),
        (("--base-python", "x"), "give either --base REF, or both"),
        (("--base", "HEAD", "--delta", "3"), "--delta takes a share from 0.005 to 1"),
        (("--base", "HEAD", "--suite", "gone.toml"), "no suite and no file 'gone.toml'"),
        (("--base", "HEAD", "--models", "sema_tinny"), "did you mean 'sema_tiny'"),
        (("--base", "no/such/ref"), "has no commit 'no/such/ref'"),
        (("--base", "HEAD", "--trace", "t"), "No such option: --trace"),
        (("--base", "HEAD", "--json", "-", "--markdown", "-"), "each output needs its own file"),
    ],
)
def test_a_wrong_request_gets_one_line(
    repository: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], message: str
) -> None:
    monkeypatch.chdir(repository)
    code, _, err = invoke("gate", "run", *arguments)
    assert (code, message in err, err.count("\n")) == (2, True, 1), err


@pytest.mark.parametrize(
    ("verdict", "options", "code"),
    [
        (PASS, (), 0),
        (REGRESSION, (), 1),
        (INCONCLUSIVE, (), 3),
        (INCONCLUSIVE, ("--on-inconclusive", "warn"), 0),
        (INCOMPLETE, ("--on-inconclusive", "warn"), 4),
    ],
)
def test_the_exit_code_is_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, options: Sequence[str], code: int
) -> None:
    result = gated("good")
    judgements = {cell: dataclasses.replace(j, verdict=verdict) for cell, j in result.judgements.items()}
    monkeypatch.setattr(Gate, "run", lambda self: dataclasses.replace(result, judgements=judgements))
    monkeypatch.setattr(Arm, "check", lambda self, cell: Origin(sema=self.name, torch="2"))
    monkeypatch.setattr("sema_bench.cli.gate_run.arm_of_python", lambda name, python: arm(name))
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    files = [str(tmp_path / name) for name in ("g.json", "g.md", "g.xml")]
    given = ["--json", files[0], "--markdown", files[1], "--junit", files[2], *options]
    got, shown, err = invoke("gate", "run", "--base-python", "a", "--head-python", "b", *given)
    assert got == code, (shown, err)
    assert all(Path(file).stat().st_size > 100 for file in files)
    assert "::notice title=sema-bench gate::" in shown
    assert summary.read_text().startswith("### ")


def test_a_cell_is_called_by_all_that_is_unusual_in_it() -> None:
    plain = Cell(model="m", height=64, width=64)
    odd = dataclasses.replace(plain, threads=2, layout="contiguous", allocator="default", device="cuda:0", tf32=True)
    assert label_of(plain) == "m 64"
    assert label_of(odd) == "m 64 cuda:0 TF32 on contiguous 2 threads"
    assert label_of(dataclasses.replace(plain, model="\x1b[31mm")) == "\\x1b[31mm 64"


def test_on_github_no_name_becomes_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    put_out(lambda console: print_gate(nasty_result(), console))
    first, *_, last = capsys.readouterr().out.strip().splitlines()
    assert first.startswith("::stop-commands::")
    assert last == f"::{first.removeprefix('::stop-commands::')}::"
    monkeypatch.delenv("GITHUB_ACTIONS")
    put_out(lambda console: print_gate(nasty_result(), console))
    assert "stop-commands" not in capsys.readouterr().out
