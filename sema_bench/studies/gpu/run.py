"""Run the checks one after another, each in a separate process, and store their answers in one file.

A check that crashes, hangs or runs out of memory ends alone. The file is replaced after each check, so that an
interruption loses no earlier check. A second call with the same file resumes: it keeps checks that are ``ok`` or ``not
here``, and repeats those that FAILED.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sema_bench.driver.device_lock import gpu_lock, held_for_child
from sema_bench.errors import UsageError, first_line
from sema_bench.machine.devices import gpu_facts
from sema_bench.machine.environment import environment_from_json, environment_json
from sema_bench.machine.processes import child_environment, die_with_parent, kill_group, let_libraries_warn
from sema_bench.spec.record import Environment
from sema_bench.store.files import atomic_write, utc_now
from sema_bench.studies.gpu.check import FAILED, NOT_HERE, Card, Check, NotHereError, Outcome, judged
from sema_bench.studies.gpu.checks import CHECKS
from sema_bench.text.plain_json import read_json

#: Time limit of all checks together, and of one: this many times its minutes, but at least this many seconds.
LIMIT_S = 1800.0
_STRETCH, _SHORTEST_S = 3.0, 60.0
_SCHEMA_VERSION = 1
#: Command line of a check; the number, the device, a file for the answers and the parent's id follow.
COMMAND = (sys.executable, "-m", "sema_bench.studies.gpu.run")


@dataclass
class GpuSelfTest:
    """The outcomes so far, by number of check; they are stored in the file ``path``."""

    environment: Environment
    device: str
    path: Path | None = None
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return any(outcome.status == FAILED for outcome in self.outcomes.values())

    @property
    def missing(self) -> list[Check]:
        """The checks that were not reached."""
        return [check for check in CHECKS if check.number not in self.outcomes]

    def to_json(self) -> str:
        """Write the checks with their answers, from which a later release can judge them again."""
        checks = [
            {"number": number, "name": name, "proves": proves, **dataclasses.asdict(self.outcomes[number])}
            for number, name, proves in ((check.number, check.name, check.proves) for check in CHECKS)
            if number in self.outcomes
        ]
        body = {
            "schema_version": _SCHEMA_VERSION,
            "written_at": utc_now(),
            "device": self.device,
            "environment": environment_json(self.environment),
            "checks": checks,
        }
        return json.dumps(body, indent=1, allow_nan=False) + "\n"

    def resume(self) -> None:
        """Take over all checks in ``path`` except FAILED ones; raise UsageError if it is of another card or code."""
        if self.path is None or not self.path.exists():
            return
        body, another = read_checks(self.path), "give another --json FILE, or remove it"
        theirs = environment_from_json(body["environment"])
        uuids = {gpu_facts(self.device, each).get("uuid") for each in (theirs, self.environment)}
        if body["device"] != self.device or theirs.fingerprint != self.environment.fingerprint or len(uuids) > 1:
            raise UsageError(f"{self.path} is of another card or environment; {another}")
        if theirs.context.get("code") != self.environment.context.get("code"):
            raise UsageError(f"{self.path} is of other code of sema-bench; {another}")
        outcomes = ((check.number, outcome_of(check, body)) for check in CHECKS)
        self.outcomes = {number: each for number, each in outcomes if each and each.status != FAILED}

    def run(self, *, log: Callable[[str], None], command: Sequence[str] = COMMAND, limit_s: float = LIMIT_S) -> None:
        """Run the checks that are missing, until ``limit_s`` is over, while no one else measures on the card."""
        with gpu_lock(self.device):
            until = time.monotonic() + limit_s
            for check in self.missing:
                left = until - time.monotonic()
                if left < min(_SHORTEST_S, 60 * check.minutes):
                    return
                log(f"check {check.number} of {CHECKS[-1].number}, about {check.minutes:g} min: {check.proves}")
                outcome = _measured(check, self.device, command, min(left, _limit_s(check)))
                self.outcomes[check.number] = outcome
                log(f"check {check.number}: {outcome.status}{f', {outcome.reason}' if outcome.reason else ''}")
                if self.path is not None:
                    atomic_write(self.path, self.to_json())


def _limit_s(check: Check) -> float:
    return max(_SHORTEST_S, _STRETCH * 60 * check.minutes)


def read_checks(path: Path) -> dict[str, Any]:
    """Read the file of an earlier call; raise UsageError if it is something else."""
    try:
        body = read_json(path.read_text(encoding="utf-8"))
        if body["schema_version"] == _SCHEMA_VERSION and environment_from_json(body["environment"]) and body["device"]:
            return {**body, "checks": {int(each["number"]): each for each in body["checks"]}}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UsageError(f"{path} exists and is no file of sema-bench selftest --gpu; give another --json FILE")


def outcome_of(check: Check, body: dict[str, Any]) -> Outcome | None:
    """Judge the stored answers of a check again, None if there are none; a broken check stays as it ended."""
    stored = body["checks"].get(check.number)
    if stored is None:
        return None
    if stored["answers"]:
        return judged(check, stored["answers"], seconds=stored["seconds"])
    return Outcome(stored["status"], (), stored["reason"], stored["seconds"])


def _measured(check: Check, device: str, command: Sequence[str], limit_s: float) -> Outcome:
    """Run one check in a separate process, and judge its answers."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        path = Path(folder) / "answers.json"
        process = subprocess.Popen(
            [*command, str(check.number), device, str(path), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=child_environment(**held_for_child(device)),
            start_new_session=True,  # this process handles Ctrl-C, and a kill reaches grandchildren
        )
        try:
            process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return Outcome(FAILED, (), f"no answer within {limit_s:.0f} s", limit_s)
        finally:
            kill_group(process)
        seconds = time.monotonic() - started
        try:
            body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            output.seek(max(0, output.seek(0, os.SEEK_END) - 2000))
            last = (output.read().decode(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]
            return Outcome(FAILED, (), f"its process ended with code {process.returncode}: {last[:300]}", seconds)
    if "answers" in body:
        return judged(check, body["answers"], seconds=seconds)
    return Outcome(body["status"], (), body["reason"], seconds, traceback=body.get("traceback", ""))


def main(arguments: Sequence[str], **rehearsal: Any) -> None:
    """Measure a check, given by its number, the device, the file for its answers, and the parent's id."""
    number, device, path, parent = arguments
    die_with_parent(int(parent))
    let_libraries_warn()
    (check,) = (each for each in CHECKS if each.number == int(number))
    try:
        text = json.dumps({"answers": check.measure(Card(device, **rehearsal))}, allow_nan=False)
    except NotHereError as reason:
        text = json.dumps({"status": NOT_HERE, "reason": str(reason)})
    except Exception as problem:  # whatever goes wrong is the result of this check
        message = f"{type(problem).__name__}: {first_line(problem)}"
        text = json.dumps({"status": FAILED, "reason": message, "traceback": traceback.format_exc()[-8000:]})
    atomic_write(Path(path), text)


if __name__ == "__main__":
    main(sys.argv[1:])
