"""A lane of this machine: an agent in a process that sees one GPU and calls it ``cuda:0``."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping

from sema_bench.cluster.agent import AgentSetup, group_to_json
from sema_bench.cluster.lanes import LaneLost
from sema_bench.driver.executor import Group
from sema_bench.machine.processes import child_environment, kill_group
from sema_bench.spec.record import Record


class AgentProcess:
    """A lane whose agent runs on this machine; it starts with the first group, with extra environment variables."""

    def __init__(self, setup: AgentSetup, environment: Mapping[str, str]) -> None:
        self._setup, self._environment = setup, environment
        self._process: subprocess.Popen[str] | None = None
        self._cancelled = False

    def open(self) -> None:
        """Do nothing: there is nothing to wait for."""

    def run(self, groups: Iterable[Group]) -> Iterator[Record]:
        for group in groups:
            try:
                process = self._process or self._start()
                self._send(json.dumps(group_to_json(*group)))
            except OSError:
                raise self._lost() from None
            assert process.stdout is not None
            while (line := process.stdout.readline()).endswith("\n"):
                if line == "\n":
                    break
                yield Record.from_json(line)
            else:  # it ended, perhaps in mid-line
                raise self._lost()

    def cancel(self) -> None:
        self._cancelled = True
        process = self._process  # the thread of the lane may drop it meanwhile
        if process is not None:
            kill_group(process)  # its workers, in sessions of their own, die with it

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
        self._send(self._setup.to_json())
        return self._process

    def _send(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _lost(self) -> LaneLost:
        process, self._process = self._process, None
        if process is None:
            return LaneLost("its agent cannot be started", again=not self._cancelled)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        code = process.returncode
        kill_group(process)
        return LaneLost(f"its agent ended with code {code}", again=not self._cancelled)
