"""Run a gate from its first batch to its verdict."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sema_bench.gate.arms import Arm
from sema_bench.gate.inspection import Inspection, inspect_arms
from sema_bench.gate.rule import (
    INCOMPLETE,
    LOOKS,
    PASS,
    REGRESSION,
    Evidence,
    Judgement,
    judge,
    overall,
    still_open,
)
from sema_bench.gate.sampling import Failure, take_batch
from sema_bench.report.time_left import in_words
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import work
from sema_bench.spec.sampling import Sampling
from sema_bench.spec.suite import GateTable

#: A cell that an arm could not run is tried once more, in a later batch: machines fail, too.
_TRIES = 2


@dataclass
class CellState:
    """Batches and counts of one cell so far."""

    cell: Cell
    evidence: Evidence
    failures: list[Failure] = field(default_factory=list)
    inspection: Inspection = field(default_factory=Inspection)

    @property
    def has_failed(self) -> bool:
        return len(self.failures) >= _TRIES

    def lacks(self, count: int) -> bool:
        """Check whether the cell still needs batches to reach ``count``."""
        return not self.has_failed and len(self.evidence.batches) < count


@dataclass(frozen=True)
class GateResult:
    """The outcome of a gate between arms that ``base`` and ``head`` describe.

    ``took_s`` is 0 if nothing was measured; ``failures`` are those of single batches; ``counted`` is True if
    parameters, MACs and memory are checked, too.
    """

    base: str
    head: str
    settings: GateTable
    judgements: Mapping[Cell, Judgement]
    inspections: Mapping[Cell, Inspection]
    took_s: float = 0.0
    evidence: Mapping[Cell, Evidence] = field(default_factory=dict)
    failures: Mapping[Cell, Sequence[Failure]] = field(default_factory=dict)
    out_of_time: bool = False
    counted: bool = True
    notes: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        """The worst verdict of all cells; INCOMPLETE if nothing was compared."""
        worst = overall(judgement.verdict for judgement in self.judgements.values())
        compared = any(judgement.ratio is not None for judgement in self.judgements.values())
        return worst if worst != PASS or compared else INCOMPLETE


class Gate:
    """Apply the rule to ``cells``, which both arms have; ``vanished`` are cells that only the base's suite has."""

    def __init__(
        self,
        base: Arm,
        head: Arm,
        cells: Sequence[Cell],
        *,
        sampling: Sampling,
        settings: GateTable,
        log: Callable[[str], None] = lambda line: None,
        vanished: Sequence[Cell] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base, self._head = base, head
        self._states = {
            cell: CellState(cell, Evidence(settings.delta_of(cell), parallel=cell.threads != 1 or cell.device != "cpu"))
            for cell in cells
        }
        self._sampling, self._settings, self._log, self._clock = sampling, settings, log, clock
        self._vanished = vanished
        self._chance = random.Random(sampling.seed)
        self._started = clock()
        self._unit_s = 0.0
        self._cell_s: dict[Cell, float] = {}  # time of each in the last batch
        self._out_of_time = False

    def run(self, *, counted: bool = True) -> GateResult:
        """Measure and judge look after look, until no cell is open.

        Before that, count parameters, MACs and memory, unless ``counted`` is false.
        """
        states = self._states.values()
        if counted:
            self._log("counting parameters, MACs and memory of both")
            inspections = inspect_arms((self._base, self._head), list(self._states), sampling=self._sampling)
            for state in states:
                state.inspection = inspections[state.cell]
        for look in LOOKS:
            is_open = set(still_open((state.cell.id for state in states), self._judged()))
            while short := [s for s in states if s.cell.id in is_open and s.lacks(look) and not self._out_of_time]:
                self._take_batch(short, look)
        return GateResult(
            base=self._base.label,
            head=self._head.label,
            settings=self._settings,
            judgements=self._judgements(),
            inspections={state.cell: state.inspection for state in states},
            took_s=self._clock() - self._started,
            evidence={state.cell: state.evidence for state in states},
            failures={state.cell: state.failures for state in states},
            out_of_time=self._out_of_time,
            counted=counted,
        )

    def _take_batch(self, states: Sequence[CellState], look: int) -> None:
        """Take a batch of each state, with a pair of processes for cells that share allocator and threads."""
        groups: dict[tuple[object, ...], list[Cell]] = {}
        for state in states:
            groups.setdefault((state.cell.allocator, state.cell.threads), []).append(state.cell)
        cells = [cell for group in groups.values() for cell in group]
        number = 1 + min(len(state.evidence.batches) for state in states)
        later = cells * (look - number)
        began = 0.0

        def log(cell: Cell) -> None:
            nonlocal began
            began = self._clock()
            left = self._left(cells[cells.index(cell) :] + later)
            self._log(f"batch {number} of {look}: {cell.model} {cell.resolution.label}{left}")

        for group in groups.values():
            started = self._clock()
            budget_s = self._settings.budget_s or math.inf
            if self._out_of_time or started - self._started + self._unit_s * len(group) > budget_s:
                self._out_of_time = True
                return
            arms = (self._base, self._head)
            for cell, batch in take_batch(arms, group, sampling=self._sampling, chance=self._chance, log=log):
                self._cell_s[cell] = self._clock() - began
                state = self._states[cell]
                if isinstance(batch, Failure):
                    state.failures.append(batch)
                else:
                    state.evidence = replace(state.evidence, batches=(*state.evidence.batches, batch))
            self._unit_s = max(self._unit_s, (self._clock() - started) / len(group))

    def _left(self, cells: Sequence[Cell]) -> str:
        """Say how long batches of ``cells`` take; for a cell without a batch, scale the others' time by its work."""
        if not self._cell_s:
            return ""
        per_work = statistics.fmean(seconds / work(cell) for cell, seconds in self._cell_s.items())
        left = sum(self._cell_s.get(cell, per_work * work(cell)) for cell in cells)
        if self._settings.budget_s:
            left = min(left, max(self._settings.budget_s - (self._clock() - self._started), 0.0))
        return f"; {in_words(left)}, longer if a model is not clear by then"

    def _judged(self) -> dict[str, Judgement]:
        return judge({state.cell.id: state.evidence for state in self._states.values() if not state.has_failed})

    def _judgements(self) -> dict[Cell, Judgement]:
        judged = self._judged()
        judgements = {
            cell: with_counts(judged.get(cell.id) or _of_incomplete(state), state.inspection)
            for cell, state in self._states.items()
        }
        lost = Judgement(REGRESSION, "vanished: only the suite of the base has it")
        return judgements | dict.fromkeys(self._vanished, lost)


def result_to_json(result: GateResult) -> dict[str, Any]:
    """Convert a result with all its evidence to plain JSON."""
    cells = [
        {
            "cell": asdict(cell),
            **asdict(judgement),
            "counts": [asdict(count) for count in result.inspections.get(cell, Inspection()).counts],
            "evidence": asdict(result.evidence[cell]) if cell in result.evidence else None,
        }
        for cell, judgement in result.judgements.items()
    ]
    return {
        "verdict": result.verdict,
        "base": result.base,
        "head": result.head,
        "settings": result.settings.model_dump() | {"counted": result.counted},
        "took_s": result.took_s,
        "out_of_time": result.out_of_time,
        "notes": list(result.notes),
        "cells": cells,
    }


def _of_incomplete(state: CellState) -> Judgement:
    """Judge a cell without enough batches: if only the head cannot run it, that is a regression."""
    reasons = {failure.arm: failure.reason for failure in state.failures}
    if not state.has_failed:
        return Judgement(INCOMPLETE, "there was no time for it; raise --budget-s")
    if set(reasons) == {"head"}:
        return Judgement(REGRESSION, f"the base runs it and the head does not: {reasons['head']}")
    if all(failure.unknown for failure in state.failures):
        return Judgement(PASS, f"new: the base has no such model ({reasons['base']})")
    return Judgement(INCOMPLETE, "; ".join(f"{arm}: {reason}" for arm, reason in sorted(reasons.items())))


def with_counts(judgement: Judgement, inspection: Inspection) -> Judgement:
    """Convict a head with different counts, or one that cannot be counted although the base can."""
    faults = [f"{c.metric} {c.base:.0f} → {c.head:.0f}" for c in inspection.counts if not c.is_accepted]
    lost = [reason for reason in inspection.lost if reason.partition(": ")[2] not in judgement.reason]
    faults += [f"the head cannot be counted: {reason}" for reason in lost]
    if not faults:
        return judgement
    reason = "; ".join([*faults, *filter(None, [judgement.reason])])
    return replace(judgement, verdict=REGRESSION, reason=reason)
