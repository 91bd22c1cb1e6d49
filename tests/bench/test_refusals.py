"""Test each refusal with a request that triggers it."""

from __future__ import annotations

from typing import Any

import pytest

from sema_bench.errors import UsageError
from sema_bench.spec.checks import check_suite, refusals
from sema_bench.spec.suite import parse_suite
from sema_bench.spec.target import Card

BASE = {"name": "s", "models": ["sema_tiny", "mila_tiny"], "res": "224,512"}
RECIPE: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0.0}
TESTED = {"probes": ["accuracy"], "data": ["digits:field"], "training": RECIPE}

#: The cards of ``REQUESTS``; nothing is known about cuda:0.
CARDS = {"cuda:1": Card("Tesla T4", (7, 5)), "cuda:2": Card("NVIDIA A30", (8, 0), "EXCLUSIVE_PROCESS")}

#: A suite, its device and the message, in the order of ``refusals``.
REQUESTS: tuple[tuple[dict[str, Any], str, str], ...] = (
    (
        {"batch": list(range(1, 5002))},
        "cpu",
        "suite 's' has 20,004 cells (2 models × 5,001 batch × 2 res), and a run takes 10,000; split it",
    ),
    (
        {"requires_cuda": True},
        "cpu",
        "suite 's' needs a CUDA device, and this run is on cpu; use another suite, or a machine with a GPU",
    ),
    ({"tf32": [True]}, "cpu", "tf32 asks for TF32 products, which only CUDA has; drop it or use a CUDA device"),
    (
        {"tf32": [True], "dtype": ["bfloat16", "float16"]},
        "cuda:0",
        "tf32 only applies to float32, and the dtype is bfloat16, float16; drop one",
    ),
    (
        {"cudnn_benchmark": [True]},
        "cpu",
        "cudnn_benchmark sets how cuDNN chooses, which only CUDA has; drop it or use a CUDA device",
    ),
    (
        {"tf32": [True]},
        "cuda:1",
        "TF32 needs compute capability 8.0, and this is Tesla T4 (compute capability 7.5); remove tf32",
    ),
    (
        {"mode": ["eager", "compile"], "dtype": ["float32", "bfloat16"]},
        "cuda:1",
        "mode compile in bfloat16 needs compute capability 8.0, and this is Tesla T4 (compute capability 7.5); drop "
        "one",
    ),
    (
        {},
        "cuda:2",
        "NVIDIA A30 is in compute mode EXCLUSIVE_PROCESS, and cells need several processes on it at once; set it back "
        "with: nvidia-smi -c DEFAULT (as root)",
    ),
    (
        {"allocator": ["retain"]},
        "cuda:0",
        "allocator sets the C allocator of CPU cells, which CUDA cells do not use; drop it",
    ),
    (
        {"sdpa": ["math", "efficient", "cudnn"]},
        "meta",
        "sdpa cudnn is a CUDA kernel; on a CPU there are auto, flash and math",
    ),
    (
        {"mode": ["cuda-graphs"], "step": ["train"]},
        "cuda:0",
        "mode cuda-graphs captures inference; for training use compile-reduce-overhead",
    ),
    (
        {"mode": ["optimized"], "step": ["train"]},
        "cpu",
        "mode optimized is for inference only; drop it, or --mode train",
    ),
    (
        {"mode": ["compile-optimized"], "step": ["train"]},
        "cpu",
        "mode compile-optimized is for inference only; drop it, or --mode train",
    ),
    (
        {"mode": ["compile-frozen"], "step": ["train"]},
        "cpu",
        "mode compile-frozen is for inference only; drop it, or --mode train",
    ),
    ({"checkpointing": [True]}, "cpu", "checkpointing saves memory of training; add --mode train, or drop it"),
    (
        {"batch": [1, "max"]},
        "meta",
        "batch max is what fits in memory, and device meta has no limit; give a number",
    ),
    (
        {"task": ["classify", "detect"], "step": ["train"]},
        "cpu",
        "task detect is measured in inference alone; drop --mode train",
    ),
    (
        {"task": ["segment"], "mode": ["optimized"]},
        "cpu",
        "mode optimized is for classifiers; drop it, or task segment",
    ),
    ({**TESTED, "task": ["segment"]}, "cpu", "probe accuracy tests classifiers; drop it, or task segment"),
    (
        {"task": ["detect"], "checkpoints": {"sema_tiny": "a.safetensors"}},
        "cpu",
        "task detect has random weights, which cost the same; drop the checkpoints",
    ),
    (
        {"task": ["detect"], "models": ["torchvision:resnet18"]},
        "cpu",
        "torchvision:resnet18 gives logits alone, and task detect needs maps; take a model of timm",
    ),
    (
        {**TESTED, "checkpoints": {"sema_tiny": "a.safetensors"}},
        "cpu",
        "weights come from training or from checkpoints; drop one of them",
    ),
    (
        {"checkpoints": {"swin_tiny": "a.safetensors"}},
        "cpu",
        "there is a checkpoint for swin_tiny, which is not one of the models; drop it",
    ),
    (
        {"data": ["digits:field"]},
        "cpu",
        "only probe accuracy uses data, protocol, corrupt, readout and training; add that probe, or drop them",
    ),
    (
        TESTED,
        "meta",
        "device meta runs nothing, so it has no accuracy; drop the probe, or use another device",
    ),
    (
        {**TESTED, "step": ["train"]},
        "cpu",
        "probe accuracy tests trained weights, and a training step changes them; drop --mode train",
    ),
    (
        {"probes": ["accuracy"]},
        "cpu",
        "probe accuracy needs images; give --data, e.g. digits:field or folder:PATH",
    ),
    (
        {**TESTED, "readout": ["head", "knn"], "mode": ["compile"]},
        "cpu",
        "readout knn takes the features of the eager model, which mode compile does not give; drop one",
    ),
    (
        {"probes": ["accuracy"], "data": ["digits:segment"], "readout": ["knn"], "models": ["sema_micro[head=fpn]"]},
        "cpu",
        "readout knn classifies images, and digits:segment has a class for each pixel; drop one",
    ),
    (
        {"probes": ["accuracy"], "data": ["tar:a.tar"], "readout": ["linear"]},
        "cpu",
        "readout linear is fitted to training images, and tar:a.tar has none; add train=folder:PATH",
    ),
    (
        {"probes": ["accuracy"], "data": ["digits:field"]},
        "cpu",
        "probe accuracy needs trained weights, and mila_tiny has none; give --checkpoint, or train it first: "
        "sema-bench train --help",
    ),
    (
        {**TESTED, "res": "48x512"},
        "cpu",
        "scenes of digits need 64×64 pixels, and --res asks for 48x512",
    ),
    (
        {"probes": ["telemetry"]},
        "cpu",
        "probe telemetry watches the machine while throughput samples; add throughput",
    ),
    (
        {"probes": ["roofline", "macs"]},
        "cpu",
        "probe roofline combines macs and throughput; add both",
    ),
    (
        {"probes": ["throughput", "telemetry"]},
        "meta",
        "device meta runs nothing, so it has no throughput, telemetry; probes that count: params, macs, forecast",
    ),
)


@pytest.mark.parametrize(("changes", "device", "message"), REQUESTS, ids=[message[:40] for *_, message in REQUESTS])
def test_a_request_is_refused(changes: dict[str, Any], device: str, message: str) -> None:
    suite = parse_suite({**BASE, **changes}, source="s.toml")
    with pytest.raises(UsageError) as caught:
        check_suite(suite, device, CARDS.get(device, Card()))
    assert str(caught.value) == message


def test_every_refusal_is_triggered_and_a_plain_request_is_not_refused() -> None:
    plain = parse_suite(BASE, source="s.toml")
    in_table = len(list(refusals(plain, "cpu", Card())))
    assert len(REQUESTS) == in_table + 4  # an axis with a value only for CUDA, three that depend on the data
    for device in ("cpu", "cuda:0", "meta"):
        check_suite(plain, device)
