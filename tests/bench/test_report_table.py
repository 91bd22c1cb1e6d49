import dataclasses
import io

import pytest
from rich.console import Console

from sema_bench.report.table import render
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.resolution import LADDER


def record(model, side, *, status="ok", reason="", environment="e1", batch=1, **metrics):
    measurements = {
        name: Measurement(metric=name, value=value, ci_low=value * 0.99, ci_high=value * 1.01)
        for name, value in metrics.items()
    }
    cell = Cell(model=model, height=side, width=side, batch=batch)
    return Record(cell=cell, status=status, reason=reason, measurements=measurements, environment=environment)


def a_run(models, sides=LADDER):
    return [
        record(model, side, latency_s=(1 + i) * side**2 / 1e7, macs=side**2 * 1e5, peak_memory_bytes=side**2 * 3e3)
        for side in sides
        for i, model in enumerate(models)
    ]


def printed(records, width=100):
    out = io.StringIO()
    render(records, Console(file=out, width=width, color_system=None))
    return out.getvalue()


def test_names_that_look_like_markup_are_printed_as_they_are():
    text = printed(a_run(["sema_tiny[linear]", "[bold]x[/bold]", "[/]"]))
    for name in ("sema_tiny[linear]", "[bold]x[/bold]", "[/]"):
        assert name in text


def test_reasons_that_look_like_markup_are_printed_as_they_are():
    assert "([/red] failed)" in printed([record("a", 224, status="error", reason="[/red] failed")])


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_number_is_cut_and_no_line_is_wider_than_the_terminal(width):
    records = a_run(["sema_tiny", "sema_tiny[attention=softmax,window_size=7,and=more]"])
    text = printed([*records, record("sema_tiny", 2048, status="timeout")], width)
    assert "…" not in text
    assert "timeout" in text
    assert max(map(len, text.splitlines())) <= width
    for side in LADDER:
        assert f"{side**2 / 1e4:.3g}" in text  # latency of the first model in ms


def test_a_failure_stands_in_its_cell_and_its_reason_is_given_once():
    failures = [record("b", side, status="skipped", reason="larger than 640") for side in (768, 896)]
    text = printed([*a_run(["a"]), *failures, record("b", 640, status="oom", reason="3 GiB free")])
    assert text.count("larger than 640") == 1
    assert "skipped: b at 768, 896 (larger than 640)" in text
    assert "oom: b at 640 (3 GiB free)" in text


def test_what_was_not_measured_is_a_dash():
    text = printed([*a_run(["a"], (224, 384)), record("b", 224, latency_s=0.001)])
    assert any(line.split() == ["b", "1.00", "–"] for line in text.splitlines())


def test_each_batch_has_its_own_block():
    text = printed([record("a", 224, latency_s=0.01), record("a", 224, batch=32, latency_s=0.3)])
    assert "batch 1 ·" in text
    assert "batch 32 ·" in text


def test_mixed_environments_are_warned_of():
    records = [record("a", 224, latency_s=0.01), record("a", 288, latency_s=0.01, environment="e2")]
    assert "2 environments are mixed here (e1, e2)" in printed(records)


def test_piped_output_has_no_escape_codes():
    out = io.StringIO()
    render(a_run(["a", "b"]), Console(file=out, width=80))
    assert "\x1b" not in out.getvalue()


def test_empty_failed_and_single_point_runs_print():
    assert printed([]) == "no records\n"
    assert "oom" in printed([record("a", 224, status="oom", reason="no memory")])
    assert "growth" not in printed([record("a", 224, latency_s=0.01)])
    assert "nan" not in printed([record("a", 224)])


def counted(model, *, details, **metrics):
    return dataclasses.replace(record(model, 224, **metrics), details=details)


def test_what_the_counts_leave_out_is_said_once_with_the_models():
    unknown = {"uncovered_operators": ["grid_sampler_2d"]}
    text = printed([counted(model, details=unknown, params=1e6, macs=1e9) for model in ("a", "b")], 200)
    assert text.count("a, b: no counter knows grid_sampler_2d; MACs are without what they cost") == 1


def test_macs_that_no_source_could_count_are_said_to_be_missing():
    untraced = {"fvcore": "RuntimeError: [/red]", "FlopCounterMode / 2": "RuntimeError: no kernel"}
    lost = counted("a", details={"untraced": untraced}, params=1e6)
    assert (
        "a: MACs could not be counted (fvcore: RuntimeError: [/red]; FlopCounterMode / 2: RuntimeError: no kernel)"
        in printed([lost], 200)
    )
    one = counted("a", details={"untraced": {"fvcore": "TypeError: x"}}, params=1e6, macs=1e9)
    assert "a: MACs lack a source (fvcore: TypeError: x)" in printed([one], 200)


def test_frozen_parameters_are_said_where_the_total_is_known():
    assert "a: 482 of 482 parameters are frozen" in printed([record("a", 224, params=0, params_total=482)])
    for whole in (record("a", 224, params=482, params_total=482), record("a", 224, params=482)):
        assert "frozen" not in printed([whole])
