"""Compare two runs cell by cell: the ratio of a metric with its interval, and a verdict on it.

Rows are compared if their whole identity agrees. A ratio is of medians; its interval comes from those of both sides.

A machine changes its speed between two runs, and the interval of one run does not show that. If both runs timed the
same yardstick with the same code, latencies are compared in units of it, and a common change of speed cancels. Not
every model follows such a change as the yardstick does, so a cell counts as faster or slower only if it is so in
seconds too.

Differences between processes do not cancel, so two runs give no verdict on a change of code; ``sema-bench gate run``
does.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sema_bench.analysis.conditions import Conditions
from sema_bench.analysis.pooled import pool_weights
from sema_bench.analysis.ratios import interval_of_ratio
from sema_bench.errors import UsageError
from sema_bench.spec.cell import IDENTITY_FIELDS, Cell
from sema_bench.spec.metrics import METRICS, Metric
from sema_bench.spec.model_code import MODEL_FILES
from sema_bench.spec.model_source import PACKAGES, YARDSTICK
from sema_bench.spec.record import Record
from sema_bench.statistics import ESTIMATED, FEWEST_FOR_INTERVAL, NO_INTERVAL, ROUNDS, student_t
from sema_bench.store.stored_run import StoredRun

#: Fields of an environment, besides those of a cell, that two rows must share.
MACHINE_FIELDS = ("hardware", "software")
#: These fields say what was measured; the other fields of the identity say how.
_SUBJECT = ("model", "height", "width")
#: Metrics that depend on the machine's speed.
SPEED = ("throughput_images_per_s", "latency_s")
_Key = tuple[object, ...]


@dataclass(frozen=True)
class Ratio:
    """One cell in two runs.

    Attributes:
        value: how many times better the other one is; above 1 is better, for every metric.
        ci_low, ci_high: its 95 % interval; None if a side has none.
        drift: how many times faster the machine was in the other run; ``value`` excludes it. None without a yardstick.
    """

    base: Record
    other: Record
    value: float
    ci_low: float | None
    ci_high: float | None
    drift: float | None

    @property
    def estimated_from(self) -> str:
        """Source of an interval that is estimated because a side keeps no samples; empty otherwise."""
        details = [record.details for record in (self.base, self.other) if record.details.get(ESTIMATED)]
        counts = " and ".join(dict.fromkeys(str(each.get(ROUNDS)) for each in details))
        basis = " and ".join(dict.fromkeys(str(each[ESTIMATED]) for each in details))
        return f"the {basis} of {counts} rounds" if details and self.ci_low is not None else ""

    def why_no_interval(self, *, other: str = "other") -> str:
        """Return why there is no interval and what to do; "" if there is one. Call the other side ``other``."""
        if self.ci_low is not None and self.ci_high is not None:
            return ""
        for name, record in (("base", self.base), (other, self.other)):
            if why := record.details.get(NO_INTERVAL):
                return f"{name}: {why}"
            latency = record.measurements.get("latency_s")
            if latency and 0 < (count := len(latency.samples)) < FEWEST_FOR_INTERVAL:
                samples = "1 sample is" if count == 1 else f"{count} samples are"
                least = FEWEST_FOR_INTERVAL
                return f"{name}: {samples} too few for an interval; {least} or more give one (a longer --time-limit)"
            if record.details.get(ESTIMATED) and latency and (latency.ci_low or 0) <= 0:
                return f"{name}: its interval reaches 0; keep the samples with pytest --benchmark-save-data"
        return "one side has no interval"

    def verdict(self, metric: Metric, margin: float) -> str:
        """Return ``faster``, ``slower``, ``same`` or ``unclear``; ``better`` and ``worse`` for other metrics.

        ``same``: the whole interval is within ``margin`` of 1. ``faster`` and ``slower``: it is on one side of 1, with
        and without the machine's drift, which a cell may follow more or less than the yardstick does.
        """
        up, down = ("faster", "slower") if metric.name in SPEED else ("better", "worse")
        if self.ci_low is None and not metric.is_repeatable:
            return "unclear"
        low, high = (self.value if bound is None else bound for bound in (self.ci_low, self.ci_high))
        if 1 / (1 + margin) <= low and high <= 1 + margin:
            return "same"
        left_in = self.drift or 1.0
        if min(low, low * left_in) > 1:
            return up
        return down if max(high, high * left_in) < 1 else "unclear"


@dataclass(frozen=True)
class Mean:
    """The geometric mean of the ratios of a model over sizes; its interval covers their spread too (Student's t)."""

    model: str
    conditions: Conditions
    cells: int
    value: float
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class Unmatched:
    """A cell without a ratio.

    ``refused``: the other run has it under another identity, and ``reason`` says what differs. ``new``, ``vanished``:
    the base, or the other run, lacks it. ``broken``, ``mended``: it is ``ok`` only in the base, or only in the other
    run. ``unmeasured``: both have it, but no ratio.
    """

    verdict: str
    cell: Cell
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """One run against the base: ratios in the base's order, the other cells, and models built by other code."""

    base: str
    other: str
    metric: Metric
    ratios: tuple[Ratio, ...]
    unmatched: tuple[Unmatched, ...] = ()
    #: Model of the base → how the code that built it differs in the other run.
    other_code: Mapping[str, str] = field(default_factory=dict)

    @property
    def estimated_note(self) -> str:
        """A note on intervals that are estimated without samples, and how to keep samples; empty if there are none."""
        count = sum(bool(ratio.estimated_from) for ratio in self.ratios)
        if not count:
            return ""
        return (
            f"intervals of {count} of {len(self.ratios)} cells are estimated from quartiles, without samples; "
            "pytest --benchmark-save-data keeps samples"
        )

    def unmatched_as(self, *verdicts: str) -> list[Unmatched]:
        """Return the cells without a ratio that have one of ``verdicts``, in the order of ``verdicts``."""
        return [each for verdict in verdicts for each in self.unmatched if each.verdict == verdict]

    def means(self) -> list[Mean]:
        """Return the geometric mean of each model under each set of conditions, in their order."""
        groups: dict[tuple[str, Conditions], list[Ratio]] = {}
        for ratio in self.ratios:
            groups.setdefault((ratio.base.cell.model, Conditions.of(ratio.base.cell)), []).append(ratio)
        return [_mean(model, conditions, group) for (model, conditions), group in groups.items()]


def compare(
    base: StoredRun, other: StoredRun, *, metric: str, allow: Sequence[str] = (), raw: bool = False
) -> Comparison:
    """Compare a metric of two runs, in units of the yardstick unless ``raw``; fields in ``allow`` may differ.

    Different machines, and rows with several partners because of ``allow``, raise UsageError.
    """
    definition = METRICS[metric]
    if definition.statistic not in ("exact", "share"):
        _check_machines(base, other, allow)
    identity = [name for name in IDENTITY_FIELDS if name not in allow]
    rows, others = _by_key(base, identity), _by_key(other, identity)
    in_yardsticks = not raw and _share_a_yardstick(base, other)
    ratios: list[Ratio] = []
    unmatched: list[Unmatched] = []
    for key, record in rows.items():
        if (partner := others.get(key)) is None:
            continue
        if record.status == "ok" != partner.status:
            unmatched.append(Unmatched("broken", record.cell, f"{partner.status}: {partner.reason}"))
        elif partner.status == "ok" != record.status:
            unmatched.append(Unmatched("mended", record.cell, f"{record.status}: {record.reason}"))
        elif why := _why_not(record, partner, definition):
            unmatched.append(Unmatched("unmeasured", record.cell, why))
        else:
            ratios.append(_ratio(record, partner, definition, in_yardsticks))
    unmatched += _unpaired(rows, others, identity)
    code = _other_code(base, other, ratios)
    return Comparison(base.name, other.name, definition, tuple(ratios), tuple(unmatched), code)


def _other_code(base: StoredRun, other: StoredRun, ratios: Sequence[Ratio]) -> dict[str, str]:
    """Map each model to the differences in its code: its file, its packages, or files that it imports at run time."""
    differences = {}
    for ratio in ratios:
        one, two = ratio.base.cell.model, ratio.other.cell.model
        if one.partition("@")[0] != two.partition("@")[0]:  # another model on purpose (--allow model)
            continue
        files = [str(record.details.get(MODEL_FILES, "")) for record in (ratio.base, ratio.other)]
        sides = [(one.partition("@")[2], two.partition("@")[2]), (files[0], files[1])]
        if all(PACKAGES in run.metadata for run in (base, other)):  # older runs do not record them
            sides.append((str(base.packages.get(one, "")), str(other.packages.get(two, ""))))
        if differing := [f"{a or 'none'} | {b or 'none'}" for a, b in sides if a != b]:
            differences[one] = "; ".join(differing)
    return differences


def _share_a_yardstick(base: StoredRun, other: StoredRun) -> bool:
    """Check whether both timed the same cell with the same code; earlier releases timed one of the models."""
    if base.yardstick is None or base.yardstick != other.yardstick:
        return False
    return base.yardstick.model == YARDSTICK or (base.code is not None and base.code == other.code)


def _why_not(base: Record, other: Record, metric: Metric) -> str:
    """Return why two records of a cell have no ratio; empty if they have one."""
    for word, record in (("base", base), ("other", other)):
        if record.status != "ok":
            return f"{word}: {record.status}, {record.reason}"
        if (result := record.result(metric.name)) is None:
            return f"{word}: no {metric.name}"
        if not result.value > 0 and not metric.is_repeatable:
            return f"{word}: {metric.name} is {result.value:g}, and a ratio needs more than 0"
    if base.cell.batch_policy == "max" and base.cell.batch != other.cell.batch and metric.name != SPEED[0]:
        return f"batch {base.cell.batch} | {other.cell.batch}: not the same work; compare {SPEED[0]}"
    references = [record.details.get("reference") for record in (base, other)]
    if metric.statistic == "paired" and references[0] != references[1]:
        return f"ratios to different models, {references[0]} | {references[1]}"
    one, two = base.measurements[metric.name].value, other.measurements[metric.name].value
    if one != two and not (min(one, two) > 0 and 0 < one / two < math.inf and 0 < two / one < math.inf):
        return f"{metric.name} {one:g} | {two:g}: no ratio"
    return ""


def _ratio(base: Record, other: Record, metric: Metric, in_yardsticks: bool) -> Ratio:
    one, two = base.measurements[metric.name], other.measurements[metric.name]
    if metric.name in SPEED and in_yardsticks and (relative := _ratio_in_yardsticks(base, other, metric)):
        return relative
    top, bottom = (two, one) if metric.higher_is_better else (one, two)
    if top.value == bottom.value and metric.is_repeatable:
        return Ratio(base, other, 1.0, None, None, None)
    return Ratio(base, other, top.value / bottom.value, *interval_of_ratio(top, bottom), None)


def _ratio_in_yardsticks(base: Record, other: Record, metric: Metric) -> Ratio | None:
    """Return the ratio of latencies in units of the yardstick timed beside them; None if one is missing."""
    one, two = (record.measurements.get("relative_latency") for record in (base, other))
    tick, tock = (record.value("yardstick_s") for record in (base, other))
    if one is None or two is None or not tick or not tock or min(one.value, two.value) <= 0:
        return None
    images = other.cell.batch / base.cell.batch if metric.name == "throughput_images_per_s" else 1.0
    low, high = interval_of_ratio(one, two)
    low, high = (None if bound is None else bound * images for bound in (low, high))
    return Ratio(base, other, images * one.value / two.value, low, high, tick / tock)


def _mean(model: str, conditions: Conditions, group: Sequence[Ratio]) -> Mean:
    logs = [math.log(ratio.value) for ratio in group]
    mean = math.fsum(logs) / len(logs)
    spread = 0.0
    if len(logs) > 1:
        spread = student_t(len(logs) - 1, 0.95) * statistics.stdev(logs) / math.sqrt(len(logs))
    below = [math.log(r.value / r.ci_low) for r in group if r.ci_low]
    above = [math.log(r.ci_high / r.value) for r in group if r.ci_high]
    low = high = None
    if len(below) == len(above) == len(group):
        low = math.exp(mean - max(spread, math.hypot(*below) / len(group)))
        high = math.exp(mean + max(spread, math.hypot(*above) / len(group)))
    return Mean(model, conditions, len(group), math.exp(mean), low, high)


def machine_differences(base: StoredRun, other: StoredRun, part: str) -> list[str]:
    """List how the hardware or software of two runs differs, or which of them does not state it."""
    one, two = getattr(base, part), getattr(other, part)
    silent = [f"{run.name} does not say its {part}" for run in (base, other) if not getattr(run, part)]
    return silent + [f"{key} {one.get(key)} | {two.get(key)}" for key in {**one, **two} if one.get(key) != two.get(key)]


def _check_machines(base: StoredRun, other: StoredRun, allow: Sequence[str]) -> None:
    for name in (name for name in MACHINE_FIELDS if name not in allow):
        for run in (base, other):
            if not getattr(run, name):
                raise UsageError(
                    f"{run.name} does not say its {name}, so times do not compare; --allow {name} compares them"
                )
        if differences := machine_differences(base, other, name):
            raise UsageError(
                f"{base.name} and {other.name} differ in {name} ({', '.join(differences[:3])}), so their times do not "
                f"compare; --allow {name} compares them on purpose"
            )


def _by_key(run: StoredRun, identity: Sequence[str]) -> dict[_Key, Record]:
    rows: dict[_Key, Record] = {}
    for cell, times in Counter(record.cell for record in run.records).items():
        if times > 1:
            raise UsageError(
                f"{run.name} has {cell.model} at {cell.resolution} twice; compare runs that measured a cell once"
            )
    for record in pool_weights(run.records):
        key = _key(record.cell, identity)
        if key in rows:
            differs = [name for name in IDENTITY_FIELDS if getattr(rows[key].cell, name) != getattr(record.cell, name)]
            raise UsageError(
                f"{run.name} has several rows of {record.cell.model} at {record.cell.resolution}, of different "
                f"{', '.join(differs)}, so --allow cannot tell which one is meant; drop --allow {differs[0]}"
            )
        rows[key] = record
    return rows


def _key(cell: Cell, names: Sequence[str]) -> _Key:
    # The largest batch that fits is a result, not a part of the identity. An edited file is still the same model.
    values: dict[str, object] = {"batch": 0} if cell.batch_policy == "max" else {}
    if ".py:" in cell.model:
        values["model"] = cell.model.partition("@")[0]
    return tuple(values.get(name, getattr(cell, name)) for name in names)


def _unpaired(
    rows: Mapping[_Key, Record], others: Mapping[_Key, Record], identity: Sequence[str]
) -> Iterator[Unmatched]:
    """Yield the rows without a partner: refused, vanished and new ones."""
    lonely = [record.cell for key, record in others.items() if key not in rows]
    of_subject: dict[_Key, list[Cell]] = {}
    for cell in lonely:
        of_subject.setdefault(_key(cell, _SUBJECT), []).append(cell)
    near_ones: set[Cell] = set()
    for cell in (record.cell for key, record in rows.items() if key not in others):
        if near := of_subject.get(_key(cell, _SUBJECT)):
            nearest = min(near, key=lambda other: len(_differences(cell, other, identity)))
            near_ones.add(nearest)
            yield Unmatched("refused", cell, ", ".join(_differences(cell, nearest, identity)))
        else:
            yield Unmatched("vanished", cell)
    yield from (Unmatched("new", cell) for cell in lonely if cell not in near_ones)


def _differences(one: Cell, other: Cell, identity: Sequence[str]) -> list[str]:
    names = [name for name in identity if _key(one, [name]) != _key(other, [name])]
    return [f"{name} {getattr(one, name)} | {getattr(other, name)}" for name in names]
