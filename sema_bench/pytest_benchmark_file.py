"""pytest-benchmark's JSON as a run: what our fixture measured where it was used, the file's statistics elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sema_bench.analysis.bootstrap import median_interval
from sema_bench.errors import StoreError, UsageError, printable
from sema_bench.loaded_run import LoadedRun
from sema_bench.plain_json import read_json
from sema_bench.schema import Cell, Measurement, Record

#: Keys of ``extra_info`` under which the fixture ``sema_benchmark`` leaves the record, and what it was measured on.
EXTRA_KEY, MACHINE_KEY = "sema_bench_record", "sema_bench_machine"
_LONGEST = 1 << 30


def load_pytest_benchmark(path: Path) -> LoadedRun:
    """Read a file of ``pytest --benchmark-json``; its name is that of the file.

    A benchmark without a record of ours becomes a cell whose model is the benchmark's full name, one pixel large, with
    its median time as latency; the interval needs the raw times (``--benchmark-save-data``).

    Raises:
        UsageError: there is no such file.
        StoreError: it is not pytest-benchmark's.
    """
    try:
        if path.stat().st_size > _LONGEST:
            raise StoreError(f"{path} is too large to be a file of pytest-benchmark")
        body = read_json(path.read_bytes())
        machine, benchmarks = body["machine_info"], body["benchmarks"]
        records = [_record(benchmark, str(body.get("datetime", ""))) for benchmark in benchmarks]
        hardware, software, metadata = _machine(machine or {}, benchmarks)
    except FileNotFoundError:
        raise UsageError(f"no file {str(path)!r}") from None
    except OSError as problem:
        raise StoreError(f"cannot read {path}: {problem.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise StoreError(f"{path} is not a file of pytest-benchmark: {printable(str(problem))[:200]}") from None
    seen: set[Cell] = set()
    for cell in (record.cell for record in records):
        if cell in seen:
            raise UsageError(
                f"{path} has {printable(cell.model)} at {cell.resolution} twice; give runs files of their own"
            )
        seen.add(cell)
    return LoadedRun(
        path.name, tuple(records), hardware, software, metadata | {"pytest_benchmark": body.get("version")}
    )


def _machine(
    told: Mapping[str, Any], benchmarks: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return hardware, software and metadata: ours where every benchmark has them, else what pytest-benchmark knows."""
    ours = [(benchmark.get("extra_info") or {}).get(MACHINE_KEY) for benchmark in benchmarks]
    found = ours[0] if ours else None
    if found is not None and all(each == found for each in ours):
        environment = {"context": {"code": found["code"]}}
        return dict(found["hardware"]), dict(found["software"]), {"plan": found["plan"], "environment": environment}
    cpu: Mapping[str, Any] = told.get("cpu") or {}
    hardware = {"cpu": cpu.get("brand_raw"), "cpus": cpu.get("count"), "machine": told.get("machine")}
    software = {"python": told.get("python_version"), "os": told.get("system")}
    return ({} if hardware["cpu"] is None else hardware), software, {}


def _record(benchmark: Mapping[str, Any], when: str) -> Record:
    extra = benchmark.get("extra_info") or {}
    if EXTRA_KEY in extra:
        return Record.from_json(json.dumps(extra[EXTRA_KEY]))
    stats = benchmark["stats"]
    samples = tuple(float(value) for value in stats.get("data") or ())
    value, low, high = float(stats["median"]), None, None
    if samples:
        value, low, high = median_interval(samples, seed=0)
    latency = Measurement(metric="latency_s", value=value, ci_low=low, ci_high=high, samples=samples)
    cell = Cell(model=str(benchmark["fullname"]), height=1, width=1)
    return Record(cell=cell, status="ok", measurements={"latency_s": latency}, started_at=when)
