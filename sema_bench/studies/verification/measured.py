"""Pair what a run measured with published figures, and say how the two were measured differently."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sema_bench.errors import UsageError
from sema_bench.spec.data_source import CROP_PCT
from sema_bench.spec.record import Measurement, Record
from sema_bench.store.stored_run import StoredRun
from sema_bench.studies.verification.verification import Figure
from sema_bench.text.plain_json import mapping

#: Published quantity → our metric, and the factor from the metric's unit to the quantity's.
METRICS = {"top1": ("top1", 100), "top5": ("top5", 100), "throughput": ("throughput_images_per_s", 1)}
#: Classes and test images of ImageNet-1K, on which every published accuracy was measured.
_CLASSES, _IMAGES = 1000, 50_000


@dataclass(frozen=True)
class Pair:
    """A measurement of a cell beside a published figure of the same model and size."""

    figure: Figure
    measurement: Measurement
    differences: tuple[str, ...]  # of protocol, ours first: ``batch 1 | 128``

    @property
    def ours(self) -> tuple[float | None, ...]:
        """The value and its 95 % interval, in the figure's unit."""
        factor = METRICS[self.figure.quantity][1]
        values = (self.measurement.value, self.measurement.ci_low, self.measurement.ci_high)
        return tuple(None if value is None else factor * value for value in values)


def pairs_of(run: StoredRun, figures: Iterable[Figure]) -> list[Pair]:
    """Pair the measurements of ``run`` with the figures of their models at their sizes.

    Raises:
        UsageError: the run has no accuracy on ImageNet and no throughput, or nobody published a figure for it.
    """
    published = [figure for figure in figures if figure.quantity in METRICS]
    comparable = [(record, quantity) for record in run.records for quantity in METRICS if _measured(record, quantity)]
    if not comparable:
        raise UsageError(
            f"run {run.name!r} has neither an accuracy on the {_CLASSES:,} classes of ImageNet nor a throughput; "
            "measure one with sema-bench evaluate --data folder:PATH, or with sema-bench scale"
        )
    pairs = [pair for record, quantity in comparable for pair in _pairs(run, record, quantity, published)]
    if not pairs:
        models = ", ".join(sorted({record.cell.model for record, _ in comparable}))
        raise UsageError(f"no published figure is of a model and a size of run {run.name!r}; it has {models}")
    return pairs


def _measured(record: Record, quantity: str) -> Measurement | None:
    if quantity != "throughput" and (_accuracy(record).get("classes"), record.cell.readout) != (_CLASSES, "head"):
        return None
    return record.result(METRICS[quantity][0])


def _accuracy(record: Record) -> Mapping[str, Any]:
    return mapping(record.details.get("accuracy"))


def _pairs(run: StoredRun, record: Record, quantity: str, published: Iterable[Figure]) -> Iterator[Pair]:
    cell, measurement = record.cell, _measured(record, quantity)
    for figure in published:
        same = (figure.model, figure.resolution, figure.quantity) == (cell.model, cell.resolution, quantity)
        if same and measurement and figure.stated.get("step", "infer") == cell.step:
            yield Pair(figure, measurement, tuple(_differences(run, record, figure)))


def _differences(run: StoredRun, record: Record, figure: Figure) -> Iterator[str]:
    cell, stated, ours = record.cell, figure.stated, _conditions(run, record)
    if figure.quantity != "throughput":
        if (images := record.value("evaluated_images")) != _IMAGES:
            yield f"images {images:,.0f} | {_IMAGES:,}"
    elif cell.mode != "eager":
        yield f"mode {cell.mode} | eager"
    for key in ("protocol", "precision", "card", "batch"):
        known = stated.get(key)
        if known is None:
            if key == "precision":
                yield f"precision {ours[key]} | not stated"
        elif known != ours[key] and not (key == "card" and known in ours[key].split("-")[0].split()):
            yield f"{key} {ours[key]} | {known}"


def _conditions(run: StoredRun, record: Record) -> dict[str, str]:
    cell = record.cell
    index = int(cell.device.partition(":")[2] or 0)
    cards = [mapping(card) for card in run.hardware.get("gpus") or []] if cell.device.startswith("cuda") else []
    card = cards[index].get("name") if index < len(cards) else run.hardware.get("cpu")
    crop_pct = mapping(_accuracy(record).get("preparation")).get("crop_pct", CROP_PCT)
    cropped = {CROP_PCT: "crop", 1.0: "full-crop"}.get(crop_pct, f"crop {crop_pct:g}")  # the data may set it, too
    return {
        "protocol": cropped if cell.protocol == "crop" else cell.protocol,
        "precision": "TF32" if cell.tf32 else cell.dtype,
        "card": str(card or "unknown"),
        "batch": str(cell.batch),
    }
