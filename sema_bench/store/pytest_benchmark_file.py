"""Read a file of pytest-benchmark as a run, from the records of our fixture or from the statistics in the file."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sema_bench.errors import StoreError, UsageError
from sema_bench.spec.cell import Cell
from sema_bench.spec.files import check_regular_file, name_text
from sema_bench.spec.record import Measurement, Record
from sema_bench.statistics import (
    ESTIMATED,
    FEWEST_FOR_INTERVAL,
    FEWEST_ROUNDS,
    NO_INTERVAL,
    ROUNDS,
    estimated_interval,
    median_interval,
)
from sema_bench.store.stored_run import StoredRun
from sema_bench.text.escape import printable
from sema_bench.text.plain_json import mapping, read_json

#: Keys of ``extra_info`` in which the fixture ``sema_benchmark`` stores the record and the machine.
EXTRA_KEY, MACHINE_KEY = "sema_bench_record", "sema_bench_machine"
_LONGEST = 1 << 30
_ASCENDING = ("min", "q1", "median", "q3", "max")
#: Relative tolerance: rounding may swap two equal values.
_SLACK = 1e-6
_LARGEST = 1e300


def load_pytest_benchmark(path: Path) -> StoredRun:
    """Read a file of ``pytest --benchmark-json`` or ``--benchmark-save``; the run gets the name of the file.

    A benchmark without our record becomes a cell of one pixel: its model is the full name, its latency the median
    time. The interval comes from the raw times. With too few of them, it is an estimate from the quartiles and the
    number of rounds, and the record's details say so.
    """
    body = _body_of(path)
    try:
        benchmarks = _benchmarks_of(body)
        hardware, software, metadata = _machine(mapping(body.get("machine_info")), benchmarks)
    except ValueError as problem:
        raise StoreError(f"{path} is not a pytest-benchmark file: {printable(str(problem))[:200]}") from None
    if not benchmarks:
        raise UsageError(f"{path} has no benchmarks: pytest ran none, or all of them failed; run them again")
    records = []
    for number, benchmark in enumerate(benchmarks, start=1):
        try:
            records.append(_record(benchmark, str(body.get("datetime") or "")))
        except ValueError as problem:
            raise StoreError(f"{path}: {_name_of(benchmark, number)}: {printable(str(problem))[:200]}") from None
    cell, count = Counter(record.cell for record in records).most_common(1)[0]
    if count > 1:
        raise UsageError(
            f"{path} has {printable(cell.model)} at {cell.resolution} twice; write each run to its own file"
        )
    return StoredRun(
        name_text(path.name), tuple(records), hardware, software, metadata | {"pytest_benchmark": body.get("version")}
    )


def _body_of(path: Path) -> Mapping[str, Any]:
    """Read the JSON object in a file; NaN and Infinity stay, so that messages can name their field."""
    try:
        check_regular_file(path, "benchmark file")
        if path.stat().st_size > _LONGEST:
            raise StoreError(f"{path} is too large to be a file of pytest-benchmark")
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"no file {str(path)!r}") from None
    except OSError as problem:
        raise StoreError(f"cannot read {path}: {problem.strerror}") from None
    try:
        body = read_json(content, constant=float)
    except json.JSONDecodeError as problem:
        where = f"line {problem.lineno}, column {problem.colno}"
        why = "it is empty" if not content.strip() else f"it is not JSON, or cut off ({where}: {problem.msg})"
    except ValueError as problem:  # no text, or nested too deeply
        why = f"it is not JSON ({problem})"
    else:
        if isinstance(body, dict):
            return body
        kind = {list: "a list", str: "text", type(None): "null"}.get(type(body), "a number")
        why = f"it holds {kind} where an object with 'benchmarks' is expected"
    raise StoreError(f"{path} is not a pytest-benchmark file: {printable(why)[:200]}")


def _benchmarks_of(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List the benchmarks of a file; raise ValueError, with the program that may have written it, if it has none."""
    benchmarks = body.get("benchmarks")
    items = benchmarks if isinstance(benchmarks, list) else []
    first = mapping(items[0]) if items else {}
    others = {
        "a file of hyperfine": isinstance(body.get("results"), list) and "benchmarks" not in body,
        "a file of Google Benchmark": "context" in body or "real_time" in first,
        "a file of pyperf": "runs" in first,
        "the evidence that sema-bench gate run --json writes": "verdict" in body and "cells" in body,
        "run.json of a run; give the name of that run": "plan" in body and "environment" in body,
    }
    if other := next((name for name, is_it in others.items() if is_it and "stats" not in first), None):
        raise ValueError(f"it looks like {other}")
    if not isinstance(benchmarks, list):
        raise ValueError("it has no list 'benchmarks'")
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict) or not isinstance(item.get("stats"), dict):
            raise ValueError(f"{_name_of(mapping(item), number)} has no 'stats'")
    return items


def _name_of(benchmark: Mapping[str, Any], number: int) -> str:
    name = benchmark.get("fullname") or benchmark.get("name")
    return f"benchmark {printable(str(name))}" if name else f"benchmark {number}"


