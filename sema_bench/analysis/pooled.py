"""One record for all weights of a model: what several seeds gave, as a mean with the spread between them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from sema_bench.spec.record import Measurement, Record
from sema_bench.statistics import student_t

#: Detail of a pooled record: how many trainings it stands for.
SEEDS = "seeds"


def seeds_of(record: Record) -> int:
    """Return how many trainings a record stands for: 1 unless ``pool_weights`` made it."""
    seeds = record.details.get(SEEDS)
    return seeds if type(seeds) is int and seeds > 1 else 1


def pool_weights(records: Sequence[Record]) -> list[Record]:
    """Return one record for each cell but its weights, in the order of the first ones.

    Values are means over the weights, and intervals Student's t over them: they hold for another training, on the same
    test images and the same machine. Nothing is clipped: of few weights that lie far apart, an interval may pass 0
    or 100 %. Samples are the values of the weights. A cell that is not ``ok`` for all of its weights is not ``ok``,
    and says why.
    """
    groups: dict[object, list[Record]] = {}
    for record in records:
        groups.setdefault(dataclasses.replace(record.cell, weights=""), []).append(record)
    return [group[0] if len(group) == 1 else _pooled(group) for group in groups.values()]


def _pooled(group: Sequence[Record]) -> Record:
    first = next((record for record in group if record.status != "ok"), group[0])
    names = [name for name in first.measurements if all(name in record.measurements for record in group)]
    measurements = {name: _mean([record.measurements[name] for record in group]) for name in names}
    return dataclasses.replace(first, measurements=measurements, details={**first.details, SEEDS: len(group)})


def _mean(measurements: Sequence[Measurement]) -> Measurement:
    values = [measurement.value for measurement in measurements]
    mean = math.fsum(values) / len(values)
    first = dataclasses.replace(measurements[0], value=mean, samples=tuple(values))
    if first.ci_low is None:  # counts, and what is the same for all weights
        return first
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = student_t(len(values) - 1, 0.95) * spread / math.sqrt(len(values))
    return dataclasses.replace(first, ci_low=mean - half, ci_high=mean + half)
