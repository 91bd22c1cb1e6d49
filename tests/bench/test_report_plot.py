import dataclasses
import importlib
import itertools
import math
import os
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import sema_bench.report
from sema_bench.analysis.conditions import by_model
from sema_bench.report.figure_style import log_ticks, render, spread_labels
from sema_bench.report.plot import draw, draw_ratios, write_plots
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.store.load import load_runs


def record(model, side, *, status="ok", width=None, batch=1, **metrics):
    measurements = {
        name: Measurement(metric=name, value=value, ci_low=value * 0.99, ci_high=value * 1.01)
        for name, value in metrics.items()
    }
    cell = Cell(model=model, height=side, width=width or side, batch=batch)
    return Record(cell=cell, status=status, measurements=measurements)


def a_run(*, sides=(224, 384, 512), batch=1):
    return [record(m, s, batch=batch, latency_s=s**2 / 1e6, macs=s**2 * 1e5) for s in sides for m in ("a", "b[$x$]")]


@pytest.fixture(autouse=True)
def _no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def names(paths):
    return [path.name for path in paths]


def test_only_measured_metrics_are_drawn(tmp_path):
    paths = write_plots(a_run(), tmp_path)
    assert names(paths) == [
        "latency.svg",
        "latency.png",
        "macs.svg",
        "macs.png",
        "latency_ratio.svg",
        "latency_ratio.png",
    ]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_conditions_that_differ_are_in_the_file_names(tmp_path):
    paths = write_plots([*a_run(), *a_run(batch=32)], tmp_path)
    stems = {f"{stem}--{batch}" for stem in ("latency", "latency_ratio", "macs") for batch in ("b1", "b32")}
    assert {name.split(".")[0] for name in names(paths)} == stems


def test_figures_of_an_earlier_state_are_removed_and_nothing_else_is(tmp_path):
    write_plots(a_run(), tmp_path)
    (tmp_path / "mine.png").touch()
    paths = write_plots([*a_run(), *a_run(batch=32)], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names(paths), "mine.png"}


def test_nothing_measured_draws_nothing(tmp_path):
    assert write_plots([], tmp_path) == []
    assert write_plots([record("a", 224, status="oom"), record("b", 224)], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_same_records_give_the_same_bytes(tmp_path):
    first = [path.read_bytes() for path in write_plots(a_run(), tmp_path / "1")]
    second = [path.read_bytes() for path in write_plots(a_run(), tmp_path / "2")]
    assert first == second


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    write_plots(a_run(), tmp_path)
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    "records",
    [
        [record("a", 224, latency_s=0.1)],
        [record("a", 224, latency_s=0.1), record("a", 384, status="oom")],
        [record("a", 224, status="crashed"), record("a", 384, latency_s=0.1)],
        [record("a", 224, latency_s=0.1), record("a", 384, status="error"), record("a", 512, latency_s=0.4)],
        [record("a", 224, width=448, latency_s=0.1), record("a", 448, width=224, latency_s=0.2)],
        [record("a", side, latency_s=0.1) for side in (224, 384, 512)],
        [record(f"m{i}", side, latency_s=0.1 * (1 + i)) for i in range(30) for side in (224, 384)],
        [record("a", 32, latency_s=1e-6), record("a", 65536, latency_s=1e6)],
    ],
    ids=["point", "stop_after_a_point", "fails_first", "gap", "transposed", "flat", "thirty_models", "huge_range"],
)
def test_odd_runs_are_drawn_without_a_warning(records, tmp_path):
    drawn = names(write_plots(records, tmp_path))
    assert [name for name in drawn if "ratio" not in name] == ["latency.svg", "latency.png"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_labels_never_overlap_and_keep_their_order(heights):
    gap = 0.04
    placed = spread_labels(heights, gap, 0.0, 1.0)
    ordered = sorted(placed)
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(ordered))
    assert ordered[0] >= -1e-9
    assert ordered[-1] <= 1 + 1e-9
    pairs = itertools.permutations(zip(heights, placed, strict=True), 2)
    assert all(mine <= other for (height, mine), (above, other) in pairs if height < above)


