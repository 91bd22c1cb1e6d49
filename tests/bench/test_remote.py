"""Test runs at a URL: every writer has its own object, readers merge them, one driver runs at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from run_support import ok_record

from sema_bench.cli.results import runs_to_read
from sema_bench.errors import StoreError, UsageError
from sema_bench.store import remote as remote_module
from sema_bench.store.remote import STALE_S, RemoteResults
from sema_bench.store.run_folder import RunFolder


class Machine:
    """A computer with its own cache that works on the same URL."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path, url: str) -> None:
        monkeypatch.setattr(remote_module, "cache_folder", lambda: cache)
        monkeypatch.setattr(remote_module, "SETTLE_S", 0.0)
        self.results = RemoteResults(url)
        self.warnings: list[str] = []

    def start(self, name: str) -> RunFolder:
        return RunFolder.create(self.results.root, "fake", name, metadata={"suite": "fake"})

    def drive(self, run: RunFolder, *models: str) -> None:
        with run.lock(), self.results.driving(run, warn=self.warnings.append):
            for model in models:
                run.append(ok_record(model))


@pytest.fixture
def url() -> Iterator[str]:
    yield "memory://bucket/results"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> tuple[Machine, Machine]:
    return Machine(monkeypatch, tmp_path / "a", url), Machine(monkeypatch, tmp_path / "b", url)


def test_what_one_machine_publishes_another_reads(machines: tuple[Machine, Machine]) -> None:
    here, there = machines
    here.drive(here.start("run"), "good", "good2")
    assert there.results.names() == ["run"]
    there.results.pull("run")
    records = RunFolder.open(there.results.root, "run").records()
    assert [record.cell.model for record in records] == ["good", "good2"]


def test_two_writers_never_touch_each_others_records(machines: tuple[Machine, Machine]) -> None:
    here, there = machines
    run = here.start("run")
    here.drive(run, "good")
    there.results.pull("run")
    there.drive(RunFolder.open(there.results.root, "run"), "good2")
    here.drive(run, "good3")  # has not seen what the other did
    here.results.pull("run")
    for machine in machines:
        machine.results.pull("run")
        models = {record.cell.model for record in RunFolder.open(machine.results.root, "run").records()}
        assert models == {"good", "good2", "good3"}
    shards = [path for path in fsspec.filesystem("memory").find("/bucket/results") if "/records/" in path]
    assert len(shards) == 2


def test_a_second_driver_refuses_and_names_the_first(machines: tuple[Machine, Machine]) -> None:
    here, there = machines
    run = here.start("run")
    with run.lock(), here.results.driving(run, warn=here.warnings.append):
        there.results.pull("run")
        other = RunFolder.open(there.results.root, "run")
        with pytest.raises(UsageError, match=rf"being written by process {os.getpid()} on {os.uname().nodename}"):
            there.drive(other, "good2")
    there.drive(other, "good2")


