"""Test the gate's rule on numbers alone: what it convicts, what it acquits, and what no gate can decide."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from sema_bench.gate.batch import Batch, Side, batch_of, uncertainty
from sema_bench.gate.rule import (
    INCOMPLETE,
    INCONCLUSIVE,
    LOOKS,
    PASS,
    REGRESSION,
    Evidence,
    Judgement,
    judge,
    overall,
    still_open,
)

DELTA = 0.03
TAILS = ("normal", "heavy", "bursts")


class Machine:
    """Gives batches of a cell whose head is slower by a known share; each process has its own noise.

    The noise has the standard deviation ``noise``. It is normal, has heavy ``tails`` (Student's t with three degrees of
    freedom), or is normal with bursts, which slow one process in ten by up to a tenth and more.
    """

    def __init__(
        self, seed: int, noise: float, *, slower: float = 0.0, wall: float | None = None, tails: str = "normal"
    ) -> None:
        self._generator = np.random.default_rng(seed)
        self._noise, self._tails = noise, tails
        self._effect = math.log1p(slower)
        self._wall = self._effect if wall is None else math.log1p(wall)

    def batch(self) -> Batch:
        return Batch(self._side(0.0, 0.0), self._side(self._effect, self._wall))

    def _side(self, effect: float, wall: float) -> Side:
        return Side(math.exp(effect + self._luck()), 0.5 * math.exp(wall + self._luck()))

    def _luck(self) -> float:
        draw = self._generator
        luck = draw.standard_t(3) / math.sqrt(3) if self._tails == "heavy" else draw.normal()
        burst = abs(draw.normal(0, 0.05)) if self._tails == "bursts" and draw.random() < 0.1 else 0.0
        return self._noise * luck + burst


def gathered(machines: dict[str, Machine], delta: float = DELTA) -> dict[str, Judgement]:
    """Take look after look, as a gate does."""
    cells = {name: Evidence(delta) for name in machines}
    for look in LOOKS:
        for name in still_open(cells, judge(cells)):
            fresh = (machines[name].batch() for _ in range(look - len(cells[name].batches)))
            cells[name] = dataclasses.replace(cells[name], batches=(*cells[name].batches, *fresh))
    return judge(cells)


def gates(count: int, noise: float, *, cells: int = 6, **truth: object) -> list[Counter[str]]:
    """Count the verdicts of each of ``count`` gates; each gate has ``cells`` similar cells."""
    results = []
    for seed in range(count):
        family = {str(k): Machine(1000 * seed + k, noise, **truth) for k in range(cells)}
        results.append(Counter(judgement.verdict for judgement in gathered(family).values()))
    return results


def share(results: Sequence[Counter[str]], verdict: str) -> float:
    """Return the share of cells with ``verdict``."""
    return sum(each[verdict] for each in results) / sum(each.total() for each in results)


@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize(("noise", "passes"), [(0.007, 0.99), (0.01, 0.97), (0.015, 0.94), (0.02, 0.88)])
def test_the_same_code_is_acquitted_and_never_convicted(noise: float, passes: float, tails: str) -> None:
    results = gates(60, noise, tails=tails)
    assert sum(each[REGRESSION] > 0 for each in results) <= 1
    assert share(results, PASS) >= passes - (0.03 if tails == "bursts" else 0)


@pytest.mark.parametrize("noise", [0.007, 0.01, 0.015, 0.02])
def test_what_is_slower_by_half_of_delta_is_convicted_in_one_gate_of_twenty_at_most(noise: float) -> None:
    """This is the hardest case that must not be convicted."""
    wrong = sum(each[REGRESSION] > 0 for each in gates(60, noise, slower=DELTA / 2))
    assert wrong <= 6, "more than six of sixty have a chance of 3 % at a rate of 5 %"


@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize(("noise", "found"), [(0.007, 0.99), (0.01, 0.99), (0.015, 0.96), (0.02, 0.85)])
def test_a_slowdown_is_convicted(noise: float, found: float, tails: str) -> None:
    results = gates(30, noise, slower=0.05, tails=tails)
    assert share(results, REGRESSION) >= found - (0.03 if tails == "bursts" else 0)
    assert share(results, PASS) <= 0.01
    assert share(gates(30, noise, slower=0.10, tails=tails), REGRESSION) >= 0.99


def test_a_cell_that_is_clear_needs_three_batches() -> None:
    for slower in (0.0, 0.10):
        batches = [judgement.batches for judgement in gathered(
            {str(k): Machine(k, 0.004, slower=slower) for k in range(40)}).values()]  # fmt: skip
        assert batches == [LOOKS[0]] * 40


@pytest.mark.parametrize(("noise", "wrong"), [(0.002, 0), (0.008, 0), (0.02, 0), (0.06, 0.02)])
def test_a_gate_of_one_cell_convicts_no_same_code(noise: float, wrong: float) -> None:
    assert share(gates(200, noise, cells=1), REGRESSION) <= wrong


def test_noise_makes_a_gate_unsure_and_never_blind() -> None:
    assert share(gates(200, 0.025, cells=1, slower=0.05), PASS) <= 0.02
    assert share(gates(100, 0.025, cells=1, slower=0.20), REGRESSION) >= 0.99


def test_faster_code_passes() -> None:
    assert share(gates(50, 0.005, cells=1, slower=-0.2), PASS) == 1


def test_what_is_slower_by_less_than_asked_for_is_accepted_where_noise_allows() -> None:
    assert share(gates(50, 0.0005, cells=1, slower=0.02), PASS) == 1


def test_forty_cells_share_the_chance_of_error() -> None:
    assert share(gates(20, 0.01, cells=40), REGRESSION) == 0
    assert share(gates(1, 0.005, cells=40, slower=0.10), REGRESSION) == 1


def test_noise_of_other_cells_counts_where_batches_of_one_say_little() -> None:
    """Three batches of a cell may agree by chance; the batches of its neighbours show how likely that is."""
    close, far = ((0.0395, 0.04, 0.0405), (-0.05, 0.0, 0.05))
    cells = {"close": evidence(*close)} | {str(k): evidence(*far) for k in range(5)}
    assert judge(cells)["close"].verdict == INCONCLUSIVE
    assert (
        judge({"close": evidence(*close)} | {str(k): evidence(0.0, 0.001, 0.002) for k in range(5)})["close"].verdict
        == REGRESSION
    )


def evidence(*slowdowns: float, parallel: bool = False, wall: Sequence[float] | None = None) -> Evidence:
    """Return batches with a known L in CPU time and in wall time."""
    batches = zip(slowdowns, wall or slowdowns, strict=True)
    return Evidence(
        DELTA, tuple(Batch(Side(1.0, 1.0), Side(math.exp(time), math.exp(late))) for time, late in batches), parallel
    )


def test_a_verdict_stands_whatever_comes_after_it() -> None:
    """A cell drops out at the look that decides it, so later batches of any cell change nothing."""
    decided = evidence(0.0, 0.001, 0.002, *(0.1,) * 13)
    (judgement,) = judge({"a": decided}).values()
    assert (judgement.verdict, judgement.batches) == (PASS, 3)


def test_work_that_is_no_longer_parallel_shows_in_wall_time_alone() -> None:
    (judgement,) = gathered({"a": Machine(1, 0.005, slower=0.0, wall=0.4)}).values()
    assert judgement.verdict == REGRESSION
    assert judgement.reason.endswith("slower (wall time)")


def test_witnesses_that_contradict_each_other_convict_no_one() -> None:
    (judgement,) = gathered({"a": Machine(1, 0.005, slower=0.2, wall=-0.2)}).values()
    assert (judgement.verdict, "contradict" in judgement.reason) == (INCONCLUSIVE, True)


def test_a_judgement_states_ratio_interval_spread_and_what_was_visible() -> None:
    judgements = gathered({str(k): Machine(k, 0.005, slower=0.10) for k in range(6)})
    for judgement in judgements.values():
        assert judgement.ratio == pytest.approx(1.10, abs=0.02)
        assert judgement.ci_low < judgement.ratio < judgement.ci_high
        assert judgement.batches in LOOKS
        assert 0.005 <= judgement.spread < 0.015
        assert DELTA < judgement.visible < 0.05


def test_what_is_called_visible_is_found_19_times_in_20() -> None:
    noise, cells = 0.015, 6
    passed = gathered({str(k): Machine(99 + k, noise) for k in range(cells)})
    visible = float(np.median([judgement.visible for judgement in passed.values()]))
    assert share(gates(60, noise, slower=visible), REGRESSION) > 0.93


# Traces that should not exist


def test_one_slow_process_of_the_base_acquits_no_one() -> None:
    """A neighbour that slows the base in one batch of three hides the head's slowdown in the mean, but not for long."""
    (judgement,) = judge({"a": evidence(0.05, 0.05, -0.2)}).values()
    assert judgement.verdict == INCONCLUSIVE
    (judgement,) = judge({"a": evidence(0.05, 0.05, -0.2, *(0.05,) * 13)}).values()
    assert judgement.verdict != PASS
    quiet = {str(k): evidence(0.0, 0.001, 0.002) for k in range(5)}
    assert judge(quiet | {"a": evidence(0.05, 0.05, -0.2)})["a"].verdict == INCONCLUSIVE


