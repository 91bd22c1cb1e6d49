"""Parameters of a model, counted without allocating them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sema_bench.spec.record import Measurement
from sema_bench.worker.probes.base import Findings, Probe

if TYPE_CHECKING:
    from torch import nn

    from sema_bench.worker.workload import Workload


class ParamsProbe(Probe):
    """Parameters, trainable and in total, each shared one counted once."""

    on_meta = True
    metrics = ("params", "params_total")

    def measure(self, workload: Workload) -> Findings:
        model = workload.meta_model()
        if workload.source.kind != "registry":
            _run_on_shapes(model, workload.cell.resolution)
        parameters = list(model.parameters())
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        total = sum(p.numel() for p in parameters)
        return Findings(
            (Measurement(metric="params", value=trainable), Measurement(metric="params_total", value=total))
        )


def _run_on_shapes(model: nn.Module, resolution: tuple[int, int]) -> None:
    """Let a model make the layers that it makes only when it runs; one that needs values keeps what it has."""
    import torch

    from sema_bench.worker.workload import IN_CHANS

    with contextlib.suppress(Exception), torch.no_grad(), torch.device("meta"):
        model(torch.empty(1, IN_CHANS, *resolution))
