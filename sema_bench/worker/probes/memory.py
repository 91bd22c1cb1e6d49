"""Peak memory of one forward pass, or of one training step, measured by ``sema_bench.worker.memory``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sema_bench.spec.record import measurements_of
from sema_bench.worker.probes.base import Findings, Probe

if TYPE_CHECKING:
    from sema_bench.worker.workload import Workload


class MemoryProbe(Probe):
    """Peak memory of one forward pass: live tensors and resident set (CPU), allocator and NVML (CUDA)."""

    def measure(self, workload: Workload) -> Findings:
        from sema_bench.worker.memory import measure_memory  # the driver loads this file without torch

        return Findings(measurements_of(measure_memory(workload)))
