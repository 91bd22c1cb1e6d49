import dataclasses
import io

import pytest
from rich.console import Console

from sema_bench.analysis.crossover import compare_conditions
from sema_bench.report.columns import shortened
from sema_bench.report.folder import write_outputs
from sema_bench.report.summary import some
from sema_bench.report.table import render
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.resolution import LADDER
from sema_bench.spec.units import number


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


def printed(records, width=100, *, details=True):
    out = io.StringIO()
    render(records, Console(file=out, width=width, color_system=None), details=details)
    return out.getvalue()


def test_names_that_look_like_markup_are_printed_as_they_are():
    text = printed(a_run(["sema_tiny[linear]", "[bold]x[/bold]", "[/]"]))
    for name in ("sema_tiny[linear]", "[bold]x[/bold]", "[/]"):
        assert name in text


def test_reasons_that_look_like_markup_are_printed_as_they_are():
    assert "([/red] failed)" in printed([record("a", 224, status="error", reason="[/red] failed")])


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("details", [False, True])
def test_no_number_is_cut_and_tables_leave_sizes_out_rather_than_break(width, details):
    records = a_run(["sema_tiny", "sema_tiny[attention=softmax,window_size=7,and=more]"])
    text = printed([*records, record("sema_tiny", 2048, status="timeout")], width, details=details)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    header = lines.index(next(line for line in lines if line.startswith("latency, ms")))
    shown = [size for size in map(str, (*LADDER, 2048)) if size in lines[header].split()]
    missing = set(map(str, (*LADDER, 2048))) - set(shown)
    assert {"224", "2048"} <= set(shown)
    row = lines[header + 2].replace("*", " ").split()
    assert row[0] == "sema_tiny"
    assert row[1 : len(shown)] == [number(int(size) ** 2 / 1e4) for size in shown[:-1]]
    if missing:
        note = text[text.index("no room here for ") :].partition(";")[0]
        assert missing <= set(note.replace(",", " ").split())
    assert missing == set() or width < 100


def sweep(statuses=None):
    """Six models at eight sizes, as in the flagship run."""
    records = []
    for i, model in enumerate(("sema_tiny", "mila_tiny", "sema_tiny[linear]", "sema_tiny[sima]", "sema_tiny[softmax]")):
        records += [
            record(model, side, latency_s=(1 + i / 50) * side**2 / 1e6, peak_memory_bytes=1e8) for side in LADDER
        ]
    for side in LADDER:
        status = (statuses or {}).get(side, "ok")
        records.append(record("deit_small", side, status=status, latency_s=side**3 / 3e8))
    return records


def test_the_summary_of_six_models_and_eight_sizes_fits_a_small_terminal():
    text = printed(sweep({896: "skipped", 1024: "skipped"}), 80, details=False)
    lines = text.splitlines()
    assert len(lines) <= 22
    assert max(map(len, lines)) <= 80
    assert "no room" not in text
    for size in LADDER:
        assert str(size) in lines[1].split()
    assert "growth" in lines[1]
    assert "2 of 48 cells gave no result: deit_small at 896 and 1024 (skipped)." in text


def test_the_first_of_each_column_is_marked_with_those_level_with_it():
    records = [record(m, s, latency_s=v * s) for s in (224, 448) for m, v in (("a", 1.0), ("b", 1.01), ("c", 2.0))]
    lines = printed(records, details=False).splitlines()
    marked = {line.split()[0]: line.count("*") for line in lines if line.startswith(("a ", "b ", "c "))}
    assert marked == {"a": 2, "b": 2, "c": 0}


def test_without_intervals_nothing_is_first_and_nothing_crosses():
    records = [
        record(m, s, latency_s=v) for s, pair in ((64, (1, 2)), (96, (4, 3))) for m, v in zip("ab", pair, strict=True)
    ]
    bare = [
        dataclasses.replace(r, measurements={"latency_s": Measurement(metric="latency_s", value=r.value("latency_s"))})
        for r in records
    ]
    text = printed(bare, details=False)
    assert "*" not in text
    assert "Fastest: no clear winner at 64 and 96." in text
    assert "slower than" not in text
    assert "4 cells without interval" in text


def test_a_cell_without_interval_is_named_beside_the_rank_that_lacks_it():
    bare = Measurement(metric="latency_s", value=1.0001)
    left_out = dataclasses.replace(record("d", 64), measurements={"latency_s": bare})
    text = printed([record("a", 64, latency_s=1.0), record("b", 64, latency_s=2.0), left_out], details=False)
    assert "Fastest: a at 64. Not ranked, without interval: d at 64." in text
    assert "cells without interval are not ranked" in text
    assert text.count("*") == 2


@pytest.mark.parametrize("metric", ["macs", "peak_memory_bytes", "predicted_peak_bytes", "params"])
def test_nothing_is_marked_as_fastest_where_nothing_was_timed(metric):
    text = printed([record("a", 64, **{metric: 1e9}), record("b", 64, **{metric: 2e9})])
    assert "*" not in text
    assert "fastest" not in text


def test_a_report_has_all_sizes_however_many(tmp_path):
    records = [record(model, side, latency_s=side / 1e4) for side in range(32, 6464, 32) for model in "ab"]
    write_outputs(tmp_path, records)
    report = (tmp_path / "report.txt").read_text()
    assert "no room" not in report
    header = next(line for line in report.splitlines() if line.startswith("latency, ms"))
    assert set(map(str, range(32, 6464, 32))) <= set(header.split())


