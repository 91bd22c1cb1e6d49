"""Test the runner and the local executor, with workers that crash, hang, run out of memory or lie."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from run_support import ENVIRONMENT, FAKE_WORKER, fake_executor, make_plan, ok_record, quiet_progress

from sema_bench.driver.local import LocalExecutor
from sema_bench.driver.schedule import Schedule, skip_reason
from sema_bench.errors import UsageError
from sema_bench.spec import sampling as sampling_module
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Record
from sema_bench.spec.sampling import Sampling
from sema_bench.store.run_folder import RunFolder


def run_in(folder: Path, plan: Plan, **options: bool) -> list[Record]:
    path = folder / "run"
    run = RunFolder(path) if path.exists() else RunFolder.create(folder, "fake", "run")
    with run.lock():
        executor = fake_executor(plan)
        try:
            return Schedule(plan, run, environment=ENVIRONMENT, **options).run(executor, quiet_progress())
        finally:
            executor.cancel()


@pytest.fixture
def short_wall_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "MIN_WALL_LIMIT_S", 1.5)


def test_every_cell_gets_one_record_in_plan_order(tmp_path: Path) -> None:
    plan = make_plan()
    records = run_in(tmp_path, plan)
    assert [record.cell for record in records] == list(plan.cells)
    assert {record.status for record in records} == {"ok"}
    assert {record.environment for record in records} == {ENVIRONMENT}


def test_models_of_a_group_are_sampled_interleaved_and_the_record_says_so(tmp_path: Path) -> None:
    records = run_in(tmp_path, make_plan(("good", "good2", "good3"), (224,)))
    assert [record.details["interleaved_with"] for record in records] == [
        ["good2", "good3"],
        ["good", "good3"],
        ["good", "good2"],
    ]


def test_a_listener_hears_how_much_of_the_sampling_is_done(tmp_path: Path) -> None:
    heard: list[tuple[str, str, float]] = []
    plan = make_plan(("good", "good2"), (224,))
    executor = LocalExecutor(
        plan,
        listener=lambda cell, phase, share=0.0: heard.append((cell.model, phase, share)),
        worker_command=FAKE_WORKER,
    )
    try:
        list(executor.run([(plan.cells, {})]))
    finally:
        executor.cancel()
    assert [phase for model, phase, _ in heard if model == "good"][:2] == ["inspecting", "warming up"]
    shares = [share for model, phase, share in heard if (model, phase) == ("good2", "sampling")]
    assert shares[0] == 0.0 < shares[1] <= shares[-1]
    assert shares == sorted(shares)


def test_tables_are_renewed_between_groups_and_not_after_the_last(tmp_path: Path) -> None:
    renewed: list[int] = []
    plan, run = make_plan(("good",), (224, 256, 288)), RunFolder.create(tmp_path, "fake", "run")
    executor = fake_executor(plan)
    with run.lock():
        schedule = Schedule(plan, run, environment=ENVIRONMENT)
        try:
            schedule.run(executor, quiet_progress(), between_groups=lambda: renewed.append(len(schedule.records)))
        finally:
            executor.cancel()
    assert renewed == [1, 2]


def test_visits_alternate_between_the_models_in_changing_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "visits"
    monkeypatch.setenv("FAKE_LOG", str(log))
    models = ["good", "good2", "good3"]
    run_in(tmp_path, make_plan(models, (512,)))
    visits = log.read_text().split()
    rounds = [visits[i : i + 3] for i in range(0, len(visits), 3)]
    assert len(rounds) >= 3
    assert all(sorted(each) == models for each in rounds), "every round visits every model once"
    assert len({tuple(each) for each in rounds}) > 1, "in changing order"


def test_memory_that_ran_out_beside_others_is_tried_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = tmp_path / "trigger"
    trigger.touch()
    monkeypatch.setenv("FAKE_CROWDED", str(trigger))
    good, crowded = run_in(tmp_path, make_plan(("good", "crowded"), (224,)))
    assert (good.status, crowded.status) == ("ok", "ok")
    assert crowded.details["interleaved_with"] == []


def test_a_precise_model_that_ran_out_of_time_says_time(tmp_path: Path) -> None:
    records = run_in(tmp_path, make_plan(("good", "slow3"), (224,), time_limit_s=0.6))
    assert [record.details["stop_reason"] for record in records] == ["time limit", "time limit"]


def test_a_cell_whose_time_is_that_of_its_launches_says_so(tmp_path: Path) -> None:
    launches, good = run_in(tmp_path, make_plan(("launches", "good"), (224,)))
    assert launches.details["launch_bound"] is True
    assert launches.value("launch_share") == pytest.approx(0.95)
    assert "launch_bound" not in good.details


def test_sampling_stops_at_the_precision_it_was_asked_for(tmp_path: Path) -> None:
    (record,) = run_in(tmp_path, make_plan(("good",), (224,)))
    assert record.details["stop_reason"] == "precision"
    assert len(record.measurements["latency_s"].samples) >= 10
    assert record.value("throughput_images_per_s") == pytest.approx(1 / record.measurements["latency_s"].value)


def test_a_long_forward_pass_gets_six_samples_or_three_and_then_no_interval(tmp_path: Path) -> None:
    six, three = run_in(tmp_path, make_plan(("slow1.9", "slow2.1"), (224,), time_limit_s=2.0))
    assert [record.details["stop_reason"] for record in (six, three)] == ["time limit", "time limit"]
    assert len(six.measurements["latency_s"].samples) == 6
    assert six.measurements["latency_s"].ci_low is not None
    assert len(three.measurements["latency_s"].samples) == 3
    assert three.measurements["latency_s"].ci_low is None


@pytest.mark.parametrize(
    ("model", "status", "says"),
    [
        ("crash", "crashed", "exited with code 3: about to crash"),
        ("kill9", "crashed", "killed by SIGKILL"),
        ("garbage", "crashed", "not JSON"),
        ("error", "error", "ValueError: no such thing"),
        ("oom1", "oom", "can't allocate memory"),
        ("sampler-crash", "crashed", "exited with code 7"),
        ("twice", "crashed", "an answer to another request"),
        ("hollow", "crashed", "a wrong answer to 'inspect': measurements: Field required"),
        ("nothing", "crashed", "a wrong answer to 'inspect': measurements: Field required"),
    ],
)
def test_a_failing_worker_costs_its_own_cell_alone(tmp_path: Path, model: str, status: str, says: str) -> None:
    failed, fine = run_in(tmp_path, make_plan((model, "good"), (224,)))
    assert failed.status == status
    assert says in failed.reason
    assert "\n" not in failed.reason
    assert fine.status == "ok"


def test_a_hanging_worker_is_stopped_at_the_wall_limit(tmp_path: Path, short_wall_limit: None) -> None:
    failed, fine = run_in(tmp_path, make_plan(("hang", "good"), (224,), time_limit_s=0.1))
    assert (failed.status, fine.status) == ("timeout", "ok")


def test_grandchildren_die_with_their_worker(
    tmp_path: Path, short_wall_limit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"
    monkeypatch.setenv("FAKE_PID_FILE", str(pid_file))
    run_in(tmp_path, make_plan(("grandchild",), (224,), time_limit_s=0.1))
    pid = int(pid_file.read_text())
    for _ in range(100):
        if not _is_running(pid):
            return
        time.sleep(0.05)
    pytest.fail(f"grandchild {pid} is still there")


def test_a_cell_that_cannot_give_three_samples_in_time_is_a_timeout(tmp_path: Path) -> None:
    (record,) = run_in(tmp_path, make_plan(("slow20",), (224,), time_limit_s=1.0))
    assert record.status == "timeout"
    assert "one forward pass takes 20.0 s; 3 of them do not fit into 30 s; start a run with a longer" in record.reason


def test_a_death_by_a_signal_without_a_name_is_a_crash_like_any_other(tmp_path: Path) -> None:
    failed, fine = run_in(tmp_path, make_plan(("signal40", "good"), (224,)))
    assert (failed.status, fine.status) == ("crashed", "ok")
    assert "signal 40" in failed.reason


def test_the_kernels_oom_kill_is_distinguished_from_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter(range(100))
    monkeypatch.setattr("sema_bench.driver.worker_process.oom_kill_count", lambda: next(counts))
    (record,) = run_in(tmp_path, make_plan(("kill9",), (224,)))
    assert record.status == "oom"
    assert "kernel" in record.reason


def test_sizes_above_one_that_ran_out_of_memory_are_skipped_with_that_reason(tmp_path: Path) -> None:
    records = run_in(tmp_path, make_plan(("oom512",), (224, 512, 768, 1024)))
    assert [record.status for record in records] == ["ok", "oom", "skipped", "skipped"]
    assert records[-1].reason == "ran out of memory at 512"


def test_a_skipped_cell_still_has_what_shapes_alone_tell(tmp_path: Path) -> None:
    records = run_in(tmp_path, make_plan(("slow7",), (224, 1024), probes=("params", "memory", "throughput")))
    assert [record.status for record in records] == ["ok", "skipped"]
    assert records[1].value("params") == 1000
    assert records[0].details["probes"] == ["memory"], "asked for after the shapes were counted"
    assert records[0].value("params") == 1000
    assert records[1].details["probes"] == ["params"], "nothing that needs memory or time"


def test_resuming_with_no_skip_tries_what_was_skipped(tmp_path: Path) -> None:
    plan = make_plan(("oom512",), (512, 768))
    run_in(tmp_path, plan)
    assert [record.status for record in run_in(tmp_path, plan, skip=False)] == ["oom", "oom"]


def test_no_skip_tries_every_size(tmp_path: Path) -> None:
    records = run_in(tmp_path, make_plan(("oom512",), (224, 512, 768)), skip=False)
    assert [record.status for record in records] == ["ok", "oom", "oom"]


def test_skip_rules_extrapolate_the_measured_exponent() -> None:
    quadratic = [ok_record(side=224, latency_s=0.1), ok_record(side=448, latency_s=1.6)]
    sampling = Sampling(time_limit_s=1.0)  # wall limit 30 s
    assert skip_reason(Cell(model="good", height=640, width=640), quadratic, sampling) is None
    reason = skip_reason(Cell(model="good", height=1024, width=1024), quadratic, sampling)
    assert reason is not None
    assert "about 44 s" in reason


def test_a_taller_but_narrower_size_is_not_skipped_for_another_shape() -> None:
    square = Record(cell=Cell(model="good", height=512, width=512), status="oom", reason="x")
    assert skip_reason(Cell(model="good", height=1024, width=256), [square], Sampling()) is None
    assert skip_reason(Cell(model="good", height=512, width=513), [square], Sampling()) is not None


def test_what_one_variant_did_skips_no_cell_of_another(tmp_path: Path) -> None:
    records = run_in(tmp_path, make_plan(("oom224", "good"), (224, 512)))
    assert [record.status for record in records] == ["oom", "ok", "skipped", "ok"]


def test_resume_measures_what_is_missing_and_nothing_twice(tmp_path: Path) -> None:
    plan = make_plan()
    first = Plan(plan.suite, plan.groups[:1], plan.probes, plan.sampling)
    before = run_in(tmp_path, first)
    after = run_in(tmp_path, plan)
    assert after[: len(before)] == before
    assert len(after) == len(plan.cells)
    assert (tmp_path / "run/records.jsonl").read_text().count("\n") == len(plan.cells)


def test_retry_failed_repeats_failures_alone(tmp_path: Path) -> None:
    plan = make_plan(("crash", "good"), (224,))
    run_in(tmp_path, plan)
    run_in(tmp_path, plan)
    assert _attempts(tmp_path / "run") == {"crash": 1, "good": 1}
    run_in(tmp_path, plan, retry_failed=True)
    assert _attempts(tmp_path / "run") == {"crash": 2, "good": 1}


def test_counting_alone_needs_no_timer(tmp_path: Path) -> None:
    (record,) = run_in(tmp_path, make_plan(("good",), (224,), probes=("params",)))
    assert record.status == "ok"
    assert list(record.measurements) == ["params"]


def test_two_drivers_on_one_run_the_second_refuses_and_names_the_first(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "fake", "run")
    code = (
        "import pathlib, sys; from sema_bench.store.run_folder import RunFolder\n"
        f"with RunFolder(pathlib.Path({str(run.path)!r})).lock(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=f"process {other.pid}"), run.lock():
            pass
        assert other.stdin is not None
        other.stdin.close()
        other.wait(timeout=10)
    with run.lock():
        pass


def test_workers_die_when_their_driver_is_killed(tmp_path: Path) -> None:
    """The real worker asks the kernel for this; a worker that outlived its driver would disturb others."""
    code = (
        "import os, time\n"
        "from sema_bench.driver.worker_process import WorkerProcess\n"
        "print(WorkerProcess(allocator='default', threads=1).pid, flush=True)\n"
        "time.sleep(60)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert driver.stdout is not None
    worker = int(driver.stdout.readline())
    time.sleep(0.5)
    os.kill(worker, signal.SIGSTOP)  # a stopped worker cannot see the end of its input
    driver.kill()
    driver.wait()
    for _ in range(100):
        if not _is_running(worker):
            return
        time.sleep(0.05)
    pytest.fail(f"worker {worker} outlived its driver")


def _attempts(run: Path) -> Counter[str]:
    lines = (run / "records.jsonl").read_text().splitlines()
    return Counter(Record.from_json(line).cell.model for line in lines)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_the_fake_worker_is_not_the_real_one() -> None:
    """Guards the tests above: they must not start torch."""
    assert "sema_bench.worker.server" not in FAKE_WORKER
