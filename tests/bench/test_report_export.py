import io

import pandas as pd
import pytest

from sema_bench.analysis.crossover import CROSSOVER_COLUMNS
from sema_bench.analysis.scaling import SCALING_COLUMNS, analyse
from sema_bench.report import export
from sema_bench.spec.cell import IDENTITY_FIELDS, Cell
from sema_bench.spec.metrics import METRICS
from sema_bench.spec.record import Measurement, Record
from sema_bench.store import table
from sema_bench.text.escape import for_markdown


def read(text):
    return pd.read_csv(io.StringIO(text), dtype=table.column_types())


def a_record(**changes):
    latency = Measurement(
        metric="latency_s", value=0.1 + 0.2, ci_low=0.29, ci_high=0.31, p10=0.28, p90=0.4, samples=(0.3, 0.3, 0.31)
    )
    macs = Measurement(metric="macs", value=float(2**53 - 1))
    fields = {
        "cell": Cell(model="sema_tiny[linear]", height=224, width=336, tf32=True),
        "status": "ok",
        "measurements": {"latency_s": latency, "macs": macs},
        "details": {"stop_reason": "precision", "interleaved_with": ["mila_tiny", "deit_small"]},
        "environment": "012345678901",
        "started_at": "2026-01-02T03:04:05Z",
        "duration_s": 1.5,
    }
    return Record(**{**fields, **changes})


def test_columns_are_unique_snake_case_and_keep_the_unit_last():
    columns = list(table.column_types())
    assert len(columns) == len(set(columns))
    assert all(name == name.lower() and name.isidentifier() for name in columns)
    assert columns[: len(IDENTITY_FIELDS)] == list(IDENTITY_FIELDS)
    assert set(METRICS) < set(columns)
    assert {"latency_ci_low_s", "latency_p90_s", "latency_samples", "throughput_ci_high_images_per_s"} < set(columns)


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_only_medians_shares_and_ratios_of_pairs_have_spread_columns(metric):
    assert bool(table.interval_columns(metric)) == (metric.statistic in ("median", "share", "paired"))


def test_csv_round_trips_with_values_and_types():
    frame = table.records_frame([a_record(), a_record(status="oom", reason="too big", measurements={})])
    back = read(export.to_csv_text(frame))
    pd.testing.assert_frame_equal(back, frame)
    assert back.loc[0, "latency_s"] == pytest.approx(0.1 + 0.2, rel=1e-15)
    assert back.loc[0, "macs"] == 2**53 - 1
    assert bool(back.loc[0, "tf32"])
    assert back.loc[0, "latency_samples"] == 3
    assert back.loc[0, "interleaved_with"] == "mila_tiny deit_small"
    assert back.loc[0, "environment"] == "012345678901"


def test_whole_numbers_are_written_whole_and_what_was_not_measured_is_empty():
    frame = table.records_frame([a_record(), a_record(status="oom", measurements={})])
    text = export.to_csv_text(frame[["status", "macs", "latency_s"]])
    assert text == "status,macs,latency_s\nok,9007199254740991,0.30000000000000004\noom,,\n"


def test_no_records_give_the_header_alone():
    text = export.to_csv_text(table.records_frame([]))
    assert text.count("\n") == 1
    assert list(read(text)) == list(table.column_types())


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_text_that_a_spreadsheet_would_run_is_disarmed_and_numbers_are_not(start):
    frame = pd.DataFrame({"reason": [f"{start}1+1", "fine"], "latency_s": [-1.0, -2.5]})
    back = pd.read_csv(io.StringIO(export.to_csv_text(frame)))
    assert list(back["reason"]) == [f"'{start}1+1".replace("\r", "\n"), "fine"]
    assert list(back["latency_s"]) == [-1.0, -2.5]


@pytest.mark.parametrize("kind", ["object", "string"])
def test_text_is_disarmed_whatever_type_pandas_keeps_it_in(kind):
    frame = pd.DataFrame({"reason": pd.Series(["=cmd()", None], dtype=kind)})
    assert export.to_csv_text(frame) == 'reason\n\'=cmd()\n""\n'


def test_quotes_commas_and_line_breaks_survive():
    frame = table.records_frame([a_record(status="error", reason='a, "b"\nc')])
    assert read(export.to_csv_text(frame)).loc[0, "reason"] == 'a, "b"\nc'


def test_a_carriage_return_does_not_start_a_row_of_its_own():
    frame = pd.DataFrame({"reason": ["a\r=cmd()", "b\r\nc"]})
    assert list(pd.read_csv(io.StringIO(export.to_csv_text(frame)))["reason"]) == ["a\n=cmd()", "b\nc"]


def test_write_csv_leaves_no_temporary_file(tmp_path):
    export.write_csv(table.records_frame([a_record()]), tmp_path / "table.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert (tmp_path / "table.csv").read_bytes().count(b"\r") == 0


def test_scaling_rows_have_a_header_even_without_rows():
    scaling = analyse([a_record()])
    rows = table.rows_frame(scaling.rows(), columns=SCALING_COLUMNS)
    none = table.rows_frame(scaling.crossover_rows(), columns=CROSSOVER_COLUMNS)
    assert list(pd.read_csv(io.StringIO(export.to_csv_text(none)))) == list(CROSSOVER_COLUMNS)
    assert set(rows["reason"]) == {"1 size measured; an exponent needs 3", "0 sizes measured; an exponent needs 3"}


def test_markdown_shows_text_as_it_is():
    frame = pd.DataFrame({"model": ["a|b`c`\n[x](y)<b>&*"], "latency_s": [0.5], "macs": [None]})
    header, rule, row = export.to_markdown(frame).splitlines()
    assert header == "| model | latency_s | macs |"
    assert rule == "| --- | ---: | --- |"
    assert row == r"| a\|b\`c\` \[x\](y)&lt;b&gt;&amp;\* | 0.5 |  |"


def test_a_backslash_before_a_pipe_does_not_free_the_pipe():
    assert for_markdown("\\|") == "\\\\\\|"
