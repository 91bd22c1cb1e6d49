"""Corruption errors of models relative to a reference, as ImageNet-C defines them (Hendrycks & Dietterich, ICLR 2019).

With the error E of a model f at severity s of corruption c: ``ce`` is Σₛ E(f, s, c) / Σₛ E(reference, s, c), and
``relative_ce`` is the same ratio for E − E(no corruption), so it compares losses. ``mce`` and ``relative_mce`` are
their means over the corruptions.

Trainings are paired by their seed, and intervals are Student's over the pairs. A single pair of weights has the
interval of its test images. It assumes that errors on the same images move together, so it is rather too wide.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sema_bench.analysis.conditions import CONDITION_FIELDS, Conditions
from sema_bench.analysis.ratios import interval_of_ratio
from sema_bench.analysis.scaling import Estimate
from sema_bench.errors import UsageError, unknown_name
from sema_bench.spec.corruption import NONE, split_corruption
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.resolution import Resolution
from sema_bench.statistics import mean_interval

_CONDITIONS = tuple(name for name in CONDITION_FIELDS if name != "corrupt")
COLUMNS = (
    *("model", "reference", "height", "width", *_CONDITIONS),
    *("metric", "corruption", "severities", "value", "ci_low", "ci_high", "weights"),
)
#: Corruption (``fog:3``, ``none``) → top-1 of one set of weights.
_Results = dict[str, Measurement]


@dataclass(frozen=True, kw_only=True)
class CorruptionErrors:
    """Effect of corruptions on one model at one size, under one set of conditions; shares, not per cent.

    Attributes:
        severities: corruption → the severities for which all models have results.
        weights: number of sets of weights behind it.
        clean: error without corruption; None if that was not measured.
        errors: corruption → error, the mean over its severities.
        ce, relative_ce: corruption → error relative to the reference's, if the corruption costs the reference anything.
        mce, relative_mce: their means; None without any.
    """

    model: str
    reference: str
    conditions: Conditions
    resolution: Resolution
    severities: Mapping[str, tuple[int, ...]]
    weights: int
    clean: Estimate | None
    errors: Mapping[str, Estimate]
    ce: Mapping[str, Estimate]
    mce: Estimate | None
    relative_ce: Mapping[str, Estimate]
    relative_mce: Estimate | None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of corruption.csv, with ``COLUMNS``."""
        values = self.conditions.as_dict()
        same: dict[str, Any] = {"model": self.model, "reference": self.reference}
        same |= {"height": self.resolution.height, "width": self.resolution.width}
        same |= {name: values[name] for name in _CONDITIONS}
        tables = {"error": self.errors, "ce": self.ce, "relative_ce": self.relative_ce}
        listed = [("error", NONE, self.clean), ("mce", "", self.mce), ("relative_mce", "", self.relative_mce)]
        listed += [(metric, name, each) for metric, table in tables.items() for name, each in table.items()]
        for metric, name, each in listed:
            if each is not None:
                which = {"corruption": name, "severities": " ".join(map(str, self.severities.get(name, ())))}
                bounds = {"value": each.value, "ci_low": each.low, "ci_high": each.high, "weights": self.weights}
                yield same | {"metric": metric} | which | bounds


def is_corrupted(record: Record) -> bool:
    """Check whether a cell was tested on corrupted images."""
    return record.cell.corrupt != NONE


def uncorrupted(records: Sequence[Record]) -> list[Record]:
    """Return the records without corruption, or all of them if there are none without."""
    return [record for record in records if not is_corrupted(record)] or list(records)


def corruption_errors(records: Sequence[Record], reference: str = "") -> list[CorruptionErrors]:
    """Compute the errors of all models relative to ``reference`` (empty: the first model), condition by condition.

    A corruption counts if all weights have a result at all of its severities.

    Raises:
        UsageError: there is no such model, or nothing was tested on corrupted images.
    """
    models = list(dict.fromkeys(record.cell.model for record in records if is_corrupted(record)))
    if not models:
        raise UsageError("no cell was tested on corrupted images; test some with --corrupt none,fog:1..5")
    if reference and reference not in models:
        raise unknown_name("reference", reference, models)
    groups: dict[tuple[Conditions, Resolution], list[Record]] = {}
    for record in records:
        conditions = Conditions.of(dataclasses.replace(record.cell, corrupt=NONE))
        groups.setdefault((conditions, record.cell.resolution), []).append(record)
    return [each for key, group in groups.items() for each in _errors_of(group, *key, reference or models[0])]


