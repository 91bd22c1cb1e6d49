"""The driver's side of a worker: start it, send it requests, and find out how it died."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sema_bench.errors import WorkerError
from sema_bench.machine.host_memory import oom_kill_count
from sema_bench.machine.processes import child_environment, kill_group
from sema_bench.worker.protocol import READY, A, Failure, Request, decode_answer, encode_request

#: Importing torch takes a second or two; from a cold network disk, minutes.
START_LIMIT_S = 300.0
#: How long a dismissed worker may take to end before it is killed.
PATIENCE_S = 2.0


class CellFailure(Exception):  # noqa: N818 - a result, not a bug
    """A cell ended with a ``status`` other than ``ok``; ``details`` go to its record (traceback, last output)."""

    def __init__(self, status: str, reason: str, *, details: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.details = status, reason, details or {}


class WorkerProcess:
    """A running worker.

    Args:
        allocator: C allocator setting, applied before torch is imported.
        threads: intra-op threads, for the libraries that read them from the environment.
        command: command line of a worker; tests pass another one.
        environment: additional variables.
        folder: working folder.
    """

    def __init__(
        self,
        *,
        allocator: str,
        threads: int,
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._oom_kills = 0
        self._asked = 0
        self._buffer = b""
        self._ready = False
        start = command or (sys.executable, "-m", "sema_bench.worker.server")
        try:
            with contextlib.ExitStack() as opened:
                self._stderr = opened.enter_context(tempfile.TemporaryFile())
                self._process = subprocess.Popen(
                    [*start, "--allocator", allocator, "--parent", str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._stderr,
                    env=child_environment(
                        OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), **(environment or {})
                    ),
                    cwd=folder,
                    start_new_session=True,  # Ctrl-C is the driver's to handle, and a kill reaches grandchildren
                )
                opened.pop_all()  # it is closed with the worker
        except OSError as problem:
            raise WorkerError(f"cannot start a worker: {problem.strerror}; finished cells are kept") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Wait until the worker has done its imports; raise CellFailure if that takes more than ``START_LIMIT_S``."""
        if self._ready:
            return
        self._oom_kills = oom_kill_count()
        line = self._read_line(time.monotonic() + START_LIMIT_S)
        if line is None or line.strip() != READY.encode():
            self.kill()
            if line is None:
                raise CellFailure("crashed", f"the worker did not start within {START_LIMIT_S:.0f} s")
            raise CellFailure("crashed", f"the worker began with {line[:80].decode(errors='replace')!r}; "
                              "something prints when Python starts, such as sitecustomize.py")  # fmt: skip
        self._ready = True
        self._oom_kills = oom_kill_count()

    def ask(self, request: Request[A], *, timeout_s: float) -> A:
        """Send a request once the worker is ready, and return its answer.

        Raises:
            CellFailure: the worker answered with a failure or died; or it was killed because it did not answer in
                time, or sent something else.
        """
        self.wait_until_ready()
        self._asked += 1
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(encode_request(self._asked, request).encode())
            self._process.stdin.flush()
        except OSError:
            raise self._death() from None
        line = self._read_line(time.monotonic() + timeout_s)
        if line is None:
            self.kill()
            raise CellFailure("timeout", f"no answer to {request.do!r} within {timeout_s:.0f} s")
        try:
            answer = decode_answer(line, self._asked, request)
        except ValueError as problem:
            self.kill()
            raise CellFailure("crashed", f"the worker {problem}") from None
        self._oom_kills = oom_kill_count()  # from here on, even while it waits, a kill may be this worker's
        if isinstance(answer, Failure):
            raise CellFailure(answer.status, answer.message, details=answer.details)
        return answer

    def dismiss(self) -> None:
        """Ask the worker to end; ``close`` waits for it."""
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def close(self, *, patience_s: float = PATIENCE_S) -> None:
        """End the worker: politely, then by force."""
        self.dismiss()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=patience_s)
        self.kill()

    def kill(self) -> None:
        """End the worker and all that it started, now."""
        kill_group(self._process)
        self._stderr.close()

    def _read_line(self, deadline: float) -> bytes | None:
        """Read the next line of the worker's answers; None when the deadline passes."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            if not select.select([descriptor], [], [], min(left, 3600.0))[0]:
                continue
            chunk = os.read(descriptor, 1 << 20)
            if not chunk:
                raise self._death()
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _death(self) -> CellFailure:
        """Find out how the worker died."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.returncode
        last = self._last_output()
        oom_kills = oom_kill_count()
        self.kill()
        details = {"worker_output": last} if last else {}
        if code == -signal.SIGKILL and oom_kills > self._oom_kills:
            return CellFailure("oom", "the kernel killed the worker because memory ran out", details=details)
        if code is not None and code < 0:
            return CellFailure("crashed", f"the worker was killed by {_signal_name(-code)}", details=details)
        why = f": {last.splitlines()[-1]}" if last else ""
        return CellFailure("crashed", f"the worker exited with code {code}{why}", details=details)

    def _last_output(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            size = self._stderr.seek(0, os.SEEK_END)
            self._stderr.seek(max(0, size - 4000))
            return self._stderr.read().decode(errors="replace").strip()
        return ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"
