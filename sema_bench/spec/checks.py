"""Refuse invalid suites: a table of conditions and messages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from sema.model_name import parse_model_name
from sema_bench.errors import UsageError
from sema_bench.spec.cell import INFERENCE_MODES, check_model
from sema_bench.spec.data_source import parse_data, unlike_data
from sema_bench.spec.model_source import parse_source
from sema_bench.spec.probes import PROBES
from sema_bench.spec.protocol import refusal
from sema_bench.spec.resolution import sizes_of
from sema_bench.spec.suite import CROSSED, MAX_CELLS, Suite
from sema_bench.spec.target import Card


def counting_probes(probes: Sequence[str]) -> tuple[str, ...]:
    """Select the probes that the meta device can run; predicted memory takes the place of measured memory."""
    known = dict.fromkeys("forecast" if name == "memory" else name for name in probes)
    return tuple(name for name in known if PROBES.load(name).on_meta)


def check_suite(suite: Suite, device: str, card: Card = Card()) -> None:  # noqa: B008 - frozen
    """Refuse what ``device`` cannot do, axes that mean nothing together, and probes that lack data.

    ``card`` describes a CUDA device; an unknown ability is not refused.

    Raises:
        UsageError: with the message of the first of ``refusals`` that applies.
    """
    for applies, message in refusals(suite, device, card):
        if applies:
            raise UsageError(message)
    data = [parse_data(text) for text in suite.data or ()] if "accuracy" in suite.probes else []
    probed = _probed(suite)
    for spec in data:
        for resolution in sizes_of(suite.res):
            spec.check_size(resolution)
        for source in map(parse_source, suite.models):
            of_pixels = source.kind == "registry" and parse_model_name(source.name).options.get("head") == "fpn"
            if source.kind == "registry" and (message := unlike_data(of_pixels=of_pixels, data=spec)):
                raise UsageError(message)
        if probed and spec.segmented:
            raise UsageError(f"readout {probed} classifies images, and {spec} has a class for each pixel; drop one")
        if probed and spec.kind in ("flat", "tar") and spec.training is spec:
            raise UsageError(
                f"readout {probed} is fitted to training images, and {spec} has none; add train=folder:PATH"
            )
    for protocol in suite.protocol or ():
        for model in suite.models:
            if message := refusal(protocol, check_model(model), data):
                raise UsageError(message)


def refusals(suite: Suite, device: str, card: Card) -> Iterator[tuple[object, str]]:
    """Yield pairs of a condition, and the message if it is true."""
    on_cuda, on_meta = device.startswith("cuda"), device == "meta"
    trains, tests = "train" in suite.step, "accuracy" in suite.probes
    probed = _probed(suite)

    counts = {name: len(getattr(suite, name) or [None]) for name in ("models", *CROSSED)}
    counts["seeds"] = len(suite.training.seeds) if suite.training else 1
    counts["res"] = len(sizes_of(suite.res))
    cells = math.prod(counts.values())
    product = " × ".join(f"{count:,} {name}" for name, count in counts.items() if count > 1)
    yield (  # before any cell is made
        cells > MAX_CELLS,
        f"suite {suite.name!r} has {cells:,} cells ({product}), and a run takes {MAX_CELLS:,}; split it",
    )

    yield (
        suite.requires_cuda and not on_cuda,
        f"suite {suite.name!r} needs a CUDA device, and this run is on {device}; use another suite, or a machine with "
        "a GPU",
    )
    only_tf32 = suite.tf32 == [True]
    yield only_tf32 and not on_cuda, "tf32 asks for TF32 products, which only CUDA has; drop it or use a CUDA device"
    yield (
        only_tf32 and "float32" not in suite.dtype,
        f"tf32 only applies to float32, and the dtype is {', '.join(suite.dtype)}; drop one",
    )
    yield (
        only_tf32 and card.is_before_ampere,
        f"TF32 needs compute capability 8.0, and this is {_named(card)}; remove tf32",
    )
    compiled = next((mode for mode in suite.mode if mode.startswith("compile")), "")
    yield (
        compiled and "bfloat16" in suite.dtype and card.is_before_ampere,
        f"mode {compiled} in bfloat16 needs compute capability 8.0, and this is {_named(card)}; drop one",
    )
    yield (
        on_cuda and card.compute_mode not in (None, "DEFAULT"),
        f"{card.name} is in compute mode {card.compute_mode}, and cells need several processes on it at once; set it "
        "back with: nvidia-smi -c DEFAULT (as root)",
    )
    yield (
        suite.cudnn_benchmark == [True] and not on_cuda,
        "cudnn_benchmark sets how cuDNN chooses, which only CUDA has; drop it or use a CUDA device",
    )
    yield (
        on_cuda and suite.allocator is not None,
        "allocator sets the C allocator of CPU cells, which CUDA cells do not use; drop it",
    )
    for name, axis in CROSSED.items():
        for value in sorted(set(axis.cuda_only) & set(getattr(suite, name) or ())):
            yield not on_cuda, f"{name} {value} {axis.why_cuda}"
    yield (
        trains and "cuda-graphs" in suite.mode,
        "mode cuda-graphs captures inference; for training use compile-reduce-overhead",
    )
    for mode in INFERENCE_MODES:
        yield trains and mode in suite.mode, f"mode {mode} is for inference only; drop it, or --mode train"
    yield (
        suite.checkpointing == [True] and not trains,
        "checkpointing saves memory of training; add --mode train, or drop it",
    )
    yield (
        on_meta and "max" in suite.batch,
        "batch max is what fits in memory, and device meta has no limit; give a number",
    )

    dense = next((task for task in suite.task if task != "classify"), "")
    classifier = next((name for name in suite.models if name.startswith("torchvision:")), "")
    yield dense and trains, f"task {dense} is measured in inference alone; drop --mode train"
    compared = next((mode for mode in suite.mode if mode in INFERENCE_MODES), "")  # with eager, logit by logit
    yield dense and compared, f"mode {compared} is for classifiers; drop it, or task {dense}"
    yield dense and tests, f"probe accuracy tests classifiers; drop it, or task {dense}"
    yield dense and suite.checkpoints, f"task {dense} has random weights, which cost the same; drop the checkpoints"
    yield (
        dense and classifier,
        f"{classifier} gives logits alone, and task {dense} needs maps; take a model of timm",
    )

    models, with_weights = ({*map(check_model, names)} for names in (suite.models, suite.checkpoints or {}))
    unused, untrained = (min(left, default="") for left in (with_weights - models, models - with_weights))
    yield suite.training and suite.checkpoints, "weights come from training or from checkpoints; drop one of them"
    yield unused, f"there is a checkpoint for {unused}, which is not one of the models; drop it"
    yield (
        not tests and (suite.data or suite.protocol or suite.corrupt or suite.training or probed),
        "only probe accuracy uses data, protocol, corrupt, readout and training; add that probe, or drop them",
    )
    yield (
        tests and on_meta,
        "device meta runs nothing, so it has no accuracy; drop the probe, or use another device",
    )
    yield (
        tests and trains,
        "probe accuracy tests trained weights, and a training step changes them; drop --mode train",
    )
    yield tests and not suite.data, "probe accuracy needs images; give --data, e.g. digits:field or folder:PATH"
    unprobed = next((mode for mode in suite.mode if mode != "eager"), "")
    yield (
        tests and probed and unprobed,
        f"readout {probed} takes the features of the eager model, which mode {unprobed} does not give; drop one",
    )
    yield (
        tests and "head" in suite.readout and not suite.training and untrained,
        f"probe accuracy needs trained weights, and {untrained} has none; give --checkpoint, or train it first: "
        "sema-bench train --help",
    )

    probes = set() if on_meta else {*suite.probes}
    yield (
        "telemetry" in probes and "throughput" not in probes,
        "probe telemetry watches the machine while throughput samples; add throughput",
    )
    yield (
        "roofline" in probes and not {"macs", "throughput"} <= probes,
        "probe roofline combines macs and throughput; add both",
    )
    yield (
        on_meta and not counting_probes(suite.probes),
        f"device meta runs nothing, so it has no {', '.join(suite.probes)}; probes that count: "
        f"{', '.join(counting_probes(tuple(PROBES)))}",
    )


def _probed(suite: Suite) -> str:
    """Return the first readout that is fitted to features; "" if there is none."""
    return next((name for name in suite.readout if name != "head"), "")


def _named(card: Card) -> str:
    """Name a card with its compute capability."""
    return f"{card.name} (compute capability {'.'.join(map(str, card.capability or ()))})"
