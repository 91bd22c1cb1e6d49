"""Test records: they go to JSON and back without loss, and nothing else passes for a record."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sema_bench.spec.cell import DTYPES, Cell
from sema_bench.spec.metrics import METRICS
from sema_bench.spec.record import STATUSES, Environment, Measurement, Record

finite = st.just(0.0) | st.floats(1e-99, 1e99) | st.floats(-1e99, -1e-99)
cells = st.builds(
    Cell,
    model=st.text(min_size=1),
    height=st.integers(1, 9999),
    width=st.integers(1, 9999),
    batch=st.integers(1, 512),
    dtype=st.sampled_from(DTYPES),
    tf32=st.booleans(),
)
spread = {"ci_low": st.none() | finite, "samples": st.lists(finite, max_size=3).map(tuple)}
counts = st.sampled_from(sorted(name for name, metric in METRICS.items() if metric.is_whole))
others = st.sampled_from(sorted(name for name, metric in METRICS.items() if not metric.is_whole))
measurements = st.builds(Measurement, metric=counts, value=st.integers(0, 2**63 - 1), **spread) | st.builds(
    Measurement, metric=others, value=finite, **spread
)
records = st.builds(
    Record,
    cell=cells,
    status=st.sampled_from(STATUSES),
    reason=st.text(),
    measurements=st.lists(measurements, max_size=4).map(lambda ms: {m.metric: m for m in ms}),
    details=st.dictionaries(st.text(), st.text() | st.integers() | st.booleans(), max_size=3),
    duration_s=finite,
)


@given(records)
def test_a_record_survives_the_way_to_json_and_back(record: Record) -> None:
    line = record.to_json()
    assert "\n" not in line
    assert Record.from_json(line) == record


@given(cells, cells)
def test_cell_ids_are_equal_exactly_when_the_cells_are(a: Cell, b: Cell) -> None:
    assert (a.id == b.id) == (a == b)


def test_a_line_states_unit_direction_and_statistic_of_every_number() -> None:
    latency = Measurement(metric="latency_s", value=0.1, samples=(0.1, 0.2))
    line = Record(cell=Cell(model="m", height=32, width=32), status="ok", measurements={"latency_s": latency}).to_json()
    (body,) = json.loads(line)["measurements"]
    assert (body["unit"], body["higher_is_better"], body["statistic"]) == ("s", False, "median")


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 99}', "null", '"x"']
)
def test_what_is_not_a_record_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        Record.from_json(line)


GOOD = Record(cell=Cell(model="m", height=32, width=32), status="ok")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema_version", [1]),
        ("schema_version", True),
        ("schema_version", 1.0),
        ("cell", {"model": "m", "height": "x", "width": 32}),
        ("cell", {"model": [1], "height": 32, "width": 32}),
        ("cell", {"model": "m", "height": 32.0, "width": 32}),
        ("reason", 5),
        ("details", None),
        ("environment", [5]),
        ("duration_s", "x"),
        ("measurements", [{"metric": "latency_s", "value": True}]),
        ("measurements", [{"metric": "latency_s", "value": 10**400}]),
        ("measurements", [{"metric": "latency_s", "value": 1, "ci_low": "a"}]),
        ("measurements", [{"metric": "latency_s", "value": 1, "samples": "abc"}]),
        ("measurements", 5),
    ],
)
def test_a_field_of_the_wrong_type_makes_no_record(field: str, value: object) -> None:
    body = {**json.loads(GOOD.to_json()), field: value}
    with pytest.raises(ValueError):
        Record.from_json(json.dumps(body))


@pytest.mark.parametrize("line", ["[" * 100_000, GOOD.to_json().replace("0.0", "NaN")])
def test_hostile_json_makes_no_record(line: str) -> None:
    with pytest.raises(ValueError):
        Record.from_json(line)


def test_a_newer_schema_is_refused_by_its_number() -> None:
    with pytest.raises(ValueError, match="99"):
        Record.from_json('{"schema_version": 99}')


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e200, 5e-324])
def test_a_measurement_is_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Measurement(metric="latency_s", value=value)
    with pytest.raises(ValueError, match="finite"):
        Measurement(metric="latency_s", value=1.0, samples=(1.0, value, 2))


@pytest.mark.parametrize("odd", [True, "1.0", None])
def test_samples_are_numbers(odd: object) -> None:
    with pytest.raises(ValueError, match="finite"):
        Measurement(metric="latency_s", value=1.0, samples=(1.0, odd))


def test_the_fingerprint_ignores_context_and_nothing_else() -> None:
    base = Environment(hardware={"cpu": "a"}, software={"torch": "2.6"}, context={"load": 1})
    assert base.fingerprint == Environment(hardware={"cpu": "a"}, software={"torch": "2.6"}).fingerprint
    assert base.fingerprint != Environment(hardware={"cpu": "b"}, software={"torch": "2.6"}).fingerprint
    assert base.fingerprint != Environment(hardware={"cpu": "a"}, software={"torch": "2.7"}).fingerprint


def test_metric_names_are_columns_with_their_unit_last() -> None:
    suffix = {"s": "_s", "images/s": "_images_per_s", "B": "_bytes"}
    for name, metric in METRICS.items():
        assert name == metric.name
        assert name.isidentifier()
        if metric.unit in suffix:
            assert name.endswith(suffix[metric.unit])


def test_a_key_names_later_fields_only_where_they_are_not_at_their_defaults() -> None:
    plain = Cell(model="sema_tiny", height=224, width=224)
    assert plain.id == "sema_tiny@224x224/b1/float32/channels_last/eager/cpu/t1/retain"
    train = dataclasses.replace(plain, step="train", checkpointing=True, sdpa="math")
    assert train.id == f"{plain.id}/train/checkpointing/sdpa-math"


def test_the_key_and_variant_of_a_largest_batch_do_not_hold_the_chosen_number() -> None:
    planned = Cell(model="sema_tiny", height=224, width=224, batch=0, batch_policy="max")
    measured = dataclasses.replace(planned, batch=64)
    assert planned.id == measured.id == "sema_tiny@224x224/bmax/float32/channels_last/eager/cpu/t1/retain"
    assert planned.variant == measured.variant
    assert planned.id != dataclasses.replace(planned, batch=64, batch_policy="fixed").id
