"""Store trials of the gate, one a line, with the evidence of the verdicts, so that they can be judged again."""

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

_DIGITS = 7


@dataclass(frozen=True)
class Trial:
    """One gate whose head is known.

    Attributes:
        load: ``alone`` or ``busy``.
        level: how much slower the head is, 0.05 for 5 %.
        number: of the gate at this load and level, from 0.
        verdicts, evidence: by the ids of the cells.
    """

    load: str
    level: float
    number: int
    verdicts: Mapping[str, str]
    evidence: Mapping[str, Evidence]

    @property
    def key(self) -> tuple[str, float, int]:
        return self.load, self.level, self.number


def append_trial(path: Path, trial: Trial) -> None:
    """Append a trial to a trace; if that raises OSError, the file is as it was."""
    cells = {
        name: {
            "verdict": trial.verdicts[name],
            "delta": evidence.delta,
            "parallel": evidence.parallel,
            "screen": [_numbers(batch) for batch in evidence.screen],
            "confirm": [_numbers(batch) for batch in evidence.confirm],
        }
        for name, evidence in trial.evidence.items()
    }
    body = {"load": trial.load, "level": trial.level, "number": trial.number, "cells": cells}
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
    )


def _evidence(cell: Mapping[str, Any]) -> Evidence:
    screen, confirm = (tuple(map(_batch, cell[key])) for key in ("screen", "confirm"))
    return Evidence(float(cell["delta"]), screen, confirm, bool(cell["parallel"]))


def _numbers(batch: Batch) -> list[float]:
    sides = [side for side in (batch.base, batch.head, batch.again) if side]
    return [float(f"{value:.{_DIGITS}g}") for side in sides for value in (side.time_s, side.wall_s)]


def _batch(numbers: Sequence[float]) -> Batch:
    return Batch(*(Side(time_s, wall_s) for time_s, wall_s in zip(numbers[::2], numbers[1::2], strict=True)))
