"""Test pytest-benchmark files: verdicts without stored samples, and messages for files that cannot be read."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from command_support import invoke
from pytest_benchmark.stats import Stats

from sema_bench.errors import StoreError, UsageError
from sema_bench.gate.rule import INCOMPLETE, INCONCLUSIVE, PASS, REGRESSION, Judgement
from sema_bench.gate.run import GateResult
from sema_bench.gate.stored import judge_stored
from sema_bench.spec.suite import GateTable
from sema_bench.statistics import estimated_interval
from sema_bench.store.pytest_benchmark_file import load_pytest_benchmark
from sema_bench.store.stored_run import StoredRun

CPU = {"cpu": {"brand_raw": "x", "count": 2}, "machine": "x86_64", "system": "Linux", "python_version": "3.11"}
MISSING = object()


def stats(middle: float = 1.0, *, rounds: object = 20, **changes: object) -> dict[str, object]:
    """Make the statistics of a benchmark whose middle half lies within 1 %; MISSING leaves a key out."""
    shares = {"min": 0.97, "q1": 0.99, "median": 1.0, "q3": 1.01, "max": 1.5, "iqr": 0.02, "mean": 1.02, "stddev": 0.1}
    body = {name: middle * share for name, share in shares.items()} | {"rounds": rounds} | changes
    return {name: value for name, value in body.items() if value is not MISSING}


def stored(samples: Sequence[float], *, data: bool = False) -> dict[str, object]:
    """Compute the statistics of samples with pytest-benchmark itself."""
    collected = Stats()
    for sample in samples:
        collected.update(sample)
    return {**collected.as_dict(), **({"data": list(samples)} if data else {})}


def body_of(*benchmarks: Mapping[str, object], machine: object = CPU) -> dict[str, object]:
    items = [{"fullname": f"b.py::t{n}", "stats": each} for n, each in enumerate(benchmarks)]
    return {"machine_info": machine, "benchmarks": items, "version": "5.1"}


def load(folder: Path, name: str, *benchmarks: Mapping[str, object], machine: object = CPU) -> StoredRun:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(body_of(*benchmarks, machine=machine)))
    return load_pytest_benchmark(path)


def gate(folder: Path, base: Sequence[Mapping[str, object]], head: Sequence[Mapping[str, object]]) -> GateResult:
    return judge_stored(load(folder, "base", *base), load(folder, "head", *head), GateTable(delta=0.03))


def judged(folder: Path, base: Mapping[str, object], head: Mapping[str, object]) -> Judgement:
    (judgement,) = gate(folder, [base], [head]).judgements.values()
    return judgement


# Verdicts without samples


def test_a_head_six_times_slower_is_convicted_by_quartiles_and_rounds(tmp_path: Path) -> None:
    result = gate(tmp_path, [stats()], [stats(6.0)])
    (judgement,) = result.judgements.values()
    assert judgement.verdict == REGRESSION
    assert judgement.reason == "500.0% slower, at least 492.7% (estimated from the quartiles of 20 rounds)"
    assert (judgement.ratio, judgement.batches) == (pytest.approx(6.0), 1)
    assert result.notes == (
        "intervals of 1 of 1 cells are estimated from quartiles, without samples; "
        "pytest --benchmark-save-data keeps samples",
    )


def test_the_same_code_passes_without_samples(tmp_path: Path) -> None:
    assert judged(tmp_path, stats(), stats(1.005)).verdict == PASS


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("rounds", [5, 6, 7, 20, 100])
def test_no_benchmark_is_convicted_of_its_own_noise_and_a_large_slowdown_is_seen(
    tmp_path: Path, rounds: int, data: bool
) -> None:
    chance = random.Random(rounds)
    draws: list[Callable[[], float]] = [
        lambda: chance.gauss(1, 0.05),
        lambda: chance.lognormvariate(0, 0.1),
        lambda: 1 + chance.expovariate(10),
        lambda: chance.uniform(1, 4) if chance.random() < 0.05 else chance.gauss(1, 0.02),
    ]
    runs = [[stored([draw() for _ in range(rounds)], data=data) for draw in draws * 20] for _ in range(2)]
    same = gate(tmp_path, *runs).judgements.values()
    assert REGRESSION not in {judgement.verdict for judgement in same}
    tame = [[stored([factor * draws[0]() for _ in range(rounds)], data=data)] * 20 for factor in (1, 6)]
    assert {judgement.verdict for judgement in gate(tmp_path, *tame).judgements.values()} == {REGRESSION}


@pytest.mark.parametrize("rounds", [5, 20, 1000])
def test_an_estimated_interval_holds_the_median_of_skewed_times(rounds: int) -> None:
    chance = random.Random(rounds)
    held = 0
    for _ in range(400):
        benchmark = stored([chance.lognormvariate(0, 0.5) for _ in range(rounds)])
        low, middle, high, *ends = (float(benchmark[name]) for name in ("q1", "median", "q3", "min", "max"))
        interval = estimated_interval(middle, rounds, quartiles=(low, high), extremes=(ends[0], ends[1]))
        assert interval is not None
        held += interval[0] <= 1.0 <= interval[1]
    assert held >= 0.91 * 400  # 92.6 % of 2000 at five rounds, 98 % beyond


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_too_few_rounds_stay_undecided_and_the_reason_counts_them(tmp_path: Path, rounds: int) -> None:
    judgement = judged(tmp_path, stats(), stats(6.0, rounds=rounds))
    count = "1 round is" if rounds == 1 else f"{rounds} rounds are"
    assert judgement.verdict == INCONCLUSIVE
    assert judgement.reason.startswith(f"head: {count} too few for an interval; 5 or more give one (pytest --benchmark")


@pytest.mark.parametrize("changes", [{"rounds": MISSING}, {"rounds": 0}, {"rounds": None}])
def test_a_file_without_the_number_of_rounds_names_the_option_that_keeps_samples(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    judgement = judged(tmp_path, stats(**changes), stats(6.0))
    assert (judgement.verdict, "--benchmark-save-data" in judgement.reason) == (INCONCLUSIVE, True)


def test_what_quartiles_do_not_decide_names_the_option_that_keeps_samples(tmp_path: Path) -> None:
    wide = {"q1": 0.5, "q3": 4.0, "min": 0.4, "max": 10.0}
    judgement = judged(tmp_path, stats(**wide), stats(3.0, **{name: 3 * value for name, value in wide.items()}))
    assert judgement.verdict == INCONCLUSIVE
    assert "(estimated from the quartiles of 20 rounds): not decided" in judgement.reason
    assert "--benchmark-save-data" in judgement.reason


def test_a_slowdown_that_the_machine_explains_is_not_put_down_to_the_code(tmp_path: Path) -> None:
    judgement = judged(tmp_path, stats(), stats(1.2))
    assert judgement.verdict == INCONCLUSIVE
    assert "the machine, without a yardstick, explains 36% more" in judgement.reason


@pytest.mark.parametrize(
    ("base", "head", "basis"),
    [
        ({"rounds": 20.0}, {"rounds": 20.0}, "the quartiles of 20 rounds"),
        ({"q1": MISSING, "q3": MISSING}, {}, "the quartiles of 20 rounds"),  # only iqr
        ({"q1": MISSING, "q3": MISSING, "iqr": MISSING}, {}, "the extremes and quartiles of 20 rounds"),
        ({"min": MISSING, "max": MISSING}, {}, "the quartiles of 20 rounds"),
        ({"mean": math.nan, "stddev": math.nan, "ops": math.inf}, {}, "the quartiles of 20 rounds"),  # not used
        ({}, {"rounds": 5}, "the quartiles of 20 and 5 rounds"),
        (dict.fromkeys(("min", "q1", "q3", "max"), 1.0) | {"iqr": 0.0}, {}, "the quartiles of 20 rounds"),  # all equal
    ],
)
def test_what_older_releases_and_other_writers_store_is_enough(
    tmp_path: Path, base: dict[str, object], head: dict[str, object], basis: str
) -> None:
    judgement = judged(tmp_path, stats(**base), stats(6.0, **head))
    assert (judgement.verdict, basis in judgement.reason) == (REGRESSION, True), judgement.reason


@pytest.mark.parametrize("time", [0.0, -1.0])
def test_a_time_that_is_none_gives_no_verdict_on_speed(tmp_path: Path, time: float) -> None:
    odd = stats(**dict.fromkeys(("min", "q1", "median", "q3", "max"), time) | {"iqr": 0.0})
    judgement = judged(tmp_path, odd, stats())
    assert judgement.verdict == INCOMPLETE
    assert judgement.reason == f"base: latency_s is {time:g}, and a ratio needs more than 0"


def test_a_few_samples_are_used_as_their_quartiles(tmp_path: Path) -> None:
    base, head = ({"data": [k * x for x in (1.0, 1.01, 1.02, 1.03, 1.04)], "rounds": 5} for k in (1, 6))
    for rest in ({}, dict.fromkeys(("q1", "q3", "iqr", "min", "max", "median"), MISSING)):
        judgement = judged(tmp_path, stats(**base, **rest), stats(6.0, **head, **rest))
        assert judgement.verdict == REGRESSION
    undecided = judged(tmp_path, stats(**base), stats(1.1, data=[1.1] * 5))
    assert "time more rounds (pytest --benchmark-min-rounds)" in undecided.reason


def test_a_cpu_without_a_name_is_known_by_its_machine(tmp_path: Path) -> None:
    def run(name: str, machine: object) -> StoredRun:
        return load(tmp_path, name, stats(), machine=machine)

    unnamed = {**CPU, "node": "n", "cpu": {"count": 2}}
    for machine, hardware in (
        ({**CPU, "cpu": {"brand": "y", "count": 2}}, {"cpu": "y", "cpus": 2, "machine": "x86_64"}),  # py-cpuinfo < 6
        (unnamed, {"node": "n", "cpus": 2, "machine": "x86_64"}),
        ({**unnamed, "cpu": "text"}, {"node": "n", "cpus": None, "machine": "x86_64"}),
        (None, {}),
    ):
        assert run("m", machine).hardware == hardware
    result = judge_stored(run("a", unnamed), load(tmp_path, "b", stats(6.0), machine=unnamed), GateTable())
    assert result.verdict == REGRESSION


def test_compare_calls_a_slowdown_by_quartiles_and_says_so(tmp_path: Path) -> None:
    paths = []
    for name, factor in (("a", 1.0), ("b", 6.0)):
        load(tmp_path, name, stats(factor), stats(factor, rounds=3))
        paths.append(str(tmp_path / f"{name}.json"))
    code, shown, err = invoke("compare", *paths, "--metric", "latency_s")
    words = " ".join(shown.split())
    assert (code, err) == (0, "")
    for expected in ("slower", "intervals of 1 of 2 cells are estimated from quartiles", "--benchmark-save-data"):
        assert expected in words
    assert "unclear, without an interval (1)" in words
    assert "base: 3 rounds are too few for an interval" in words
    _, csv, _ = invoke("compare", *paths, "--metric", "latency_s", "--csv", "-")
    assert "interval estimated from the quartiles of 20 rounds" in csv
    code, _, err = invoke("compare", *paths)
    assert (code, "no throughput_images_per_s; --metric NAME compares another; both have latency_s" in err) == (2, True)


# Files that cannot be read


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("median", math.nan, "stats.median is NaN"),
        ("median", math.inf, "stats.median is Infinity"),
        pytest.param("median", 10**400, "stats.median is Infinity", id="huge"),
        ("q1", -math.inf, "stats.q1 is -Infinity"),
        ("rounds", math.nan, "stats.rounds is NaN"),
        ("data", [1.0, 1.0, math.nan], "stats.data[2] is NaN"),
        ("data", 7, "stats.data is 7; expected a list of times"),
        ("median", "fast", "stats.median is 'fast'; expected a number"),
        ("median", True, "stats.median is True; expected a number"),
        ("median", MISSING, "it has no stats.median"),
        ("q1", 3.0, "stats contradict each other: q1 is 3 and median is 1"),
    ],
)
def test_a_number_that_is_none_is_named_with_its_benchmark_and_field(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    with pytest.raises(StoreError) as problem:
        load(tmp_path, "b", stats(), stats(**{field: value}))
    assert f"b.json: benchmark b.py::t1: {message}" in str(problem.value)
    assert "not a file of pytest-benchmark" not in str(problem.value)


def test_a_nan_in_a_record_of_ours_is_named(tmp_path: Path) -> None:
    body: dict[str, Any] = body_of(stats())
    body["benchmarks"][0]["extra_info"] = {"sema_bench_record": {"schema_version": 1, "duration_s": math.nan}}
    (tmp_path / "b.json").write_text(json.dumps(body))
    with pytest.raises(StoreError, match=r"benchmark b\.py::t0: extra_info\.sema_bench_record: .*NaN is not a number"):
        load_pytest_benchmark(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "it is empty"),
        ("[]", "it holds a list where an object with 'benchmarks' is expected"),
        ("3", "it holds a number"),
        ('{"benchmarks": [{"full', "it is not JSON, or cut off (line 1, column 18"),
        ("name,median\nx,1\n", "it is not JSON, or cut off (line 1, column 1"),
        ("[" * 100_000, "it is not JSON (nested too deeply)"),
        ("{}", "it has no list 'benchmarks'"),
        ('{"benchmarks": {"a": 1}}', "it has no list 'benchmarks'"),
        ('{"benchmarks": [3]}', "benchmark 1 has no 'stats'"),
        ('{"benchmarks": [{"fullname": "b.py::x"}]}', "benchmark b.py::x has no 'stats'"),
        ('{"results": [{"command": "x", "mean": 1}]}', "it looks like a file of hyperfine"),
        ('{"context": {}, "benchmarks": [{"name": "BM", "real_time": 1}]}', "it looks like a file of Google Benchmark"),
        ('{"benchmarks": [{"runs": []}], "version": "1.0"}', "it looks like a file of pyperf"),
        ('{"verdict": "PASS", "cells": []}', "it looks like the evidence that sema-bench gate run --json writes"),
        ('{"plan": {}, "environment": {}}', "it looks like run.json of a run; give the name of that run"),
    ],
)
def test_a_file_of_something_else_is_reported_by_what_it_is(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(content)
    code, _, err = invoke("gate", "stored", str(path), "--head-run", str(path))
    assert (code, err.count("\n")) == (4, 1)
    assert f"is not a pytest-benchmark file: {why}" in err, err


def test_a_file_without_benchmarks_is_reported_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no benchmarks: pytest ran none, or all of them failed; run them again"):
        load(tmp_path, "b")


def test_a_file_that_is_not_there_is_not_taken_for_a_run(tmp_path: Path) -> None:
    code, _, err = invoke("gate", "stored", str(tmp_path / "gone.json"), "--out", str(tmp_path))
    assert (code, "no file" in err) == (2, True)
    path = tmp_path / "twice.json"
    body: dict[str, Any] = body_of(stats())
    path.write_text(json.dumps({**body, "benchmarks": body["benchmarks"] * 2}))
    code, _, err = invoke("gate", "stored", str(path), "--head-run", str(path), "--out", str(tmp_path))
    assert (code, "twice; write each run to its own file" in err) == (2, True)


def test_a_file_whose_name_is_no_text_can_be_exported(tmp_path: Path) -> None:
    stats = {"min": 1.0, "q1": 1.0, "median": 1.0, "q3": 1.0, "max": 1.0, "iqr": 0.0, "rounds": 9}
    path = tmp_path / os.fsdecode(b"\xff.json")
    path.write_text(json.dumps({"benchmarks": [{"fullname": "b.py::t", "stats": stats}]}))
    assert load_pytest_benchmark(path).name == r"\xff.json"