def test_load_on_the_head_alone_convicts_where_it_lasts_and_not_where_it_comes_and_goes() -> None:
    """The gate cannot know why all fresh processes of the head are slow, but it knows if some of them are not."""
    for slowdowns, verdict in (((0.18,) * 3, REGRESSION), ((0.18, 0.0) * 8, INCONCLUSIVE)):
        (judgement,) = judge({"a": evidence(*slowdowns)}).values()
        assert judgement.verdict == verdict


def test_noise_of_wall_time_acquits_no_parallel_work() -> None:
    """Work on several cores may be slower in wall time alone; if wall time is noisy, the gate does not decide."""
    walls = (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.0)
    for parallel, verdict in ((False, PASS), (True, INCONCLUSIVE)):
        (judgement,) = judge({"a": evidence(*(0.0,) * 8, parallel=parallel, wall=walls)}).values()
        assert judgement.verdict == verdict


def test_a_machine_that_grows_slower_hits_both_arms() -> None:
    batches = tuple(Batch(*(Side(speed, speed),) * 2) for speed in (1.0, 1.5, 2.0))
    (judgement,) = judge({"a": Evidence(DELTA, batches)}).values()
    assert (judgement.verdict, judgement.ratio) == (PASS, 1.0)


def turns_of(times: list[float], walls: list[float] | None = None) -> list[Side]:
    return [Side(time, wall) for time, wall in zip(times, walls or times, strict=True)]


