"""Print foreign text safely: only our own colours and line feeds reach the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from sema_bench.text.escape import for_log, printable_lines

#: Width of a file or pipe: no table leaves out a column there, and no line is wrapped.
UNLIMITED = 1_000_000


class SafeConsole(Console):
    """Print control characters as escapes; every console of this project is one."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of ``renderable`` with their text made printable."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable_lines(segment.text), segment.style)


class StderrConsole(SafeConsole):
    """Survive a reader that goes away (``2> >(head -1)``): the run continues."""

    def on_broken_pipe(self) -> None:
        """Continue without progress."""


def tell(message: str) -> None:
    """Print one line on stderr."""
    with contextlib.suppress(OSError):
        print(for_log(message), file=sys.stderr)


def warn(message: str) -> None:
    """Print one warning line on stderr."""
    tell(f"sema-bench: warning: {message}")
