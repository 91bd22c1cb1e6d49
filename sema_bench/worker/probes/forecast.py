"""The peak memory that a forward pass will need, predicted without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sema_bench.errors import first_line
from sema_bench.spec.record import measurements_of
from sema_bench.worker.probes.base import Findings, Probe

if TYPE_CHECKING:
    from sema_bench.worker.workload import Workload


class ForecastProbe(Probe):
    """Predicted peak memory of one eager forward pass, or training step, from shapes alone."""

    on_meta = True

    def measure(self, workload: Workload) -> Findings:
        try:
            forecast = workload.forecast()
        except Exception as problem:  # a model may do anything to a tensor without values
            return Findings((), {"not_forecast": f"{type(problem).__name__}: {first_line(problem)}"})
        without_card = workload.device.type == "cuda" and workload.forecast_device == "cpu"
        return Findings(measurements_of(vars(forecast)), {"forecast_device": "cpu"} if without_card else {})
