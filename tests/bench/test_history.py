"""Test the history: all runs of a folder, and one cell across them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from pathlib import Path

import pandas as pd
import pytest
from command_support import invoke
from comparison_support import failed, record

from sema_bench.report.export import write_csv
from sema_bench.store.history import columns_of, points_of, read_history
from sema_bench.store.pytest_benchmark_file import load_pytest_benchmark
from sema_bench.store.run_folder import RunFolder
from sema_bench.store.table import records_frame


def write_past(
    root: Path, name: str, day: int, latency: float, *, fingerprint: str = "aaaa", table: bool = True
) -> None:
    environment = {"fingerprint": fingerprint, "hardware": {"cpu": "x"}, "software": {"torch": "2"}}
    context = {"commit": f"c0ffee{day}"}
    metadata = {"created_at": f"2026-01-0{day}T10:00:00Z", "environment": {**environment, "context": context}}
    run = RunFolder.create(root, "s", name, metadata={**metadata, "plan": {"suite": "[b]quick"}})
    records = [record("sema_tiny", 224, latency), record("sema_tiny", 448, 4 * latency), failed("n", 224)]
    with run.lock():
        for each in records:
            run.append(each)
    if table:
        write_csv(records_frame(records), run.path / "table.csv")


def nothing(problem: str) -> None:
    """Ignore runs that cannot be read."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_past(tmp_path, "late", 3, 0.2, fingerprint="bbbb")
    write_past(tmp_path, "early", 1, 0.1)
    write_past(tmp_path, "middle", 2, 0.11, table=False)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    return tmp_path


def test_runs_come_oldest_first_and_broken_ones_are_named(root: Path) -> None:
    messages: list[str] = []
    runs = read_history(root, on_skip=messages.append)
    assert [message.split(":")[0] for message in messages] == [f"cannot read {root / 'broken' / 'run.json'}"]
    assert [(run.name, run.ok, run.failed, run.commit) for run in runs] == [
        ("early", 2, 1, "c0ffee1"), ("middle", 2, 1, "c0ffee2"), ("late", 2, 1, "c0ffee3"),
    ]  # fmt: skip


def test_a_run_keeps_its_name_in_a_narrow_terminal(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (root / "late").rename(root / "2026-11-28-dispersion-of-the-mean")
    assert "2026-11-28-dispersion-of-the-mean " in invoke("history", "--out", str(root))[1]


def test_a_cell_is_followed_through_tables_and_records_alike(root: Path) -> None:
    runs = read_history(root, columns=columns_of("latency_s"), on_skip=nothing)
    ((key, points),) = points_of(runs, "latency_s", {"model": "sema_tiny", "height": 224}).items()
    assert key[:3] == ("sema_tiny", 224, 224)
    assert [(point.run.name, point.value) for point in points] == [("early", 0.1), ("middle", 0.11), ("late", 0.2)]
    assert points[1].low == pytest.approx(0.98 * 0.11)


def test_a_table_that_is_older_than_the_records_is_not_believed(root: Path) -> None:
    table = root / "early" / "table.csv"
    table.write_text(table.read_text().replace("0.1,", "9.9,"))
    os.utime(table, ns=(0, 0))
    runs = read_history(root, columns=columns_of("latency_s"), on_skip=nothing)
    (points,) = points_of(runs[:1], "latency_s", {"height": 224}).values()
    assert points[0].value == 0.1


def test_the_command_lists_follows_and_draws(root: Path) -> None:
    code, shown, err = invoke("history", "--out", str(root))
    assert (code, err.startswith("left out: "), err.count("\n")) == (0, True, 1)
    assert "[b]quick" in shown
    code, shown, err = invoke("history", "--model", "sema_tiny", "--out", str(root))
    assert code == 0, err
    assert "+10.0%" in shown
    assert "+81" not in shown  # another machine is not a change
    assert len(list((root / "history").glob("latency_s-sema_tiny-224x224-*.png"))) == 1
    code, shown, _ = invoke("history", "--model", "sema_tiny", "--res", "448", "--csv", "-", "--out", str(root))
    frame = pd.read_csv(io.StringIO(shown))
    assert list(frame["latency_s"]) == [0.4, 0.44, 0.8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "sema_tinny"), "did you mean"),
        (("--model", "mila_tiny"), "none of the 3 runs"),
        (("--model", "sema_tiny", "--metric", "latency"), "did you mean 'latency_s'"),
        (("--model", "sema_tiny", "--res", "224,448"), "history takes one size; got 2"),
        (("--metric", "macs"), "--metric needs --model"),
        (("--res", "448"), "--res needs --model"),
        (("--out", "/no/such/folder"), "no results folder"),
    ],
)
def test_a_wrong_request_gets_one_line(root: Path, arguments: tuple[str, ...], message: str) -> None:
    given = arguments if "--out" in arguments else (*arguments, "--out", str(root))
    code, _, err = invoke("history", *given)
    lines = [line for line in err.splitlines() if not line.startswith("left out: ")]
    assert (code, len(lines), message in lines[0]) == (2, 1, True), err


