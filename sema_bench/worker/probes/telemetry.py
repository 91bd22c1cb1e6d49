"""Power, energy, clocks, temperature, load and disturbances while a cell was timed."""

from __future__ import annotations

from sema_bench.worker.probes.base import Probe


class TelemetryProbe(Probe):
    """State of the machine while this cell was timed: power, clocks, temperature, disturbances; needs throughput."""

    kind = "derived"
    metrics = (
        "power_w",
        "energy_j_per_image",
        "gpu_clock_hz",
        "gpu_memory_clock_hz",
        "gpu_temperature_c",
        "cpu_clock_hz",
        "load_average",
        "cpu_stolen_share",
        "cpu_others_share",
        "disturbed_share",
    )
