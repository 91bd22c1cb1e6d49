"""Progress on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from sema_bench.spec import units as fmt
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import work
from sema_bench.spec.record import Measurement, Record
from sema_bench.text.console import StderrConsole
from sema_bench.text.escape import for_log


class ProgressDisplay:
    """Shows how far a run is, what is being done and when it should end; a context manager.

    Args:
        timed: whether cells are run, so that a large one takes longer than a small one.
    """

    def __init__(self, *, timed: bool = True) -> None:
        self._timed = timed
        self._console = StderrConsole(stderr=True, highlight=False)
        self._live = self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.fields[phase]}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("", phase="starting", eta="")
        self._total = self._done = 0
        self._work_left = self._work_done = 0.0
        self._started = time.monotonic()

    def __enter__(self) -> ProgressDisplay:
        with contextlib.suppress(OSError):
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._bar.stop()

    def say(self, message: str) -> None:
        """Print one line above the bar."""
        with contextlib.suppress(OSError):
            self._console.print(Text(for_log(message)), soft_wrap=True)

    def start(self, *, total: int, missing: Sequence[Cell]) -> None:
        done = total - len(missing)
        self._total, self._done = total, done
        self._work_left = sum(self._work(cell) for cell in missing)
        self._started = time.monotonic()
        self._bar.update(self._task, total=total, completed=done)
        cells = fmt.counted(total, "cell")
        self.say(f"{cells}, {done} of them done already" if done else cells)

    def phase(self, cell: Cell, phase: str) -> None:
        """Show what a cell is going through."""
        self._bar.update(self._task, phase=f"{cell.resolution.label} {cell.model} {phase}")

    def finished(self, record: Record) -> None:
        self._done += 1
        self._work_left -= self._work(record.cell)
        self._work_done += self._work(record.cell) if record.status != "skipped" else 0.0
        self._bar.update(self._task, completed=self._done, eta=self._eta())
        result = record.reason if record.status != "ok" else _headline(record)
        line = f"[{self._done}/{self._total}] {record.cell.resolution.label} {_name(record.cell)}: {record.status}"
        self.say(f"{line}, {result}" + ("" if self._live else f"; {self._eta()}"))

    def _work(self, cell: Cell) -> float:
        return work(cell) if self._timed and cell.device != "meta" else 1.0

    def _eta(self) -> str:
        if self._done == self._total:
            return "done"
        if not self._work_done:
            return ""
        seconds = (time.monotonic() - self._started) * self._work_left / self._work_done
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"


def _name(cell: Cell) -> str:
    other = [f"b{cell.batch}"] if cell.batch != 1 else []
    other += [cell.dtype + ("+tf32" if cell.tf32 else "")] if cell.dtype != "float32" or cell.tf32 else []
    other += [cell.mode] if cell.mode != "eager" else []
    other += [cell.step] if cell.step != "infer" else []
    other += ["checkpointing"] if cell.checkpointing else []
    other += [f"sdpa {cell.sdpa}"] if cell.sdpa != "auto" else []
    return " ".join([cell.model, *other])


def _headline(record: Record) -> str:
    latency = record.measurements.get("latency_s")
    if latency is None:
        predicted, top1 = record.value("predicted_peak_bytes"), record.measurements.get("top1")
        if top1 is not None:
            images = record.value("evaluated_images") or 0
            return f"top-1 {top1.value:.1%}{_between(top1)}, {images:.0f} images"
        return (
            fmt.counted(len(record.measurements), "metric") if predicted is None else f"{fmt.size(predicted)} predicted"
        )
    text = fmt.seconds(latency.value)
    if latency.ci_low is not None and latency.ci_high is not None:
        text += f" ±{(latency.ci_high - latency.ci_low) / 2 / latency.value:.1%}"
    return f"{text}, {len(latency.samples)} samples"


def _between(share: Measurement) -> str:
    return "" if share.ci_low is None or share.ci_high is None else f" ({share.ci_low:.1%} to {share.ci_high:.1%})"
