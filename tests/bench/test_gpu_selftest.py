"""Test ``sema-bench selftest --gpu`` without a card: replay recorded answers, and run the real code on fakes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_support import invoke
from fake_card import WORSE, made_worse, recorded

from sema_bench.cli import selftest as command
from sema_bench.errors import UsageError
from sema_bench.gate.rule import INCOMPLETE, Evidence
from sema_bench.gate.trace import Trial
from sema_bench.spec.cell import MODES, Cell
from sema_bench.spec.record import Environment, Record
from sema_bench.studies.gpu import run, speed
from sema_bench.studies.gpu.check import FAILED, NOT_HERE, OK, Card, Outcome, between, judged
from sema_bench.studies.gpu.checks import CHECKS
from sema_bench.studies.gpu.run import GpuSelfTest, outcome_of, read_checks

FAKE_CARD = str(Path(__file__).with_name("fake_card.py"))
REPLAY = (sys.executable, FAKE_CARD, "replay")
ENVIRONMENT = Environment(
    hardware={"gpus": [{"name": "fake"}]},
    software={"cuda_devices": 1},
    context={"code": "abc", "gpus": [{"name": "fake", "uuid": "GPU-1"}]},
)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with the recorded card, which no other test waits for, and a terminal that does not wrap lines."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", str(tmp_path))
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(command, "capture", lambda: ENVIRONMENT)
    monkeypatch.setattr(run, "COMMAND", REPLAY)


def stored(path: Path) -> dict[int, str]:
    return {check["number"]: check["status"] for check in json.loads(path.read_text())["checks"]}


def test_the_table_has_the_eighteen_checks_and_half_an_hour() -> None:
    assert [check.number for check in CHECKS] == list(range(18))
    assert len({check.name for check in CHECKS}) == 18
    assert 60 * sum(check.minutes for check in CHECKS) <= run.LIMIT_S + 60


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_recorded_answers_are_judged_as_they_were_on_the_card(check: run.Check) -> None:
    was = recorded()[check.number]
    outcome = judged(check, was["answers"])
    assert outcome.status == was["status"], [finding for finding in outcome.findings if finding.ok is False]
    assert all(finding.name and finding.figure for finding in outcome.findings)


@pytest.mark.parametrize("number", WORSE)
def test_an_answer_that_is_far_off_fails_its_check(number: int) -> None:
    check = CHECKS[number]
    outcome = judged(check, made_worse(number, recorded()[number]["answers"]))
    assert outcome.status == FAILED
    assert sum(finding.ok is False for finding in outcome.findings) >= 1


def test_every_mode_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_losses", lambda card, amp: [])
    monkeypatch.setattr(
        Card, "run", lambda card, groups, probes, **limit: [Record(cell=cell, status="ok") for (cell,) in groups]
    )
    ran = {name.split("/")[4] for name in speed.measure_modes(Card())["modes"]}
    assert ran == {*MODES}


def test_a_card_that_reports_no_energy_is_not_here() -> None:
    answers = recorded()[10]["answers"]
    outcome = judged(CHECKS[10], {**answers, "beside_work": None, "beside_context": None, "absent": {"GPU": "MIG"}})
    assert outcome.status == NOT_HERE
    assert any("MIG" in finding.figure for finding in outcome.findings)


def test_a_number_that_is_none_is_not_judged_and_nan_is_not_passed() -> None:
    assert between("x", None, 1, 2).ok is None
    assert between("x", float("nan"), 1, 2).ok is False
    assert [between("x", value, 1, 2).ok for value in (0.9, 1, 2, 2.1)] == [False, True, True, False]
    assert between("x", 1.5, None, 2, " µs").limit == "≤ 2 µs"


def test_all_checks_run_and_are_kept_in_the_file(tmp_path: Path, card: None) -> None:
    path = tmp_path / "gpu.json"
    code, out, err = invoke("selftest", "--gpu", "--json", str(path))
    statuses = {number: check["status"] for number, check in recorded().items()}
    assert code == (1 if FAILED in statuses.values() else 0), out
    assert stored(path) == statuses
    for check in CHECKS:
        assert check.proves in out
    assert "check 17 of 17, about 2.5 min" in err
    body = json.loads(path.read_text())
    assert {check["number"]: check["answers"] for check in body["checks"]} == {
        number: check["answers"] for number, check in recorded().items()
    }, "the file is enough to record a card again"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("crash", "its process ended with code 134: CUDA error: an illegal memory access was encountered"),
        ("error", "ValueError: broken"),
        ("garbage", "its answers cannot be judged: KeyError"),
        ("worse", ""),
    ],
)
def test_a_check_that_breaks_is_failed_and_the_others_go_on(
    tmp_path: Path, card: None, monkeypatch: pytest.MonkeyPatch, fault: str, reason: str
) -> None:
    monkeypatch.setenv("FAKE_CHECK", f"2:{fault}")
    monkeypatch.setattr(run, "CHECKS", CHECKS[:4])
    path = tmp_path / "gpu.json"
    code, out, _ = invoke("selftest", "--gpu", "--json", str(path))
    assert code == 1
    assert stored(path) == {0: OK, 1: OK, 2: FAILED, 3: OK}
    assert reason in out
    assert "FAILED" in out


def test_what_is_not_here_is_no_failure(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CHECK", "1:lacks")
    monkeypatch.setattr(run, "CHECKS", CHECKS[:3])
    code, out, _ = invoke("selftest", "--gpu")
    assert code == 0
    assert "1 not here tests" in out
    assert "pytest is not installed" in out
    assert "2 ok, 1 not here" in out


def test_a_check_that_hangs_is_ended_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CHECK", "1:hang")
    monkeypatch.setattr(run, "CHECKS", CHECKS[:3])
    monkeypatch.setattr(run, "_limit_s", lambda check: 1.0 if check.number == 1 else 60.0)
    test = GpuSelfTest(ENVIRONMENT, "cuda:0")
    test.run(log=lambda line: None, command=REPLAY)
    assert {number: outcome.status for number, outcome in test.outcomes.items()} == {0: OK, 1: FAILED, 2: OK}
    assert test.outcomes[1].reason == "no answer within 1 s"


def test_a_kill_leaves_what_was_done_and_the_same_command_goes_on(
    tmp_path: Path, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, log = tmp_path / "gpu.json", tmp_path / "log"
    code = (
        "import sys; sys.path[:0] = sys.argv[1:2]\n"
        "from test_gpu_selftest import ENVIRONMENT, REPLAY, GpuSelfTest; from pathlib import Path\n"
        "GpuSelfTest(ENVIRONMENT, 'cuda:0', Path(sys.argv[2])).run(log=print, command=REPLAY)"
    )
    environment = {**os.environ, "FAKE_CHECK": "3:hang", "FAKE_LOG": str(log)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(path)],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (path.exists() and len(stored(path)) == 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert stored(path) == {0: OK, 1: OK, 2: OK}
    monkeypatch.setenv("FAKE_LOG", str(log))
    monkeypatch.setattr(run, "CHECKS", CHECKS[:5])
    assert invoke("selftest", "--gpu", "--json", str(path))[0] == 0
    assert stored(path) == dict.fromkeys(range(5), OK)
    assert log.read_text().split() == ["0", "1", "2", "3", "4"], "nothing was measured twice"


def test_a_failed_check_is_measured_again(tmp_path: Path, card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    path, log = tmp_path / "gpu.json", tmp_path / "log"
    monkeypatch.setattr(run, "CHECKS", CHECKS[:3])
    monkeypatch.setenv("FAKE_LOG", str(log))
    monkeypatch.setenv("FAKE_CHECK", "1:worse")
    assert invoke("selftest", "--gpu", "--json", str(path))[0] == 1
    monkeypatch.delenv("FAKE_CHECK")
    assert invoke("selftest", "--gpu", "--json", str(path))[0] == 0
    assert log.read_text().split() == ["0", "1", "2", "1"]


def test_checks_that_were_not_reached_are_named_and_the_code_says_incomplete(
    card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LIMIT_S", 0.0)
    code, out, _ = invoke("selftest", "--gpu")
    assert code == 4
    assert "not reached in time: 0 identity, 1 tests" in out


def test_a_file_of_another_card_or_of_other_code_is_not_overwritten(tmp_path: Path, card: None) -> None:
    path = tmp_path / "gpu.json"
    for environment, why in (
        (Environment(hardware={"gpus": [{"name": "other"}]}, software={}, context={"code": "abc"}), "environment"),
        (dataclasses.replace(ENVIRONMENT, context={"code": "abc", "gpus": [{"uuid": "GPU-2"}]}), "another card"),
        (
            Environment(
                hardware=ENVIRONMENT.hardware,
                software=ENVIRONMENT.software,
                context={**ENVIRONMENT.context, "code": "x"},
            ),
            "code",
        ),
    ):
        test = GpuSelfTest(environment, "cuda:0", path, {0: Outcome(OK)})
        path.write_text(before := test.to_json())
        code, _, err = invoke("selftest", "--gpu", "--json", str(path))
        assert code == 2
        assert why in err
        assert len(err.splitlines()) == 1
        assert path.read_text() == before


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema_version": 1, "environment": {}, "checks": [1]}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="is no file of sema-bench selftest --gpu"):
        read_checks(path)


def test_stored_answers_are_judged_by_todays_limits(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    answers = recorded()[2]["answers"]
    path.write_text(GpuSelfTest(ENVIRONMENT, "cuda:0", path, {2: Outcome(FAILED, answers=answers)}).to_json())
    outcome = outcome_of(CHECKS[2], read_checks(path))
    assert outcome is not None
    assert outcome.status == OK


def test_without_a_card_one_line_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "capture", lambda: Environment(hardware={}, software={"cuda_devices": 0}))
    code, out, err = invoke("selftest", "--gpu")
    assert (code, out) == (2, "")
    assert "no GPU was found" in err
    assert len(err.splitlines()) == 1


def test_a_card_for_one_process_alone_is_refused(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    exclusive = {"name": "fake", "uuid": "GPU-1", "compute_mode": "EXCLUSIVE_PROCESS"}
    monkeypatch.setattr(command, "capture", lambda: dataclasses.replace(ENVIRONMENT, context={"gpus": [exclusive]}))
    code, out, err = invoke("selftest", "--gpu")
    assert (code, out) == (2, "")
    assert "nvidia-smi -c DEFAULT" in err


def test_no_other_run_measures_on_the_card_meanwhile(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str] = []

    @contextlib.contextmanager
    def hold(device: str) -> Iterator[None]:
        held.append(device)
        yield
        held.remove(device)

    def measured(check: run.Check, device: str, *rest: object) -> Outcome:
        assert held == [device]
        return Outcome(OK)

    monkeypatch.setattr(run, "gpu_lock", hold)
    monkeypatch.setattr(run, "_measured", measured)
    assert invoke("selftest", "--gpu")[0] == 0
    assert held == []


@pytest.mark.parametrize("arguments", [["--copies", "5"], ["--threads", "1"], ["--device", "cpu"], ["--res", "64"]])
def test_options_that_would_be_ignored_are_refused(arguments: list[str]) -> None:
    code, _, err = invoke("selftest", "--gpu", *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1


#: Checks that run in seconds on the fake card; -m slow runs all of them.
QUICK = (0, 1)


@pytest.mark.parametrize(
    "check",
    [pytest.param(check, marks=[] if check.number in QUICK else pytest.mark.slow) for check in CHECKS],
    ids=lambda check: check.name,
)
def test_the_code_of_a_check_runs_from_end_to_end_on_a_fake_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: run.Check
) -> None:
    """A CPU cannot pass most limits: the test is that the check makes every call and judges every answer."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_it(): pass\n")
    monkeypatch.setenv("FAKE_CHECKOUT", str(tmp_path))
    outcome = run._measured(check, "cuda:0", (sys.executable, FAKE_CARD, "check"), 900.0)
    assert outcome.findings, f"{outcome.reason}\n{outcome.traceback}"
    assert outcome.answers
    if check.number in (0, 1):
        assert outcome.status == OK


def test_a_gate_that_ran_out_of_time_is_a_finding_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(model="sema_tiny", height=224, width=224)
    trial = Trial("alone", 0.1, 0, {cell.id: INCOMPLETE}, {cell.id: Evidence(0.03)}, took_s=180.0)
    monkeypatch.setattr(speed, "run_trials", lambda *arguments, **options: iter([trial]))
    monkeypatch.setattr(Card, "some", lambda self, values: ())
    answers = speed.measure_noise(Card("cuda:0"))
    assert answers["gate"] == {"verdict": INCOMPLETE, "ratio": None}
    assert not any(finding.ok for finding in speed.judge_noise(answers))