def test_labels_that_have_room_stay_where_they_are():
    assert spread_labels([0.5, 0.1, 0.9], 0.1, 0, 1) == pytest.approx([0.5, 0.1, 0.9])
    assert spread_labels([], 0.1, 0, 1) == []


@given(st.floats(-12, 12), st.floats(0.01, 20))
def test_ticks_are_a_readable_number_of_values_within_the_axis(start, decades):
    low, high = 10**start, 10 ** (start + decades)
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 12
    assert all(low <= tick <= high or math.isclose(tick, low) or math.isclose(tick, high) for tick in ticks)
    assert len({f"{tick:g}" for tick in ticks}) == len(ticks)


def test_a_figure_leaves_the_environment_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert b"yesterday" not in render(Figure(), "svg")
    assert os.environ["SOURCE_DATE_EPOCH"] == "yesterday"


@pytest.mark.parametrize(("backend", "after"), [("nosuch", "agg"), ("module://mine", "module://mine"), ("", "")])
def test_a_backend_that_a_notebook_chose_stays(backend: str, after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", backend)
    importlib.reload(sema_bench.report)
    assert os.environ["MPLBACKEND"] == after


def points_of(figure):
    """Return the lines that have markers."""
    return [line for line in figure.axes[0].lines if line.get_marker() not in ("None", "", None)]


def test_disturbed_cells_and_those_without_interval_have_hollow_markers():
    bare = record("a", 224)
    bare = dataclasses.replace(bare, measurements={"latency_s": Measurement(metric="latency_s", value=0.1)})
    share = Measurement(metric="disturbed_share", value=0.9)
    shaky = record("a", 384, latency_s=0.2)
    shaky = dataclasses.replace(shaky, measurements={**shaky.measurements, "disturbed_share": share})
    figure = draw("latency_s", [bare, shaky, record("a", 512, latency_s=0.3)], models=["a"])
    (hollow,) = [line for line in figure.axes[0].lines if line.get_color() == "white"]
    assert len(hollow.get_xdata()) == 2
    assert any("hollow marker" in text.get_text() for text in figure.texts)
    calm = draw("latency_s", [record("a", s, latency_s=s / 1e3) for s in (224, 384)], models=["a"])
    assert not any("hollow" in text.get_text() for text in calm.texts)
    exact = draw("macs", [record("a", s, macs=s * 1e6) for s in (224, 384)], models=["a"])
    assert not any("hollow" in text.get_text() for text in exact.texts)


def test_ratios_name_their_reference_and_stop_at_a_factor_of_three():
    records = [record("a", s, latency_s=s / 1e3) for s in (224, 384)]
    records += [record("b", 224, latency_s=0.224 * 1.1), record("b", 384, latency_s=0.384 * 10)]
    figure = draw_ratios(records, models=["a", "b"])
    texts = [text.get_text() for text in (*figure.axes[0].texts, *figure.texts)]
    assert "Latency relative to a" in texts
    assert "b 10.00×" in texts
    assert figure.axes[0].get_ylim()[1] < 4
    assert any("stops at a factor of 3" in text for text in texts)
    assert draw_ratios(records[:2], models=["a"]) is None
    records += [record("a", 512, latency_s=0.512), record("b", 512, status="oom")]
    figure = draw_ratios(records, models=["a", "b"])
    axes = figure.axes[0]
    assert not any("extrapolated" in text.get_text() for text in figure.texts), "its mark would lie beyond the axes"
    leader = next(line for line in axes.lines if line.get_transform() == axes.transAxes and line.get_ydata()[0] > 0.99)
    left, right = (axes.transData + axes.transAxes.inverted()).transform([(224, 1), (384, 1)])[:, 0]
    assert left < leader.get_xdata()[0] < right, "it starts where the line leaves the axes"
    assert draw_ratios([records[0], record("b", 512, latency_s=1)], models=["a", "b"]) is None


def test_ratios_to_a_model_far_from_all_others_are_to_another_one_or_all_on_the_axis():
    records = [record("far", s, latency_s=s / 1e6) for s in (224, 384)]
    records += [record(m, s, latency_s=v * s) for s in (224, 384) for m, v in (("b", 3e-4), ("c", 3.7e-4))]
    figure = draw_ratios(records, models=["far", "b", "c"])
    texts = [text.get_text() for text in (*figure.axes[0].texts, *figure.texts)]
    assert {"Latency relative to b", "c 1.23×", "far 0.00333×"} <= {*texts}
    assert figure.axes[0].get_ylim()[0] > 1 / 3
    figure = draw_ratios([each for each in records if each.cell.model != "c"], models=["far", "b"])
    assert figure.axes[0].get_ylim()[1] > 300
    texts = [text.get_text() for text in (*figure.axes[0].texts, *figure.texts)]
    assert {"Latency relative to far", "b 300×"} <= {*texts}
    assert not any("stops at a factor" in text for text in texts)


def test_a_caption_names_each_status_once():
    records = [record("a", s, latency_s=s / 1e3) for s in (224, 384)]
    records += [record("b", s, status=status) for s, status in ((224, "timeout"), (288, "skipped"), (384, "skipped"))]
    texts = [text.get_text() for text in draw("latency_s", records, models=["a", "b"]).texts]
    assert "no result: b at 224 (timeout); 288, 384 (skipped)" in texts


def test_a_size_without_result_has_the_ratio_of_the_heights_in_the_plot_of_latency():
    records = [record("a", 224, latency_s=3.0), record("a", 288, latency_s=4.0)]
    records += [record("b", 224, latency_s=4.5), record("b", 288, status="timeout")]

    def cross(figure):
        return next(float(line.get_ydata()[0]) for line in figure.axes[0].lines if line.get_marker() == "x")

    models = ["a", "b"]
    assert cross(draw_ratios(records, models=models)) == pytest.approx(
        cross(draw("latency_s", records, models=models)) / 4.0
    )


@pytest.mark.parametrize("run", ["2026-11-21-cpu", "2026-11-21-field-cpu"])
@pytest.mark.parametrize("metric", ["latency_s", "throughput_images_per_s", "macs"])
def test_the_key_of_slopes_stays_clear_of_the_lines(run, metric):
    (loaded,) = load_runs(Path(__file__).parents[2] / "results", [run])
    figure = draw(metric, loaded.records, models=list(by_model(loaded.records)))
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text().startswith("∝")]
    assert len(boxes) == 2
    for line in points_of(figure):
        xy = axes.transData.transform(line.get_xydata())
        for (x0, y0), (x1, y1) in itertools.pairwise(xy):
            for t in (i / 50 for i in range(51)):
                assert not any(box.contains(x0 + t * (x1 - x0), y0 + t * (y1 - y0)) for box in boxes)


