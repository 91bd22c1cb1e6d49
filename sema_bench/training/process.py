"""Train in a process for a suite: ``python -m sema_bench.training.process <order as JSON>``.

It prints its progress as lines of JSON, ends with its parent, and on SIGTERM saves its state and exits.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from sema_bench.errors import SemaBenchError
from sema_bench.machine.processes import die_with_parent, importing_torch, let_libraries_warn
from sema_bench.spec.metrics import ACCURACIES, METRICS
from sema_bench.training.job import Order

#: Seconds between two progress lines.
_REPORT_S = 1.0


class _Reporter:
    def __init__(self) -> None:
        self._reported_at = 0.0
        self._stop = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask_to_stop)

    def start(self, *, steps: int, done: int, steps_per_epoch: int) -> None:
        self._report(steps=steps, done=done)

    def step(self, done: int, loss: float, lr: float) -> None:
        if time.monotonic() - self._reported_at > _REPORT_S:
            self._report(done=done)

    def evaluated(self, done: int, accuracy: Mapping[str, Any]) -> None:
        name = next(name for name in ACCURACIES if name in accuracy)
        self._report(done=done, tested=f"{METRICS[name].short} {accuracy[name]:.1%}")

    def stop_asked(self) -> bool:
        return self._stop

    def _report(self, **facts: Any) -> None:
        self._reported_at = time.monotonic()
        print(json.dumps(facts), flush=True)

    def _ask_to_stop(self, number: int, frame: object) -> None:
        self._stop = True


def main() -> int:
    """Train the order in the first argument; return the exit code."""
    order = Order(**json.loads(sys.argv[1]))
    die_with_parent(order.parent)
    let_libraries_warn()
    reporter = _Reporter()
    with importing_torch():  # it may warn
        from sema_bench.training.execute import train_order

    try:
        train_order(order, reporter)
    except SemaBenchError as problem:
        print(json.dumps({"failed": str(problem)}), flush=True)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # worker processes of a data loader may take their time
