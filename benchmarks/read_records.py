"""How long does it take to read a million records, and how much memory?

``python benchmarks/read_records.py --records 1000000 --runs 200`` copies the records of a run of this repository under
other names of models into a scratch folder, and reads them all in a process of their own, as ``sema-bench history``
does: from table.csv, or with ``--raw`` from records.jsonl with all of its samples.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sema_bench.report.export import to_csv_text
from sema_bench.store.run_folder import RunFolder
from sema_bench.store.table import records_frame

SOURCE = Path(__file__).resolve().parent.parent / "results"


def write_runs(root: Path, source: RunFolder, runs: int, each: int, *, raw: bool) -> int:
    """Write ``runs`` folders of ``each`` records; return the bytes of what will be read."""
    templates = source.records()
    lines, records = [], []
    for number in range(each):
        record = templates[number % len(templates)]
        name = f"model_{number}"
        records.append(dataclasses.replace(record, cell=dataclasses.replace(record.cell, model=name)))
    content = to_csv_text(records_frame(records))
    if raw:
        lines = [record.to_json() for record in records]
        content = "\n".join(lines) + "\n"
    for number in range(runs):
        folder = root / f"run-{number:04}"
        folder.mkdir()
        shutil.copy(source.path / "run.json", folder)
        (folder / ("records.jsonl" if raw else "table.csv")).write_text(content, encoding="utf-8")
    return runs * len(content.encode())


def read(root: Path) -> None:
    """Read all runs; print seconds, records and peak memory as JSON."""
    from sema_bench.store.history import read_history

    started = time.perf_counter()
    runs = read_history(root, on_skip=print)
    took = time.perf_counter() - started
    count = sum(len(run.table) for run in runs)
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent had before exec
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    print(json.dumps([took, count, peak]))


def main() -> None:
    """Write, read in another process, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--source", default="2026-11-21-cpu", help="run of results/ whose records are copied")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(Path(options.read))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = RunFolder.open(SOURCE, options.source)
        size = write_runs(Path(folder), source, options.runs, options.records // options.runs, raw=options.raw)
        command = [sys.executable, __file__, "--read", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        took, count, peak = json.loads(done.stdout.splitlines()[-1])
    what = "records.jsonl" if options.raw else "table.csv"
    print(f"{count:,} records in {options.runs} runs, {size / 2**30:.2f} GiB of {what}: ", end="")
    print(f"{took:.1f} s, {peak / 2**30:.2f} GiB of memory")


if __name__ == "__main__":
    main()
