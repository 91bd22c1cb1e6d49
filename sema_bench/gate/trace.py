"""Store trials of the gate, one per line, with the evidence for the verdicts, so that they can be judged again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sema_bench.errors import UsageError
from sema_bench.gate.batch import Batch, Side
from sema_bench.gate.rule import Evidence
from sema_bench.store.files import append_line
from sema_bench.text.escape import printable
from sema_bench.text.plain_json import read_json

_DIGITS = 6


@dataclass(frozen=True)
class Trial:
    """One gate with a known slowdown of the head.

    Attributes:
        load: ``alone``, ``busy`` or ``tests``.
        level: how much slower the head is, 0.05 for 5 %.
        number: number of the gate at this load and level, from 0.
        verdicts, evidence: by the ids of the cells.
        took_s: how long the gate took, without counting.
    """

    load: str
    level: float
    number: int
    verdicts: Mapping[str, str]
    evidence: Mapping[str, Evidence]
    took_s: float

    @property
    def key(self) -> tuple[str, float, int]:
        return self.load, self.level, self.number


def append_trial(path: Path, trial: Trial) -> None:
    """Append a trial to a trace; if that raises OSError, the file is unchanged."""
    cells = {
        name: {
            "verdict": trial.verdicts[name],
            "delta": evidence.delta,
            "parallel": evidence.parallel,
            "batches": [_numbers(batch) for batch in evidence.batches],
        }
        for name, evidence in trial.evidence.items()
    }
    body = {"load": trial.load, "level": trial.level, "number": trial.number, "took_s": round(trial.took_s, 1)}
    body |= {"cells": cells}
    append_line(path, json.dumps(body, separators=(",", ":")), sync=True)


def read_trace(path: Path) -> list[Trial]:
    """Read the trials of a trace, in their order; a file that does not exist has none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"{path} cannot be read: {getattr(problem, 'strerror', '') or 'no text'}") from None
    trials = []
    for number, line in enumerate(lines, start=1):
        try:
            trials.append(_trial(read_json(line)))
        except (ValueError, KeyError, TypeError, AttributeError):
            shown = printable(line)[:80]
            raise UsageError(f"{path}, line {number}: not a trial of a gate; remove the line: {shown}") from None
    return trials


def _trial(body: Mapping[str, Any]) -> Trial:
    cells = body["cells"]
    return Trial(
        str(body["load"]),
        float(body["level"]),
        int(body["number"]),
        {name: str(cell["verdict"]) for name, cell in cells.items()},
        {name: _evidence(cell) for name, cell in cells.items()},
        float(body["took_s"]),
    )


def _evidence(cell: Mapping[str, Any]) -> Evidence:
    return Evidence(float(cell["delta"]), tuple(map(_batch, cell["batches"])), bool(cell["parallel"]))


def _numbers(batch: Batch) -> list[float]:
    sides = (batch.base, batch.head)
    return [float(f"{value:.{_DIGITS}g}") for side in sides for value in (side.time_s, side.wall_s)]


def _batch(numbers: Sequence[float]) -> Batch:
    base_s, base_wall_s, head_s, head_wall_s = numbers
    return Batch(Side(base_s, base_wall_s), Side(head_s, head_wall_s))
