"""Ctrl-C and SIGTERM become one exception, so that every exit path stops the workers and keeps the records."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """The user or a scheduler asked the process to stop.

    Attributes:
        exit_code: 128 + signal number, as a shell reports it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise Interrupted in the main thread on SIGINT, SIGTERM or SIGHUP; a second signal is ignored."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in heeded:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    heeded = [each for each in signals if signal.getsignal(each) is not signal.SIG_IGN]  # nohup asked not to
    before = {each: signal.signal(each, stop) for each in heeded}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