@pytest.mark.parametrize("time", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_is_none_is_refused(time: float) -> None:
    for times in ((time, 1.0), (1.0, time)):
        with pytest.raises(ValueError, match="not a positive number"):
            Side(*times)


def test_arms_are_compared_within_each_round() -> None:
    """Neither a machine whose speed changes every round nor a burst in a few rounds affects the ratio."""
    speeds = [1.0, 7.0, 2.0, 5.0, 3.0, 9.0, 4.0]
    head = [1.1 * speed for speed in speeds]
    head[1], head[4] = 100.0, 0.01
    batch = batch_of(turns_of(speeds), turns_of(head, [2 * speed for speed in speeds]))
    assert batch.base == Side(4.0, 4.0)
    assert batch.slowdown("time") + batch.slowdown("wall") == pytest.approx(math.log(1.1) + math.log(2.0), abs=1e-12)


def test_uncertainty_is_the_standard_error_of_a_median_of_normal_noise() -> None:
    generator = np.random.default_rng(0)
    rounds, noise, trials = 25, 0.02, 2000
    base, other = np.exp(generator.normal(0, noise, (2, trials, rounds)))
    estimates = [uncertainty(turns_of(list(a)), turns_of(list(b))) for a, b in zip(base, other, strict=True)]
    true = np.std(np.median(np.log(other / base), axis=1))
    assert np.median(estimates) == pytest.approx(true, rel=0.1)


def test_a_cell_with_too_few_batches_for_a_look_has_no_judgement() -> None:
    cells = {"a": evidence(0.0, 0.0), "b": evidence(0.0, 0.0, 0.0)}
    assert list(judge(cells)) == ["b"]
    assert still_open(cells, judge(cells)) == ["a"]


def test_the_worst_cell_decides_and_no_cells_are_incomplete() -> None:
    assert overall([]) == INCOMPLETE
    assert overall([PASS, PASS]) == PASS
    assert overall([PASS, INCONCLUSIVE]) == INCONCLUSIVE
    assert overall([INCONCLUSIVE, INCOMPLETE]) == INCOMPLETE
    assert overall([INCOMPLETE, REGRESSION, PASS]) == REGRESSION
    assert judge({}) == {}
