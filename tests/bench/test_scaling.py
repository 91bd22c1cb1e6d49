import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sema_bench.analysis.conditions import CONDITION_FIELDS, Conditions, by_conditions, varying_fields
from sema_bench.analysis.crossover import CROSSOVER_COLUMNS, Crossover, find_crossovers
from sema_bench.analysis.ranking import leaders, unranked
from sema_bench.analysis.scaling import SCALING_COLUMNS, Fit, analyse, fit_power_law
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.resolution import LADDER
from sema_bench.statistics import median_interval


def record(model, side, *, status="ok", reason="", width=None, batch=1, interval=0.0, **metrics):
    """Return a record whose latency has a relative interval of ± ``interval``, or none if that is None."""
    measurements = {}
    for name, value in metrics.items():
        with_interval = name == "latency_s" and interval is not None
        bounds = {"ci_low": value * (1 - interval), "ci_high": value * (1 + interval)} if with_interval else {}
        measurements[name] = Measurement(metric=name, value=value, **bounds)
    cell = Cell(model=model, height=side, width=width or side, batch=batch)
    return Record(cell=cell, status=status, reason=reason, measurements=measurements)


def curve(model, latency, sides=LADDER, **options):
    return [record(model, side, latency_s=latency(side * side), **options) for side in sides]


def only_fit(records, metric="latency_s") -> Fit:
    (fit,) = [fit for fit in analyse(records).fits if fit.metric == metric]
    return fit


def only_pair(records) -> Crossover:
    (pair,) = find_crossovers(records)
    return pair


# Bootstrap


def test_median_of_one_sample_has_no_interval():
    assert median_interval([3.0], seed=0) == (3.0, None, None)


def test_fewer_than_six_samples_have_no_interval_of_95_percent():
    assert median_interval([3.0, 1.0, 9.0, 2.0, 4.0], seed=0) == (3.0, None, None)
    assert median_interval([3.0, 1.0, 9.0, 2.0, 4.0, 5.0], seed=0)[1] is not None


def test_interval_is_the_same_for_the_same_seed_whatever_the_order_of_samples():
    samples = np.random.default_rng(0).lognormal(size=40)
    assert median_interval(samples, seed=5) == median_interval(samples[::-1], seed=5)


@pytest.mark.parametrize("n", [6, 7, 10, 11, 30])
def test_interval_equals_that_of_literal_resampling(n):
    rng = np.random.default_rng(n)
    samples = rng.lognormal(size=n)
    literal = np.median(samples[rng.integers(0, n, (20_000, n))], axis=1)
    _, low, high = median_interval(samples, seed=1, resamples=20_000)
    # Both are quantiles of the same discrete distribution: they may differ by one neighbouring sample.
    gap = 2 * float(np.diff(np.sort(samples)).max())
    assert low == pytest.approx(np.quantile(literal, 0.025), abs=gap / 2)
    assert high == pytest.approx(np.quantile(literal, 0.975), abs=gap / 2)


def test_interval_of_ten_or_more_samples_covers_the_true_median():
    held = 0
    for seed in range(400):
        _, low, high = median_interval(np.random.default_rng(seed).lognormal(size=20), seed=seed)
        held += low <= 1.0 <= high
    assert 0.90 <= held / 400 <= 0.98  # the percentile bootstrap of a median covers 93 to 94 % at n = 20


@given(st.lists(st.floats(1e-6, 1e6), min_size=6, max_size=50), st.integers(0, 10))
def test_interval_holds_the_median_and_lies_within_the_samples(samples, seed):
    middle, low, high = median_interval(samples, seed=seed, resamples=50)
    assert min(samples) <= low <= middle <= high <= max(samples)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ([], {}, "at least one"),
        ([1.0, math.nan], {}, "finite"),
        ([1.0], {"level": 95}, "between 0 and 1"),
        ([1.0], {"resamples": 0}, "at least 1"),
    ],
)
def test_median_interval_refuses_what_has_no_median(samples, options, message):
    with pytest.raises(ValueError, match=message):
        median_interval(samples, seed=0, **options)


# Exponents


@given(st.floats(-1, 3), st.floats(1e-9, 1e9))
def test_exponent_of_an_exact_power_law_is_recovered(exponent, scale):
    line = fit_power_law([(side**2, scale * (side**2) ** exponent) for side in LADDER])
    # Rounding of the logarithms, at worst 40 × 2^-52 over a range of 3 in log N.
    assert line.exponent.value == pytest.approx(exponent, abs=1e-12)
    assert line.exponent.high - line.exponent.low < 1e-10


