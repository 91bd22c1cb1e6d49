"""The gate's decision on numbers alone: what is convicted, what is acquitted, and what no gate can decide."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from sema_bench.gate.batch import Batch, Side, batch_of, uncertainty
from sema_bench.gate.rule import (
    CONFIRM_BATCHES,
    INCOMPLETE,
    INCONCLUSIVE,
    MOST_SCREEN_BATCHES,
    PASS,
    REGRESSION,
    SCREEN_BATCHES,
    Evidence,
    Judgement,
    confirm_batches,
    floor_of,
    is_screened,
    judge,
    noisy,
    overall,
    suspects,
    visible_slowdown,
)

DELTA = 0.03


class Machine:
    """Gives batches of a cell whose head is slower by a known share, with noise of every process."""

    def __init__(self, seed: int, noise: float, *, slower: float = 0.0, wall: float | None = None) -> None:
        self._generator = np.random.default_rng(seed)
        self._noise = noise
        self._effect = math.log1p(slower)
        self._wall = self._effect if wall is None else math.log1p(wall)

    def batch(self, *, again: bool) -> Batch:
        sides = [self._side(0.0, 0.0), self._side(self._effect, self._wall)]
        return Batch(*sides, self._side(0.0, 0.0) if again else None)

    def _side(self, effect: float, wall: float) -> Side:
        time, lower = self._generator.normal(0, self._noise, 2)
        return Side(math.exp(effect + time), 0.5 * math.exp(wall + lower))


def gathered(machines: dict[str, Machine], delta: float = DELTA) -> dict[str, Judgement]:
    """Go through screen and confirmation as a gate does."""
    cells = {}
    for name, machine in machines.items():
        evidence = Evidence(delta, tuple(machine.batch(again=True) for _ in range(SCREEN_BATCHES)))
        if noisy(evidence):
            while len(evidence.screen) < MOST_SCREEN_BATCHES and not is_screened(evidence):
                evidence = dataclasses.replace(evidence, screen=(*evidence.screen, machine.batch(again=True)))
        cells[name] = evidence
    count = confirm_batches(sum(len(suspects(evidence)) for evidence in cells.values()))
    for name, evidence in cells.items():
        if suspects(evidence):
            fresh = tuple(machines[name].batch(again=False) for _ in range(count))
            cells[name] = dataclasses.replace(evidence, confirm=fresh)
    return judge(cells)


def verdicts(count: int, noise: float, **truth: float) -> list[str]:
    return [gathered({"a": Machine(seed, noise, **truth)})["a"].verdict for seed in range(count)]


@pytest.mark.parametrize("noise", [0.002, 0.008, 0.02, 0.06])
def test_the_same_code_is_never_convicted(noise: float) -> None:
    assert REGRESSION not in verdicts(300, noise)


@pytest.mark.parametrize("noise", [0.002, 0.005, 0.01])
def test_a_slowdown_is_convicted(noise: float) -> None:
    for slower, share in ((0.05, 0.95), (0.10, 0.99), (0.20, 1.0)):
        assert verdicts(100, noise, slower=slower).count(REGRESSION) >= 100 * share


def test_noise_makes_a_gate_unsure_and_never_blind() -> None:
    judged = verdicts(200, 0.025, slower=0.05)
    assert judged.count(PASS) <= 4
    assert verdicts(100, 0.025, slower=0.20).count(REGRESSION) >= 99


def test_faster_code_passes() -> None:
    assert set(verdicts(50, 0.005, slower=-0.2)) == {PASS}


def test_what_is_slower_by_less_than_asked_for_is_accepted_where_noise_allows() -> None:
    assert set(verdicts(50, 0.0005, slower=0.02)) == {PASS}


def test_forty_equal_cells_together_are_never_convicted() -> None:
    for seed in range(20):
        family = {str(k): Machine(1000 * seed + k, 0.01) for k in range(40)}
        assert REGRESSION not in {judgement.verdict for judgement in gathered(family).values()}


def test_a_slowdown_of_everything_is_convicted_in_every_cell() -> None:
    family = {str(k): Machine(k, 0.005, slower=0.10) for k in range(40)}
    judged = [judgement.verdict for judgement in gathered(family).values()]
    assert judged.count(REGRESSION) >= 39


def test_more_suspects_get_more_batches() -> None:
    assert [confirm_batches(n) for n in (0, 1, 2, 3, 10, 80)] == [9, 9, 9, 10, 12, 15]


def test_work_that_is_no_longer_parallel_shows_in_wall_time_alone() -> None:
    (judgement,) = gathered({"a": Machine(1, 0.005, slower=0.0, wall=0.4)}).values()
    assert judgement.verdict == REGRESSION
    assert judgement.reason.endswith("slower (wall time)")


def test_witnesses_that_contradict_each_other_convict_no_one() -> None:
    (judgement,) = gathered({"a": Machine(1, 0.005, slower=0.2, wall=-0.2)}).values()
    assert (judgement.verdict, "contradict" in judgement.reason) == (INCONCLUSIVE, True)


def test_a_judgement_states_ratio_interval_floor_and_what_was_visible() -> None:
    machine = Machine(3, 0.005, slower=0.10)
    (judgement,) = gathered({"a": machine}).values()
    assert judgement.ratio == pytest.approx(1.10, abs=0.01)
    assert judgement.ci_low < judgement.ratio < judgement.ci_high
    assert judgement.batches == CONFIRM_BATCHES
    assert 0 < judgement.floor < 0.015
    assert DELTA < judgement.visible < 0.05


def test_what_is_called_visible_is_found_19_times_in_20() -> None:
    noise = 0.006
    machine = Machine(9, noise)
    wide = Evidence(DELTA, tuple(machine.batch(again=True) for _ in range(4001)))
    visible = visible_slowdown(wide)
    assert floor_of(wide, "time") == pytest.approx(noise * math.sqrt(2) * 0.6745, rel=0.05)
    share = verdicts(400, noise, slower=visible).count(REGRESSION) / 400
    assert share > 0.93


# Traces that should not exist


@pytest.mark.parametrize(("head", "verdict"), [(1.0, PASS), (1.1, INCONCLUSIVE)])
def test_load_on_one_process_of_the_base_hides_nothing(head: float, verdict: str) -> None:
    """A neighbour that slows a process of the base acquits a head that is as fast as the other one, and no slower."""
    screen = tuple(Batch(Side(1.0, 1.0), Side(head, head), Side(1.3, 1.3)) for _ in range(9))
    (judgement,) = judge({"a": Evidence(DELTA, screen)}).values()
    assert judgement.verdict == verdict


def test_load_on_the_head_alone_convicts_where_it_lasts_and_not_where_it_comes_and_goes() -> None:
    """The gate cannot know why all fresh processes of the head are slow; it does know that some of them are not."""
    loaded, free = (Batch(Side(1.0, 1.0), Side(head, head), Side(1.001, 1.001)) for head in (1.2, 1.0))
    for confirm, verdict in (((loaded,) * 9, REGRESSION), ((loaded, free) * 5, INCONCLUSIVE)):
        (judgement,) = judge({"a": Evidence(DELTA, (loaded,) * 3, confirm)}).values()
        assert judgement.verdict == verdict


def test_noise_of_wall_time_acquits_no_parallel_work() -> None:
    """Work on several cores may be slower in wall time alone; where that is noise, nothing is said."""
    walls = (0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3)
    screen = tuple(Batch(Side(1.0, 1.0), Side(1.0, wall), Side(1.0, 2.0 - wall)) for wall in walls)
    for parallel, verdict in ((False, PASS), (True, INCONCLUSIVE)):
        (judgement,) = judge({"a": Evidence(DELTA, screen, parallel=parallel)}).values()
        assert judgement.verdict == verdict


@pytest.mark.parametrize("noise", [0.003, 0.01])
def test_gates_of_many_cells_stay_green(noise: float) -> None:
    gates = [
        {j.verdict for j in gathered({str(k): Machine(100 * seed + k, noise) for k in range(6)}).values()}
        for seed in range(50)
    ]
    assert gates.count({PASS}) >= 45


def test_a_machine_that_grows_slower_hits_both_arms() -> None:
    screen = tuple(Batch(*(Side(speed, speed),) * 3) for speed in (1.0, 1.5, 2.0))
    (judgement,) = judge({"a": Evidence(DELTA, screen)}).values()
    assert (judgement.verdict, judgement.ratio) == (PASS, 1.0)


def turns_of(times: list[float], walls: list[float] | None = None) -> list[Side]:
    return [Side(time, wall) for time, wall in zip(times, walls or times, strict=True)]


@pytest.mark.parametrize("time", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_is_none_is_refused(time: float) -> None:
    for times in ((time, 1.0), (1.0, time)):
        with pytest.raises(ValueError, match="not a positive number"):
            Side(*times)


@pytest.mark.parametrize(("base", "head"), [(0, 0), (1, 1), (4, 4), (5, 6)])
def test_a_batch_takes_equally_many_turns_of_each_arm_and_enough(base: int, head: int) -> None:
    with pytest.raises(ValueError, match="turns; equally many"):
        batch_of(turns_of([1.0] * base), turns_of([1.0] * head))


def test_arms_are_compared_within_each_round() -> None:
    """A machine of which every round is as fast as it likes takes no part in the ratio, and a burst in few neither."""
    speeds = [1.0, 7.0, 2.0, 5.0, 3.0, 9.0, 4.0]
    head = [1.1 * speed for speed in speeds]
    head[1], head[4] = 100.0, 0.01
    batch = batch_of(turns_of(speeds), turns_of(head, [2 * speed for speed in speeds]), turns_of(speeds[::-1]))
    assert batch.base == Side(4.0, 4.0)
    assert batch.slowdown("time") + batch.slowdown("wall") == pytest.approx(math.log(1.1) + math.log(2.0), abs=1e-12)
    assert batch.between_bases("time") == pytest.approx(0.0, abs=1e-12)


def test_uncertainty_is_the_standard_error_of_a_median_of_normal_noise() -> None:
    generator = np.random.default_rng(0)
    rounds, noise, trials = 25, 0.02, 2000
    base, other = np.exp(generator.normal(0, noise, (2, trials, rounds)))
    estimates = [uncertainty(turns_of(list(a)), turns_of(list(b))) for a, b in zip(base, other, strict=True)]
    true = np.std(np.median(np.log(other / base), axis=1))
    assert np.median(estimates) == pytest.approx(true, rel=0.1)


def test_a_suspicion_that_was_not_followed_up_is_incomplete() -> None:
    machine = Machine(1, 0.002, slower=0.2)
    evidence = Evidence(DELTA, tuple(machine.batch(again=True) for _ in range(3)))
    assert judge({"a": evidence})["a"].verdict == INCOMPLETE


def test_the_worst_cell_decides_and_no_cells_are_incomplete() -> None:
    assert overall([]) == INCOMPLETE
    assert overall([PASS, PASS]) == PASS
    assert overall([PASS, INCONCLUSIVE]) == INCONCLUSIVE
    assert overall([INCONCLUSIVE, INCOMPLETE]) == INCOMPLETE
    assert overall([INCOMPLETE, REGRESSION, PASS]) == REGRESSION
    assert judge({}) == {}
