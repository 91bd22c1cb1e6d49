"""Multiply-accumulates from three sources that must agree: a formula and two counters.

All three look at one image on the meta device, in float32 and eager mode: the count depends only on shapes, so it
costs no memory and disturbs nothing that is timed. 1 MAC = 2 FLOPs.

The published "FLOPs" of this field are MACs, and many are miscounted: fvcore has no handler for fused attention and
only logs a line, and FlopCounterMode counts 2 × MACs and skips operators that it does not know. Here the record names
an operator that no counter knows, and a disagreement is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sema_bench.counting.costs import TOLERANCE
from sema_bench.counting.operators import SCAN_FLOPS_PER_STATE
from sema_bench.errors import ProbeError
from sema_bench.spec.record import measurements_of
from sema_bench.worker.probes.base import Findings, Probe

if TYPE_CHECKING:
    from sema_bench.counting.costs import Ledger
    from sema_bench.worker.workload import Workload


class MacsProbe(Probe):
    """Multiply-accumulates: analytic, fvcore and FlopCounterMode, which must agree within 0.5 %."""

    on_meta = True

    def measure(self, workload: Workload) -> Findings:
        ledger = workload.ledger()
        check_ledger(ledger, workload.parts)
        total, costs = ledger.total, ledger.total.costs
        macs = next(iter(total.sources.values()), None)  # the formula's where there is one
        values: dict[str, int | None] = {"macs": macs}
        scanned = ledger.scan_flops
        if macs is not None and scanned is not None:
            values |= {"flops": 2 * macs + scanned, "scan_flops": scanned}
        if costs is not None:
            values |= {
                "macs_attention": costs.attention,
                "macs_projection": costs.projection,
                "macs_convolution": costs.convolution,
                "flops_normalisation": costs.normalisation_flops,
                "flops_elementwise": costs.elementwise_flops,
                "macs_flop_counter": costs.macs,
            }
        for part in workload.parts:
            values[f"macs_{part}"] = next(iter(ledger.entries[part].sources.values()), None)
        values["macs_fvcore"] = total.fvcore
        remarks = {"untraced": dict(ledger.untraced), "counting_notes": list(ledger.notes)}
        details = {key: remark for key, remark in remarks.items() if remark}
        return Findings(measurements_of(values), {"uncovered_operators": list(ledger.uncovered), **details})


def check_ledger(ledger: Ledger, parts: Sequence[str] = ()) -> None:
    """Raise ProbeError if two sources differ by more than ``TOLERANCE``, or if the scans do not match the formula.

    The sources must also agree on each of ``parts``.
    """
    parting = ledger.first_parting() or next((e for e in map(ledger.entries.get, parts) if e and not e.agrees), None)
    if parting is not None:
        where = (
            f"module {parting.path!r} ({parting.kind}): {listed(parting.sources)}"
            if parting.path
            else "the model itself"
        )
        raise ProbeError(
            f"the MAC counts disagree by more than {TOLERANCE:.1%}: {listed(ledger.total.sources)}; they first differ "
            f"in {where}; uncovered operators: {', '.join(ledger.uncovered) or 'none'}"
        )
    counted = ledger.total.costs
    stated = ledger.stated_scan_flops
    most = 1 + 2 / SCAN_FLOPS_PER_STATE  # a skip term and a gate add one FLOP each
    if counted is not None and stated is not None and not counted.scan_flops <= stated <= counted.scan_flops * most:
        raise ProbeError(
            f"the scans run {counted.scan_flops:,} FLOPs, skip terms and gates apart, and the model says {stated:,}"
        )


def listed(sources: dict[str, int]) -> str:
    """Write figures with the names of their sources."""
    return ", ".join(f"{name} {value:,}" for name, value in sources.items())
