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
    """One field of ``Cell``: ``mode: str = Axis(default="eager", …).field``.

    Attributes:
        description: meaning of the column, for the docs.
        default: of the field; None: it has none.
        name, type: of the field; ``axes_of`` fills them in.
        suite_key: key of suites that sets it; "": its name.
        crossed: whether a suite gives a list of values, and a plan crosses them.
        optional: whether a suite may leave it out, so that the device or the command decides.
        choices: the texts it may be; none: any.
        limits: smallest and largest number that a plan may ask for.
        canonical: returns the canonical form of a text, or raises ``UsageError``.
        cuda_only, why_cuda: choices that need a CUDA device, and the words for the refusal on another one.
        applies: whether it means anything, given the other values of a cell; ``idle`` is its value where it does not.
        option, metavar, help, panel: its command-line option; "": ``--`` and its name. Axes may share one: the first of
            them has the ``help``.
        key: its part of ``Cell.id``.
        slug: its part of names of plots; None: ``key`` without punctuation.
        word: its words in headings.
        unspoken: value that headings and ids leave out. A new axis has its default here: ids must never change.
        heading_rank: position in headings; 0: left out of them.
    """

    description: str
    name: str = ""
    type: type = str
    default: Any = None
    suite_key: str = ""
    crossed: bool = True
    optional: bool = False
    choices: tuple[str, ...] = ()
    limits: tuple[int, int] = (1, LARGEST)
    canonical: Callable[[str], str] | None = None
    cuda_only: tuple[str, ...] = ()
    why_cuda: str = ""
    applies: Callable[[Mapping[str, Any]], bool] = lambda values: True
    idle: Any = None
    option: str = ""
    metavar: str = "LIST"
    help: str = ""
    panel: str = HOW
    key: Callable[[Any], str] = "/{}".format
    slug: Callable[[Any], str] | None = None
    word: Callable[[Any], str] = str
    unspoken: Any = None
    heading_rank: int = 50

    @property
    def field(self) -> Any:
        """The field of the dataclass."""
        default = dataclasses.MISSING if self.default is None else self.default
        return dataclasses.field(default=default, metadata={"axis": self})


def switch(off: str, on: str) -> Callable[[Any], str]:
    """Make the words of a yes-or-no axis, as a function of its value."""
    return (off, on).__getitem__


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
