"""Peak memory of one forward pass, or of one training step, measured by ``sema_bench.worker.memory``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sema_bench.spec.record import Measurement
from sema_bench.worker.probes.base import Findings, Probe

if TYPE_CHECKING:
    from sema_bench.worker.workload import Workload


class MemoryProbe(Probe):
    """Peak memory of one forward pass: live tensors and resident set (CPU), allocator and NVML (CUDA)."""

    metrics = (
        "peak_memory_bytes",
        "weights_bytes",
        "input_bytes",
        "optimizer_bytes",
        "activation_bytes",
        "peak_rss_bytes",
        "rss_growth_bytes",
        "peak_reserved_bytes",
        "device_process_bytes",
        "compile_s",
    )

    def measure(self, workload: Workload) -> Findings:
        from sema_bench.worker.memory import measure_memory  # the driver loads this file and no torch

        values = measure_memory(workload)
        return Findings(tuple(Measurement(metric=name, value=values[name]) for name in self.metrics if name in values))