def _machine(
    info: Mapping[str, Any], benchmarks: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Read hardware, software and metadata as our fixture writes them, or else as pytest-benchmark does."""
    ours = [mapping(benchmark.get("extra_info")).get(MACHINE_KEY) for benchmark in benchmarks]
    first = ours[0] if ours else None
    if first is not None and all(each == first for each in ours):
        try:
            metadata = {"plan": first["plan"], "environment": {"context": {"code": first["code"]}}}
            return dict(first["hardware"]), dict(first["software"]), metadata
        except (KeyError, TypeError):
            raise ValueError(f"extra_info.{MACHINE_KEY} is not as the fixture sema_benchmark writes it") from None
    cpu = mapping(info.get("cpu"))
    name = cpu.get("brand_raw") or cpu.get("brand")  # py-cpuinfo before 6
    # many CPUs in containers and on ARM have no name
    known = {"cpu": name} if name else {"node": info["node"]} if info.get("node") else {}
    hardware = {**known, "cpus": cpu.get("count"), "machine": info.get("machine")} if known else {}
    return hardware, {"python": info.get("python_version"), "os": info.get("system")}, {}


def _record(benchmark: Mapping[str, Any], when: str) -> Record:
    """Make the record of one benchmark; raise ValueError with the name of an invalid field."""
    extra = mapping(benchmark.get("extra_info"))
    if EXTRA_KEY in extra:
        try:
            return Record.from_json(json.dumps(extra[EXTRA_KEY]))
        except ValueError as problem:
            raise ValueError(f"extra_info.{EXTRA_KEY}: {problem}") from None
    latency, details = _latency(benchmark["stats"])
    name = benchmark.get("fullname") or benchmark.get("name")
    if not name:
        raise ValueError("it has no 'fullname'")
    cell = Cell(model=str(name), height=1, width=1)
    return Record(cell=cell, status="ok", measurements={"latency_s": latency}, details=details, started_at=when)


def _latency(stats: Mapping[str, Any]) -> tuple[Measurement, dict[str, Any]]:
    """Compute the median time of a benchmark, with details about its rounds and its interval."""
    known = {
        name: None if stats.get(name) is None else _number(stats[name], f"stats.{name}")
        for name in (*_ASCENDING, "iqr", "rounds")
    }
    data = stats.get("data") or []
    if not isinstance(data, list):
        raise ValueError(f"stats.data is {data!r}; expected a list of times")
    samples = tuple(_number(value, f"stats.data[{index}]") for index, value in enumerate(data))
    rounds = len(samples) or math.floor(known["rounds"] or 0)
    details: dict[str, Any] = {ROUNDS: rounds}
    if len(samples) >= FEWEST_FOR_INTERVAL:
        median, low, high = median_interval(samples, seed=0)
        return Measurement(metric="latency_s", value=median, ci_low=low, ci_high=high, samples=samples), details
    if len(samples) > 1:
        q1, middle, q3 = statistics.quantiles(samples, n=4, method="inclusive")
        known |= {"min": min(samples), "q1": q1, "median": middle, "q3": q3, "max": max(samples)}
    if known["median"] is None:
        raise ValueError("it has no stats.median")
    ordered = [(name, value) for name in _ASCENDING if (value := known[name]) is not None]
    for (lower, low), (upper, high) in pairwise(ordered):
        if low - high > _SLACK * abs(high):
            raise ValueError(f"stats contradict each other: {lower} is {low:g} and {upper} is {high:g}")
    latency = Measurement(metric="latency_s", value=known["median"], samples=samples)
    quartiles, iqr = _pair(known, "q1", "q3"), known["iqr"]
    if quartiles is None and iqr is not None:
        quartiles = (latency.value - abs(iqr), latency.value + abs(iqr))
    bounds = estimated_interval(latency.value, rounds, quartiles=quartiles, extremes=_pair(known, "min", "max"))
    if bounds is None:
        return latency, details | {NO_INTERVAL: _why_no_interval(rounds)}
    low, high = min(bounds[0], latency.value), max(bounds[1], latency.value)
    basis = "quartiles" if quartiles else "extremes"
    return dataclasses.replace(latency, ci_low=low, ci_high=high), details | {ESTIMATED: basis}


def _pair(known: Mapping[str, float | None], lower: str, upper: str) -> tuple[float, float] | None:
    low, high = known[lower], known[upper]
    return None if low is None or high is None else (low, high)


def _why_no_interval(rounds: int) -> str:
    if rounds < 1:
        return "neither samples nor the number of rounds are stored; keep the samples with pytest --benchmark-save-data"
    if rounds < FEWEST_ROUNDS:
        count = "1 round is" if rounds == 1 else f"{rounds} rounds are"
        how = "pytest --benchmark-min-rounds, or rounds= of benchmark.pedantic"
        return f"{count} too few for an interval; {FEWEST_ROUNDS} or more give one ({how})"
    return f"the quartiles of its {rounds} rounds are not stored; keep the samples with pytest --benchmark-save-data"


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}; expected a number")
    if not abs(value) < _LARGEST:  # NaN, too
        word = "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
        raise ValueError(f"{name} is {word}; measure that benchmark again")
    return float(value)
