"""Test a run folder: appending, locking, quarantine; no record is ever lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from run_support import ok_record

from sema_bench.errors import StoreError, UsageError
from sema_bench.report.plot import write_plots
from sema_bench.spec.record import Measurement, Record
from sema_bench.store.files import atomic_write, write_own
from sema_bench.store.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "scaling", "run")


def fill(run: RunFolder, *sides: int) -> list[Record]:
    records = [ok_record(side=side) for side in sides]
    with run.lock():
        for record in records:
            run.append(record)
    return records


def test_what_was_appended_is_read_back(run: RunFolder) -> None:
    records = fill(run, 224, 512)
    assert run.records() == records


def test_the_latest_record_of_a_cell_counts(run: RunFolder) -> None:
    fill(run, 224, 512)
    later = ok_record(side=224, latency_s=9.0)
    with run.lock():
        run.append(later)
    assert [record.value("latency_s") for record in run.records()] == [9.0, 0.1]


def test_run_names_carry_time_and_suite_and_never_collide(tmp_path: Path) -> None:
    names = {RunFolder.create(tmp_path, "scaling").name for _ in range(3)}
    assert len(names) == 3
    assert all("Z-scaling" in name for name in names)


def test_a_taken_name_is_refused(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(UsageError, match="--resume run"):
        RunFolder.create(tmp_path, "scaling", "run")


@pytest.mark.parametrize("name", ["../escape", "/abs", "a/b", ".hidden", "", "a b", "x" * 200, "nul\0"])
def test_a_name_cannot_leave_the_results_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="bad run name"):
        RunFolder.create(tmp_path, "scaling", name or ".")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_run_is_refused_with_the_newest_ones(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(UsageError, match="newest runs: run"):
        RunFolder.open(tmp_path, "rum")


def test_a_torn_last_line_is_quarantined_and_the_rest_kept(run: RunFolder) -> None:
    records = fill(run, 224, 512)
    whole = run.records_path.read_bytes()
    run.records_path.write_bytes(whole + whole[:70])
    torn = run.records_path.read_bytes()
    with run.lock():
        kept = run.quarantine()
        run.append(ok_record(side=768))
    assert kept is not None
    assert kept.read_bytes() == torn
    assert run.read() == ([*records, ok_record(side=768)], [])


def test_a_corrupt_middle_is_quarantined_and_the_rest_kept(run: RunFolder) -> None:
    first, _, third = fill(run, 224, 512, 768)
    lines = run.records_path.read_bytes().split(b"\n")
    lines[1] = b"\xff\xfe garbage \x00"
    run.records_path.write_bytes(b"\n".join(lines))
    assert run.read()[0] == [first, third]
    with run.lock():
        kept = run.quarantine()
    assert kept is not None
    assert b"garbage" in kept.read_bytes()
    assert run.read() == ([first, third], [])


def test_a_last_line_without_its_line_break_is_still_a_record(run: RunFolder) -> None:
    records = fill(run, 224, 512)
    run.records_path.write_bytes(run.records_path.read_bytes().rstrip(b"\n"))
    with run.lock():
        assert run.quarantine() is None
        run.append(ok_record(side=768))
    assert run.records() == [*records, ok_record(side=768)]


def test_two_quarantines_in_one_second_keep_both_files(run: RunFolder) -> None:
    kept = []
    for _ in range(2):
        fill(run, 224)
        with run.records_path.open("ab") as file:
            file.write(b"junk\n")
        with run.lock():
            kept.append(run.quarantine())
    assert len(set(kept)) == 2


def test_a_healthy_file_is_left_alone(run: RunFolder) -> None:
    fill(run, 224)
    before = run.records_path.stat().st_mtime_ns
    with run.lock():
        assert run.quarantine() is None
    assert run.records_path.stat().st_mtime_ns == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_loses_nothing(run: RunFolder) -> None:
    run.records_path.symlink_to("/dev/full")
    with run.lock(), pytest.raises(StoreError, match=r"No space left.*--resume run"):
        run.append(ok_record())


def test_a_record_that_was_written_in_part_is_taken_back(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    records = fill(run, 224)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with run.lock():
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match="earlier records are safe"):
            run.append(ok_record(side=512))
        monkeypatch.undo()
    assert run.read() == (records, [])


def test_an_unwritable_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--out"):
        RunFolder.create(tmp_path / "file", "scaling")
    with pytest.raises(StoreError, match="--out"):
        RunFolder.create(Path("/proc/results"), "scaling")


def test_a_run_that_cannot_be_completed_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=r"run\.json: No space left"):
        RunFolder.create(tmp_path, "scaling", "night")
    monkeypatch.undo()
    assert RunFolder.create(tmp_path, "scaling", "night").path.is_dir()


def test_records_that_are_no_file_are_refused(run: RunFolder) -> None:
    os.mkfifo(run.records_path)
    with pytest.raises(StoreError, match="not a file"):
        run.read()


def test_append_needs_the_lock(run: RunFolder) -> None:
    with pytest.raises(RuntimeError, match="lock"):
        run.append(ok_record())


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.csv"
    atomic_write(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=r"table\.csv: No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"], "no temporary file stays behind"


def test_an_output_keeps_its_link_its_permissions_and_what_is_no_file(tmp_path: Path) -> None:
    target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    atomic_write(link, "new")
    assert (link.is_symlink(), target.read_text(), target.stat().st_mode & 0o777) == (True, "new", 0o640)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    atomic_write(pipe, "through")
    assert (os.read(reader, 20), pipe.is_fifo()) == (b"through", True)
    os.close(reader)
    atomic_write(Path(os.devnull), "gone")
    assert Path(os.devnull).is_char_device()
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(StoreError, match="Too many levels"):
        atomic_write(link, "round and round")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "target"]


def test_half_a_surrogate_pair_does_not_come_in(run: RunFolder) -> None:
    fill(run, 224)
    line = run.records_path.read_text().replace('"cpu"', '"cpu\\ud800"')
    run.records_path.write_text(line)
    (record,) = run.records()
    assert record.cell.device == "cpu?"
    run.write_metadata({"command": "x\udcff", "share": float("nan")})
    assert run.metadata() == {"command": "x?", "share": None}


@pytest.mark.parametrize("height", ["-1", "0", "1e30", str(10**30), "true", "null"])
def test_a_size_that_no_table_holds_is_no_record(run: RunFolder, height: str) -> None:
    fill(run, 224)
    run.records_path.write_text(run.records_path.read_text().replace('"height": 224', f'"height": {height}'))
    assert run.read()[0] == []


def test_a_count_beyond_what_a_table_holds_is_no_measurement() -> None:
    Measurement(metric="macs", value=2**63 - 1)
    with pytest.raises(ValueError, match="63 bits"):
        Measurement(metric="macs", value=1e30)


def test_a_file_of_a_run_replaces_a_link_and_changes_nothing_behind_it(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, table = tmp_path / "mine", run.path / "table.csv"
    mine.write_text("mine")
    table.symlink_to(mine)
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "replace", lambda path, target: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(StoreError, match="No space left"):
            write_own(table, "new")
    assert table.is_symlink(), "a write that fails leaves what was there"
    write_own(table, "new")
    assert (table.is_symlink(), table.read_text(), mine.read_text()) == (False, "new", "mine")


@pytest.mark.parametrize("there", [True, False])
def test_records_and_locks_are_not_written_through_a_link(run: RunFolder, tmp_path: Path, there: bool) -> None:
    mine = tmp_path / "mine"
    if there:
        mine.write_text("mine")
    run.records_path.symlink_to(mine)
    with run.lock(), pytest.raises(StoreError, match=r"records\.jsonl: it is a link"):
        run.append(ok_record())
    (run.path / ".lock").unlink()
    (run.path / ".lock").symlink_to(mine)
    with pytest.raises(StoreError, match=r"\.lock: Too many levels of symbolic links"), run.lock():
        pass
    assert (mine.read_text() if mine.exists() else "") == ("mine" if there else "")


def test_a_lock_that_is_a_pipe_is_refused(run: RunFolder) -> None:
    os.mkfifo(run.path / ".lock")
    with pytest.raises(StoreError, match=r"\.lock: it is not a file"), run.lock():
        pass


def test_no_plot_behind_a_link_is_removed(run: RunFolder, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "latency--b1.svg").write_text("mine")
    (run.path / "plots").symlink_to(mine)
    with pytest.raises(StoreError, match="plots: symbolic links are not followed"):
        write_plots([ok_record()], run.path / "plots")
    assert [path.name for path in mine.iterdir()] == ["latency--b1.svg"]
