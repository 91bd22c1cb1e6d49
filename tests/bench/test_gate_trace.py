"""Test today's rule on gates recorded on a real machine, whose truth is known."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from sema_bench.gate.rule import INCONCLUSIVE, PASS, REGRESSION, Judgement, judge
from sema_bench.gate.trace import Trial, read_trace

DATA = Path(__file__).parents[1] / "data"
#: The first was recorded with looks; the second before, when a gate took other numbers of batches and the base twice.
LOOKS, BEFORE = "gate_trace_looks.jsonl", "gate_trace.jsonl"


@pytest.fixture(scope="module")
def trials() -> dict[str, list[Trial]]:
    return {name: read_trace(DATA / name) for name in (LOOKS, BEFORE)}


def judged(trials: list[Trial], level: float) -> list[Judgement]:
    """Judge the cells whose heads are slower by ``level``."""
    return [each for trial in trials if trial.level == level for each in judge(trial.evidence).values()]


def test_the_rule_still_says_what_it_said_then(trials: dict[str, list[Trial]]) -> None:
    for trial in trials[LOOKS]:
        assert {name: each.verdict for name, each in judge(trial.evidence).items()} == trial.verdicts, trial.key


def test_the_same_code_is_never_flagged(trials: dict[str, list[Trial]]) -> None:
    counts = Counter(each.verdict for name in trials for each in judged(trials[name], 0.0))
    assert counts[REGRESSION] == 0
    assert counts.total() >= 400


@pytest.mark.parametrize(("name", "level"), [(LOOKS, 0.1), (LOOKS, 0.2), (BEFORE, 0.1), (BEFORE, 0.2)])
def test_more_work_is_caught_or_the_gate_says_why_it_cannot_tell(
    trials: dict[str, list[Trial]], name: str, level: float
) -> None:
    judgements = judged(trials[name], level)
    assert judgements
    caught = sum(each.verdict == REGRESSION for each in judgements)
    unsure = sum(each.verdict == INCONCLUSIVE and bool(each.reason) for each in judgements)
    assert caught + unsure >= 0.99 * len(judgements)
    assert caught >= 0.95 * len(judgements)


def test_five_percent_more_work_seldom_passes(trials: dict[str, list[Trial]]) -> None:
    verdicts = [each.verdict for name in trials for each in judged(trials[name], 0.05)]
    assert verdicts.count(PASS) <= 0.05 * len(verdicts)
