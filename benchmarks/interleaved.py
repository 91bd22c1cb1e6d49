"""Time forms of one network in turns, so that drift affects all of them alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: A network and its input image.
Form = tuple[Callable[[Tensor], Tensor], Tensor]
FEWEST_ROUNDS, SHORTEST_S = 2, 5.0


@dataclass(frozen=True)
class Ratios:
    """Time of the first form / time of this one, so above 1 this one is faster: median and range over builds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: list[float]) -> Ratios:
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def inverse(self) -> Ratios:
        """Return this form / first form."""
        return Ratios(1 / self.median, 1 / self.high, 1 / self.low)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratios_to_first(
    makers: Mapping[str, Callable[[], Form]], *, builds: int, tolerances: Mapping[str, float] | None
) -> dict[str, Ratios]:
    """Compare the time of each form with that of the first.

    Where weights lie in memory shifts a form's time by several per cent for as long as it lives. So all forms are
    rebuilt ``builds`` times, in random order. They are sampled for some seconds in rounds of random order; each sample
    is the better of two.

    ``tolerances`` has the largest relative ℓ2 error of a form's logits against the first form's, 1e-3 by default; None
    if the networks differ.
    """
    rng = random.Random(0)
    first = next(iter(makers))
    ratios: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(builds):
        forms = {name: makers[name]() for name in rng.sample(list(makers), k=len(makers))}
        expected = forms[first][0](forms[first][1])
        for name, (form, image) in forms.items():
            error = float((form(image).float() - expected).norm() / expected.norm())
            assert tolerances is None or error <= tolerances.get(name, 1e-3), f"{name} differs by {error:.1e}"
            form(image)
        took: dict[str, list[float]] = {name: [] for name in forms}
        started, rounds = time.perf_counter(), 0
        while rounds < FEWEST_ROUNDS or time.perf_counter() - started < SHORTEST_S:
            rounds += 1
            for name in rng.sample(list(forms), k=len(forms)):
                took[name].append(min(_seconds(*forms[name]) for _ in range(2)))
        for name, times in took.items():
            ratios[name].append(statistics.median(a / b for a, b in zip(took[first], times, strict=True)))
    return {name: Ratios.of(values) for name, values in ratios.items()}


def channels_last(model: nn.Module, image: Tensor) -> Form:
    """Convert a model and its image to the layout that this suite uses."""
    return model.eval().to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last)


def _seconds(form: Callable[[Tensor], Tensor], image: Tensor) -> float:
    started = time.perf_counter()
    form(image)
    return time.perf_counter() - started
