"""Accuracy at the cell's size: top-1 and top-5 on labelled images, by ``sema_bench.worker.evaluation``."""

from __future__ import annotations

from typing import ClassVar

from sema_bench.worker.probes.base import Probe


class AccuracyProbe(Probe):
    """Top-1 and top-5 with Wilson 95 % intervals, of trained weights on the run's data."""

    kind = "evaluated"
    metrics: ClassVar[tuple[str, ...]] = (
        "top1",
        "top5",
        "evaluated_images",
        "unreadable_images",
        "evaluation_images_per_s",
        "data_wait_share",
    )
