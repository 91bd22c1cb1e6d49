"""Parameters of a model, counted without allocating them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sema_bench.probes.base import Findings, Probe
from sema_bench.schema import Measurement

if TYPE_CHECKING:
    from sema_bench.subject import Subject


class ParamsProbe(Probe):
    """Trainable parameters, each shared one counted once."""

    on_meta = True
    metrics = ("params",)

    def measure(self, subject: Subject) -> Findings:
        count = sum(p.numel() for p in subject.meta_model().parameters() if p.requires_grad)
        return Findings((Measurement(metric="params", value=count),))
