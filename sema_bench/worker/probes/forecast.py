"""The peak memory that a forward pass will need, predicted without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sema_bench.errors import first_line
from sema_bench.spec.record import Measurement
from sema_bench.worker.probes.base import Findings, Probe

if TYPE_CHECKING:
    from sema_bench.worker.workload import Workload


class ForecastProbe(Probe):
    """Predicted peak memory of one eager forward pass, or training step, from shapes alone."""

    on_meta = True
    metrics = ("predicted_peak_bytes", "weights_bytes", "input_bytes", "optimizer_bytes")

    def measure(self, workload: Workload) -> Findings:
        try:
            forecast = workload.forecast()
        except Exception as problem:  # a model may do anything to a tensor without values
            return Findings((), {"not_forecast": f"{type(problem).__name__}: {first_line(problem)}"})
        values = {
            "predicted_peak_bytes": forecast.peak_bytes,
            "weights_bytes": forecast.weights_bytes,
            "input_bytes": forecast.input_bytes,
        }
        if workload.trains:
            values["optimizer_bytes"] = forecast.optimizer_bytes
        return Findings(tuple(Measurement(metric=name, value=value) for name, value in values.items()))
