"""Print the checks of a card: a line for each, and its figures with their limits."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from sema_bench.studies.gpu.check import FAILED, NOT_HERE, OK
from sema_bench.studies.gpu.checks import CHECKS
from sema_bench.studies.gpu.run import GpuSelfTest

_STYLES = {OK: "green", FAILED: "bold red"}
_MARKS = {True: "ok    ", False: "FAILED", None: "      "}


def print_checks(selftest: GpuSelfTest, console: Console) -> None:
    """Print every check that ran; those not reached are named at the end."""
    for check in CHECKS:
        if (outcome := selftest.outcomes.get(check.number)) is None:
            continue
        style = _STYLES.get(outcome.status, "dim")
        head = f"{check.number:2} {outcome.status:8} {check.name}: {check.proves} ({outcome.seconds:.0f} s)"
        console.print(Text(head, style=style))
        if outcome.reason:
            console.print(Text(f"   {outcome.reason}", style=style))
        for finding in outcome.findings:
            limit = f"; limit: {finding.limit}" if finding.limit else ""
            console.print(Text(f"   {_MARKS[finding.ok]} {finding.name}: {finding.figure}{limit}"))
    minutes = sum(outcome.seconds for outcome in selftest.outcomes.values()) / 60
    statuses = [outcome.status for outcome in selftest.outcomes.values()]
    counts = ", ".join(f"{statuses.count(each)} {each}" for each in (OK, FAILED, NOT_HERE) if each in statuses)
    console.print(Text(f"{counts}; {minutes:.1f} minutes", style="bold"))
    if missing := selftest.missing:
        names = ", ".join(f"{check.number} {check.name}" for check in missing)
        again = "run the same command again to resume" if selftest.path else "give --json FILE to be able to resume"
        console.print(Text(f"not reached in time: {names}; {again}", style="bold"))
