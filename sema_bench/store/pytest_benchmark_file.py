"""pytest-benchmark's JSON as a run: what our fixture measured where it was used, the file's statistics elsewhere."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
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
from sema_bench.store.loaded_run import LoadedRun
from sema_bench.text.escape import printable
from sema_bench.text.plain_json import read_json

#: Keys of ``extra_info`` under which the fixture ``sema_benchmark`` leaves the record, and what it was measured on.
EXTRA_KEY, MACHINE_KEY = "sema_bench_record", "sema_bench_machine"
_LONGEST = 1 << 30
#: Statistics in the order that their values must have.
_ASCENDING = ("min", "q1", "median", "q3", "max")
#: Rounding may turn two equal ones round.
_SLACK = 1e-6
_LARGEST = 1e300


def load_pytest_benchmark(path: Path) -> LoadedRun:
    """Read a file of ``pytest --benchmark-json`` or ``--benchmark-save``; its name is that of the file.

    A benchmark without a record of ours becomes a cell whose model is the benchmark's full name, one pixel large, with
    its median time as latency. The interval comes from the raw times; where the file has none, or too few of them, it
    is estimated from the quartiles and the number of rounds, and the record's details say so.

    Raises:
        UsageError: there is no such file, or it has no benchmarks.
        StoreError: it is not pytest-benchmark's, or has a number that is none.
    """
    body = _body_of(path)
    try:
        benchmarks = _benchmarks_of(body)
        hardware, software, metadata = _machine(_mapping(body.get("machine_info")), benchmarks)
    except ValueError as problem:
        raise StoreError(f"{path} is not a file of pytest-benchmark: {printable(str(problem))[:200]}") from None
    if not benchmarks:
        raise UsageError(f"{path} has no benchmarks: pytest ran none, or all of them failed; run them again")
    records = []
    for number, benchmark in enumerate(benchmarks, start=1):
        try:
            records.append(_record(benchmark, str(body.get("datetime") or "")))
        except ValueError as problem:
            raise StoreError(f"{path}: {_name_of(benchmark, number)}: {printable(str(problem))[:200]}") from None
    seen: set[Cell] = set()
    for cell in (record.cell for record in records):
        if cell in seen:
            raise UsageError(
                f"{path} has {printable(cell.model)} at {cell.resolution} twice; give runs files of their own"
            )
        seen.add(cell)
    return LoadedRun(
        name_text(path.name), tuple(records), hardware, software, metadata | {"pytest_benchmark": body.get("version")}
    )


def _body_of(path: Path) -> Mapping[str, Any]:
    """Return the JSON object that a file holds; NaN and Infinity are kept, to be named where they stand."""
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
    raise StoreError(f"{path} is not a file of pytest-benchmark: {printable(why)[:200]}")


def _benchmarks_of(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the benchmarks of a file.

    Raises:
        ValueError: there are none where they should be; the message names the program that the file looks like.
    """
    found = body.get("benchmarks")
    items = found if isinstance(found, list) else []
    first = _mapping(items[0]) if items else {}
    others = {
        "a file of hyperfine": isinstance(body.get("results"), list) and "benchmarks" not in body,
        "a file of Google Benchmark": "context" in body or "real_time" in first,
        "a file of pyperf": "runs" in first,
        "the evidence that sema-bench gate --json writes": "verdict" in body and "cells" in body,
        "run.json of a run; give the name of that run": "plan" in body and "environment" in body,
    }
    if other := next((name for name, is_it in others.items() if is_it and "stats" not in first), None):
        raise ValueError(f"it looks like {other}")
    if not isinstance(found, list):
        raise ValueError("it has no list 'benchmarks'")
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict) or not isinstance(item.get("stats"), dict):
            raise ValueError(f"{_name_of(_mapping(item), number)} has no 'stats'")
    return items


def _name_of(benchmark: Mapping[str, Any], number: int) -> str:
    name = benchmark.get("fullname") or benchmark.get("name")
    return f"benchmark {printable(str(name))}" if name else f"benchmark {number}"


