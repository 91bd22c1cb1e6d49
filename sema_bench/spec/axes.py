"""Describe an axis of a cell once: options, suites, plans, comparisons, headings and columns are made from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

#: Panels of ``--help``.
MEASURED, HOW, LIMITS, RESULTS, WHERE = "What to measure", "How", "Precision and limits", "Results", "Where"
#: No machine has as many pixels, images or threads as this.
LARGEST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One field of ``Cell``: ``mode: str = Axis(default="eager", …).field``."""

    description: str  # meaning of the column, for the docs
    name: str = ""  # of the field; ``axes_of`` fills in name and type
    type: type = str
    default: Any = None  # None: the field has none
    suite_key: str = ""  # key of suites that sets it; "": its name
    crossed: bool = True  # a suite gives a list of values, and a plan crosses them
    optional: bool = False  # a suite may leave it out, so that the device or the command decides
    choices: tuple[str, ...] = ()  # allowed texts; empty: any
    limits: tuple[int, int] = (1, LARGEST)  # smallest and largest number that a plan may ask for
    canonical: Callable[[str], str] | None = None  # returns the canonical form of a text, or raises UsageError
    expand: Callable[[str], list[str]] | None = None  # lists the values that a text of a suite stands for
    cuda_only: tuple[str, ...] = ()  # choices that need a CUDA device
    why_cuda: str = ""  # words for the refusal of those choices on another device
    applies: Callable[[Mapping[str, Any]], bool] = lambda values: True  # has a meaning, given a cell's other values
    idle: Any = None  # value where it does not apply
    option: str = ""  # "": ``--`` and its name. Axes may share one: the first of them has the help
    metavar: str = "LIST"
    help: str = ""
    panel: str = HOW
    key: Callable[[Any], str] = "/{}".format  # its part of ``Cell.id``
    slug: Callable[[Any], str] | None = None  # its part of names of plots; None: ``key`` without punctuation
    word: Callable[[Any], str] = str  # its words in headings
    unspoken: Any = None  # value left out of headings and ids; a new axis puts its default here: ids must never change

    @property
    def field(self) -> Any:
        """Make the field of the dataclass."""
        default = dataclasses.MISSING if self.default is None else self.default
        return dataclasses.field(default=default, metadata={"axis": self})


def axes_of(cell: type) -> dict[str, Axis]:
    """Map each field of a dataclass to its ``Axis``; raise TypeError for a field without one."""
    axes = {}
    for field in dataclasses.fields(cell):
        axis = field.metadata.get("axis")
        if axis is None:
            raise TypeError(f"{cell.__name__}.{field.name} has no Axis; write {field.name}: TYPE = Axis(…).field")
        axes[field.name] = dataclasses.replace(
            axis,
            name=field.name,
            type=field.type,
            suite_key=axis.suite_key or field.name,
            option=axis.option or f"--{field.name.replace('_', '-')}",
        )
    return axes
