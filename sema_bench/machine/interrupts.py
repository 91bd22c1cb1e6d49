"""Turn Ctrl-C and SIGTERM into one exception, so that every exit stops the workers and keeps the records."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator


class Interrupted(BaseException):
    """The user or a scheduler asked the process to stop; ``exit_code`` is 128 + signal number, as in a shell."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def on_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Call ``handle`` on SIGINT, SIGTERM and SIGHUP in the main thread; a signal that nohup ignores stays ignored."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heeded = [each for each in signals if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, lambda number, frame: handle(number)) for each in heeded}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise Interrupted in the main thread on SIGINT, SIGTERM or SIGHUP; a second signal is ignored."""
    stopped = False

    def stop(number: int) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise Interrupted(number)

    with on_signals(stop):
        yield
