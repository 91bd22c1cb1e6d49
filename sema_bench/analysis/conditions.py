"""Group records by conditions: the identity of a cell without model, weights and resolution.

Tables, plots and crossovers compare models under the same conditions only: never a batch of 1 with one of 32.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sema_bench.spec.axes import Axis
from sema_bench.spec.cell import AXES, HEADING_ORDER, IDENTITY_FIELDS, Cell
from sema_bench.spec.record import Record
from sema_bench.spec.resolution import Resolution

#: Weights belong to the model: each has its own, and a model may have several, of different seeds.
CONDITION_FIELDS = tuple(name for name in IDENTITY_FIELDS if name not in ("model", "height", "width", "weights"))
#: Axes that headings mention, in the order of a heading; the batch shows the policy.
_SPOKEN = [AXES[name] for name in dict.fromkeys((*HEADING_ORDER, *CONDITION_FIELDS)) if name != "batch_policy"]


@dataclass(frozen=True)
class Conditions:
    """The values of ``CONDITION_FIELDS`` of a cell, in that order."""

    values: tuple[str | int | bool, ...]

    @classmethod
    def of(cls, cell: Cell) -> Conditions:
        values = {"batch": 0} if cell.batch_policy == "max" else {}  # there, the batch is a result
        return cls(tuple(values.get(name, getattr(cell, name)) for name in CONDITION_FIELDS))

    @property
    def batch_is_found(self) -> bool:
        """True if the batch differs from cell to cell: then throughputs are comparable, latencies are not."""
        return self.as_dict()["batch_policy"] == "max"

    def as_dict(self) -> dict[str, str | int | bool]:
        return dict(zip(CONDITION_FIELDS, self.values, strict=True))

    @property
    def text(self) -> str:
        """All values in one line: ``cuda:0 · bfloat16 · batch 32 · compile · channels_last · 8 threads``."""
        return self.text_of(CONDITION_FIELDS)

    def text_of(self, varying: Collection[str]) -> str:
        """Return only the fields in ``varying``, in one line."""
        values = self.as_dict()
        return " · ".join(axis.word(values[axis.name]) for axis in _spoken(values) if axis.name in varying)

    def slug(self, varying: Collection[str]) -> str:
        """Return the values of the fields in ``varying`` as part of a file name: ``b32-bfloat16-compile``."""
        words = (_slug_word(AXES[name], value) for name, value in self.as_dict().items() if name in varying)
        return "-".join(re.sub(r"[^A-Za-z0-9_.+]+", "", word) for word in words if word)


def short_name(cell: Cell, *, without: Collection[str] = ()) -> str:
    """Name the settings of ``cell`` that differ from their defaults, except for the axes in ``without``."""
    values = {name: getattr(cell, name) for name in IDENTITY_FIELDS}
    unusual = (axis for axis in _spoken(values) if values[axis.name] != axis.default and axis.name not in without)
    return " ".join(axis.word(values[axis.name]) for axis in unusual)


def _spoken(values: Mapping[str, Any]) -> list[Axis]:
    """Return the axes that headings mention for these values, in order; those that do not apply would be noise."""
    return [axis for axis in _SPOKEN if axis.applies(values) and values[axis.name] != axis.unspoken]


def _slug_word(axis: Axis, value: Any) -> str:
    word = axis.slug(value) if axis.slug else axis.key(value).lstrip("/+")
    return word or (f"no{axis.name}" if axis.type is bool else "")


def by_conditions(records: Iterable[Record]) -> dict[Conditions, list[Record]]:
    """Group records by conditions, in the order they first appear."""
    groups: dict[Conditions, list[Record]] = {}
    for record in records:
        groups.setdefault(Conditions.of(record.cell), []).append(record)
    return groups


def by_model(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Group records by model, in the order they first appear; sort each group by resolution."""
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
    """List the resolutions of the records, smallest first."""
    return sorted({record.cell.resolution for record in records}, key=size_key)


def environments_of(records: Sequence[Record]) -> list[str]:
    """List the fingerprints of the records' environments; more than one means mixed machines."""
    return sorted({record.environment for record in records if record.environment})
