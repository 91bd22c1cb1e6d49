"""Test ``--batch max``: the largest power of two that fits, chosen by forecast, proven by running, recorded."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console
from run_support import fake_executor, make_plan

from sema.attention import window
from sema_bench.analysis.scaling import analyse
from sema_bench.driver import worker_pool
from sema_bench.driver.memory_fit import MEMORY_SHARE, WORKER_BYTES, largest_batch
from sema_bench.driver.schedule import skip_reason
from sema_bench.driver.worker_process import CellFailure
from sema_bench.report.plot import write_plots
from sema_bench.report.table import render
from sema_bench.spec.cell import MAX_BATCH, Cell
from sema_bench.spec.record import Record
from sema_bench.spec.sampling import Sampling

GIB = 2**30
FREE = int((WORKER_BYTES + GIB) / MEMORY_SHARE) + 100  # one GiB for tensors


@pytest.mark.parametrize(
    ("weights", "image", "expected"),
    [(0, GIB / 8, 8), (0, GIB / 7.9, 4), (GIB / 2, GIB / 16, 8), (GIB / 2, GIB / 2 - 1e6, 1), (1000, 0, MAX_BATCH)],
)
def test_the_largest_power_of_two_that_the_forecast_lets_in(weights: float, image: float, expected: int) -> None:
    assert largest_batch(lambda batch: weights + batch * image, FREE) == expected


def test_no_batch_is_larger_than_fused_attention_takes_on_cuda() -> None:
    """Its grid would be an "invalid configuration argument", an error that does not halve the batch."""
    assert MAX_BATCH <= window._MOST_AT_ONCE < 2 * MAX_BATCH


def test_a_forecast_that_bends_upwards_is_asked_at_the_batch_itself() -> None:
    assert largest_batch(lambda batch: batch**1.5 * GIB / 64, FREE) == 16


def test_not_even_one_image() -> None:
    with pytest.raises(CellFailure, match=r"one image is predicted to need 2\.0 GiB, and 1\.0 GiB are free") as failure:
        largest_batch(lambda batch: batch * 2 * GIB, FREE)
    assert failure.value.status == "oom"


def measured(monkeypatch: pytest.MonkeyPatch, *models: str, sides: tuple[int, ...] = (64,)) -> list[Record]:
    monkeypatch.setattr(worker_pool, "capacity_bytes", lambda device: FREE)
    plan = make_plan(models, sides, time_limit_s=0.5)
    executor = fake_executor(plan)
    try:
        groups = [tuple(dataclasses.replace(cell, batch=0, batch_policy="max") for cell in g) for g in plan.groups]
        return list(executor.run((group, {}) for group in groups))
    finally:
        executor.cancel()


def test_the_batch_is_found_and_recorded_and_its_throughput_is_that_of_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, large = measured(monkeypatch, "good", sides=(32, 64))
    assert (small.cell.batch, large.cell.batch) == (1024, 256)
    assert small.details["batches_tried"] == [1024]
    assert small.value("throughput_images_per_s") == pytest.approx(1024 / small.measurements["latency_s"].value)


def test_a_batch_that_does_not_fit_after_all_is_halved_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = measured(monkeypatch, "fits50")
    assert (record.status, record.cell.batch) == ("ok", 32)
    assert record.details["batches_tried"] == [256, 128, 64, 32]


def test_a_model_that_never_fits_ends_as_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = measured(monkeypatch, "fits0")
    assert (record.status, record.cell.batch) == ("oom", 1)


def test_models_with_a_batch_each_are_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    records = measured(monkeypatch, "good", "good2")
    assert [record.details["interleaved_with"] for record in records] == [[], []]


def test_what_another_size_did_says_nothing_of_this_one() -> None:
    cells = [Cell(model="a", height=side, width=side, batch=0, batch_policy="max") for side in (224, 512)]
    assert skip_reason(cells[1], [Record(cell=cells[0], status="oom")], Sampling()) is None


def test_tables_and_plots_compare_throughputs_and_no_latencies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    records = measured(monkeypatch, "good", "slow0.01", sides=(32, 64, 96))
    console = Console(file=io.StringIO(), width=120)
    render(records, console, details=True)
    text = console.file.getvalue()
    assert "largest batch that fits" in text
    assert "images in the largest batch that fits" in text
    assert "256" in text
    assert "throughput, img/s" in text
    assert "latency, " not in text
    assert "growth with image size" not in text
    assert {path.stem for path in write_plots(records, tmp_path)} == {"throughput"}
    assert analyse(records).crossovers == ()