def test_memory_without_a_result_is_drawn_on_a_line_that_starts_at_the_weights():
    """Weights plus a part linear in pixels are not straight in log-log; a straight line would run too low."""
    sides = (224, 448, 672, 896)
    records = [record("a", s, peak_memory_bytes=1e8 + 300 * s**2) for s in sides]
    records += [record("b", s, peak_memory_bytes=1e8 + 300 * s**2) for s in sides[:3]]
    figure = draw("peak_memory_bytes", [*records, record("b", 896, status="skipped")], models=["a", "b"])
    measured, covering, cross = points_of(figure)
    assert cross.get_marker() == "x"
    assert cross.get_ydata()[0] == pytest.approx(measured.get_ydata()[-1])
    assert measured.get_linewidth() > covering.get_linewidth()
    notes = [text.get_text() for text in figure.texts]
    assert "wide line: thinner ones lie on it" in notes
    assert "no result: b at 896 (skipped)" in notes


def test_lines_that_lie_apart_have_one_width():
    records = [record(m, s, latency_s=k * s / 1e3) for k, m in enumerate("abc", start=1) for s in (224, 384)]
    figure = draw("latency_s", records, models=["a", "b", "c"])
    assert len({line.get_linewidth() for line in points_of(figure)}) == 1
    assert not any("wide line" in text.get_text() for text in figure.texts)
