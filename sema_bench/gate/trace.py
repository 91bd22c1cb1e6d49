"""Trials of the gate on disk: a line for each, with what its verdicts rested on, to be judged again."""

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
    """One gate of which the truth is known.

    Attributes:
        load: what else the machine did.
        level: how much slower the head is, 0.05 for 5 %.
        number: which gate of this load and level, from 0.
        verdicts: what the gate said, by the cells' ids.
        evidence: what that rested on.
    """

    load: str
    level: float
    number: int
    verdicts: Mapping[str, str]
    evidence: Mapping[str, Evidence]

    @property
    def key(self) -> tuple[str, float, int]:
        """What tells it from others of one trace."""
        return self.load, self.level, self.number


def append_trial(path: Path, trial: Trial) -> None:
    """Add a trial to a trace.

    Raises:
        OSError: it could not be written; the file is what it was.
    """
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
    """Return the trials of a trace, in their order; none of a file that is not there.

    Raises:
        UsageError: it cannot be read, or a line of it is no trial.
    """
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
            raise UsageError(
                f"{path}, line {number}: no trial of a gate; remove the line: {printable(line)[:80]}"
            ) from None
    return trials


def _trial(body: Mapping[str, Any]) -> Trial:
    cells = body["cells"].items()
    return Trial(
        load=str(body["load"]),
        level=float(body["level"]),
        number=int(body["number"]),
        verdicts={name: str(cell["verdict"]) for name, cell in cells},
        evidence={
            name: Evidence(
                float(cell["delta"]),
                tuple(_batch(numbers) for numbers in cell["screen"]),
                tuple(_batch(numbers) for numbers in cell["confirm"]),
                bool(cell["parallel"]),
            )
            for name, cell in cells
        },
    )


def _numbers(batch: Batch) -> list[float]:
    sides = [batch.base, batch.head, *([batch.again] if batch.again else [])]
    return [float(f"{value:.{_DIGITS}g}") for side in sides for value in (side.time_s, side.wall_s)]


def _batch(numbers: Sequence[float]) -> Batch:
    sides = [Side(float(time_s), float(wall_s)) for time_s, wall_s in zip(numbers[::2], numbers[1::2], strict=True)]
    if not 2 <= len(sides) <= 3:
        raise ValueError(f"{len(sides)} sides")
    return Batch(*sides)
