"""A neighbour as shared machines have them: it computes in bursts and rests between them, both of random length."""

from __future__ import annotations

import random
import sys
import time

from sema_bench.machine.processes import die_with_parent

#: Mean length of a burst and of a rest, in seconds.
_BURST_S, _REST_S = 0.4, 0.4


def main() -> None:
    """Go on until the parent dies: arguments are its process number and a seed."""
    die_with_parent(int(sys.argv[1]))
    chance = random.Random(int(sys.argv[2]))
    while True:
        until = time.monotonic() + chance.expovariate(1 / _BURST_S)
        while time.monotonic() < until:
            sum(range(10_000))
        time.sleep(chance.expovariate(1 / _REST_S))


if __name__ == "__main__":
    main()
