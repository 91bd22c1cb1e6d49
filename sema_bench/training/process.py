"""A training in a process of its own, for suites: ``python -m sema_bench.training.process <job as JSON>``.

It tells how far it is in JSON lines on stdout, ends with its parent, and on SIGTERM saves its state and exits.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sema_bench.errors import EXIT_FAILED, EXIT_INCOMPLETE, SemaBenchError, StoreError
from sema_bench.machine.processes import die_with_parent, let_libraries_warn

#: Seconds between two lines about steps.
_TELL_S = 1.0


@dataclass(frozen=True)
class Order:
    """What the process is to train.

    Attributes:
        model, data, seed: see ``trainer.Job``; the data as text.
        recipe: as JSON has it.
        folder: where it goes.
        device, threads: where it computes.
        workers: processes that prepare images; None: spare CPUs.
        parent: the process with which this one ends.
    """

    model: str
    data: str
    seed: int
    recipe: dict[str, Any]
    folder: str
    device: str
    threads: int
    workers: int | None
    parent: int

    def to_json(self) -> str:
        """Return the argument of the process."""
        return json.dumps(asdict(self))


class _Teller:
    """Tells the parent; a parent that has gone is none of its business."""

    def __init__(self) -> None:
        self._told_at = 0.0
        self._stop = False
        self._steps = 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask_to_stop)

    def start(self, *, steps: int, done: int, steps_per_epoch: int) -> None:
        self._steps = steps
        self._tell(done=done)

    def step(self, done: int, loss: float, lr: float) -> None:
        if time.monotonic() - self._told_at > _TELL_S:
            self._tell(done=done, loss=loss)

    def evaluated(self, done: int, found: Mapping[str, float]) -> None:
        self._tell(done=done, top1=found["top1"])

    def stop_asked(self) -> bool:
        return self._stop

    def _tell(self, **what: Any) -> None:
        self._told_at = time.monotonic()
        print(json.dumps({"steps": self._steps, **what}), flush=True)

    def _ask_to_stop(self, number: int, frame: object) -> None:
        self._stop = True


def main() -> int:
    """Train what the first argument says; returns the exit code."""
    order = Order(**json.loads(sys.argv[1]))
    die_with_parent(order.parent)
    let_libraries_warn()
    teller = _Teller()
    import torch

    from sema_bench.data.loader import default_workers
    from sema_bench.errors import ProbeError
    from sema_bench.spec.data_source import parse_data
    from sema_bench.spec.recipe import parse_recipe
    from sema_bench.training.devices import Distributed
    from sema_bench.training.job import Job
    from sema_bench.training.trainer import Trainer
    from sema_bench.worker.foreign_model import SizeNotSupportedError

    torch.set_num_threads(order.threads)
    try:
        recipe = parse_recipe(order.recipe, source="the order")
        workers = default_workers() if order.workers is None else order.workers
        job = Job(order.model, parse_data(order.data), recipe, order.seed, workers)
        place = Distributed(0, 1, torch.device(order.device))
        Trainer(job, Path(order.folder), place, teller).run()
    except (SemaBenchError, ProbeError, SizeNotSupportedError) as problem:
        print(json.dumps({"failed": str(problem)}), flush=True)
        return EXIT_INCOMPLETE if isinstance(problem, StoreError) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # worker processes of a data loader may take their time
