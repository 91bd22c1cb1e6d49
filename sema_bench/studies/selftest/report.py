"""Print a self-test."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sema_bench.analysis.conditions import Conditions
from sema_bench.spec import units as fmt
from sema_bench.studies.selftest.selftest import SelfTest, Spread, verdict


def print_selftest(selftest: SelfTest, console: Console) -> None:
    """Print the spread of the copies, the cost of measuring, the clocks, and the verdict."""
    conditions = Conditions.of(selftest.cell).text
    console.print(Text(f"{selftest.cell.model} at {selftest.cell.resolution.label} · {conditions}", style="bold"))
    count = len(selftest.interleaved.medians_s)
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for heading in (f"the same cell, {count} times", "one after the other", "side by side"):
        table.add_column(heading, justify="left" if heading.startswith("the") else "right", no_wrap=True)
    for name, show in _ROWS:
        table.add_row(name, *(show(spread) for spread in (selftest.sequential, selftest.interleaved)))
    console.print(table)
    cost, clocks = selftest.cost, selftest.clocks
    for line in (
        f"cost of measuring: {fmt.seconds(cost.sample_s)} beside each sample, {fmt.seconds(cost.request_s)} a request; "
        f"{cost.timed_share:.1%} of the time of sampling is timed, the rest is settling passes and requests",
        f"clocks: {clocks.names[0]} / {clocks.names[1]} = {clocks.ratio:.5f} ({clocks.worst:.2%} apart at worst), "
        f"resolution {fmt.seconds(clocks.resolution_s)}",
    ):
        console.print(Text(line))
    for counter, reason in selftest.absent.items():
        console.print(Text(f"this machine does not report {counter} ({reason})", style="dim"))
    for line in verdict(selftest):
        console.print(Text(line, style="bold"))


def _interval(spread: Spread) -> str:
    return fmt.EMPTY if spread.interval is None else f"±{spread.interval:.2%}"


_ROWS = (
    ("medians", lambda s: f"{fmt.seconds(min(s.medians_s))} to {fmt.seconds(max(s.medians_s))}"),
    ("95 % half-width, by one copy", _interval),
    ("95 % half-width, by all copies", lambda s: f"±{s.half_width:.2%}"),
    ("floor: two may differ by chance", lambda s: f"{s.floor:.2%}"),
    ("typical difference of two", lambda s: f"{s.typical_difference:.2%}"),
    ("largest difference of two", lambda s: f"{s.largest_difference:.2%}"),
    ("copies that stayed disturbed", lambda s: f"{s.disturbed} of {len(s.medians_s)}"),
)
