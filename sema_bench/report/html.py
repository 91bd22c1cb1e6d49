"""Build one offline page with words, interactive plots, tables, machine and method.

All data goes into the page as JSON that cannot end its element, and from there into text nodes: no name or reason
ever becomes markup.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from sema_bench import __version__
from sema_bench.analysis.conditions import by_conditions, by_model, varying_fields
from sema_bench.analysis.corruption import corruption_errors, is_corrupted, uncorrupted
from sema_bench.analysis.pooled import pool_weights, seeds_of
from sema_bench.analysis.scaling import analyse
from sema_bench.report.corruption import corruption_sentences
from sema_bench.report.export import to_csv_text
from sema_bench.report.formats import runs_frame
from sema_bench.report.line_styles import COLOURS, looks_of
from sema_bench.report.summary import sampling_sentence, summary_of, unfinished
from sema_bench.spec import units as fmt
from sema_bench.spec.metrics import ACCURACIES, FROM_WEIGHTS, METRICS
from sema_bench.spec.record import Record
from sema_bench.store.stored_run import StoredRun
from sema_bench.store.table import is_launch_bound, stayed_disturbed
from sema_bench.text.escape import printable, printable_lines
from sema_bench.text.plain_json import mapping

_PAGE = Path(__file__).with_name("page")
#: Metrics of the plots and the table of cells, if measured.
SHOWN = (
    "latency_s",
    "throughput_images_per_s",
    "relative_latency",
    "peak_memory_bytes",
    "activation_bytes",
    "macs",
    "params",
    "top1",
    "top5",
    "miou",
    "roofline_share",
    "energy_j_per_image",
    "compile_s",
)
#: Metric → how it is measured, one paragraph per line.
_METHOD = {
    "latency_s": """\
Each model runs in its own process, in which nothing was counted or profiled.
Models of one resolution are sampled in turns, in random order, so that a change of the machine's speed hits all of \
them.
Latencies are medians of single forward passes after a warm-up, with 95 % bootstrap intervals of the median. \
A cell with ! was disturbed by something else in more than half of its sample windows.""",
    "throughput_images_per_s": """\
Throughput is batch / median latency.""",
    "relative_latency": """\
Relative latency is in units of the yardstick, a fixed network timed in every round.""",
    "macs": """\
MACs are counted from three sources that must agree within 0.5 %; one MAC is two FLOPs. Scans are counted apart.""",
    "peak_memory_bytes": """\
CPU memory is the peak of live tensor bytes, CUDA memory the peak of the caching allocator.""",
    "top1": """\
Accuracy is measured on the images that the conditions name, with Wilson 95 % intervals; \
where a model was trained from several seeds it is their mean, with Student's t over them.""",
    "miou": """\
mIoU is the mean over classes of intersection / union of pixels, each summed over all images, with a 95 % bootstrap \
over images; where a model was trained from several seeds it is their mean, with Student's t over them.""",
}


def report_page(runs: Sequence[StoredRun]) -> str:
    """Build the page of one or more runs."""
    names = ", ".join(run.name for run in runs)
    filled = {
        "TITLE": html.escape(printable(f"sema-bench: {names}")),
        "STYLE": (_PAGE / "page.css").read_text(encoding="utf-8"),
        "PLOTLY": str(get_plotlyjs()).replace("</script", "<\\/script"),
        "SCRIPT": (_PAGE / "page.js").read_text(encoding="utf-8"),
        "DATA": _embedded(page_data(runs)),
    }
    text = (_PAGE / "page.html").read_text(encoding="utf-8")
    for key, value in filled.items():  # data last: it may hold one of these marks
        text = text.replace(f"<!--{key}-->", value, 1)
    return text


def page_data(runs: Sequence[StoredRun]) -> dict[str, Any]:
    """Return the data of the page as plain JSON."""
    return {
        "version": __version__,
        "runs": [_run(run) for run in runs],
        "method": [line for name, text in _METHOD.items() if _measured(name, runs) for line in text.splitlines()],
        "looks": looks_of(list(dict.fromkeys(record.cell.model for run in runs for record in run.records))),
        "colours": {"light": [one for one, _ in COLOURS.values()], "dark": [one for _, one in COLOURS.values()]},
        "metrics": {name: _metric(name, runs) for name in _shown(runs)},
        "csv": to_csv_text(runs_frame(runs)),
    }


