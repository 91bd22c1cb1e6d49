"""A gate from its first batch to its verdict."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sema_bench.gate.arms import Arm
from sema_bench.gate.batch import Batch
from sema_bench.gate.inspection import Inspection, inspect_arms
from sema_bench.gate.rule import (
    INCOMPLETE,
    MOST_SCREEN_BATCHES,
    PASS,
    REGRESSION,
    SCREEN_BATCHES,
    Evidence,
    Judgement,
    confirm_batches,
    is_noisy,
    is_screened,
    judge,
    overall,
    suspects,
)
from sema_bench.gate.sampling import Failure, take_batch
from sema_bench.spec.cell import Cell
from sema_bench.spec.sampling import Sampling

#: A cell that an arm could not run is tried once more, in a later batch: machines fail, too.
_TRIES = 2


@dataclass(frozen=True)
class GateSettings:
    """How a gate decides.

    Attributes:
        delta: slowdown that is not accepted.
        deltas: the same for some cells, by ``model`` or ``model@HxW``.
        budget_s: seconds after which no batch is begun.
        counted: whether parameters, MACs and memory are checked, too.
    """

    delta: float = 0.03
    deltas: Mapping[str, float] = field(default_factory=dict)
    budget_s: float = math.inf
    counted: bool = True

    def delta_of(self, cell: Cell) -> float:
        name = cell.model.partition("@")[0]  # a file that was edited is the same model
        return self.deltas.get(f"{name}@{cell.resolution}", self.deltas.get(name, self.delta))


@dataclass
class CellState:
    """What is known of one cell so far."""

    cell: Cell
    delta: float
    screen: list[Batch] = field(default_factory=list)
    confirm: list[Batch] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    inspection: Inspection = field(default_factory=Inspection)

    @property
    def evidence(self) -> Evidence:
        parallel = self.cell.threads != 1 or self.cell.device != "cpu"
        return Evidence(self.delta, tuple(self.screen), tuple(self.confirm), parallel)

    @property
    def has_failed(self) -> bool:
        return len(self.failures) >= _TRIES


@dataclass(frozen=True)
class GateResult:
    """What a gate found.

    Attributes:
        base, head: the arms, in words.
        settings: how it decided.
        judgements: of every cell.
        inspections: what was counted.
        evidence: the batches.
        failures: of single batches.
        took_s: how long it took.
        out_of_time: whether the budget ended it.
        notes: what concerns the gate as a whole.
    """

    base: str
    head: str
    settings: GateSettings
    judgements: Mapping[Cell, Judgement]
    inspections: Mapping[Cell, Inspection]
    evidence: Mapping[Cell, Evidence]
    failures: Mapping[Cell, Sequence[Failure]]
    took_s: float
    out_of_time: bool
    notes: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        """The worst of the cells'; where nothing was compared with anything, INCOMPLETE."""
        worst = overall([judgement.verdict for judgement in self.judgements.values()])
        compared = any(judgement.ratio is not None for judgement in self.judgements.values())
        return worst if worst != PASS or compared else INCOMPLETE