def _machine(
    told: Mapping[str, Any], benchmarks: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return hardware, software and metadata: ours where every benchmark has them, else what pytest-benchmark knows.

    A CPU without a name, as many are in containers and on ARM, is known by the machine's.
    """
    ours = [_mapping(benchmark.get("extra_info")).get(MACHINE_KEY) for benchmark in benchmarks]
    found = ours[0] if ours else None
    if found is not None and all(each == found for each in ours):
        try:
            metadata = {"plan": found["plan"], "environment": {"context": {"code": found["code"]}}}
            return dict(found["hardware"]), dict(found["software"]), metadata
        except (KeyError, TypeError):
            raise ValueError(f"extra_info.{MACHINE_KEY} is not as the fixture sema_benchmark writes it") from None
    cpu = _mapping(told.get("cpu"))
    name = cpu.get("brand_raw") or cpu.get("brand")  # py-cpuinfo before 6
    known = {"cpu": name} if name else {"node": told["node"]} if told.get("node") else {}
    hardware = {**known, "cpus": cpu.get("count"), "machine": told.get("machine")} if known else {}
    return hardware, {"python": told.get("python_version"), "os": told.get("system")}, {}


def _record(benchmark: Mapping[str, Any], when: str) -> Record:
    """Return the record of one benchmark.

    Raises:
        ValueError: a number of it is none; the message names the field.
    """
    extra = _mapping(benchmark.get("extra_info"))
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
    """Return the median time of a benchmark, and details that tell of its rounds and its interval."""
    known = {name: _number(stats.get(name), f"stats.{name}") for name in (*_ASCENDING, "iqr", "rounds")}
    data = stats.get("data") or []
    if not isinstance(data, list):
        raise ValueError(f"stats.data is {data!r}; expected a list of times")
    samples = tuple(_needed(value, f"stats.data[{place}]") for place, value in enumerate(data))
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
    _check_order(known)
    latency = Measurement(metric="latency_s", value=known["median"], samples=samples)
    quartiles = _quartiles(latency.value, known)
    found = estimated_interval(latency.value, rounds, quartiles=quartiles, extremes=_pair(known, "min", "max"))
    if found is None:
        return latency, details | {NO_INTERVAL: _why_no_interval(rounds)}
    low, high = min(found[0], latency.value), max(found[1], latency.value)
    basis = "quartiles" if quartiles else "extremes"
    return dataclasses.replace(latency, ci_low=low, ci_high=high), details | {ESTIMATED: basis}


def _check_order(known: Mapping[str, float | None]) -> None:
    """Refuse statistics that cannot be of one set of times.

    Raises:
        ValueError: a quartile, the median or an extreme is on the wrong side of another.
    """
    ordered = [(name, value) for name in _ASCENDING if (value := known[name]) is not None]
    for (lower, low), (upper, high) in pairwise(ordered):
        if low - high > _SLACK * abs(high):
            raise ValueError(f"stats contradict each other: {lower} is {low:g} and {upper} is {high:g}")


def _quartiles(median: float, known: Mapping[str, float | None]) -> tuple[float, float] | None:
    """Return first and third quartile; their distance alone may lie on either side of the median."""
    iqr = known["iqr"]
    return _pair(known, "q1", "q3") or (None if iqr is None else (median - abs(iqr), median + abs(iqr)))


def _pair(known: Mapping[str, float | None], lower: str, upper: str) -> tuple[float, float] | None:
    low, high = known[lower], known[upper]
    return None if low is None or high is None else (low, high)


def _why_no_interval(rounds: int) -> str:
    """Return why there is no interval, and what to do."""
    if rounds < 1:
        return "neither samples nor the number of rounds are stored; keep the samples with pytest --benchmark-save-data"
    if rounds < FEWEST_ROUNDS:
        count = "1 round is" if rounds == 1 else f"{rounds} rounds are"
        how = "pytest --benchmark-min-rounds, or rounds= of benchmark.pedantic"
        return f"{count} too few for an interval; {FEWEST_ROUNDS} or more give one ({how})"
    return f"the quartiles of its {rounds} rounds are not stored; keep the samples with pytest --benchmark-save-data"


def _number(value: object, name: str) -> float | None:
    return None if value is None else _needed(value, name)


def _needed(value: object, name: str) -> float:
    """Return a finite number.

    Raises:
        ValueError: ``value`` is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}; expected a number")
    if not abs(value) < _LARGEST:  # NaN, too
        word = "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
        raise ValueError(f"{name} is {word}; measure that benchmark again")
    return float(value)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