def _shown(runs: Sequence[StoredRun]) -> list[str]:
    """Return the measured metrics; the plot opens on the first, latency or else accuracy."""
    shown = [name for name in SHOWN if _measured(name, runs)]
    return shown if "latency_s" in shown else sorted(shown, key=lambda name: name not in ACCURACIES)


def _run(run: StoredRun) -> dict[str, Any]:
    machine = {**run.hardware, **run.software}
    context = mapping(mapping(run.metadata.get("environment")).get("context"))
    why = context.get("commit_unknown")
    return {
        "name": run.name,
        "created": str(run.metadata.get("created_at") or ""),
        "command": str(run.metadata.get("command") or ""),
        "commit": str(context.get("commit") or (f"unknown: {why}" if why else "")),
        "code": str(context.get("code") or ""),
        "claim": str(mapping(run.metadata.get("suite")).get("claim") or ""),
        "machine": [[key, _plain(value)] for key, value in machine.items() if value not in (None, "", [])],
        "summary": [*summary_of(run.records), *_corruption(run), *_sampling(run)],
        "groups": _groups(run.records),
        "exponents": analyse(pool_weights(uncorrupted(run.records))).readable.rows(),
        "unreadable": run.unreadable,
    }


def _corruption(run: StoredRun) -> list[tuple[str, list[str]]]:
    return corruption_sentences(corruption_errors(run.records)) if any(map(is_corrupted, run.records)) else []


def _sampling(run: StoredRun) -> list[tuple[str, list[str]]]:
    sentences = [f"{unfinished(run)}." if run.missing else "", sampling_sentence(mapping(run.metadata.get("sampling")))]
    return [("Sampling", [*filter(None, sentences)])] if any(sentences) else []


def _groups(records: Sequence[Record]) -> list[dict[str, Any]]:
    """List the cells of all conditions by model, with seeds pooled."""
    groups = by_conditions(pool_weights(uncorrupted(records)))
    varying = varying_fields(groups)
    return [
        {
            "conditions": conditions.text,
            "short": conditions.text_of(varying),
            "cells": [_cell(record) for curve in by_model(group).values() for record in curve],
        }
        for conditions, group in groups.items()
    ]


def _cell(record: Record) -> dict[str, Any]:
    cell = record.cell
    measured = {name: m for name in SHOWN if (m := record.result(name)) is not None}
    pooled = seeds_of(record) > 1
    return {
        "model": cell.model,
        "size": cell.resolution.label,
        "pixels": cell.resolution.pixels,
        "batch": cell.batch,
        "status": record.status,
        "disturbed": stayed_disturbed(record),
        "launch_bound": is_launch_bound(record),
        "reason": record.reason,
        "values": {name: [m.value, m.ci_low, m.ci_high] for name, m in measured.items()},
        "seeds": {
            name: list(m.samples) for name, m in measured.items() if pooled and m.definition.statistic == "share"
        },
    }


def _metric(name: str, runs: Sequence[StoredRun]) -> dict[str, Any]:
    metric = METRICS[name]
    records = [record for run in runs for record in run.records]
    unit = fmt.unit_for(metric, [m.value for record in records if (m := record.result(name)) is not None])
    pooled = any(seeds_of(record) > 1 for record in pool_weights(records))
    interval = "Student's over trainings" if pooled else "Wilson's"
    return {
        "label": metric.label,
        "unit": unit.symbol,
        "factor": unit.factor,
        "from_weights": name in FROM_WEIGHTS,
        "higher": metric.higher_is_better,
        "share": metric.statistic == "share",
        "timed": metric.statistic == "median" or name == "relative_latency",
        "what": f"{metric.summary}; interval: {interval}" if metric.statistic == "share" else metric.summary,
    }


def _measured(name: str, runs: Sequence[StoredRun]) -> bool:
    return any(record.result(name) is not None for run in runs for record in run.records)


def _embedded(data: dict[str, Any]) -> str:
    """Write JSON for a script element, in a form that cannot end the element."""
    text = json.dumps(_printable(data), allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _printable(data: Any) -> Any:
    """Escape control characters in every text, so that none reorders the page; line feeds stay."""
    if isinstance(data, str):
        return printable_lines(data)
    if isinstance(data, dict):
        return {printable_lines(key): _printable(value) for key, value in data.items()}
    return [_printable(value) for value in data] if isinstance(data, list | tuple) else data


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
