"""Load the machine until the parent dies, as neighbours do: in bursts of random length, or with runs of tests."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

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


def run_tests(parent: int, seed: int, folder: Path) -> None:
    """Run the tests in ``folder``, in random order of the files, again and again until the parent dies."""
    import pytest

    die_with_parent(parent)
    chance = random.Random(seed)
    files = [str(path) for path in folder.glob("test_*.py")]
    while files:
        pytest.main(["-q", "-p", "no:cacheprovider", *chance.sample(files, len(files))])


if __name__ == "__main__":
    of, number, *tests = sys.argv[1:]
    if tests:
        run_tests(int(of), int(number), Path(tests[0]))
    compute_in_bursts(int(of), int(number))
