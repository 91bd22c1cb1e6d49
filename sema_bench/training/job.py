"""What is trained, who watches it, and how it can fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sema_bench.errors import EXIT_FAILED, SemaBenchError
from sema_bench.spec.data_source import DataSpec
from sema_bench.spec.recipe import Recipe


class TrainingError(SemaBenchError):
    """A training cannot go on; its last good checkpoint stands."""

    exit_code = EXIT_FAILED


class DivergedError(TrainingError):
    """The loss or a gradient is no longer a number."""


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        model: as in ``--models``.
        data: what it is trained on, and tested on.
        recipe: how.
        seed: of weights, order and augmentation.
        workers: processes that prepare images.
    """

    model: str
    data: DataSpec
    recipe: Recipe
    seed: int
    workers: int

    def identity(self) -> dict[str, Any]:
        """Return what weights are called by."""
        return {"model": self.model, "data": str(self.data), "seed": self.seed, "recipe": self.recipe.digest}


class Watcher(Protocol):
    """What the trainer tells while it works."""

    def start(self, *, steps: int, done: int, steps_per_epoch: int) -> None: ...

    def step(self, done: int, loss: float, lr: float) -> None: ...

    def evaluated(self, done: int, found: Mapping[str, float]) -> None: ...

    def stop_asked(self) -> bool:
        """Tell whether someone asked to stop; the step at hand is finished and saved."""
