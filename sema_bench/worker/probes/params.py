"""Parameters of a model, counted without allocating them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sema_bench.spec.record import measurements_of
from sema_bench.worker.probes.base import Findings, Probe

if TYPE_CHECKING:
    from sema_bench.worker.workload import Workload


class ParamsProbe(Probe):
    """Parameters, trainable and in total; shared ones count once."""

    on_meta = True

    def measure(self, workload: Workload) -> Findings:
        parameters = workload.parameters_on_shapes()
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        total = sum(p.numel() for p in parameters)
        return Findings(measurements_of({"params": trainable, "params_total": total}))
