"""Show the progress of runs and trainings on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from sema_bench.analysis.conditions import short_name
from sema_bench.report.time_left import TimeLeft
from sema_bench.spec import units as fmt
from sema_bench.spec.cell import Cell
from sema_bench.spec.metrics import ACCURACIES, METRICS
from sema_bench.spec.record import Record
from sema_bench.spec.sampling import Sampling
from sema_bench.text.console import StderrConsole
from sema_bench.text.escape import for_log

_Bar = TypeVar("_Bar", bound="LiveBar")
#: Seconds between two lines about the steps of a training.
_LINE_S = 10.0

#: Expected seconds for the last tables and plots, until a run has written some: half of it loads the libraries.
WRITE_S = 5.0
#: Settings that the cells of a run usually share.
_COMMON = ("device", "layout", "threads", "allocator", "data")


class LiveBar:
    """A progress bar on a terminal with ``left`` behind it, and lines above it; a context manager."""

    def __init__(self, left: ProgressColumn, *, quiet: bool) -> None:
        self._console = StderrConsole(stderr=True, highlight=False, quiet=quiet)
        self._live = self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.fields[phase]}", markup=False),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            left,
            console=self._console,
            disable=quiet or not self._live,
        )
        self._task = self._bar.add_task("", phase="starting", total=None)

    def __enter__(self: _Bar) -> _Bar:
        with contextlib.suppress(OSError):
            self._bar.start()
        return self

    def __exit__(self, *problem: object) -> None:
        with contextlib.suppress(OSError):
            self._bar.stop()

    def say(self, message: str, *, wrap: bool = False) -> None:
        """Print one line above the bar; ``wrap`` breaks it between words on a terminal: not for commands or paths."""
        with contextlib.suppress(OSError):
            self._console.print(Text(for_log(message)), soft_wrap=not (wrap and self._live))


class _LeftColumn(ProgressColumn):
    """The time left; it is updated between two cells, too."""

    def __init__(self, text: Callable[[], str]) -> None:
        super().__init__()
        self._left = text

    def render(self, task: Task) -> Text:
        return Text(self._left())


class ProgressDisplay(LiveBar):
    """Show how far a run is, its current cell and the time left.

    Args:
        sampling: limits of a cell; None if nothing is timed.
        timed: print a line when a group starts, as it may take minutes until its first cell is done.
        write_s: expected time of the tables and plots at the end.
        quiet: show nothing.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        *,
        sampling: Sampling | None = None,
        timed: bool = False,
        write_s: float = 0.0,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(_LeftColumn(self._time_left), quiet=quiet)
        self._sampling, self._timed, self._write_s, self._clock = sampling, timed, write_s, clock
        self._group_of: dict[str, int] = {}  # cell → number of its group
        self._new: dict[int, str] = {}  # groups that have not started, with the line to print when they do
        self._total = self._done = 0
        self._left: TimeLeft | None = None

    def start(self, *, total: int, missing: Sequence[Sequence[Cell]]) -> None:
        self._total, self._done = total, total - sum(map(len, missing))
        if not self._console.quiet:
            self._left = TimeLeft(missing, sampling=self._sampling, now=self._clock(), write_s=self._write_s)
        self._bar.update(self._task, total=total, completed=self._done)
        cells = fmt.counted(total, "cell")
        self.say(f"{cells}, {self._done} of them done already" if self._done else cells)
        for number, group in enumerate(missing if self._timed else ()):
            self._group_of |= {cell.id: number for cell in group}
            size = group[0].resolution.label
            self._new[number] = f"{size}: building and warming up {fmt.counted(len(group), 'cell')}"

    def phase(self, cell: Cell, phase: str, share: float = 0.0) -> None:
        if line := self._new.pop(self._group_of.get(cell.id, -1), ""):  # several threads call this
            self.say(line)
        if self._left:
            self._left.phase(cell, phase, share, now=self._clock())
        done = f" {share:.0%}" if share else ""
        self._bar.update(self._task, phase=f"{cell.resolution.label} {cell.model} {phase}{done}")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Show that the body writes tables and plots."""
        started = self._clock()
        self._bar.update(self._task, phase="writing tables and plots")
        yield
        if self._left:
            self._left.wrote(self._clock() - started)

    def finished(self, record: Record) -> None:
        self._done += 1
        if self._left:
            self._left.finished(record, now=self._clock())
        left = self._time_left()
        self._bar.update(self._task, completed=self._done)
        result = record.reason if record.status != "ok" else _headline(record)
        settings = short_name(record.cell, without=_COMMON)
        name = f"{record.cell.model} {settings}".rstrip()
        line = f"[{self._done}/{self._total}] {record.cell.resolution.label} {name}: {record.status}"
        self.say(f"{line}, {result}" + (f"; {left}" if left and not self._live else ""))

    def _time_left(self) -> str:
        return self._left.text(now=self._clock()) if self._left else ""


class TrainingDisplay(LiveBar):
    """Watch a ``Trainer``: a live bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(TimeRemainingColumn(), quiet=quiet)
        self._stop = False

    def start(self, *, steps: int, done: int, steps_per_epoch: int) -> None:
        self._steps, self._steps_per_epoch, self._first = steps, steps_per_epoch, done
        self._started = self._line_at = time.monotonic()
        self._bar.update(self._task, total=steps, completed=done)
        self.say(f"{steps} steps, {steps_per_epoch} in an epoch" + (f"; {done} of them done already" if done else ""))

    def step(self, done: int, loss: float, lr: float) -> None:
        state = f"epoch {1 + (done - 1) // self._steps_per_epoch} loss {loss:.3f} lr {lr:.2g}"
        self._bar.update(self._task, completed=done, phase=state)
        now = time.monotonic()
        if not self._live and (now - self._line_at > _LINE_S or done == self._steps):
            self._line_at = now
            left = (now - self._started) / max(1, done - self._first) * (self._steps - done)
            self.say(f"[{done}/{self._steps}] {state}; about {left:.0f} s left")

    def evaluated(self, done: int, accuracy: Mapping[str, Any]) -> None:
        name = next(name for name in ACCURACIES if name in accuracy)
        share = _share(accuracy[name], accuracy[f"{name}_low"], accuracy[f"{name}_high"])
        images = f"{accuracy['evaluated_images']:.0f} test images"
        self.say(f"[{done}/{self._steps}] {METRICS[name].short} {share} of {images}")

    def stop(self) -> None:
        """Ask the trainer to stop."""
        self._stop = True
        self.say("stopping after this step; a second Ctrl-C stops at once")

    def stop_asked(self) -> bool:
        return self._stop


def _share(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.1%}" + ("" if low is None or high is None else f" ({low:.1%} to {high:.1%})")


def _headline(record: Record) -> str:
    if latency := record.measurements.get("latency_s"):
        text = fmt.seconds(latency.value)
        if latency.ci_low is not None and latency.ci_high is not None:
            text += f" ±{(latency.ci_high - latency.ci_low) / 2 / latency.value:.1%}"
        return f"{text}, {len(latency.samples)} samples"
    for name in ACCURACIES:
        if share := record.measurements.get(name):
            text = _share(share.value, share.ci_low, share.ci_high)
            return f"{METRICS[name].short} {text}, {record.value('evaluated_images') or 0:.0f} images"
    if predicted := record.value("predicted_peak_bytes"):
        return f"{fmt.size(predicted)} predicted"
    return fmt.counted(len(record.measurements), "metric")
