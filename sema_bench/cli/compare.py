"""``sema-bench compare``: runs against the first one, cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from sema_bench.cli.output import check_distinct, put_out, say_unreadable
from sema_bench.cli.results import Out, runs_to_read
from sema_bench.errors import EXIT_OK, UsageError, unknown_name
from sema_bench.spec.cell import IDENTITY_FIELDS
from sema_bench.spec.metrics import METRICS

if TYPE_CHECKING:
    import pandas as pd


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN_A RUN_B …", help="The base, and what is held against it.")],
    metric: Annotated[str, typer.Option(metavar="NAME", help="What to compare.")] = "throughput_images_per_s",
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Compare across a field of the identity (dtype, hardware, …); repeatable."),
    ] = None,
    margin: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0001, max=1.0, help="What counts as the same.")
    ] = 0.03,
    raw: Annotated[bool, typer.Option("--raw", help="Do not take the yardstick's drift out of latencies.")] = False,
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Write every row as CSV; - is stdout.")] = None,
    markdown: Annotated[str | None, typer.Option(metavar="FILE", help="The same as Markdown.")] = None,
    latex: Annotated[str | None, typer.Option(metavar="FILE", help="The same as LaTeX.")] = None,
    out: Out = "results",
) -> None:
    """Compare runs cell by cell: ratios with 95 % intervals, geometric means, and what could not be compared.

    RUN is a name in the results folder, a folder, the URL of one, or a JSON file of pytest-benchmark.
    """
    from sema_bench.analysis.comparison import MACHINE_FIELDS
    from sema_bench.analysis.comparison import compare as compared
    from sema_bench.analysis.unshared import why_nothing_compares
    from sema_bench.report.comparison import comparison_frame, render_comparison, without_what_is_shared
    from sema_bench.report.export import to_csv_text, to_markdown
    from sema_bench.report.latex import to_latex
    from sema_bench.store.load import load_runs

    if len(runs) < 2:
        raise UsageError(f"compare takes two runs or more; got {len(runs)}")
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    fields = [name for name in (*IDENTITY_FIELDS, *MACHINE_FIELDS) if name not in ("model", "height", "width")]
    for name in allow or []:
        if name not in fields:
            raise unknown_name("field of the identity", name, fields)
    files: dict[str, tuple[str | None, Callable[[pd.DataFrame], str]]] = {
        "csv": (csv, to_csv_text),
        "markdown": (markdown, lambda frame: to_markdown(without_what_is_shared(frame))),
        "latex": (latex, lambda frame: to_latex(without_what_is_shared(frame))),
    }
    check_distinct([path for path, _ in files.values()])
    base, *others = loaded = load_runs(*runs_to_read(out, runs))
    say_unreadable(loaded)
    found = [compared(base, other, metric=metric, allow=allow or [], raw=raw) for other in others]
    if not any(c.ratios or c.broken or c.mended for c in found):
        pairs = list(zip(others, found, strict=True))
        other, nothing = next(((run, c) for run, c in pairs if c.refused or c.unmeasured), pairs[0])
        why = why_nothing_compares(base, other, nothing, advice="--allow FIELD compares across one on purpose")
        raise UsageError(f"no cell of {base.name} can be compared: {why}")
    frame = comparison_frame(found, margin=margin)
    only = next(((path, text) for path, text in files.values() if path == "-"), None)
    if only:
        put_out(lambda console: None, path="-", text=lambda: only[1](frame))
    else:
        for number, each in enumerate(found):
            if number:
                typer.echo()
            put_out(lambda console, each=each: render_comparison(each, console, margin=margin))  # type: ignore[misc]
    for path, text in files.values():
        if path and path != "-":
            put_out(lambda console: None, path=path, text=lambda text=text: text(frame))  # type: ignore[misc]
    raise typer.Exit(EXIT_OK)
