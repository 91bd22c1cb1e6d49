"""Test faults from outside: kills, lost machines, full and read-only disks, clocks that jump, schedulers.

Fast tests always run; ``-m faults`` runs the rest.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_support import ENVIRONMENT, fake_agents, fake_executor, make_plan, quiet_progress

from sema_bench.cluster.lanes import LaneLost, Lanes
from sema_bench.driver.schedule import Schedule
from sema_bench.errors import StoreError
from sema_bench.spec import sampling as sampling_module
from sema_bench.spec.record import Record
from sema_bench.store.run_folder import RunFolder

FAKE_RUN = Path(__file__).with_name("fake_run.py")


def attempts(run: Path) -> Counter[str]:
    return Counter(Record.from_json(line).cell.id for line in (run / "records.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("kills", "sizes", "lanes"),
    [(5, 3, 0), pytest.param(50, 12, 0, marks=pytest.mark.faults), pytest.param(50, 12, 2, marks=pytest.mark.faults)],
)
def test_a_driver_killed_at_random_moments_loses_and_repeats_nothing(
    tmp_path: Path, kills: int, sizes: int, lanes: int
) -> None:
    """Each round kills the driver somewhere; the last one runs to the end."""
    rng = random.Random(lanes)
    environment = {**os.environ, "FAKE_PAUSE_S": "0.2", "FAKE_LANES": str(lanes), "FAKE_SIDES": str(sizes)}
    command = [sys.executable, str(FAKE_RUN), str(tmp_path), "run"]
    finished: set[str] = set()
    at_work = 0
    for _ in range(kills):
        driver = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(timeout=rng.uniform(0.1, 2.5 if kills > 8 else 1.2))
        at_work += driver.poll() is None
        driver.kill()
        driver.wait()
        if (tmp_path / "run" / "run.json").exists():
            now = {record.cell.id for record in RunFolder(tmp_path / "run").records()}
            assert finished <= now, "a finished cell is gone"
            finished = now
    subprocess.run(command, env=environment, check=True, timeout=300)
    records, bad = RunFolder(tmp_path / "run").read()
    assert not bad
    assert len(records) == 2 * sizes
    assert set(attempts(tmp_path / "run").values()) == {1}, "a finished cell was measured again"
    assert at_work >= kills // 5


def test_an_agent_that_is_killed_is_replaced_and_its_cells_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(("good", "good2"), (224, 256, 288))
    lanes = fake_agents(plan, tmp_path, 2)
    run = RunFolder.create(tmp_path, "fake", "run")

    class Killing(quiet_progress):
        def finished(self, record: Record) -> None:
            super().finished(record)
            if len(self.records) == 1:
                process = lanes[str(record.details["node"])]._process
                assert process is not None
                process.kill()

    with run.lock():
        executor = Lanes(lanes)
        records = Schedule(plan, run, environment=ENVIRONMENT).run(executor, Killing())
        executor.close()
    assert {record.status for record in records} == {"ok"}
    assert set(attempts(run.path).values()) == {1}
    ended = "its agent ended with code -9; started again, and its unfinished cells are measured again"
    assert [line.split(": ")[-1] for line in capsys.readouterr().err.splitlines()] == [ended]


def test_a_worker_that_hangs_in_native_code_is_stopped_at_the_wall_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling_module, "MIN_WALL_LIMIT_S", 1.5)
    plan = make_plan(("native-hang", "good"), (224,), time_limit_s=0.1)
    run = RunFolder.create(tmp_path, "fake", "run")
    with run.lock():
        executor = fake_executor(plan)
        records = Schedule(plan, run, environment=ENVIRONMENT).run(executor, quiet_progress())
        executor.close()
    assert [record.status for record in records] == ["timeout", "ok"]


@pytest.mark.parametrize("model", ["good", "hang", "native-hang"])
def test_sigterm_ends_a_run_within_its_grace_time(tmp_path: Path, model: str) -> None:
    log = tmp_path / "log"
    models = ",".join(dict.fromkeys(["good", model]))
    environment = {**os.environ, "FAKE_PAUSE_S": "0.2", "FAKE_MODELS": models, "FAKE_LOG": str(log)}
    driver = subprocess.Popen(
        [sys.executable, str(FAKE_RUN), str(tmp_path), "run"], env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (log.exists() or (model != "good" and (tmp_path / "run").exists())) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    driver.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert driver.wait(timeout=30) == 143
    assert time.monotonic() - started < 10, "Slurm's default grace is 30 s"
    assert not RunFolder(tmp_path / "run").read()[1], "what is finished is whole"


def test_a_clock_that_jumps_changes_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: rng.uniform(0, 4e9))
    monkeypatch.setattr(time, "time_ns", lambda: int(rng.uniform(0, 4e18)))
    plan = make_plan(("good",), (224, 256))
    run = RunFolder.create(tmp_path, "fake", "run")
    with run.lock():
        executor = fake_executor(plan)
        records = Schedule(plan, run, environment=ENVIRONMENT).run(executor, quiet_progress())
        executor.close()
    assert [record.status for record in records] == ["ok", "ok"]
    assert all(0 <= record.duration_s < 60 for record in records)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.faults
def test_a_disk_that_fills_up_ends_the_run_and_keeps_what_was_finished(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=256k") as disk:
        plan = make_plan(("good", "good2"), tuple(range(32, 32 * 40, 32)), time_limit_s=0.1)
        run = RunFolder.create(disk, "fake", "run")
        (disk / "ballast").write_bytes(b"x" * 200_000)
        executor = fake_executor(plan)
        with run.lock(), pytest.raises(StoreError, match="No space left on device; earlier records are safe"):
            Schedule(plan, run, environment=ENVIRONMENT).run(executor, quiet_progress())
        executor.cancel()
        before, bad = run.read()
        assert before
        assert not bad
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        with run.lock():
            executor = fake_executor(plan)
            progress = quiet_progress()
            records = Schedule(plan, run, environment=ENVIRONMENT).run(executor, progress)
            executor.close()
        assert len(records) == len(plan.cells)
        assert progress.missing == len(plan.cells) - len(before)


@pytest.mark.faults
def test_a_read_only_results_folder_is_one_line(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m") as disk:
        run = RunFolder.create(disk, "fake", "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StoreError, match="Read-only file system; choose another folder with --out"):
            RunFolder.create(disk, "fake", "other")
        with pytest.raises(StoreError, match="Read-only file system"), run.lock():
            pass


def test_workers_end_when_the_agent_between_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the chain driver, agent, worker, each dies with the one above it."""
    plan = make_plan(("native-hang",), (224,), time_limit_s=60)
    pid_file = tmp_path / "pid"
    monkeypatch.setenv("FAKE_PID_FILE", str(pid_file))
    (agent,) = fake_agents(plan, tmp_path, 1).values()
    lost: list[BaseException] = []

    def read() -> None:
        try:
            list(agent.run([(plan.cells, {})]))
        except LaneLost as problem:
            lost.append(problem)

    reader = threading.Thread(target=read)
    reader.start()
    while not pid_file.exists() or not pid_file.read_text():
        time.sleep(0.02)
    worker = int(pid_file.read_text())
    assert agent._process is not None
    agent._process.kill()
    reader.join(timeout=20)
    assert lost
    for _ in range(200):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its agent")