def test_exponent_interval_covers_the_truth_as_often_as_it_says():
    held = 0
    for seed in range(500):
        noise = np.exp(0.03 * np.random.default_rng(seed).standard_normal(len(LADDER)))
        line = fit_power_law([(side**2, factor * side**2.6) for side, factor in zip(LADDER, noise, strict=True)])
        held += line.exponent.low <= 1.3 <= line.exponent.high
    assert 0.92 <= held / 500 <= 0.98  # three standard errors of a share of 95 % in 500


def test_fit_refuses_two_sizes_and_zeros():
    with pytest.raises(ValueError, match="3 sizes"):
        fit_power_law([(1, 1), (2, 2)])
    with pytest.raises(ValueError, match="positive"):
        fit_power_law([(1, 0), (2, 2), (3, 3)])


def test_a_curve_of_fewer_than_three_sizes_says_why_it_has_no_exponent():
    fit = only_fit(curve("a", float, sides=(224, 448)))
    assert fit.exponent is None
    assert fit.exponent_tail.value == pytest.approx(1.0)
    assert fit.reason == "2 sizes measured; an exponent needs 3"
    assert only_fit(curve("a", float, sides=(224,))).reason == "1 size measured; an exponent needs 3"
    assert only_fit([record("a", 224, status="oom")]).sizes == 0


def test_transposed_sizes_count_as_one():
    sizes = [record("a", 224, width=448, latency_s=1.0), record("a", 448, width=224, latency_s=1.1)]
    fit = only_fit([*sizes, record("a", 512, latency_s=3.0)])
    assert (fit.sizes, fit.exponent) == (2, None)


def test_linear_plus_quadratic_cost_is_curved_and_its_exponent_grows_towards_the_end():
    fit = only_fit(curve("softmax", lambda n: n + n * n / 500_000))
    assert fit.curved is True
    assert 1 < fit.exponent.value < fit.exponent_large.value < fit.exponent_tail.value < 2


def test_noise_alone_is_not_curved_more_often_than_its_level():
    flagged = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        flagged += bool(only_fit(curve("a", lambda n, rng=rng: n * math.exp(0.05 * rng.standard_normal()))).curved)
    assert flagged / 200 <= 0.09  # 5 % plus three standard errors


def test_three_noisy_points_cannot_tell_a_curve_but_three_counts_can():
    sides = (224, 448, 896)
    assert only_fit(curve("a", lambda n: n + n * n / 1e5, sides=sides)).curved is None
    counted = [record("a", side, macs=side**2 + side**4 / 1e5) for side in sides]
    assert only_fit(counted, "macs").curved is True


def test_tail_interval_follows_from_the_two_measurements():
    fit = only_fit(curve("a", float, interval=0.01))
    half = math.hypot(0.01, 0.01) / math.log((1024 / 896) ** 2)
    assert fit.exponent_tail.high - fit.exponent_tail.value == pytest.approx(half, rel=1e-3)
    assert only_fit(curve("a", float, interval=None)).exponent_tail.low is None


def test_only_ok_records_are_fitted_and_zeros_are_named():
    failed = record("a", 1280, status="error", latency_s=99.0)
    assert only_fit([*curve("a", float), failed]).largest.height == 1024
    zeros = [record("a", side, activation_bytes=0.0 if side == 224 else float(side)) for side in LADDER]
    fit = only_fit(zeros, "activation_bytes")
    assert (fit.sizes, fit.reason) == (7, "left out 1 value of 0, which no logarithm has")


def test_a_constant_metric_has_exponent_zero_and_no_r_squared():
    fit = only_fit(curve("a", lambda n: 5.0))
    assert fit.exponent.value == pytest.approx(0, abs=1e-12)
    assert fit.r_squared is None


def test_batches_are_fitted_apart():
    records = [*curve("a", float), *curve("a", lambda n: 32.0 * n, batch=32)]
    fits = [fit for fit in analyse(records).fits if fit.metric == "latency_s"]
    assert [dict(zip(CONDITION_FIELDS, f.conditions.values, strict=True))["batch"] for f in fits] == [1, 32]


def test_an_exponent_that_says_nothing_is_not_readable_and_says_why():
    three = only_fit(curve("a", float, sides=(224, 448, 896))).readable
    assert (three.exponent, three.reason) == (None, "3 sizes measured; an exponent needs 4")
    noisy = {224: 1.0, 448: 30.0, 640: 2.0, 896: 90.0}
    wide = only_fit([record("a", side, latency_s=value) for side, value in noisy.items()]).readable
    assert wide.exponent is None
    assert "too wide to say anything" in wide.reason
    sharp = only_fit(curve("a", float))
    assert sharp.readable == sharp
    assert only_fit(curve("a", float, interval=None)).readable.exponent_tail is None


