"""``sema-bench compare``: compare runs with the first one, cell by cell."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from sema_bench.analysis.comparison import MACHINE_FIELDS
from sema_bench.analysis.comparison import compare as compare_runs
from sema_bench.analysis.unshared import why_nothing_compares
from sema_bench.cli.options import Json, Out
from sema_bench.cli.output import check_distinct, put_out, stdout_if
from sema_bench.cli.results import read_runs
from sema_bench.errors import UsageError, unknown_name
from sema_bench.report.comparison import comparison_frame, render_comparison, without_what_is_shared
from sema_bench.report.export import to_csv_text, to_latex, to_markdown
from sema_bench.report.formats import to_json
from sema_bench.spec.cell import IDENTITY_FIELDS
from sema_bench.spec.metrics import METRICS


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN_A RUN_B …", help="The base, and runs to compare with it.")],
    metric: Annotated[str, typer.Option(metavar="NAME", help="Metric to compare.")] = "throughput_images_per_s",
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Let runs differ in FIELD (dtype, hardware, …); may be repeated."),
    ] = None,
    margin: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0001, max=1.0, help="Ratios within this share count as the same.")
    ] = 0.03,
    raw: Annotated[bool, typer.Option("--raw", help="Do not correct latencies for the machine's drift.")] = False,
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Write every row as CSV; - is stdout.")] = None,
    markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write every row as Markdown.")] = None,
    latex: Annotated[str | None, typer.Option(metavar="FILE", help="Write every row as LaTeX.")] = None,
    json: Json = False,
    out: Out = "results",
) -> None:
    """Compare runs cell by cell: ratios with 95 % intervals, geometric means, and what could not be compared.

    RUN is a name in the results folder, a folder, the URL of one, or a JSON file of pytest-benchmark.
    """
    if len(runs) < 2:
        raise UsageError(f"compare takes two runs or more; got {len(runs)}")
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    fields = [name for name in (*IDENTITY_FIELDS, *MACHINE_FIELDS) if name not in ("model", "height", "width")]
    for name in allow or []:
        if name not in fields:
            raise unknown_name("field of the identity", name, fields)
    check_distinct(csv, markdown, latex, stdout_if(json))
    base, *others = read_runs(out, runs)
    comparisons = [compare_runs(base, other, metric=metric, allow=allow or [], raw=raw) for other in others]
    if not any(c.ratios or c.unmatched_as("broken", "mended") for c in comparisons):
        pairs = list(zip(others, comparisons, strict=True))
        other, nothing = next(((run, c) for run, c in pairs if c.unmatched_as("refused", "unmeasured")), pairs[0])
        why = why_nothing_compares(base, other, nothing, advice="--allow FIELD compares across one on purpose")
        raise UsageError(f"no cell of {base.name} can be compared: {why}")

    def draw(console: Console) -> None:
        for number, each in enumerate(comparisons):
            if number:
                console.print()
            render_comparison(each, console, margin=margin)

    frame = comparison_frame(comparisons, margin=margin)
    put_out(
        draw,
        (csv, lambda: to_csv_text(frame)),
        (markdown, lambda: to_markdown(without_what_is_shared(frame))),
        (latex, lambda: to_latex(without_what_is_shared(frame))),
        (stdout_if(json), lambda: to_json(frame)),
    )
