"""What two models must share to be compared: a cell's identity without the model and the resolution.

Tables, plots and crossovers each make one block per conditions, so that a batch of 1 is never drawn beside
a batch of 32, nor bfloat16 beside float32.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sema_bench.spec.cell import IDENTITY_FIELDS, Cell
from sema_bench.spec.record import Record
from sema_bench.spec.resolution import Resolution

#: Weights belong to the model: each has its own, and a model may have several, of different seeds.
CONDITION_FIELDS = tuple(name for name in IDENTITY_FIELDS if name not in ("model", "height", "width", "weights"))


@dataclass(frozen=True)
class Conditions:
    """The values of ``CONDITION_FIELDS`` of a cell, in that order."""

    values: tuple[str | int | bool, ...]

    @classmethod
    def of(cls, cell: Cell) -> Conditions:
        found = 0 if cell.batch_policy == "max" else cell.batch  # not chosen, so it does not part cells
        return cls(tuple(found if name == "batch" else getattr(cell, name) for name in CONDITION_FIELDS))

    @property
    def batch_is_found(self) -> bool:
        """Whether each cell has a batch of its own: throughputs compare then, latencies do not."""
        return bool(self.as_dict()["batch_policy"] == "max")

    def as_dict(self) -> dict[str, str | int | bool]:
        return dict(zip(CONDITION_FIELDS, self.values, strict=True))

    @property
    def text(self) -> str:
        """All of it in one line: ``cuda:0 · bfloat16 · batch 32 · compile · channels_last · 8 threads``."""
        return " · ".join(_word(name, value) for name, value in self._shown())

    def text_of(self, varying: Iterable[str]) -> str:
        """Return the fields in ``varying`` alone, in one line."""
        return " · ".join(_word(name, value) for name, value in self._shown() if name in set(varying))

    def slug(self, varying: Iterable[str]) -> str:
        """Return the values of the fields in ``varying`` as part of a file name: ``b32-bfloat16-compile``."""
        values = self.as_dict()
        words = (_slug_word(name, values[name]) for name in CONDITION_FIELDS if name in set(varying))
        return "-".join(re.sub(r"[^A-Za-z0-9_.+]+", "", word) for word in words if word)

    def _shown(self) -> list[tuple[str, str | int | bool]]:
        values = self.as_dict()
        cuda = str(values["device"]).startswith("cuda")
        # TF32 means something for float32 on CUDA, the C allocator on the CPU; elsewhere they would only be noise.
        idle = {"allocator"} if cuda else set()
        if not values["tf32"] and not (cuda and values["dtype"] == "float32"):
            idle.add("tf32")
        idle |= {name for name, usual in _UNSPOKEN.items() if values[name] == usual}
        return [(name, values[name]) for name in _READING_ORDER if name not in idle]


_READING_ORDER = (
    "device",
    "dtype",
    "tf32",
    "batch",
    "mode",
    "step",
    "checkpointing",
    "sdpa",
    "layout",
    "threads",
    "allocator",
    "data",
)
#: Fields that are named only where they are not this.
_UNSPOKEN: dict[str, str | int | bool] = {"step": "infer", "checkpointing": False, "sdpa": "auto", "data": ""}


def _word(name: str, value: str | int | bool) -> str:
    if name == "tf32":
        return "TF32 on" if value else "TF32 off"
    if name == "threads":
        return f"{value} thread{'' if value == 1 else 's'}"
    batch = f"batch {value}" if value else "largest batch that fits"
    words = {
        "batch": batch,
        "allocator": f"allocator {value}",
        "checkpointing": "checkpointing",
        "step": "training step",
        "sdpa": f"SDPA {value}",
    }
    return words.get(name, str(value))


def _slug_word(name: str, value: str | int | bool) -> str:
    if name == "tf32":
        return "tf32" if value else "notf32"
    words = {
        "batch": f"b{value or 'max'}",
        "batch_policy": "",
        "threads": f"t{value}",
        "allocator": f"{value}alloc",
        "checkpointing": "checkpointing" if value else "nocheckpointing",
        "sdpa": f"sdpa{value}",
    }
    return words.get(name, str(value))


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
