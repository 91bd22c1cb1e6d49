"""Define errors and exit codes.

0 fine; 1 a regression, or a cell that ended in ``error`` or ``crashed``; 2 wrong usage or a bad suite; 3 inconclusive;
4 incomplete. 130, 143 and 129 are the shell's codes for Ctrl-C, SIGTERM and SIGHUP, 141 for a closed stdout.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INCONCLUSIVE = 3
EXIT_INCOMPLETE = 4
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class SemaBenchError(Exception):
    """Base of every error that the command line reports as one line, without a traceback."""

    exit_code = EXIT_FAILED


class UsageError(SemaBenchError):
    """The request cannot be carried out as it is."""

    exit_code = EXIT_USAGE


class SuiteError(UsageError):
    """A suite file is not valid; the message names file, key and what was expected."""


class StoreError(SemaBenchError):
    """A results folder cannot be read or written; nothing already recorded was changed."""

    exit_code = EXIT_INCOMPLETE


class NewerReleaseError(StoreError, ValueError):
    """A newer release wrote the file, and this one may misread it."""


class WorkerError(SemaBenchError):
    """A worker process did not start or does not answer."""

    exit_code = EXIT_INCOMPLETE


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Make the error for a ``name`` that is not a ``kind`` ("model", "probe"), with the nearest known ones first."""
    return UsageError(f"unknown {kind} {name!r}; {hints(name, known)}")


def hints(name: str, known: Iterable[str]) -> str:
    """Suggest what ``name`` may have meant; list the known names unless there are many."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    parts = [f"did you mean {' or '.join(repr(n) for n in near)}?"] if near else []
    if not near or len(names) <= 15:
        rest = f", … ({len(names)} in all)" if len(names) > 100 else ""
        parts.append(f"known: {', '.join(names[:100])}{rest}")
    return " ".join(parts)


def first_line(problem: BaseException, *, most: int = 300) -> str:
    """Return the first line of an error's message, up to ``most`` characters, or the name of its type."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0][:most] if lines else type(problem).__name__


_OUT_OF_MEMORY_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "_ALLOCATION_FAILED",  # cuDNN 9, of the host's memory or the device's
)
#: Messages of libraries when a card has no memory for a handle or a workspace; other faults give them, too.
_FULL_CARD_SIGNS = ("valid cuDNN algorithm", "unable to find an engine", "CUBLAS_STATUS_NOT_INITIALIZED")
#: A card with less free memory than this share is full.
_FULL_CARD_SHARE = 0.05


def is_out_of_memory(problem: BaseException) -> bool:
    """Check whether ``problem``, or an error behind it, says that memory ran out on the host or on the device.

    If memory runs out while a CUDA graph is recorded, ending the recording raises another error with that context.
    """
    link: BaseException | None = problem
    while link is not None:
        if isinstance(link, MemoryError) or type(link).__name__ == "OutOfMemoryError":  # torch's, without torch
            return True
        if isinstance(link, RuntimeError):
            message = str(link)
            if any(sign in message for sign in _OUT_OF_MEMORY_SIGNS):
                return True
            if any(sign in message for sign in _FULL_CARD_SIGNS) and _card_is_full():
                return True
        context = None if link.__suppress_context__ else link.__context__
        link = getattr(link, "inner_exception", None) or link.__cause__ or context
    return False


def _card_is_full() -> bool:
    """Check whether the current card of this process has hardly any free memory; False if it does not use one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:  # after some errors the card no longer answers
        return False
    return bool(free < _FULL_CARD_SHARE * total)


class ProbeError(Exception):
    """A probe's result cannot be trusted; the cell becomes an ``error`` with this message."""
