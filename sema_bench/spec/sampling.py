"""Set how well to measure: the stop rule of sampling, and the settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

#: The timed part of a cell (building, warm-up, three samples) may take this many times its sampling limit.
WALL_LIMIT_FACTOR = 10.0
#: The timed part may always take this long, in seconds: starting a worker alone takes seconds.
MIN_WALL_LIMIT_S = 30.0
#: Compilation is not sampling; a compiled cell gets this much more time, in seconds.
COMPILE_ALLOWANCE_S = 600.0
#: What to do about a cell that ran out of time: a run keeps the limit that it was started with.
MORE_TIME = "start a run with a longer --time-limit (time_limit_s of a suite)"


@dataclass(frozen=True)
class Sampling:
    """The stop rule of the throughput probe."""

    precision: float = 0.02  # sampling stops at this relative half-width of the 95 % interval of a ratio or median
    time_limit_s: float = 15.0  # of a cell, plus time that others left over; a minimum of samples is always taken
    seed: int = 0  # of weights, inputs and the order of interleaving

    def wall_limit_s(self, mode: str) -> float:
        """Return the wall time after which the driver stops a cell of ``mode``."""
        allowance = COMPILE_ALLOWANCE_S if mode.startswith("compile") else 0.0
        return max(MIN_WALL_LIMIT_S, WALL_LIMIT_FACTOR * self.time_limit_s) + allowance


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation that do not change the accuracy."""

    batch: int = 32
    workers: int | None = None  # processes that prepare images; None: spare CPUs