def test_a_failure_is_a_gap_and_not_forgotten(root: Path) -> None:
    run = RunFolder.create(root, "s", "latest", metadata={"created_at": "2026-02-01T10:00:00Z"})
    with run.lock():
        run.append(failed("sema_tiny", 224))
    runs = read_history(root, columns=columns_of("latency_s"), on_skip=nothing)
    (points,) = points_of(runs, "latency_s", {"model": "sema_tiny", "height": 224}).values()
    assert [(point.status, point.value) for point in points][-2:] == [("ok", 0.2), ("crashed", None)]
    code, shown, _ = invoke("history", "--model", "sema_tiny", "--out", str(root))
    assert (code, "crashed" in shown) == (0, True)
    _, shown, _ = invoke("history", "--model", "sema_tiny", "--csv", "-", "--out", str(root))
    assert pd.read_csv(io.StringIO(shown))["status"].tolist()[-1] == "crashed"


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "model,height\n\x00", "\xff\xfe", None])
def test_a_table_that_is_none_gives_way_to_the_records(root: Path, content: str | None) -> None:
    table = root / "early" / "table.csv"
    text = table.read_text().replace(",224,", ",10000000000000000000000,") if content is None else content
    table.write_bytes(text.encode("latin-1", errors="replace"))
    (early, *_) = read_history(root, columns=columns_of("latency_s"), on_skip=nothing)
    assert (early.name, early.ok) == ("early", 2)


@pytest.mark.parametrize("odd", [None, 7, "x", [], [1], {"name": "x"}])
def test_odd_facts_of_one_machine_do_not_end_the_history(root: Path, odd: object) -> None:
    environment = {"hardware": {"gpus": odd, "cpu": odd}, "software": odd, "context": odd, "fingerprint": odd}
    metadata = {"created_at": odd, "plan": odd, "environment": environment}
    run = RunFolder.create(root, "s", "odd", metadata=metadata)
    with run.lock():
        run.append(dataclasses.replace(record("sema_tiny", 224, 0.1), details={"telemetry": {"disturbances": odd}}))
    code, shown, err = invoke("history", "--out", str(root))
    assert (code, "odd" in shown, err.count("\n")) == (0, True, 1), err
    code, shown, err = invoke("history", "--model", "sema_tiny", "--out", str(root))
    assert (code, "odd" in shown) == (0, True), err


def test_without_runs_the_table_still_has_its_columns(tmp_path: Path) -> None:
    _, shown, _ = invoke("history", "--csv", "-", "--out", str(tmp_path))
    assert shown.startswith("run,created_at,suite,cells_ok")


# The fixture of pytest-benchmark


def test_the_fixture_leaves_its_record_and_its_samples(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeconftest(
        f"""
        import pytest
        from sema_bench import pytest_plugin
        from sema_bench.spec.record import Record

        @pytest.fixture(autouse=True)
        def pretended(monkeypatch):
            good = Record.from_json({_ok_record()!r})
            bad = Record.from_json({failed("m", 64).to_json()!r})
            machine = {{"hardware": {{"cpu": "x"}}, "software": {{"torch": "1"}}, "code": "c", "plan": {{}}}}
            measure = lambda model, res, **axes: (bad if model == "bad" else good, machine)
            monkeypatch.setattr(pytest_plugin, "measure_cell", measure)
        """
    )
    pytester.makepyfile(
        """
        def test_good(sema_benchmark):
            assert sema_benchmark("m", res=64).value("macs") == 1e9

        def test_bad(sema_benchmark):
            sema_benchmark("bad", res=64)
        """
    )
    for name in ("PYTHONSAFEPATH", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    result = pytester.runpytest_subprocess("--benchmark-json=b.json", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*bad at 64: crashed: it [[]bold[]]died[[]/[]]*"])
    (benchmark,) = json.loads((pytester.path / "b.json").read_text())["benchmarks"]
    back = load_pytest_benchmark(pytester.path / "b.json")
    assert (back.hardware, back.software, back.code) == ({"cpu": "x"}, {"torch": "1"}, "c")
    assert benchmark["stats"]["rounds"] == 3
    assert benchmark["stats"]["median"] == pytest.approx(0.2)
    code, shown, _ = invoke("compare", str(pytester.path / "b.json"), str(pytester.path / "b.json"))
    assert (code, "m 64" in shown) == (0, True)


def _ok_record() -> str:
    measured = record("m", 64, 0.2)
    latency = dataclasses.replace(measured.measurements["latency_s"], samples=(0.1, 0.2, 0.3))
    return dataclasses.replace(measured, measurements={**measured.measurements, "latency_s": latency}).to_json()
