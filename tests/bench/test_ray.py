"""Test a Ray cluster of two nodes on this machine: same cells as without, even if a node or an agent is lost."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_support import FAKE_WORKER, make_plan, quiet_progress

from sema_bench.cluster import ray_address
from sema_bench.cluster.ray_address import check_ray_address
from sema_bench.driver.executor import ignore
from sema_bench.driver.schedule import Schedule
from sema_bench.errors import UsageError
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Record
from sema_bench.store.run_folder import RunFolder

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'sema-bench[ray]'")


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def connect(cluster: Any):
    from sema_bench.cluster.ray_cluster import RayCluster

    return RayCluster(cluster.address, "cpu")


def run_on(backend: Any, plan: Plan, folder: Path, progress: quiet_progress) -> list[Record]:
    run = RunFolder.create(folder, "fake", "run")
    with run.lock():
        executor = backend.executor(plan, run.path.absolute(), ignore, FAKE_WORKER)
        try:
            return Schedule(plan, run, environment="").run(executor, progress)
        finally:
            executor.cancel()


@pytest.mark.faults
def test_a_cluster_gives_the_cells_of_the_plan_and_loses_none_with_a_node(tmp_path: Path, cluster: Any) -> None:
    backend = connect(cluster)
    assert len(backend.machines) == 2
    assert backend.threads == 1
    plan = make_plan(("good", "error", "good2"), (224, 256, 288, 320, 352, 384))

    class Killing(quiet_progress):
        def finished(self, record: Record) -> None:
            super().finished(record)
            if len(self.records) == 4:
                cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    try:
        records = run_on(backend, plan, tmp_path, Killing())
    finally:
        backend.close()
    assert [(record.cell, record.status) for record in records] == [
        (cell, "error" if cell.model == "error" else "ok") for cell in plan.cells
    ]
    assert {record.environment for record in records} == {backend.environment.fingerprint}
    assert len({record.details["node"] for record in records}) == 2, "both have measured"
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    assert len(lines) == len(plan.cells), "no finished cell is measured again"


@pytest.mark.faults
def test_an_agent_that_dies_on_a_living_node_is_started_again(
    tmp_path: Path, cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = connect(cluster)
    plan = make_plan(("good", "good2"), (224, 256, 288))

    class Killing(quiet_progress):
        def finished(self, record: Record) -> None:
            super().finished(record)
            if len(self.records) == 1:
                for path in Path("/proc").glob("[0-9]*/cmdline"):
                    try:
                        words = path.read_bytes()
                    except OSError:
                        continue
                    if b"ray::Agent" in words:
                        os.kill(int(path.parent.name), signal.SIGKILL)

    try:
        records = run_on(backend, plan, tmp_path, Killing())
    finally:
        backend.close()
    assert {record.status for record in records} == {"ok"}
    assert "its agent died; started again" in capsys.readouterr().err


def test_an_address_that_does_not_answer_is_reported_within_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match=r"no Ray cluster answers at 127\.0\.0\.1:9"):
        check_ray_address("127.0.0.1:9")
    with pytest.raises(UsageError, match=r"takes host:port, .* or auto; got 'nonsense'"):
        check_ray_address("nonsense")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "not the head"), (b"", "not the head"), (None, "timed out")],
)
def test_what_answers_and_is_not_ray_is_reported(
    answer: bytes | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_address, "CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                if answer is None:
                    over.wait(20)
                else:
                    connection.recv(100)
                    connection.sendall(answer)

        over = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(UsageError, match=words):
                check_ray_address(f"127.0.0.1:{server.getsockname()[1]}")
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize("has_token", [False, True])
def test_a_cluster_that_cannot_be_joined_gets_one_line_with_how_it_was_tried(
    has_token: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from sema_bench.cluster import ray_cluster

    def refuse(**options: object) -> None:
        os.write(2, b"W gcs_client.cc: Failed to get cluster ID\n" * 20)
        raise ConnectionError("Failed to connect.\nand a page more")

    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_NUM_REDIS_GET_RETRIES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # both, so that values set below are removed again
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(ray_address, "_speaks_http2", lambda host, port: True)
    monkeypatch.setattr(ray, "init", refuse)
    if has_token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    mode = "token" if has_token else "not set"
    with pytest.raises(
        UsageError, match=rf"at head:6379: Failed to connect\. .*RAY_AUTH_MODE \({mode} here\)"
    ) as error:
        ray_cluster._connect(check_ray_address("head:6379"))
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""
