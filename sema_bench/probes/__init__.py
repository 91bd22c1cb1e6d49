"""Probes by name, one line each."""

from __future__ import annotations

from sema.registry import Registry

PROBES = Registry(
    "probe",
    ("params", "sema_bench.probes.params:ParamsProbe"),
    ("macs", "sema_bench.probes.macs:MacsProbe"),
    ("forecast", "sema_bench.probes.forecast:ForecastProbe"),
    ("memory", "sema_bench.probes.memory:MemoryProbe"),
    ("throughput", "sema_bench.probes.throughput:ThroughputProbe"),
    ("telemetry", "sema_bench.probes.telemetry:TelemetryProbe"),
    ("accuracy", "sema_bench.probes.accuracy:AccuracyProbe"),
    ("roofline", "sema_bench.probes.roofline:RooflineProbe"),
)
