"""What a suite may not ask for, and the message for each refusal."""

from __future__ import annotations

import math

from sema_bench.errors import UsageError
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.resolution import parse_resolutions
from sema_bench.spec.suite import MAX_CELLS, Suite, check_model

#: Axes of a suite that are lists.
_CROSSED = (
    *("models", "batch", "dtype", "tf32", "layout", "mode", "step"),
    *("checkpointing", "sdpa", "allocator", "threads", "data"),
)


def check_count(suite: Suite) -> None:
    """Count the cells of a suite before any is made.

    Raises:
        UsageError: there are more than ``MAX_CELLS``.
    """
    axes = {name: len(getattr(suite, name) or [None]) for name in _CROSSED}
    axes["seeds"] = len(suite.training.seeds) if suite.training else 1
    axes["res"] = len(parse_resolutions(suite.res))
    cells = math.prod(axes.values())
    if cells > MAX_CELLS:
        product = " × ".join(f"{count:,} {name}" for name, count in axes.items() if count > 1)
        raise UsageError(
            f"suite {suite.name!r} has {cells:,} cells ({product}), and a run takes {MAX_CELLS:,}; split it"
        )


def check_device_has(suite: Suite, device: str) -> None:
    """Refuse what ``device`` cannot do, and axes that mean nothing together.

    Raises:
        UsageError: see there.
    """
    on_cuda, on_meta = device.startswith("cuda"), device == "meta"
    if suite.requires_cuda and not on_cuda:
        raise UsageError(
            f"suite {suite.name!r} needs a CUDA device, and this run is on {device}; "
            "use another suite, or a machine with a GPU"
        )
    if not on_cuda and suite.tf32 == [True]:
        raise UsageError("tf32 asks for TF32 products, which only CUDA has; drop it or use a CUDA device")
    if suite.tf32 == [True] and "float32" not in suite.dtype:
        raise UsageError(f"tf32 is a way to multiply float32, and the dtype is {', '.join(suite.dtype)}; drop one")
    if on_cuda and suite.allocator is not None:
        raise UsageError("allocator sets the C allocator of CPU cells, which CUDA cells do not use; drop it")
    if not on_cuda and (lacking := sorted({"cuda-graphs", "compile-reduce-overhead"} & set(suite.mode))):
        raise UsageError(f"mode {lacking[0]} replays CUDA graphs, which a CPU has not; use compile")
    if not on_cuda and (lacking := sorted({"efficient", "cudnn"} & set(suite.sdpa))):
        raise UsageError(f"sdpa {lacking[0]} is a CUDA kernel; on a CPU there are auto, flash and math")
    if "cuda-graphs" in suite.mode and "train" in suite.step:
        raise UsageError("mode cuda-graphs captures inference; for training use compile-reduce-overhead")
    if "optimized" in suite.mode and "train" in suite.step:
        raise UsageError("mode optimized is a form for inference alone; drop it, or --mode train")
    if suite.checkpointing == [True] and "train" not in suite.step:
        raise UsageError("checkpointing saves memory of training; add --mode train, or drop it")
    if on_meta and "max" in suite.batch:
        raise UsageError("batch max is what fits in memory, and device meta has no limit; give a number")
    _check_accuracy(suite, on_meta=on_meta)
    if "telemetry" in suite.probes and not on_meta and "throughput" not in suite.probes:
        raise UsageError("probe telemetry watches the machine while throughput samples; ask for that too")
    if "roofline" in suite.probes and not on_meta and not {"macs", "throughput"} <= set(suite.probes):
        raise UsageError("probe roofline puts together what macs and throughput find; ask for both of them too")


def _check_accuracy(suite: Suite, *, on_meta: bool) -> None:
    """Refuse an accuracy without data or weights, and data without an accuracy.

    Raises:
        UsageError: see there.
    """
    wanted = "accuracy" in suite.probes
    models = {check_model(name) for name in suite.models}
    with_weights = {check_model(name) for name in suite.checkpoints or {}}
    if suite.training and suite.checkpoints:
        raise UsageError("weights come from training or from checkpoints; drop one of them")
    if other := sorted(with_weights - models):
        raise UsageError(f"there is a checkpoint for {other[0]}, which is none of the models; drop it")
    if not wanted:
        if suite.data or suite.training:
            raise UsageError("data and training are for the probe accuracy; ask for it, or drop them")
        return
    if on_meta:
        raise UsageError("device meta runs nothing, so it has no accuracy; drop the probe, or use another device")
    if "train" in suite.step:
        raise UsageError("accuracy is of trained weights, and a training step changes them; drop --mode train")
    if not suite.data:
        raise UsageError("probe accuracy needs images; give --data, e.g. digits:field or folder:PATH")
    if not suite.training and (lacking := sorted(models - with_weights)):
        raise UsageError(
            f"probe accuracy needs trained weights, and {lacking[0]} has none; give --checkpoint, or train it first: "
            "sema-bench train --help"
        )
    for text in suite.data:
        for resolution in parse_resolutions(suite.res):
            parse_data(text).check_size(resolution)
