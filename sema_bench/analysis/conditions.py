"""Conditions: what two models must share to be compared, a cell's identity without the model and the resolution.

Tables, plots and crossovers each make one block per conditions, so that a batch of 1 is never drawn beside
a batch of 32, nor bfloat16 beside float32.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sema_bench.spec.axes import Axis
from sema_bench.spec.cell import AXES, IDENTITY_FIELDS, Cell
from sema_bench.spec.record import Record
from sema_bench.spec.resolution import Resolution

#: Weights belong to the model: each has its own, and a model may have several, of different seeds.
CONDITION_FIELDS = tuple(name for name in IDENTITY_FIELDS if name not in ("model", "height", "width", "weights"))
#: Axes that headings mention, in their order there.
_SPOKEN = sorted((axis for axis in AXES.values() if axis.heading_rank), key=lambda axis: axis.heading_rank)


@dataclass(frozen=True)
class Conditions:
    """The values of ``CONDITION_FIELDS`` of a cell, in that order."""

    values: tuple[str | int | bool, ...]

    @classmethod
    def of(cls, cell: Cell) -> Conditions:
        values = _values_of(cell)
        if cell.batch_policy == "max":  # a result, and not a condition
            values["batch"] = 0
        return cls(tuple(values[name] for name in CONDITION_FIELDS))

    @property
    def batch_is_found(self) -> bool:
        """Whether the batch differs from cell to cell: throughputs compare then, latencies do not."""
        return bool(self.as_dict()["batch_policy"] == "max")

    def as_dict(self) -> dict[str, str | int | bool]:
        return dict(zip(CONDITION_FIELDS, self.values, strict=True))

    @property
    def text(self) -> str:
        """All of it in one line: ``cuda:0 · bfloat16 · batch 32 · compile · channels_last · 8 threads``."""
        return self.text_of(CONDITION_FIELDS)

    def text_of(self, varying: Iterable[str]) -> str:
        """Return the fields in ``varying`` alone, in one line."""
        values, shown = self.as_dict(), set(varying)
        return " · ".join(axis.word(values[axis.name]) for axis in _spoken(values) if axis.name in shown)

    def slug(self, varying: Iterable[str]) -> str:
        """Return the values of the fields in ``varying`` as part of a file name: ``b32-bfloat16-compile``."""
        values, shown = self.as_dict(), set(varying)
        words = (_slug_word(AXES[name], values[name]) for name in CONDITION_FIELDS if name in shown)
        return "-".join(re.sub(r"[^A-Za-z0-9_.+]+", "", word) for word in words if word)


def short_name(cell: Cell, *, without: Iterable[str] = ()) -> str:
    """Return the settings of ``cell`` that are not at their defaults, in words, except for the axes in ``without``."""
    values, left_out = _values_of(cell), set(without)
    unusual = (axis for axis in _spoken(values) if values[axis.name] != axis.default and axis.name not in left_out)
    return " ".join(axis.word(values[axis.name]) for axis in unusual)


def _values_of(cell: Cell) -> dict[str, Any]:
    return {name: getattr(cell, name) for name in IDENTITY_FIELDS}


def _spoken(values: Mapping[str, Any]) -> list[Axis]:
    """Return the axes that headings mention for these values, in order; those that do not apply would be noise."""
    return [axis for axis in _SPOKEN if axis.applies(values) and values[axis.name] != axis.unspoken]


def _slug_word(axis: Axis, value: Any) -> str:
    word = axis.slug(value) if axis.slug else axis.key(value).lstrip("/+")
    return word or (f"no{axis.name}" if axis.type is bool else "")


def by_conditions(records: Iterable[Record]) -> dict[Conditions, list[Record]]:
    """Return the records of each conditions, both in the order they first appear."""
    groups: dict[Conditions, list[Record]] = {}
    for record in records:
        groups.setdefault(Conditions.of(record.cell), []).append(record)
    return groups


def by_model(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the records of each model, smallest resolution first, models in the order they first appear."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.cell.model, []).append(record)
    return {model: sorted(group, key=lambda r: size_key(r.cell.resolution)) for model, group in groups.items()}


def varying_fields(groups: Iterable[Conditions]) -> tuple[str, ...]:
    """Return the names of the fields in which the conditions differ."""
    columns = zip(*(group.values for group in groups), strict=True)
    return tuple(name for name, column in zip(CONDITION_FIELDS, columns, strict=False) if len(set(column)) > 1)


def size_key(resolution: Resolution) -> tuple[int, int]:
    """Sort key of resolutions: by pixels, then by height."""
    return resolution.pixels, resolution.height


def resolutions_of(records: Iterable[Record]) -> list[Resolution]:
    """Return every resolution that the records name, smallest first, each once."""
    return sorted({record.cell.resolution for record in records}, key=size_key)


def environments_of(records: Sequence[Record]) -> list[str]:
    """Return the fingerprints of the environments that gave the records; more than one means mixed machines."""
    return sorted({record.environment for record in records if record.environment})