def test_no_exponent_is_printed_for_few_sizes_and_the_reason_is():
    text = printed(a_run(["a", "b"], (224, 448, 896)))
    assert "±" not in text.replace("intervals: ±1.0% (a at 224)", "")
    assert "no exponent: 3 sizes measured; an exponent needs 4" in text
    mixed = printed([*a_run(["a"], (224, 448, 896)), *a_run(["b"], (224, 448))], details=False)
    assert "no exponent of a: 3 sizes" in mixed
    assert "no exponent of b: 2 sizes" in mixed


def test_details_add_to_the_summary_and_change_none_of_it():
    brief, full = printed(sweep(), details=False), printed(sweep(), details=True)
    assert full.startswith(brief)
    assert "peak memory" in full
    assert "peak memory" not in brief


def test_long_names_are_cut_in_their_middle_unless_two_would_look_alike():
    assert shortened(["sema_tiny[attention=softmax]", "b"], 12) == ["sema_t…tmax]", "b"]
    alike = ["sema_tiny[a=1,x=softmax,y]", "sema_tiny[a=2,x=softmax,y]"]
    assert shortened(alike, 12) == alike


def test_a_failure_stands_in_its_cell_and_its_reason_is_given_once():
    failures = [record("b", side, status="skipped", reason="larger than 640") for side in (768, 896)]
    text = printed([*a_run(["a"]), *failures, record("b", 640, status="oom", reason="3 GiB free")])
    assert text.count("larger than 640") == 1
    assert "skipped: b at 768, 896 (larger than 640)" in text
    assert "oom: b at 640 (3 GiB free)" in text


def test_what_was_not_measured_is_a_dash():
    text = printed([*a_run(["a"], (224, 384)), record("b", 224, latency_s=0.001)])
    assert any(line.replace("*", "").split() == ["b", "1.00", "–"] for line in text.splitlines())


def test_each_batch_has_its_own_block():
    text = printed([record("a", 224, latency_s=0.01), record("a", 224, batch=32, latency_s=0.3)])
    assert "batch 1 ·" in text
    assert "batch 32 ·" in text


def test_conditions_of_the_same_work_are_compared_by_model():
    def timed(model, side, latency_s, **conditions):
        plain = record(model, side, latency_s=latency_s)
        return dataclasses.replace(plain, cell=dataclasses.replace(plain.cell, **conditions))

    eager = [timed(model, side, side / 1e4) for side in (224, 448) for model in ("a", "b")]
    compiled = [timed("a", side, side / 2e4, mode="compile") for side in (224, 448)]
    other = [timed("a", 224, 1.0, batch=32), timed("a", 224, 1.0, batch=32, mode="compile")]
    text = printed([*eager, *compiled, *other], details=False)
    assert text.endswith("\n\ncompile against eager\n  a: compile is faster throughout (2.00×)\n")
    assert text.count(" against ") == 1
    assert not list(compare_conditions({})), "a run of corrupted images alone"


def test_mixed_environments_are_warned_of():
    records = [record("a", 224, latency_s=0.01), record("a", 288, latency_s=0.01, environment="e2")]
    assert "2 environments are mixed here (e1, e2)" in printed(records)


def test_piped_output_has_no_escape_codes():
    out = io.StringIO()
    render(a_run(["a", "b"]), Console(file=out, width=80), details=True)
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
    assert text.count("a, b: no counter knows grid_sampler_2d; MACs do not include their cost") == 1


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


def test_cells_bound_by_kernel_launches_are_marked_and_explained():
    bound, other = a_run(["sema_tiny", "swin_tiny"], (224,))
    bound = dataclasses.replace(bound, details={"launch_bound": True})
    text = " ".join(printed([bound, other]).split())
    assert "*~" in text
    assert "~ bound by kernel launches, not by their work" in text
    assert "~ bound by kernel launches: sema_tiny at 224 (the card waits for the host" in text
    assert "compare with --mode cuda-graphs or a larger --batch" in text
    assert "~" not in printed([other])


def test_a_card_too_small_for_max_autotune_is_named():
    small = dataclasses.replace(record("a", 224, latency_s=1.0), details={"products_tuned": False})
    assert "did not tune matrix products" in printed([small])


#: Side → a value that grows faster from size to size.
BENT = {side: side**2 / 1e7 + side**4 / 1e12 for side in LADDER}


def test_a_column_left_out_has_a_name_of_its_own():
    text = printed([record("b", s, latency_s=bent, macs=1e9 * bent) for s, bent in BENT.items()], 40)
    assert "no room here for latency large, MACs, MACs large" in " ".join(text.split())


def test_an_arrow_means_the_same_in_the_summary_and_in_its_details():
    assert "not a power law" not in printed(sweep(), 200)
    text = printed([*sweep(), *(record("b", side, latency_s=bent) for side, bent in BENT.items())], 200)
    assert "growth: latency ∝ pixels^growth; ↑ rising with size" in text
    assert "↑ rising with size: not a power law; read large" in text
    assert [line.count("↑") for line in text.splitlines() if line.startswith("b ")] == [1, 0, 1]


def test_a_single_name_is_never_counted():
    assert some(list("abcd")) == "a, b, c, d"
    assert some(list("abcde")) == "a, b, c, and 2 more"