def test_data_files_keep_exponents_that_people_are_not_shown():
    row = analyse(curve("a", float, sides=(224, 448, 896))).rows()[0]
    assert row["exponent"] == pytest.approx(1.0)


# Ranks


def test_leaders_are_the_best_model_and_those_that_intervals_cannot_tell_from_it():
    cells = [record(m, 224, latency_s=v, interval=0.02) for m, v in (("a", 1.0), ("b", 1.01), ("c", 1.1))]
    assert [each.cell.model for each in leaders(cells, "latency_s")] == ["a", "b"]
    assert unranked(cells, "latency_s") == leaders(cells[:1], "latency_s") == leaders(cells[:2], "latency_s") == []
    counts = [record(m, 224, macs=v) for m, v in (("a", 5), ("b", 5), ("c", 6))]
    assert [each.cell.model for each in leaders(counts, "macs")] == ["a", "b"]


@pytest.mark.parametrize("value", [0.9, 1.0001, 9.0])
def test_a_cell_without_interval_has_no_rank(value):
    cells = [record(m, 224, latency_s=v, interval=0.02) for m, v in (("a", 1.0), ("c", 1.1))]
    bare = record("d", 224, latency_s=value, interval=None)
    assert [each.cell.model for each in leaders([*cells, bare], "latency_s")] == ["a"]
    assert unranked([*cells, bare], "latency_s") == [bare]
    assert leaders([cells[0], bare], "latency_s") == []


# Limits


def test_limit_names_the_first_failure_with_its_reason_and_the_largest_success():
    failures = [record("a", 768, status="timeout", reason="60 s"), record("a", 896, status="skipped", reason="larger")]
    (limit,) = analyse([*failures, *curve("a", float, sides=(224, 384))]).limits
    assert (limit.largest_ok.label, limit.failure.cell.resolution.label) == ("384", "768")
    assert (limit.failure.status, limit.failure.reason) == ("timeout", "60 s")


def test_a_hole_below_the_largest_success_is_kept():
    (limit,) = analyse([*curve("a", float, sides=(224, 512)), record("a", 384, status="crashed")]).limits
    assert (limit.largest_ok.label, limit.failure.cell.resolution.label) == ("512", "384")


# Crossovers


def test_crossing_of_two_power_laws_is_found_where_it_was_put():
    crossing_at = 500.0**2
    a = curve("a", lambda n: (n / crossing_at) ** 2)
    b = curve("b", lambda n: n / crossing_at)
    (crossing,) = only_pair(a + b).crossings
    assert math.sqrt(crossing.pixels) == pytest.approx(500)
    assert (crossing.faster_below, crossing.faster_above, crossing.unclear) == ("a", "b", False)
    assert (crossing.low_pixels, crossing.high_pixels) == (384**2, 512**2)


def test_crossing_within_overlapping_intervals_is_unclear_and_bracketed_by_known_sizes():
    a = curve("a", lambda n: (n / 448**2) ** 1.1, interval=0.02)
    b = curve("b", lambda n: n / 448**2, interval=0.02)
    pair = only_pair(a + b)
    (crossing,) = pair.crossings
    assert crossing.unclear
    assert [math.sqrt(n) for n in pair.level_pixels] == [384, 512]
    assert (crossing.low_pixels, crossing.high_pixels) == (288**2, 640**2)
    assert "unclear" in pair.statement


def test_swaps_within_noise_do_not_cross():
    sign = iter([1, -1] * 4)
    a = curve("a", float, interval=0.02)
    b = curve("b", lambda n: n * (1 + 0.005 * next(sign)), interval=0.02)
    pair = only_pair(a + b)
    assert (pair.crossings, pair.faster) == ((), "")
    assert pair.statement.startswith("no clear difference at every size")


def test_faster_throughout_gives_the_range_of_the_ratio():
    slow, fast = curve("slow", lambda n: 2.0 * n), curve("fast", float)
    pair = only_pair(slow + fast)
    assert pair.statement == "fast is faster throughout (2.00×)"
    assert pair.ratio_low == pytest.approx(0.5)


def test_nothing_is_said_beyond_the_sizes_that_both_have():
    a = curve("a", float, sides=(224, 288, 384))
    b = curve("b", lambda n: n * n / 600**2, sides=LADDER)
    pair = only_pair(a + b)
    assert (pair.crossings, pair.faster) == ((), "b")
    assert pair.high_pixels == 384**2
    apart = only_pair(curve("a", float, sides=(224,)) + curve("b", float, sides=(512,)))
    assert apart.statement == "no common size was measured"


