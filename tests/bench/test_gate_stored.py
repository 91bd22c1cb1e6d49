"""Test stored baselines: where they are kept, and how little they can decide."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_support import invoke
from comparison_support import MACHINE, failed, loaded, record, write_run

from sema_bench.cli import gate_stored
from sema_bench.errors import UsageError
from sema_bench.gate.rule import INCOMPLETE, INCONCLUSIVE, PASS, REGRESSION
from sema_bench.gate.stored import judge_stored
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.suite import GateTable
from sema_bench.store.baselines import load_baseline


def tight(model: str, latency: float, *, yardstick: float = 0.01, **changes: object) -> Record:
    """Return a record whose interval is ±0.2 %."""
    measured = record(model, 224, latency, yardstick=yardstick, **changes)
    narrow = {
        name: dataclasses.replace(m, ci_low=m.value * 0.998, ci_high=m.value * 1.002)
        for name, m in measured.measurements.items()
        if m.ci_low is not None
    }
    return dataclasses.replace(measured, measurements={**measured.measurements, **narrow})


def verdicts(base: Sequence[Record], head: Sequence[Record], **machine: object) -> list[tuple[str, str]]:
    result = judge_stored(loaded("a", base), loaded("b", head, **machine), GateTable(delta=0.03))
    return [(j.verdict, j.reason) for j in result.judgements.values()]


def test_the_same_speed_passes_and_a_clear_slowdown_does_not() -> None:
    base = [tight("m", 0.1), tight("n", 0.1)]
    head = [tight("m", 0.1005), tight("n", 0.12)]
    (passed, _), (slow, reason) = verdicts(base, head)
    assert (passed, slow) == (PASS, REGRESSION)
    assert reason == "20.0% slower, at least 19.7%"


def test_what_might_be_slower_is_inconclusive() -> None:
    ((verdict, reason),) = verdicts([record("m", 224, 0.1)], [record("m", 224, 0.105)])
    assert (verdict, reason) == (
        INCONCLUSIVE,
        "its time is between 1.021 and 1.080 of the base's: not decided; sema-bench gate run --base REF can tell",
    )


def test_a_slowdown_of_all_models_is_none_of_the_machine() -> None:
    base, head = [tight("m", 0.1), tight("n", 0.1)], [tight("m", 0.12), tight("n", 0.12)]
    assert {verdict for verdict, _ in verdicts(base, head)} == {REGRESSION}


def test_the_luck_of_a_process_convicts_no_one_and_without_a_yardstick_the_machine_is_doubted() -> None:
    ((verdict, _),) = verdicts([tight("m", 0.1)], [tight("m", 0.106)])
    assert verdict == INCONCLUSIVE
    for latency, expected in ((0.12, INCONCLUSIVE), (0.16, REGRESSION)):
        sides = [[without_yardstick(tight("m", value))] for value in (0.1, latency)]
        ((verdict, _),) = verdicts(*sides)
        assert verdict == expected


def without_yardstick(record: Record) -> Record:
    kept = {k: m for k, m in record.measurements.items() if k not in ("yardstick_s", "relative_latency")}
    return dataclasses.replace(record, measurements=kept)


def test_a_machine_that_changed_its_speed_convicts_no_one() -> None:
    base, head = [tight("m", 0.1)], [tight("m", 0.24, yardstick=0.02)]
    ((verdict, reason),) = verdicts(base, head)
    assert (verdict, reason) == (INCONCLUSIVE, "the machine itself changed its speed, ×0.50 (yardstick)")


def test_another_machine_is_inconclusive_by_name() -> None:
    ((verdict, reason),) = verdicts([tight("m", 0.1)], [tight("m", 0.2)], hardware={"cpu": "y", "cpus": 2})
    assert (verdict, reason) == (INCONCLUSIVE, "another machine: cpu x | y")
    more = {**tight("m", 0.1).measurements, "peak_memory_bytes": Measurement(metric="peak_memory_bytes", value=2e9)}
    less = {**more, "peak_memory_bytes": Measurement(metric="peak_memory_bytes", value=1e9)}
    sides = [dataclasses.replace(tight("m", 0.1), measurements=each) for each in (less, more)]
    assert verdicts([sides[0]], [sides[1]])[0][0] == REGRESSION
    assert verdicts([sides[0]], [sides[1]], hardware={"cpu": "y", "cpus": 2})[0][0] == INCONCLUSIVE
    ((verdict, reason),) = verdicts([tight("n", 0.1)], [failed("n", 224)], hardware={"cpu": "y", "cpus": 2})
    assert (verdict, "another machine" in reason) == (INCONCLUSIVE, True)
    ((verdict, reason),) = verdicts([tight("m", 0.1)], [tight("m", 0.1)], software={})
    assert (verdict, reason) == (INCONCLUSIVE, "another machine: b does not say its software, torch 2.13.0 | None")


def test_counts_are_exact_whatever_the_machine() -> None:
    head = tight("m", 0.1)
    more = {**head.measurements, "macs": Measurement(metric="macs", value=2e9)}
    head = dataclasses.replace(head, measurements=more)
    ((verdict, reason),) = verdicts([tight("m", 0.1)], [head], hardware={"cpu": "y"})
    assert verdict == REGRESSION
    assert reason.startswith("macs 1000000000 → 2000000000; another machine")


def test_a_cell_that_vanished_or_broke_is_a_regression() -> None:
    base = [tight("m", 0.1), tight("gone", 0.1), tight("n", 0.1), tight("other", 0.1), failed("back", 224)]
    head = [tight("m", 0.1), failed("n", 224), tight("other", 0.1, threads=2), tight("back", 0.1), tight("new", 0.1)]
    result = judge_stored(loaded("a", base), loaded("b", head), GateTable())
    outcomes = {cell.model: (j.verdict, j.reason) for cell, j in result.judgements.items()}
    assert outcomes["m"][0] == PASS
    assert outcomes["gone"] == (REGRESSION, "vanished: the head has no such cell")
    assert outcomes["n"] == (REGRESSION, "it ran, and now: crashed: it [bold]died[/]")
    assert outcomes["other"] == (INCOMPLETE, "measured under other conditions: threads 1 | 2")
    assert outcomes["back"][0] == outcomes["new"][0] == PASS
    both = judge_stored(loaded("a", [failed("n", 224)]), loaded("b", [failed("n", 224)]), GateTable())
    assert [j.verdict for j in both.judgements.values()] == [INCOMPLETE]
    assert result.verdict == REGRESSION


# The commands


def test_a_baseline_is_a_copy_that_no_later_run_touches(tmp_path: Path) -> None:
    write_run(tmp_path, "r", [tight("m", 0.1)])
    code, shown, err = invoke("baseline", "save", "r", "main", "--out", str(tmp_path))
    assert (code, err) == (0, "")
    (tmp_path / "r" / "records.jsonl").write_text("")
    assert load_baseline(tmp_path, "main").records == (tight("m", 0.1),)
    code, shown, _ = invoke("baseline", "list", "--out", str(tmp_path))
    assert shown.startswith("main  1 cells")
    code, shown, _ = invoke("baseline", "show", "main", "--out", str(tmp_path))
    assert (code, "100" in shown) == (0, True)
    write_run(tmp_path, "s", [tight("m", 0.2)])
    code, _, err = invoke("baseline", "save", "s", "main", "--out", str(tmp_path))
    assert (code, "--replace overwrites it" in err) == (2, True)
    assert load_baseline(tmp_path, "main").records[0].value("latency_s") == 0.1
    assert invoke("baseline", "save", "s", "main", "--replace", "--out", str(tmp_path))[0] == 0
    assert load_baseline(tmp_path, "main").records[0].value("latency_s") == 0.2
    assert [path.name for path in (tmp_path / "baselines").iterdir()] == ["main"]


def test_a_replacement_that_fails_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "r", [tight("m", 0.1)])
    write_run(tmp_path, "s", [tight("m", 0.2)])
    invoke("baseline", "save", "r", "main", "--out", str(tmp_path))
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise OSError(28, "No space left on device")
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        code, _, err = invoke("baseline", "save", "s", "main", "--replace", "--out", str(tmp_path))
    assert (code, "No space left" in err) == (4, True)
    assert load_baseline(tmp_path, "main").records[0].value("latency_s") == 0.1
    kept = tmp_path / "baselines"
    (kept / "main").rename(kept / ".main.old")  # killed between the two renames
    assert load_baseline(tmp_path, "main").records[0].value("latency_s") == 0.1


def test_half_a_run_is_no_baseline(tmp_path: Path) -> None:
    write_run(tmp_path, "r", [tight("m", 0.1)])
    body = json.loads((tmp_path / "r" / "run.json").read_text())
    more = [dataclasses.asdict(tight(model, 0.1).cell) for model in ("n", "o")]
    body["plan"]["groups"][0] += more
    (tmp_path / "r" / "run.json").write_text(json.dumps(body))
    code, _, err = invoke("baseline", "save", "r", "main", "--out", str(tmp_path))
    assert (code, "lacks 2 of its cells; resume with sema-bench run --resume r" in err) == (2, True)
    write_run(tmp_path, "s", [tight("m", 0.1)])
    with (tmp_path / "s" / "records.jsonl").open("a") as file:
        file.write("torn\n")
    code, _, err = invoke("baseline", "save", "s", "main", "--out", str(tmp_path))
    assert (code, "1 line of run 's' is not a record" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("baseline", "save", "gone"), "no run 'gone'"),
        (("baseline", "save", "empty"), "has no records"),
        (("baseline", "save", "r", "../up"), "bad run name '../up'"),
        (("baseline", "show", "gone"), "no baseline and no run 'gone'"),
        (("gate", "stored", "gone"), "baselines: none yet"),
        (("gate", "stored", "r", "--base", "HEAD"), "No such option: --base"),
        (("gate", "stored", "r", "--head-run", "r", "--delta", "3"), "--delta takes a share from 0.005 to 1"),
        (("gate", "stored", "--head-run", "r"), "Missing argument 'BASELINE'"),
        (("gate", "stored", "r"), "does not say how it was measured; give --head-run"),
    ],
)
def test_a_wrong_request_gets_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    write_run(tmp_path, "r", [tight("m", 0.1)])
    write_run(tmp_path, "empty", [])
    code, _, err = invoke(*arguments, "--out", str(tmp_path))
    assert (code, message in err, err.count("\n")) == (2, True, 1), err


def test_the_gate_of_two_stored_runs_has_the_exit_code_of_its_verdict(tmp_path: Path) -> None:
    write_run(tmp_path, "r", [tight("m", 0.1)])
    write_run(tmp_path, "slow", [tight("m", 0.2)])
    write_run(tmp_path, "far", [tight("m", 0.2)], hardware={**MACHINE["hardware"], "cpu": "y"})
    for head, code in (("r", 0), ("slow", 1), ("far", 3)):
        got, shown, err = invoke("gate", "stored", "r", "--head-run", head, "--out", str(tmp_path))
        assert got == code, (shown, err)


def test_a_gate_that_measures_says_how_long_that_took_and_one_that_compares_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(suite: object, *, root: Path, name: str) -> object:
        return SimpleNamespace(execute=lambda: write_run(root, name, [tight("m", 0.1)]))

    write_run(tmp_path, "r", [tight("m", 0.1)])
    path = tmp_path / "r" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "suite": {}}))
    monkeypatch.setattr(gate_stored.Run, "start", start)
    monkeypatch.setattr(gate_stored, "parse_suite", lambda body, source: body)
    monkeypatch.setattr(gate_stored, "capture", lambda: SimpleNamespace(**MACHINE))
    monkeypatch.setattr(gate_stored, "time", SimpleNamespace(monotonic=iter((10.0, 61.0)).__next__))
    assert invoke("gate", "stored", "r", "--out", str(tmp_path))[1].splitlines()[-1] == "PASS (1 PASS) in 51 s"
    compared = invoke("gate", "stored", "r", "--head-run", "r", "--out", str(tmp_path))[1]
    assert compared.splitlines()[-1] == "PASS (1 PASS)"


def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "inside", "r", [tight("m", 0.1)])
    with pytest.raises(UsageError):
        load_baseline(tmp_path / "inside" / "baselines", "../../etc")


def test_what_is_missing_in_a_run_is_no_pass_and_no_regression(tmp_path: Path) -> None:
    write_run(tmp_path, "r", [tight("m", 0.1), tight("n", 0.1)])
    write_run(tmp_path, "half", [tight("m", 0.1)])
    body = json.loads((tmp_path / "half" / "run.json").read_text())
    body["plan"]["groups"][0].append(dataclasses.asdict(tight("n", 0.1).cell))
    (tmp_path / "half" / "run.json").write_text(json.dumps(body))
    code, shown, _ = invoke("gate", "stored", "r", "--head-run", "half", "--out", str(tmp_path))
    assert (code, "the head has not measured it yet" in " ".join(shown.split())) == (4, True)
    write_run(tmp_path, "torn", [tight("m", 0.1), tight("n", 0.1)])
    with (tmp_path / "torn" / "records.jsonl").open("a") as file:
        file.write("torn\n")
    for base, head in (("torn", "r"), ("r", "torn")):
        code, _, err = invoke("gate", "stored", base, "--head-run", head, "--out", str(tmp_path))
        assert (code, "1 line of torn is not a record" in err) == (4, True)
    for suite in ("x", {"gate": {"delta": 7}}):
        body = json.loads((tmp_path / "r" / "run.json").read_text())
        (tmp_path / "r" / "run.json").write_text(json.dumps({**body, "suite": suite}))
        code, _, err = invoke("gate", "stored", "r", "--head-run", "r", "--out", str(tmp_path))
        assert (code, err.count("\n")) in ((0, 0), (4, 1)), err


def test_values_that_have_no_ratio_are_reported_and_crash_nothing() -> None:
    zero = tight("m", 0.1)
    relative = dataclasses.replace(zero.measurements["relative_latency"], value=0.0)
    odd = dataclasses.replace(zero, measurements={**zero.measurements, "relative_latency": relative})
    assert verdicts([zero], [odd])[0][0] in (PASS, INCONCLUSIVE)
    tiny = dataclasses.replace(
        zero, measurements={**zero.measurements, "latency_s": Measurement(metric="latency_s", value=0.0)}
    )
    assert [verdict for verdict, _ in verdicts([without_yardstick(zero)], [without_yardstick(tiny)])] == [INCOMPLETE]
