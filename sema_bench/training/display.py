"""Progress of one training on stderr: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from sema_bench.text.console import StderrConsole
from sema_bench.text.escape import printable

#: Seconds between two plain lines.
_LINE_S = 10.0


class TrainingDisplay:
    """Watches a ``Trainer``; a context manager.

    Args:
        shown: whether this process is the one that talks.
    """

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._console = StderrConsole(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.fields[state]}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", state="starting")
        self._steps = self._steps_per_epoch = 1
        self._first = 0
        self._started = self._said_at = time.monotonic()
        self._stop = False

    def __enter__(self) -> TrainingDisplay:
        with contextlib.suppress(OSError):
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._bar.stop()

    def say(self, message: str) -> None:
        """Print one line."""
        if self._shown:
            with contextlib.suppress(OSError):
                self._console.print(Text(printable(message)), soft_wrap=True)

    def start(self, *, steps: int, done: int, steps_per_epoch: int) -> None:
        self._steps, self._steps_per_epoch, self._first = steps, steps_per_epoch, done
        self._started = self._said_at = time.monotonic()
        self._bar.update(self._task, total=steps, completed=done)
        self.say(f"{steps} steps, {steps_per_epoch} in an epoch" + (f"; {done} of them done already" if done else ""))

    def step(self, done: int, loss: float, lr: float) -> None:
        state = f"epoch {1 + (done - 1) // self._steps_per_epoch} loss {loss:.3f} lr {lr:.2g}"
        self._bar.update(self._task, completed=done, state=state)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._said_at > _LINE_S or done == self._steps):
            self._said_at = now
            left = (now - self._started) / max(1, done - self._first) * (self._steps - done)
            self.say(f"[{done}/{self._steps}] {state}; about {left:.0f} s left")

    def evaluated(self, done: int, found: Mapping[str, float]) -> None:
        between = f"{found['top1_low']:.1%} to {found['top1_high']:.1%}"
        images = f"{found['evaluated_images']:.0f} test images"
        self.say(f"[{done}/{self._steps}] top-1 {found['top1']:.1%} ({between}) of {images}")

    def stop(self) -> None:
        """Ask the trainer to stop."""
        self._stop = True
        self.say("stopping after this step; a second Ctrl-C stops at once")

    def stop_asked(self) -> bool:
        return self._stop