def test_of_two_drivers_that_start_at_once_one_goes_on(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machines
    run = here.start("run")
    here.drive(run)
    there.results.pull("run")
    other = RunFolder.open(there.results.root, "run")
    monkeypatch.setattr(remote_module, "SETTLE_S", 0.5)
    outcomes: list[str] = []

    def start(machine: Machine, run: RunFolder) -> None:
        try:
            with machine.results.driving(run, warn=machine.warnings.append):
                outcomes.append("drives")
                time.sleep(1.5)
        except UsageError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start, args=pair) for pair in ((here, run), (there, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["drives", "refused"]


def test_a_driver_that_was_taken_over_stops_and_leaves_the_other_alone(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "PUBLISH_S", 0.05)
    monkeypatch.setattr(remote_module, "RENEW_S", 0.05)
    stopped = threading.Event()
    monkeypatch.setattr("_thread.interrupt_main", lambda number: stopped.set())
    here, _ = machines
    run = here.start("run")
    other = json.dumps({"token": "other", "host": "elsewhere", "process": 1, "renewed": time.time() + 60}).encode()
    with here.results.driving(run, warn=here.warnings.append):
        fsspec.filesystem("memory").pipe_file("/bucket/results/run/driver.json", other)
        assert stopped.wait(20)
    assert "being written by process 1 on elsewhere" in here.warnings[-1]
    assert fsspec.filesystem("memory").cat_file("/bucket/results/run/driver.json") == other


_NO_SIGNS = {"a word": "yesterday", "nothing": None, "too large": 10**400, "a year ahead": time.time() + 3e7}


@pytest.mark.parametrize("sign", ["old", "dead process", "not JSON", *_NO_SIGNS])
def test_a_driver_that_is_gone_is_not_waited_for(machines: tuple[Machine, Machine], sign: str) -> None:
    here, there = machines
    run = here.start("run")
    here.drive(run, "good")
    child = subprocess.Popen(["true"])
    child.wait()
    body = {"token": "x", "host": remote_module._host(), "process": child.pid, "renewed": time.time()}
    if sign == "old":
        body |= {"host": "elsewhere", "renewed": time.time() - STALE_S - 1}
    elif sign in _NO_SIGNS:
        body |= {"host": "elsewhere", "renewed": _NO_SIGNS[sign]}
    content = b"{" if sign == "not JSON" else json.dumps(body).encode()
    fsspec.filesystem("memory").pipe_file("/bucket/results/run/driver.json", content)
    there.results.pull("run")
    there.drive(RunFolder.open(there.results.root, "run"), "good2")


def test_records_are_published_while_the_run_goes_on(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "PUBLISH_S", 0.05)
    here, there = machines
    run = here.start("run")
    with run.lock(), here.results.driving(run, warn=here.warnings.append):
        run.append(ok_record("good"))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            there.results.pull("run")
            if (there.results.root / "run" / "records").exists():
                break
            time.sleep(0.02)
        assert list((there.results.root / "run" / "records").glob("*.jsonl")), "before the driver was done"


def test_a_store_that_fails_for_a_while_costs_nothing(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "PUBLISH_S", 0.05)
    here, there = machines
    run = here.start("run")
    put = RemoteResults._put
    down = False

    def fails(self: RemoteResults, run: RunFolder, part: str, content: bytes) -> None:
        if down:
            raise ConnectionError("no route")
        put(self, run, part, content)

    monkeypatch.setattr(RemoteResults, "_put", fails)
    with run.lock(), here.results.driving(run, warn=here.warnings.append):
        down = True
        run.append(ok_record("good"))
        deadline = time.monotonic() + 20
        while not here.warnings and time.monotonic() < deadline:
            time.sleep(0.02)
        down = False
    assert "no route; what was measured is in" in here.warnings[0]
    there.results.pull("run")
    assert len(RunFolder.open(there.results.root, "run").records()) == 1


def test_a_store_that_stays_away_leaves_the_local_copy_and_says_where(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = machines
    run = here.start("run")
    here.drive(run, "good")
    monkeypatch.setattr(here.results._files, "pipe_file", _raise(ConnectionError("no route\nmore")))
    with pytest.raises(StoreError, match="cannot write to memory://bucket/results: no route; what was") as failed:
        here.results.publish(run)
    assert str(here.results.root) in str(failed.value)
    assert len(RunFolder.open(here.results.root, "run").records()) == 1


def _raise(problem: Exception):
    def fails(*arguments: object, **options: object) -> None:
        raise problem

    return fails


def test_missing_credentials_and_unknown_kinds_of_urls_are_one_line(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCredentialsError(Exception):
        pass

    here, _ = machines
    monkeypatch.setattr(here.results._files, "find", _raise(NoCredentialsError("Unable to locate credentials")))
    with pytest.raises(StoreError, match="Unable to locate credentials; check credentials and permissions"):
        here.results.pull("run")
    with pytest.raises(UsageError, match=r"^nosuch://x: "):
        RemoteResults("nosuch://x")


def test_a_store_that_takes_nothing_is_known_before_anything_is_measured(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = machines
    here.results.check_writable()
    assert here.results._files.find("/bucket") == [], "it leaves nothing behind"
    monkeypatch.setattr(here.results._files, "pipe_file", _raise(OSError("The specified bucket does not exist")))
    with pytest.raises(StoreError, match=r"cannot put results into .*bucket does not exist$"):
        here.results.check_writable()


def test_a_run_at_a_url_is_read_beside_one_in_a_folder(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    here, _ = machines
    here.drive(here.start("far"), "good")
    near = RunFolder.create(tmp_path, "fake", "near", metadata={"suite": "fake"})
    with near.lock():
        near.append(ok_record("good"))
    root, names = runs_to_read(str(tmp_path), ["near", f"{here.results.url}/far/", str(near.path)])
    assert [[r.cell.model for r in RunFolder.open(root, name).records()] for name in names] == [["good"]] * 3


def test_objects_with_odd_names_stay_where_they_are(machines: tuple[Machine, Machine]) -> None:
    here, there = machines
    here.drive(here.start("run"), "good")
    files = fsspec.filesystem("memory")
    for name in ("records/../../../escaped.jsonl", "records/.hidden/x.jsonl", "weights.pt", "records/x.jsonl\n"):
        files.store[f"/bucket/results/run/{name}"] = files.store["/bucket/results/run/run.json"]
    there.results.pull("run")
    files = {str(path.relative_to(there.results.root)) for path in there.results.root.rglob("*") if path.is_file()}
    assert {name.partition("/")[0] for name in files} == {"run"}
    assert all(name == "run/run.json" or name.startswith("run/records/") for name in files)
    assert len(files) == 2


def test_of_several_records_of_a_cell_the_one_begun_last_counts(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "fake", "run")
    (run.path / "records").mkdir()
    for name, second, latency in (("a", 2, 0.2), ("b", 1, 0.1)):
        record = dataclasses.replace(ok_record("good", 224, latency), started_at=f"2026-01-01T00:00:0{second}Z")
        (run.path / "records" / f"{name}.jsonl").write_text(record.to_json() + "\n" + '{"torn')
    assert [record.value("latency_s") for record in run.records()] == [0.2]
    with run.lock():
        run.append(dataclasses.replace(ok_record("good", 224, 0.3), started_at="2026-01-01T00:00:03Z"))
        run.append(ok_record("good2"))
    late = dataclasses.replace(ok_record("good2", 224, 0.4), started_at="2026-01-01T00:00:04Z")
    (run.path / "records" / "c.jsonl").write_text(late.to_json() + "\n")
    assert [(record.cell.model, record.value("latency_s")) for record in run.records()] == [
        ("good", 0.3),
        ("good2", 0.4),
    ]
