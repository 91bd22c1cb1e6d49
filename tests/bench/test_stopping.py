"""Test the stop rule on simulated machines: known ratios stop, stated intervals hold, nothing waits for a clock."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from sampler_support import Bursts, Simulated, drifting, measure, quiet, sampled_s

from sema_bench.statistics import FEWEST_FOR_INTERVAL, paired_ratio
from sema_bench.worker.probes import throughput

THREE = {"reference": 0.1, "close": 0.105, "far": 0.3}
CALM_AND_NOISY = {"reference": 0.1, "calm": 0.1, "noisy": 0.1}
CALM, NOISY = ("reference", "calm"), ("reference", "noisy")


@pytest.mark.parametrize("noise", [quiet, drifting, Bursts], ids=["quiet", "drift", "bursts"])
def test_an_interval_of_95_percent_holds_the_ratio(noise: Any) -> None:
    """Looking after every round may stop a little early by luck; the width of the interval allows for that."""
    held = near = known = total = 0
    for seed in range(150):
        pool = Simulated(THREE, Bursts(seed) if noise is Bursts else noise, seed=seed)
        reference, *others = measure(pool, time_limit_s=30.0)
        assert "paired_ratio" not in reference.measurements
        for record in others:
            ratio, true = record.measurements["paired_ratio"], THREE[record.cell.model] / 0.1
            assert ratio.ci_low is not None
            assert ratio.ci_high is not None
            total += 1
            held += ratio.ci_low <= true <= ratio.ci_high
            near += abs(math.log(ratio.value / true)) <= 0.02
            known += math.log(ratio.ci_high / ratio.ci_low) / 2 <= 0.02
    assert held >= 0.95 * total
    assert near >= 0.95 * total
    assert known >= 0.9 * total


def test_medians_alone_are_not_enough_for_that() -> None:
    """Guards the test above: on its drifting machine, unpaired times are off by more than 2 %."""
    off = 0
    for seed in range(20):
        pool = Simulated({"alone": 0.1}, drifting, seed=seed)
        pool.now = 5.0 * seed
        off += abs(math.log(measure(pool)[0].measurements["latency_s"].value / 0.1)) > 0.02
    assert off >= 10


def test_a_group_stops_when_all_its_ratios_are_known() -> None:
    pool = Simulated(CALM_AND_NOISY, quiet, spread={"noisy": 0.05})
    records = measure(pool, time_limit_s=60.0)
    assert {record.details["stop_reason"] for record in records} == {"precision"}
    assert len({record.details["rounds"] for record in records}) == 1
    assert records[0].details["rounds"] > measure(Simulated(THREE, quiet), time_limit_s=60.0)[0].details["rounds"]


def test_equal_models_have_equal_medians_beside_a_noisy_one_while_the_machine_drifts() -> None:
    apart = 0
    for seed in range(20):
        pool = Simulated(CALM_AND_NOISY, drifting, seed=seed, spread={"noisy": 0.15})
        pool.now = 7.0 * seed
        one, other, _ = (record.measurements["latency_s"] for record in measure(pool, time_limit_s=15.0))
        assert other.value == pytest.approx(one.value, rel=0.03)
        apart += other.ci_low > one.ci_high or one.ci_low > other.ci_high
    assert apart <= 1


def test_time_that_a_group_leaves_over_goes_to_cells_that_need_it() -> None:
    pool = Simulated(CALM_AND_NOISY, quiet, spread={"noisy": 0.4})
    reference, calm, noisy = measure(pool, time_limit_s=4.0)
    reasons = [record.details["stop_reason"] for record in (reference, calm, noisy)]
    assert reasons == ["time limit", "precision", "time limit"]
    assert 12.0 < sum(map(sampled_s, (reference, calm, noisy))) < 13.5, "the limit of three cells"

    took = [sampled_s(record) for record in measure(pool, CALM, NOISY, NOISY, time_limit_s=4.0)]
    assert sum(took[:2]) < 5.0
    assert sum(took[:4]) == pytest.approx(16.0, abs=1.2), "what the first group saved is the second's"
    assert sum(took[4:]) == pytest.approx(8.0, abs=1.2), "and is spent once"


def test_a_cell_that_uses_the_time_of_many_others_is_not_stopped_from_outside() -> None:
    pool = Simulated(CALM_AND_NOISY, quiet, spread={"noisy": 0.4})
    *_, reference, other = measure(pool, *[CALM] * 16, NOISY, time_limit_s=4.0)
    assert (reference.status, other.status) == ("ok", "ok")
    assert sampled_s(other) > 41.0, "a worker that does not answer for 40 s is stopped"


def test_every_cell_has_ten_samples_unless_one_pass_takes_a_second() -> None:
    pool = Simulated({"fast": 0.02, "middle": 0.9, "slow": 1.2, "slowest": 8.0}, quiet)
    counts = [len(record.measurements["latency_s"].samples) for record in measure(pool, time_limit_s=1.3)]
    assert counts[0] >= 10
    assert counts[1] >= 10
    assert counts[2:] == [6, 3], "six of the last do not fit into six times the limit"


def test_when_the_reference_is_out_of_time_the_others_stop_with_enough_samples() -> None:
    def wild(now: float, chance: random.Random) -> float:
        return math.exp(chance.gauss(0, 0.3))

    pool = Simulated({"reference": 3.0, "quick": 0.1}, wild)
    reference, quick = measure(pool, time_limit_s=4.0)
    assert [record.details["stop_reason"] for record in (reference, quick)] == ["time limit"] * 2
    assert len(quick.measurements["latency_s"].samples) >= 10
    assert pool.visits.count("quick") <= 8


def test_when_the_reference_fails_the_next_model_takes_its_place() -> None:
    pool = Simulated({"reference": 0.1, "a": 0.1, "b": 0.2}, quiet, spread={"b": 0.1})
    pool.fails = {"reference": 5}
    reference, first, second = measure(pool, time_limit_s=60.0)
    assert (reference.status, first.status, second.status) == ("crashed", "ok", "ok")
    assert "paired_ratio" not in first.measurements
    assert second.details["reference"] == "a"
    assert [record.details["stop_reason"] for record in (first, second)] == ["precision"] * 2
    assert second.measurements["paired_ratio"].value == pytest.approx(2.0, rel=0.05)


def test_another_model_that_fails_changes_no_reference() -> None:
    pool = Simulated({"reference": 0.1, "a": 0.1, "b": 0.2}, quiet, spread={"b": 0.1})
    pool.fails = {"a": 5}
    reference, failed, other = measure(pool, time_limit_s=60.0)
    assert (reference.status, failed.status) == ("ok", "crashed")
    assert other.details["reference"] == "reference"
    assert other.details["stop_reason"] == "precision"


def test_a_model_whose_neighbours_failed_is_timed_as_one_without_neighbours() -> None:
    pool = Simulated({"reference": 0.1, "other": 0.1}, quiet)
    pool.fails = {"reference": 2}
    _, other = measure(pool)
    assert (other.status, other.details["stop_reason"]) == ("ok", "precision")
    assert "paired_ratio" not in other.measurements


def test_a_cold_first_round_of_a_long_pass_is_warm_up() -> None:
    for cold, left in ((1.5, 1), (1.0, 0)):
        pool = Simulated({"reference": 0.8, "other": 0.9}, quiet, cold=cold)
        for record in measure(pool, time_limit_s=1.0):
            assert record.details["warmups"] == 1 + 2 * left, "a round has two passes"
            assert record.details["warm"] is True
            assert max(record.measurements["latency_s"].samples) < 1.0
            assert pool.visits.count(record.cell.model) == record.details["rounds"] + left


def test_the_interval_of_paired_ratios_is_that_of_the_sign_test() -> None:
    ratios = [1.3, 0.9, 1.2, 1.6, 1.4, 1.1, 1.5, 1.9, 1.0, 1.7]
    assert paired_ratio(ratios[:6], [1.0] * 6) == (1.25, 0.9, 1.6), "1/64 lies below the six"
    assert paired_ratio(ratios[:9], [1.0] * 9) == (1.3, 0.9, 1.9), "without the outermost it would be 10/512"
    assert paired_ratio(ratios, [1.0] * 10) == (1.35, 1.0, 1.7), "here it is 11/1024"
    assert paired_ratio([2.0] * 5, [1.0] * 5) == (2.0, None, None)
    ordered = [float(k) for k in range(1, 51)]
    assert paired_ratio(ordered, [1.0] * 50)[1:] == (17.0, 34.0), "P(X < 17) of 50 coins is 0.8 %, P(X < 18) 1.6 %"


def test_looking_after_every_round_leaves_95_percent() -> None:
    """With 2.5 % on each side, as for a single look, 8 % of such intervals miss the ratio."""
    chance, missed = random.Random(0), 0
    for _ in range(1000):
        ratios = [math.exp(chance.gauss(0, 0.05)) for _ in range(FEWEST_FOR_INTERVAL)]
        while True:
            _, low, high = paired_ratio(ratios, [1.0] * len(ratios))
            assert low is not None
            assert high is not None
            if math.log(high / low) / 2 <= 0.02 or len(ratios) == 100:
                break
            ratios.append(math.exp(chance.gauss(0, 0.05)))
        missed += not low <= 1.0 <= high
    assert missed <= 0.065 * 1000


def test_a_common_slowdown_of_a_round_cancels() -> None:
    slow = [1.0, 1.7, 1.0, 2.5, 1.1, 1.0, 1.3]
    assert paired_ratio([2 * x for x in slow], slow) == pytest.approx((2.0, 2.0, 2.0))
    assert not throughput.is_cold([1.0, 1.0, 1.0, 1.05])


def test_a_cold_first_pass_counts_once_against_the_limit_of_a_visit() -> None:
    (record,) = measure(Simulated({"slow": 12.0}, quiet), time_limit_s=4.0)  # 3 x 12 s fit into 40 s
    assert record.status == "ok"
