"""Share of the roofline: the rate that a cell reached, over the best rate of this device for its intensity."""

from __future__ import annotations

from collections.abc import Mapping

from sema_bench.analysis.roofline import Peaks, roofline_point
from sema_bench.spec.record import Measurement, measurements_of
from sema_bench.worker.probes.base import Findings, Probe


class RooflineProbe(Probe):
    """Least bytes moved, arithmetic intensity and share of the roofline; needs macs and throughput."""

    kind = "derived"


def derive(measured: Mapping[str, Measurement], traffic_bytes: float, peaks: Peaks, *, batch: int) -> Findings:
    """Place a forward pass under ``peaks``; find nothing without a count."""
    if "macs" not in measured or "latency_s" not in measured or not traffic_bytes:
        return Findings(())
    point = roofline_point(
        flops=2 * measured["macs"].value * batch,
        traffic_bytes=traffic_bytes,
        latency_s=measured["latency_s"].value,
        peaks=peaks,
    )
    values = {
        "traffic_bytes": traffic_bytes,
        "intensity_flop_per_byte": point.intensity_flop_per_byte,
        "achieved_flop_per_s": point.achieved_flop_per_s,
        "roofline_share": point.share,
    }
    return Findings(measurements_of(values), {"peaks": peaks.to_json()})


def share_of(findings: Findings) -> float:
    """Return the share of the roofline, 0 if it is unknown."""
    return next((m.value for m in findings.measurements if m.metric == "roofline_share"), 0.0)
