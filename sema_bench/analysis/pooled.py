"""Pool the records of several seeds into one: the mean with the spread between seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sema_bench.spec.record import Measurement, Record
from sema_bench.statistics import mean_interval

#: Detail of a pooled record: how many trainings it stands for.
SEEDS = "seeds"


def seeds_of(record: Record) -> int:
    """Return how many trainings a record stands for: 1 unless ``pool_weights`` made it."""
    seeds = record.details.get(SEEDS)
    return seeds if type(seeds) is int and seeds > 1 else 1


def pool_weights(records: Sequence[Record]) -> list[Record]:
    """Pool all weights of a cell into one record, in order of appearance; it is not ``ok`` if one of them is not.

    Values are means over the weights, with intervals by Student's t: they predict another training on the same test
    images and machine. An interval over few, distant weights may exceed 0 or 100 %. Samples are the weights' values.
    """
    groups: dict[object, list[Record]] = {}
    for record in records:
        groups.setdefault(dataclasses.replace(record.cell, weights=""), []).append(record)
    return [group[0] if len(group) == 1 else _pooled(group) for group in groups.values()]


def _pooled(group: Sequence[Record]) -> Record:
    first = next((record for record in group if record.status != "ok"), group[0])
    names = [name for name in first.measurements if all(name in record.measurements for record in group)]
    measurements = {name: _mean([record.measurements[name] for record in group]) for name in names}
    recipe = first.cell.weights.rpartition("@")[2]
    cell = dataclasses.replace(first.cell, weights=f"{len(group)} seeds@{recipe}")
    details = {**first.details, SEEDS: len(group)}
    return dataclasses.replace(first, cell=cell, measurements=measurements, details=details)


def _mean(measurements: Sequence[Measurement]) -> Measurement:
    values = tuple(measurement.value for measurement in measurements)
    mean, low, high = mean_interval(values)
    first = dataclasses.replace(measurements[0], value=mean, samples=values)
    if first.ci_low is None:  # counts, and values that all weights share
        return first
    return dataclasses.replace(first, ci_low=low, ci_high=high)
