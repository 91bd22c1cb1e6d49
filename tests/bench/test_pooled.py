"""Test pooling of seeds: their weights become one row, with the mean and Student's interval."""

from __future__ import annotations

import dataclasses
import math

import pytest

from sema_bench.analysis.pooled import pool_weights
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record


def accuracy_record(seed: int, top1: float, status: str = "ok") -> Record:
    cell = Cell(model="sema_micro", height=64, width=64, data="digits:cue", weights=f"seed {seed}@12345678")
    measured = Measurement(metric="top1", value=top1, ci_low=top1 - 0.01, ci_high=top1 + 0.01)
    return Record(cell=cell, status=status, reason="" if status == "ok" else "torn", measurements={"top1": measured})


def test_seeds_are_pooled_with_the_spread_between_them() -> None:
    (pooled,) = pool_weights([accuracy_record(seed, top1) for seed, top1 in enumerate((0.90, 0.92, 0.94))])
    top1 = pooled.measurements["top1"]
    assert top1.value == pytest.approx(0.92)
    half = 4.302653 * 0.02 / math.sqrt(3)
    assert top1.ci_high - top1.value == pytest.approx(half, rel=1e-5)
    assert pooled.details["seeds"] == 3


def test_pooled_latencies_have_the_spread_between_seeds() -> None:
    records = []
    for seed, latency in enumerate((1.0, 2.0, 3.0)):
        record = accuracy_record(seed, 0.9)
        sampled = Measurement(
            metric="latency_s", value=latency, ci_low=latency - 0.01, ci_high=latency + 0.01, samples=(latency, latency)
        )
        records.append(dataclasses.replace(record, measurements={"latency_s": sampled}))
    pooled = pool_weights(records)[0].measurements["latency_s"]
    assert (pooled.value, pooled.samples) == (2.0, (1.0, 2.0, 3.0))
    assert pooled.ci_high - pooled.value == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert pooled.ci_low == pytest.approx(2 - 4.302653 / math.sqrt(3), rel=1e-5), "not clipped at 0"


def test_one_failed_seed_is_not_hidden_by_the_others() -> None:
    records = [accuracy_record(0, 0.9), accuracy_record(1, 0.9, status="error")]
    (pooled,) = pool_weights(records)
    assert (pooled.status, pooled.reason) == ("error", "torn")
