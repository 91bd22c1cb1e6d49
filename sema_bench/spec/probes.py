"""List the probes by name, one line each."""

from __future__ import annotations

from sema.registry import Registry

PROBES = Registry(
    "probe",
    ("params", "sema_bench.worker.probes.params:ParamsProbe"),
    ("macs", "sema_bench.worker.probes.macs:MacsProbe"),
    ("forecast", "sema_bench.worker.probes.forecast:ForecastProbe"),
    ("memory", "sema_bench.worker.probes.memory:MemoryProbe"),
    ("throughput", "sema_bench.worker.probes.throughput:ThroughputProbe"),
    ("telemetry", "sema_bench.worker.probes.base:TelemetryProbe"),
    ("accuracy", "sema_bench.worker.probes.base:AccuracyProbe"),
    ("roofline", "sema_bench.worker.probes.roofline:RooflineProbe"),
)
