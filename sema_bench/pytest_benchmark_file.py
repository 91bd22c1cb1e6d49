"""pytest-benchmark's JSON as a run: what our fixture measured where it was used, the file's statistics elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sema_bench.analysis.bootstrap import median_interval
from sema_bench.errors import StoreError, UsageError, printable
from sema_bench.loaded_run import LoadedRun
from sema_bench.schema import Cell, Measurement, Record

#: Key of ``extra_info`` under which the fixture ``sema_benchmark`` leaves the record.
EXTRA_KEY = "sema_bench_record"
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
        body = json.loads(path.read_text(encoding="utf-8"))
        machine, benchmarks = body["machine_info"], body["benchmarks"]
        records = [_record(benchmark, str(body.get("datetime", ""))) for benchmark in benchmarks]
    except FileNotFoundError:
        raise UsageError(f"no file {str(path)!r}") from None
    except OSError as problem:
        raise StoreError(f"cannot read {path}: {problem.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise StoreError(f"{path} is not a file of pytest-benchmark: {printable(str(problem))[:200]}") from None
    cpu = machine.get("cpu") if isinstance(machine.get("cpu"), Mapping) else {}
    hardware = {"cpu": cpu.get("brand_raw"), "cpus": cpu.get("count"), "machine": machine.get("machine")}
    software = {"python": machine.get("python_version"), "os": machine.get("system")}
    return LoadedRun(path.name, tuple(records), hardware, software, {"pytest_benchmark": body.get("version")})


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
