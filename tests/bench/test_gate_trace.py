"""Gates of which the truth is known, recorded on a real machine, judged again by the rule as it is now."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from sema_bench.gate.rule import REGRESSION, judge
from sema_bench.gate.trace import Trial, read_trace

DATA = Path(__file__).parents[1] / "data"
#: Batches as medians of each arm, and as medians of the rounds' ratios.
TRACES = ("gate_trace.jsonl", "gate_trace_rounds.jsonl")


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    return [trial for name in TRACES for trial in read_trace(DATA / name)]


def judged(trials: list[Trial], level: float) -> Counter[str]:
    """Return how often each verdict is given for heads that are slower by ``level``."""
    return Counter(
        judgement.verdict for trial in trials if trial.level == level for judgement in judge(trial.evidence).values()
    )


def test_the_rule_still_says_what_it_said_then(trials: list[Trial]) -> None:
    for trial in trials:
        assert {name: each.verdict for name, each in judge(trial.evidence).items()} == trial.verdicts, trial.key


def test_the_same_code_is_never_flagged(trials: list[Trial]) -> None:
    counts = judged(trials, 0.0)
    assert counts[REGRESSION] == 0
    assert counts.total() >= 300


@pytest.mark.parametrize(("level", "share"), [(0.1, 0.95), (0.2, 0.99)])
def test_more_work_is_found(trials: list[Trial], level: float, share: float) -> None:
    counts = judged(trials, level)
    assert counts[REGRESSION] >= share * counts.total() > 0
