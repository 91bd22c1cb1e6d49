"""A lane of this machine: an agent in a process that sees one GPU and calls it ``cuda:0``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from sema_bench.cluster.agent import AgentSetup, group_to_json
from sema_bench.cluster.lanes import Group, LaneLost
from sema_bench.machine.processes import child_environment, close_pipes
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record


class AgentProcess:
    """An executor whose groups are measured by an agent in a process of its own, started with the first group.

    Args:
        setup: how the agent is started.
        node: its name in records.
        environment: variables that the agent gets beside those of this process.
        share: (k, n): the k-th of n equal parts of the CPUs is its own.
    """

    width = 1

    def __init__(
        self, setup: AgentSetup, node: str, environment: Mapping[str, str], *, share: tuple[int, int] = (0, 1)
    ) -> None:
        self._setup, self._node, self._environment, self._share = setup, node, environment, share
        self._queue: deque[Group] = deque()
        self._process: subprocess.Popen[str] | None = None
        self._cancelled = False

    def submit(self, group: Sequence[Cell], skipped: Mapping[Cell, str]) -> None:
        self._queue.append((tuple(group), skipped))

    def records(self) -> Iterator[Record]:
        while self._queue:
            cells, skipped = group_to_json(*self._queue.popleft())
            try:
                process = self._process or self._start()
                self._send({"group": cells, "skipped": skipped})
            except OSError:
                raise self._lost() from None
            assert process.stdout is not None
            while (line := process.stdout.readline()).endswith("\n"):
                if line == "\n":
                    break
                yield Record.from_json(line)
            else:  # it ended, perhaps within a line
                raise self._lost()

    def open(self) -> None:
        """A process of this machine is there when it is wanted."""

    def cancel(self) -> None:
        self._cancelled = True
        self._queue.clear()
        process = self._process  # the thread of the lane may forget it meanwhile
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers, in sessions of their own, die with it
            process.wait()
            close_pipes(process)

    def close(self) -> None:
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
        self.cancel()

    def _start(self) -> subprocess.Popen[str]:
        if self._cancelled:
            raise LaneLost("the run was stopped")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sema_bench.cluster.agent", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(**self._environment),
            start_new_session=True,
        )
        self._send({"setup": self._setup.to_json(), "node": self._node, "share": self._share})
        return self._process

    def _send(self, body: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(body) + "\n")
        self._process.stdin.flush()

    def _lost(self) -> LaneLost:
        process, self._process = self._process, None
        if process is None:
            return LaneLost("its agent cannot be started", again=not self._cancelled)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        close_pipes(process)
        code = process.returncode
        return LaneLost(f"its agent ended with code {code}", again=not self._cancelled)
