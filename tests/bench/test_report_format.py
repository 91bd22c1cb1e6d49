import pytest

from sema_bench.analysis.scaling import Estimate
from sema_bench.report.columns import exponent
from sema_bench.spec import units as fmt
from sema_bench.spec.metrics import METRICS


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.00"), (9.994, "9.99"), (9.996, "10.0"), (12.34, "12.3"), (99.96, "100"), (12345.6, "12346"),
     (0.01234, "0.0123"), (0.0, "0"), (-1.5, "-1.50"), (None, "–"), (float("nan"), "–")],
)  # fmt: skip
def test_numbers_have_three_significant_digits_and_whole_numbers_stay_whole(value, text):
    assert fmt.number(value) == text


def test_quantities_carry_the_unit_that_suits_them():
    assert fmt.seconds(0.0123) == "12.3 ms"
    assert fmt.seconds(4.2) == "4.20 s"
    assert fmt.seconds(1e-3) == "1.00 ms"
    assert fmt.size(1.5 * 2**30) == "1.50 GiB"
    assert fmt.size(512) == "512 B"
    assert fmt.macs(4.49e9) == "4.49 GMAC"
    assert fmt.count(22_100_000) == "22.1 M"
    assert fmt.count(980) == "980"


def test_what_was_not_measured_is_a_dash_and_never_zero():
    assert {f(None) for f in (fmt.seconds, fmt.size, fmt.macs, fmt.count, exponent)} == {fmt.EMPTY}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_be_shown(name):
    assert fmt.quantity(name, 3.0).startswith(("3.00", "3"))


def test_one_unit_serves_a_whole_table():
    assert fmt.unit_for("latency_s", [0.012, 13.0]).symbol == "ms"
    assert fmt.unit_for("latency_s", []).symbol == "ns"


def test_exponents_show_their_interval_unless_it_is_narrower_than_the_digits():
    assert exponent(Estimate(1.03, 0.98, 1.08)) == "1.03 ±0.05"
    assert exponent(Estimate(1.0, 0.9999, 1.0001)) == "1.00"
    assert exponent(Estimate(1.0)) == "1.00 ±?"