def _errors_of(
    group: Sequence[Record], conditions: Conditions, resolution: Resolution, reference: str
) -> Iterator[CorruptionErrors]:
    results: dict[str, dict[str, _Results]] = {}  # model → weights →
    for record in group:
        if top1 := record.result("top1"):
            results.setdefault(record.cell.model, {}).setdefault(record.cell.weights, {})[record.cell.corrupt] = top1
    planned: dict[str, list[int]] = {}
    for name, severity in map(split_corruption, dict.fromkeys(r.cell.corrupt for r in group if is_corrupted(r))):
        planned.setdefault(name, []).append(severity)
    each_has = [each.keys() for of_model in results.values() for each in of_model.values()]
    severities = {
        name: tuple(sorted(levels))
        for name, levels in planned.items()
        if all(f"{name}:{level}" in has for has in each_has for level in levels)
    }
    for model, of_model in results.items():
        others = results.get(reference, {})
        pairs = [(each, others[weights]) for weights, each in of_model.items() if weights in others]
        if not pairs and len(of_model) == len(others) == 1:  # checkpoints: each model has its own
            pairs = list(zip(of_model.values(), others.values(), strict=True))
        if not pairs or not severities:
            continue
        ce = _compared(pairs, severities, lost=False)
        relative = _compared(pairs, severities, lost=True)
        own = [each for each, _ in pairs]
        yield CorruptionErrors(
            model=model,
            reference=reference,
            conditions=conditions,
            resolution=resolution,
            severities=severities,
            weights=len(pairs),
            clean=_pooled([_error(each, [NONE]) for each in own]) if all(NONE in each for each in own) else None,
            errors={
                name: _pooled([_error(each, _keys(name, levels)) for each in own])
                for name, levels in severities.items()
            },
            ce={name: _pooled(values) for name, values in ce.items()},
            mce=_mean_of(ce),
            relative_ce={name: _pooled(values) for name, values in relative.items()},
            relative_mce=_mean_of(relative),
        )


def _keys(name: str, levels: Sequence[int]) -> list[str]:
    return [f"{name}:{level}" for level in levels]


def _error(results: _Results, keys: Sequence[str]) -> Estimate:
    """Return the mean error over ``keys``, with an interval that assumes they move together."""
    return _average([_error_of(results[key]) for key in keys])


def _error_of(top1: Measurement) -> Estimate:
    if top1.ci_low is None or top1.ci_high is None:
        return Estimate(1 - top1.value)
    return Estimate(1 - top1.value, 1 - top1.ci_high, 1 - top1.ci_low)


def _compared(
    pairs: Sequence[tuple[_Results, _Results]], severities: Mapping[str, Sequence[int]], *, lost: bool
) -> dict[str, list[Estimate]]:
    """Divide errors by those of the reference, pair by pair; if ``lost``, divide the losses to corruption instead."""
    if lost and not all(NONE in each for pair in pairs for each in pair):
        return {}
    ratios: dict[str, list[Estimate]] = {}
    for name, levels in severities.items():
        for results, others in pairs:
            top, bottom = (_error(each, _keys(name, levels)) for each in (results, others))
            if lost:
                top, bottom = (
                    Estimate(error.value - _error(each, [NONE]).value)
                    for error, each in ((top, results), (bottom, others))
                )
            if bottom.value <= 0:
                ratios.pop(name, None)
                break
            ratios.setdefault(name, []).append(_ratio(top, bottom, same=results is others))
    return ratios


def _ratio(top: Estimate, bottom: Estimate, *, same: bool) -> Estimate:
    if same:
        return Estimate(1.0, 1.0, 1.0)
    errors = (
        Measurement(metric="top1", value=each.value, ci_low=each.low, ci_high=each.high) for each in (top, bottom)
    )
    return Estimate(top.value / bottom.value, *interval_of_ratio(*errors))


def _mean_of(ratios: Mapping[str, Sequence[Estimate]]) -> Estimate | None:
    """Average over the corruptions, pair by pair, then over the pairs."""
    if not ratios:
        return None
    return _pooled([_average(of_pair) for of_pair in zip(*ratios.values(), strict=True)])


def _average(estimates: Sequence[Estimate]) -> Estimate:
    bounds = [(each.low, each.high) for each in estimates if each.low is not None and each.high is not None]
    value = math.fsum(each.value for each in estimates) / len(estimates)
    if len(bounds) < len(estimates):
        return Estimate(value)
    return Estimate(value, *(math.fsum(bound) / len(estimates) for bound in zip(*bounds, strict=True)))


def _pooled(estimates: Sequence[Estimate]) -> Estimate:
    """Pool the values of several weights; one alone keeps its interval."""
    return estimates[0] if len(estimates) == 1 else Estimate(*mean_interval([each.value for each in estimates]))
