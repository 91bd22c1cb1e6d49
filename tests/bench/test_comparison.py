"""Test comparisons of runs: which rows are compared, the ratio and its interval, and refusals."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from comparison_support import failed, loaded, record, speed

from sema_bench.analysis.comparison import compare, interval_of_ratio
from sema_bench.errors import UsageError
from sema_bench.spec.metrics import METRICS
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.sampling import Sampling


def test_the_interval_of_a_ratio_covers_the_true_ratio() -> None:
    """Of 100 intervals from medians of noisy samples, 95 hold the true ratio."""
    from sema_bench.statistics import median_interval

    generator = np.random.default_rng(0)
    hits, trials = 0, 400
    for seed in range(trials):
        sides = []
        for scale in (1.3, 1.0):
            samples = scale * np.exp(generator.normal(0, 0.2, 40))
            value, low, high = median_interval(samples, seed=seed)
            sides.append(Measurement(metric="latency_s", value=value, ci_low=low, ci_high=high))
        low, high = interval_of_ratio(*sides)
        assert low is not None
        assert high is not None
        hits += low < 1.3 < high
    assert 0.92 < hits / trials < 0.99


def test_ratios_are_above_one_where_the_other_run_is_better() -> None:
    base, other = [record("m", 224, 0.2)], [record("m", 224, 0.1)]
    for metric in ("throughput_images_per_s", "latency_s"):
        (ratio,) = compare(loaded("a", base), loaded("b", other), metric=metric).ratios
        assert ratio.value == pytest.approx(2.0)
        assert ratio.ci_low < 2 < ratio.ci_high
        assert ratio.verdict(base[0].measurements[metric].definition, 0.03) == "faster"
    (back,) = speed(other, base).ratios
    assert (back.value, back.verdict(base[0].measurements["latency_s"].definition, 0.03)) == (0.5, "slower")


def test_a_wide_interval_is_unclear_and_a_narrow_one_the_same() -> None:
    (ratio,) = speed([record("m", 224, 0.1)], [record("m", 224, 0.101)]).ratios
    metric = ratio.base.measurements["throughput_images_per_s"].definition
    assert ratio.verdict(metric, 0.03) == "unclear"
    assert ratio.verdict(metric, 0.05) == "same"
    (equal,) = compare(loaded("a", [ratio.base]), loaded("b", [ratio.other]), metric="macs").ratios
    assert equal.verdict(ratio.base.measurements["macs"].definition, 0.03) == "same"


def test_a_machine_that_changed_its_speed_falls_out() -> None:
    base = [record("m", 224, 0.2, yardstick=0.01)]
    other = [record("m", 224, 0.3, yardstick=0.015)]
    (ratio,) = speed(base, other).ratios
    assert ratio.value == pytest.approx(1.0)
    assert ratio.drift == pytest.approx(1 / 1.5)
    (plain,) = speed(base, other, raw=True).ratios
    assert (plain.value, plain.drift) == (pytest.approx(1 / 1.5), None)


@pytest.mark.parametrize(
    ("latency", "yardstick", "verdict"),
    [
        (0.13, 0.005, "unclear"),  # the machine is twice as fast, the cell 1.5 times
        (0.13, 0.010, "faster"),
        (0.30, 0.011, "slower"),
        (0.30, 0.015, "same"),
        (0.30, 0.010, "slower"),
        (0.21, 0.015, "unclear"),  # the cell kept its time on a slower machine
    ],
)
def test_what_is_faster_or_slower_is_so_in_seconds_too(latency: float, yardstick: float, verdict: str) -> None:
    base, other = [record("m", 224, 0.2, yardstick=0.01)], [record("m", 224, latency, yardstick=yardstick)]
    (ratio,) = speed(base, other).ratios
    assert ratio.verdict(METRICS["throughput_images_per_s"], 0.03) == verdict


def test_a_yardstick_of_another_cell_or_of_the_code_that_changed_is_left_alone() -> None:
    records = [record("m", 224, 0.2, yardstick=0.01)], [record("m", 224, 0.3, yardstick=0.015)]
    base, other = loaded("a", records[0]), loaded("b", [dataclasses.replace(records[1][0])])
    (ratio,) = compare(base, other, metric="latency_s").ratios
    assert ratio.drift == pytest.approx(1 / 1.5)
    on_two_threads = Plan("s", ((dataclasses.replace(records[0][0].cell, threads=2),),), ("params",), Sampling())
    (ratio,) = compare(base, loaded("b", records[1], plan=on_two_threads.to_json()), metric="latency_s").ratios
    assert ratio.drift is None
    first_cell = {key: value for key, value in base.metadata["plan"].items() if key != "yardstick"}
    sides = [loaded(name, rows, plan=first_cell) for name, rows in zip("ab", records, strict=True)]
    (ratio,) = compare(*sides, metric="latency_s").ratios
    assert ratio.drift is None
    for side in sides:
        side.metadata["environment"] = {"context": {"code": "1"}}
    (ratio,) = compare(*sides, metric="latency_s").ratios
    assert ratio.drift is not None


@pytest.mark.parametrize(
    ("base", "other", "metric", "message"),
    [
        ({}, {"drop": "latency_s"}, "latency_s", "other: no latency_s"),
        ({"fail": True}, {"fail": True}, "latency_s", "base: crashed, it [bold]died[/]"),
        ({"batch": 64, "batch_policy": "max"}, {"batch": 128, "batch_policy": "max"}, "latency_s", "batch 64 | 128"),
    ],
)
def test_what_has_no_ratio_is_listed_with_the_reason(
    base: dict[str, object], other: dict[str, object], metric: str, message: str
) -> None:
    def made(options: dict[str, object]) -> Record:
        options = dict(options)
        if options.pop("fail", False):
            return failed("m", 224)
        dropped = options.pop("drop", None)
        full = record("m", 224, 0.2, **options)
        return dataclasses.replace(full, measurements={k: v for k, v in full.measurements.items() if k != dropped})

    compared = compare(loaded("a", [made(base)]), loaded("b", [made(other)]), metric=metric)
    (each,) = compared.unmatched
    assert (each.verdict, each.cell.model, compared.ratios) == ("unmeasured", "m", ())
    assert each.reason.startswith(message)


def test_ratios_to_different_models_are_not_compared() -> None:
    def paired(reference: str) -> Record:
        measured = {"paired_ratio": Measurement(metric="paired_ratio", value=1.2, ci_low=1.19, ci_high=1.21)}
        return dataclasses.replace(record("m", 224, 0.2), measurements=measured, details={"reference": reference})

    runs = [loaded(name, [paired(name)]) for name in ("a", "b")]
    (each,) = compare(*runs, metric="paired_ratio").unmatched
    assert each.reason == "ratios to different models, a | b"
    assert compare(runs[0], runs[0], metric="paired_ratio").unmatched == ()


def test_a_model_of_a_file_that_was_edited_is_compared() -> None:
    base, other = [record("net.py:build@11111111", 224, 0.2)], [record("net.py:build@22222222", 224, 0.1)]
    assert [r.value for r in speed(base, other).ratios] == [pytest.approx(2.0)]


def test_a_cell_that_is_there_twice_is_reported() -> None:
    with pytest.raises(UsageError, match="a has m at 224x224 twice"):
        speed([record("m", 224, 0.2)] * 2, [record("m", 224, 0.2)])


def test_runs_that_do_not_say_where_they_ran_do_not_compare() -> None:
    silent, other = loaded("a", [record("m", 224, 0.2)], hardware={}), loaded("b", [record("m", 224, 0.2)])
    for runs in ((silent, other), (other, silent), (silent, silent)):
        with pytest.raises(UsageError, match=r"^a does not say its hardware, so times do not compare"):
            compare(*runs, metric="latency_s")
        assert compare(*runs, metric="latency_s", allow=["hardware"]).ratios


@pytest.mark.parametrize(
    ("metric", "one", "two", "verdict"),
    [
        ("peak_memory_bytes", 2e9, 1e9, "better"),
        ("peak_memory_bytes", 2e9, 2e9, "same"),
        ("peak_memory_bytes", 1e9, 2e9, "worse"),
        ("compile_s", 10.0, 10.5, "unclear"),
    ],
)
def test_a_single_value_says_something_where_it_is_always_the_same(
    metric: str, one: float, two: float, verdict: str
) -> None:
    sides = []
    for value in (one, two):
        side = record("m", 224, 0.2)
        measured = Measurement(metric=metric, value=value)
        sides.append(dataclasses.replace(side, measurements={**side.measurements, metric: measured}))
    (ratio,) = compare(loaded("a", sides[:1]), loaded("b", sides[1:]), metric=metric).ratios
    assert ratio.verdict(sides[0].measurements[metric].definition, 0.03) == verdict


def test_rows_of_another_identity_are_refused_by_field() -> None:
    base = [record("m", 224, 0.2), record("m", 448, 0.8)]
    other = [record("m", 224, 0.1, dtype="bfloat16", threads=2), record("m", 448, 0.8), record("new", 224, 0.1)]
    compared = speed(base, other)
    assert [r.base.cell.height for r in compared.ratios] == [448]
    assert [(each.verdict, each.cell.model, each.reason) for each in compared.unmatched] == [
        ("refused", "m", "dtype float32 | bfloat16, threads 1 | 2"),
        ("new", "new", ""),
    ]
    allowed = speed(base, other, allow=["dtype", "threads"])
    assert [r.value for r in allowed.ratios] == [pytest.approx(2.0), pytest.approx(1.0)]
    assert allowed.unmatched_as("refused") == []
    with pytest.raises(UsageError, match="a has several rows of m at 224x224, of different dtype"):
        speed([record("m", 224, 0.2), record("m", 224, 0.2, dtype="bfloat16")], other, allow=["dtype"])


def test_times_of_different_machines_do_not_compare() -> None:
    base, other = loaded("a", [record("m", 224, 0.2)]), loaded("b", [record("m", 224, 0.2)], hardware={"cpu": "y"})
    with pytest.raises(UsageError, match=r"a and b differ in hardware \(cpu x \| y, cpus 2 \| None\)"):
        compare(base, other, metric="latency_s")
    assert compare(base, other, metric="latency_s", allow=["hardware"]).ratios
    assert compare(base, other, metric="macs").ratios


def test_what_broke_and_what_is_mended_is_reported() -> None:
    compared = speed([record("m", 224, 0.2), failed("n", 224)], [failed("m", 224), record("n", 224, 0.2)])
    assert [each.reason.partition(":")[0] for each in compared.unmatched_as("broken")] == ["crashed"]
    assert [each.cell.model for each in compared.unmatched_as("mended")] == ["n"]


def test_the_mean_of_a_model_is_geometric_with_its_interval() -> None:
    base = [record("m", side, 0.2) for side in (224, 448, 896)]
    other = [record("m", side, 0.2 / ratio) for side, ratio in ((224, 0.5), (448, 1.0), (896, 4.0))]
    (mean,) = speed(base, other).means()
    assert (mean.model, mean.cells) == ("m", 3)
    assert mean.value == pytest.approx(2 ** (1 / 3))
    logs = np.log([0.5, 1.0, 4.0])
    assert math.log(mean.ci_high / mean.value) == pytest.approx(4.303 * logs.std(ddof=1) / math.sqrt(3), rel=1e-3)
    alike = [record("m", side, 0.1) for side in (224, 448, 896)]
    (mean,) = speed(base, alike).means()
    one = math.hypot(math.log(1 / 0.98), math.log(1.02))
    assert math.log(mean.ci_high / mean.value) == pytest.approx(one / math.sqrt(3), rel=1e-2)
    mixed = [record("m", 224, 0.2), record("m", 224, 0.2, dtype="bfloat16")]
    assert [mean.cells for mean in speed(mixed, mixed).means()] == [1, 1]