class Gate:
    """Runs the rule on cells that two arms have.

    Args:
        base, head: the arms.
        cells: what is gated.
        sampling: seed and wall limits.
        settings: δ and budget.
        told: told in a line what is going on.
        vanished: cells that only the base's suite has.
        clock: for tests.
    """

    def __init__(
        self,
        base: Arm,
        head: Arm,
        cells: Sequence[Cell],
        *,
        sampling: Sampling,
        settings: GateSettings,
        told: Callable[[str], None] = lambda line: None,
        vanished: Sequence[Cell] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base, self._head = base, head
        self._states = [CellState(cell, settings.delta_of(cell)) for cell in dict.fromkeys(cells)]
        self._sampling, self._settings, self._told, self._clock = sampling, settings, told, clock
        self._vanished = vanished
        self._chance = random.Random(sampling.seed)
        self._started = clock()
        self._unit_s = 0.0
        self._out_of_time = False

    def run(self) -> GateResult:
        """Count, screen, confirm, judge."""
        if self._settings.counted:
            self._told("counting parameters, MACs and memory of both")
            arms = (self._base, self._head)
            found = inspect_arms(arms, [state.cell for state in self._states], sampling=self._sampling)
            for state in self._states:
                state.inspection = found[state.cell]
        for number in range(1, SCREEN_BATCHES + _TRIES):  # a cell that failed once has its three batches later
            self._screen(f"screen, batch {number}", lambda s: len(s.screen) < SCREEN_BATCHES)
        noisy = {id(s) for s in self._states if len(s.screen) == SCREEN_BATCHES and is_noisy(s.evidence)}
        for number in range(SCREEN_BATCHES + 1, MOST_SCREEN_BATCHES + 1):
            self._screen(f"noisy: screen, batch {number}", lambda s: id(s) in noisy and not is_screened(s.evidence))
        self._confirm()
        return GateResult(
            base=self._base.what,
            head=self._head.what,
            settings=self._settings,
            judgements=self._judgements(),
            inspections={state.cell: state.inspection for state in self._states},
            evidence={state.cell: state.evidence for state in self._states},
            failures={state.cell: state.failures for state in self._states},
            took_s=self._clock() - self._started,
            out_of_time=self._out_of_time,
        )

    def _screen(self, what: str, wanted: Callable[[CellState], bool]) -> None:
        arms = (self._base, self._head, dataclasses.replace(self._base, name="again"))
        self._batch(what, arms, [s for s in self._states if wanted(s) and not s.has_failed], lambda s: s.screen)

    def _confirm(self) -> None:
        done = [s for s in self._states if not s.has_failed and len(s.screen) >= SCREEN_BATCHES]
        suspected = [s for s in done if suspects(s.evidence)]
        count = confirm_batches(sum(len(suspects(s.evidence)) for s in suspected))
        for number in range(1, count + 1):
            states = [s for s in suspected if not s.has_failed]
            self._batch(f"confirm, batch {number} of {count}", (self._base, self._head), states, lambda s: s.confirm)
        if self._out_of_time:  # a few batches are no sign test
            for state in suspected:
                if len(state.confirm) < count:
                    state.confirm.clear()

    def _batch(
        self, what: str, arms: Sequence[Arm], states: Sequence[CellState], kept: Callable[[CellState], list[Batch]]
    ) -> None:
        """Take one batch of each state, one set of processes for cells that share allocator and threads."""
        groups: dict[tuple[object, ...], list[CellState]] = {}
        for state in states:
            groups.setdefault((state.cell.allocator, state.cell.threads), []).append(state)
        for group in groups.values():
            started, units = self._clock(), len(arms) * len(group)
            if self._out_of_time or started - self._started + self._unit_s * units > self._settings.budget_s:
                self._out_of_time = True
                return
            by_cell = {state.cell: state for state in group}
            found = take_batch(
                arms,
                list(by_cell),
                sampling=self._sampling,
                chance=self._chance,
                told=lambda cell: self._told(f"{what}: {cell.model} {cell.resolution.label}"),
            )
            for cell, batch in found:
                if isinstance(batch, Failure):
                    by_cell[cell].failures.append(batch)
                else:
                    kept(by_cell[cell]).append(batch)
            self._unit_s = max(self._unit_s, (self._clock() - started) / units)

    def _judgements(self) -> dict[Cell, Judgement]:
        complete = [s for s in self._states if not s.has_failed and len(s.screen) >= SCREEN_BATCHES]
        judged = judge({state.cell.id: state.evidence for state in complete})
        found: dict[Cell, Judgement] = {}
        for state in self._states:
            judgement = judged.get(state.cell.id) or _of_incomplete(state)
            found[state.cell] = with_counts(judgement, state.inspection)
        for cell in self._vanished:
            found[cell] = Judgement(REGRESSION, "vanished: only the suite of the base has it")
        return found


def result_to_json(result: GateResult) -> dict[str, Any]:
    """Return a result with all of its evidence, as JSON has it."""
    cells = [
        {
            "cell": dataclasses.asdict(cell),
            **dataclasses.asdict(judgement),
            "counts": [dataclasses.asdict(count) for count in result.inspections.get(cell, Inspection()).counts],
            "evidence": dataclasses.asdict(result.evidence[cell]) if cell in result.evidence else None,
        }
        for cell, judgement in result.judgements.items()
    ]
    settings = dataclasses.asdict(result.settings)
    if math.isinf(result.settings.budget_s):
        settings["budget_s"] = None
    return {
        "verdict": result.verdict,
        "base": result.base,
        "head": result.head,
        "settings": settings,
        "took_s": result.took_s,
        "out_of_time": result.out_of_time,
        "notes": list(result.notes),
        "cells": cells,
    }


def _of_incomplete(state: CellState) -> Judgement:
    """Judge a cell without enough batches: what the head alone cannot run is a regression."""
    reasons = {failure.arm: failure.reason for failure in state.failures}
    if not state.has_failed:
        return Judgement(INCOMPLETE, "there was no time for it; raise --budget-s")
    if set(reasons) == {"head"}:
        return Judgement(REGRESSION, f"the base runs it and the head does not: {reasons['head']}")
    if all(failure.unknown for failure in state.failures):
        return Judgement(PASS, f"new: the base has no such model ({reasons['base']})")
    return Judgement(INCOMPLETE, "; ".join(f"{arm}: {reason}" for arm, reason in sorted(reasons.items())))


def with_counts(judgement: Judgement, inspection: Inspection) -> Judgement:
    """Convict by what was counted; a head that cannot be counted where the base can be has failed."""
    faults = [f"{c.metric} {c.base:.0f} → {c.head:.0f}" for c in inspection.counts if not c.is_accepted]
    lost = [reason for reason in inspection.lost if reason.partition(": ")[2] not in judgement.reason]  # told already
    faults += [f"the head cannot be counted: {reason}" for reason in lost]
    if not faults:
        return judgement
    reason = "; ".join([*faults, *([judgement.reason] if judgement.reason else [])])
    return dataclasses.replace(judgement, verdict=REGRESSION, reason=reason)