def test_sizes_that_only_one_has_are_interpolated_in_log_log():
    a = curve("a", lambda n: n / 500**2, sides=(224, 1024))
    b = curve("b", lambda n: (n / 500**2) ** 2, sides=(224, 448, 640, 1024))
    (crossing,) = only_pair(a + b).crossings
    assert math.sqrt(crossing.pixels) == pytest.approx(500)


@pytest.mark.parametrize("sides", [LADDER, (224, 1024)])
def test_latencies_without_interval_make_neither_a_crossing_nor_an_order(sides):
    a = curve("a", lambda n: (n / 500**2) ** 2, sides=sides, interval=None)
    pair = only_pair(a + curve("b", lambda n: n / 500**2, sides=sides))
    assert (pair.crossings, pair.faster) == ((), "")
    assert pair.statement.startswith("no clear difference at every size")
    assert f"{len(sides)} of {len(sides)} sizes without interval" in pair.statement
    (row,) = pair.rows()
    assert (row["crossing_pixels"], row["faster_below"], row["sizes_without_interval"]) == (None, "", len(sides))


def test_a_crossing_needs_intervals_at_both_of_its_ends():
    def mixed(model, latency):
        return curve(model, latency, sides=(224, 288)) + curve(model, latency, sides=(896, 1024), interval=None)

    pair = only_pair(mixed("a", lambda n: (n / 500**2) ** 2) + mixed("b", lambda n: n / 500**2))
    assert (pair.crossings, pair.faster) == ((), "a")
    assert "wherever intervals show it" in pair.statement


def test_a_size_without_interval_makes_no_model_the_faster_one():
    a, b = curve("a", float), curve("b", float)
    slow = [record for record in curve("b", lambda n: 4.0 * n, interval=None) if record.cell.height == 1024]
    pair = only_pair(a + [record for record in b if record.cell.height != 1024] + slow)
    assert (pair.faster, len(pair.bare_pixels)) == ("", 1)
    assert pair.statement.startswith("no clear difference at every size")


def test_models_under_other_conditions_are_never_paired():
    assert analyse([*curve("a", float), *curve("b", float, batch=32)]).crossovers == ()


# Rows and conditions


def test_rows_have_the_documented_columns_in_every_case():
    records = [*curve("a", float), *curve("b", lambda n: n * n / 500**2), record("c", 224, status="oom")]
    scaling = analyse(records)
    assert all(tuple(row) == SCALING_COLUMNS for row in scaling.rows())
    assert all(tuple(row) == CROSSOVER_COLUMNS for row in scaling.crossover_rows())
    assert [row["crossing_pixels"] for row in only_pair(curve("a", float) + curve("d", float)).rows()] == [None]


def test_no_records_give_nothing():
    scaling = analyse([])
    assert (scaling.fits, scaling.limits, scaling.crossovers) == ((), (), ())


def test_conditions_show_every_identity_field_that_matters():
    cpu = Conditions.of(Cell(model="a", height=224, width=224))
    assert cpu.text == "cpu · float32 · batch 1 · eager · channels_last · 1 thread · allocator retain"
    gpu = Conditions.of(Cell(model="a", height=224, width=224, device="cuda:0", batch=32, threads=8))
    assert gpu.text == "cuda:0 · float32 · TF32 off · batch 32 · eager · channels_last · 8 threads"


@pytest.mark.parametrize("field", CONDITION_FIELDS)
def test_conditions_that_differ_in_one_field_have_different_file_names(field):
    other = {"batch": 2, "dtype": "bfloat16", "tf32": True, "layout": "contiguous", "mode": "compile",
             "device": "cuda:1", "threads": 4, "allocator": "default", "step": "train", "checkpointing": True,
             "sdpa": "math", "cudnn_benchmark": True, "batch_policy": "max", "data": "digits:cue",
             "protocol": "squash", "task": "detect", "corrupt": "fog:3", "readout": "knn"}  # fmt: skip
    cells = [Cell(model="a", height=224, width=224), Cell(model="a", height=224, width=224, **{field: other[field]})]
    groups = by_conditions(Record(cell=cell, status="ok") for cell in cells)
    varying = varying_fields(groups)
    assert set(varying) == ({"batch", field} if field == "batch_policy" else {field})
    assert len({conditions.slug(varying) for conditions in groups}) == 2
