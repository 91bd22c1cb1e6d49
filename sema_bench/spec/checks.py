"""Refuse what a suite may not ask for: a table of conditions and messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sema_bench.errors import UsageError
from sema_bench.spec.cell import check_model
from sema_bench.spec.data_source import SMALLEST_SCENE, parse_data
from sema_bench.spec.probes import PROBES
from sema_bench.spec.resolution import parse_resolutions
from sema_bench.spec.suite import CROSSED, MAX_CELLS, Suite


class Request:
    """A suite on a device, with the facts that the table of refusals needs."""

    def __init__(self, suite: Suite, device: str) -> None:
        self.suite = suite
        self.on_cuda, self.on_meta = device.startswith("cuda"), device == "meta"
        self.trains = "train" in suite.step
        self.tests = "accuracy" in suite.probes
        self.measured = set() if self.on_meta else set(suite.probes)
        self.resolutions = parse_resolutions(suite.res)
        self.models = set(map(check_model, suite.models))
        self.models_with_weights = set(map(check_model, suite.checkpoints or {}))


@dataclass(frozen=True)
class Refusal:
    """Refuse a request for which ``when`` is true; ``{0}`` in the message is the value of ``when``."""

    when: Callable[[Request], object]
    message: str


def check_suite(suite: Suite, device: str) -> None:
    """Refuse what ``device`` cannot do, axes that mean nothing together, and probes that lack something.

    Raises:
        UsageError: with the message of the first row of ``REFUSALS`` that applies.
    """
    request = Request(suite, device)
    for refusal in REFUSALS:
        if reason := refusal.when(request):
            raise UsageError(refusal.message.format(reason, suite=suite, device=device))


def counting_probes(probes: Sequence[str]) -> tuple[str, ...]:
    """Select the probes that the meta device can run; predicted memory takes the place of measured memory."""
    known = dict.fromkeys("forecast" if name == "memory" else name for name in probes)
    return tuple(name for name in known if PROBES.load(name).on_meta)


def _too_many(request: Request) -> str:
    """Count the cells before any is made; "" if they are not too many."""
    suite = request.suite
    counts = {name: len(getattr(suite, name) or [None]) for name in ("models", *CROSSED)}
    counts["seeds"] = len(suite.training.seeds) if suite.training else 1
    counts["res"] = len(request.resolutions)
    cells = math.prod(counts.values())
    product = " × ".join(f"{count:,} {name}" for name, count in counts.items() if count > 1)
    return f"{cells:,} cells ({product}), and a run takes {MAX_CELLS:,}" if cells > MAX_CELLS else ""


def _needs_cuda(request: Request) -> str:
    """Return the first choice of an axis that only CUDA has, with the reason."""
    for name, axis in () if request.on_cuda else CROSSED.items():
        if lacking := sorted(set(axis.cuda_only) & set(getattr(request.suite, name) or ())):
            return f"{name} {lacking[0]} {axis.why_cuda}"
    return ""


def _only_measures(request: Request) -> str:
    """Name the probes of a request if the meta device can run none of them, and those that it can run."""
    probes = request.suite.probes
    if not request.on_meta or counting_probes(probes):
        return ""
    return f"{', '.join(probes)}; probes that count: {', '.join(counting_probes(tuple(PROBES)))}"


def _too_small_for_scenes(request: Request) -> str:
    """Return the first size at which scenes of digits cannot be drawn."""
    drawn = request.tests and any(parse_data(text).drawn for text in request.suite.data or ())
    return next((each.label for each in request.resolutions if drawn and min(each) < SMALLEST_SCENE), "")


REFUSALS = (
    Refusal(_too_many, "suite {suite.name!r} has {0}; split it"),
    Refusal(
        lambda r: r.suite.requires_cuda and not r.on_cuda,
        "suite {suite.name!r} needs a CUDA device, and this run is on {device}; use another suite, or a machine with "
        "a GPU",
    ),
    Refusal(
        lambda r: r.suite.tf32 == [True] and not r.on_cuda,
        "tf32 asks for TF32 products, which only CUDA has; drop it or use a CUDA device",
    ),
    Refusal(
        lambda r: r.suite.tf32 == [True] and "float32" not in r.suite.dtype and ", ".join(r.suite.dtype),
        "tf32 is a way to multiply float32, and the dtype is {0}; drop one",
    ),
    Refusal(
        lambda r: r.on_cuda and r.suite.allocator is not None,
        "allocator sets the C allocator of CPU cells, which CUDA cells do not use; drop it",
    ),
    Refusal(_needs_cuda, "{0}"),
    Refusal(
        lambda r: r.trains and "cuda-graphs" in r.suite.mode,
        "mode cuda-graphs captures inference; for training use compile-reduce-overhead",
    ),
    Refusal(
        lambda r: r.trains and "optimized" in r.suite.mode,
        "mode optimized is a form for inference alone; drop it, or --mode train",
    ),
    Refusal(
        lambda r: r.suite.checkpointing == [True] and not r.trains,
        "checkpointing saves memory of training; add --mode train, or drop it",
    ),
    Refusal(
        lambda r: r.on_meta and "max" in r.suite.batch,
        "batch max is what fits in memory, and device meta has no limit; give a number",
    ),
    Refusal(
        lambda r: r.suite.training and r.suite.checkpoints,
        "weights come from training or from checkpoints; drop one of them",
    ),
    Refusal(
        lambda r: min(r.models_with_weights - r.models, default=""),
        "there is a checkpoint for {0}, which is not one of the models; drop it",
    ),
    Refusal(
        lambda r: not r.tests and (r.suite.data or r.suite.training),
        "data and training are for the probe accuracy; ask for it, or drop them",
    ),
    Refusal(
        lambda r: r.tests and r.on_meta,
        "device meta runs nothing, so it has no accuracy; drop the probe, or use another device",
    ),
    Refusal(
        lambda r: r.tests and r.trains,
        "accuracy is of trained weights, and a training step changes them; drop --mode train",
    ),
    Refusal(
        lambda r: r.tests and not r.suite.data,
        "probe accuracy needs images; give --data, e.g. digits:field or folder:PATH",
    ),
    Refusal(
        lambda r: r.tests and not r.suite.training and min(r.models - r.models_with_weights, default=""),
        "probe accuracy needs trained weights, and {0} has none; give --checkpoint, or train it first: "
        "sema-bench train --help",
    ),
    Refusal(
        _too_small_for_scenes,
        f"scenes of digits need {SMALLEST_SCENE}×{SMALLEST_SCENE} pixels, and --res asks for {{0}}",
    ),
    Refusal(
        lambda r: "telemetry" in r.measured and "throughput" not in r.measured,
        "probe telemetry watches the machine while throughput samples; add throughput",
    ),
    Refusal(
        lambda r: "roofline" in r.measured and not {"macs", "throughput"} <= r.measured,
        "probe roofline combines macs and throughput; add both",
    ),
    Refusal(_only_measures, "device meta runs nothing, so it has no {0}"),
)
