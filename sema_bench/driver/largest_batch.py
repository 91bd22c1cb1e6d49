"""The largest power of two of images that fits into memory, by the forecast; running it then proves it or halves it."""

from __future__ import annotations

from collections.abc import Callable

from sema_bench.driver.worker_process import CellFailure
from sema_bench.machine.device_memory import WORKER_BYTES
from sema_bench.spec.suite import MAX_BATCH

#: Share of the free memory that a batch may fill: a forecast may be a few per cent low.
MEMORY_SHARE = 0.9


def largest_batch(predict: Callable[[int], float], free_bytes: int) -> int:
    """Return the largest power of two whose predicted peak fits into ``free_bytes``, worker and reserve included.

    Args:
        predict: batch → predicted peak in bytes; asked for 1, 2 and the answer.
        free_bytes: what the device has free.

    Raises:
        CellFailure: not even one image fits (``oom``).
    """
    budget = MEMORY_SHARE * free_bytes - WORKER_BYTES
    one, two = predict(1), predict(2)
    if one > budget:
        raise CellFailure(
            "oom",
            f"one image is predicted to need {one / 2**30:.1f} GiB, and {max(0.0, budget) / 2**30:.1f} GiB are free",
            worker_lost=False,
        )
    batch = 1
    while batch < MAX_BATCH and one + (2 * batch - 1) * (two - one) <= budget:
        batch *= 2
    while batch > 1 and predict(batch) > budget:
        batch //= 2
    return batch
