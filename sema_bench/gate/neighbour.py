"""Keep a CPU busy in bursts of random length, until the parent dies, as neighbours on a shared machine do."""

from __future__ import annotations

import random
import sys
import time

from sema_bench.machine.processes import die_with_parent

#: Mean length of a burst, and of a rest, in seconds.
_BURST_S = 0.4


def compute_in_bursts(parent: int, seed: int) -> None:
    """Compute and rest in turns until the parent dies."""
    die_with_parent(parent)
    chance = random.Random(seed)
    while True:
        until = time.monotonic() + chance.expovariate(1 / _BURST_S)
        while time.monotonic() < until:
            sum(range(10_000))
        time.sleep(chance.expovariate(1 / _BURST_S))


if __name__ == "__main__":
    compute_in_bursts(int(sys.argv[1]), int(sys.argv[2]))
