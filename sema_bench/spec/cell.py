"""Declare the axes of a cell, one field each. A new axis needs a field here and the code in the worker that applies it.

This file has no ``from __future__ import annotations``, because it reads the annotations when it is imported.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sema_bench.errors import UsageError
from sema_bench.spec.axes import LARGEST, MEASURED, WHERE, Axis, axes_of
from sema_bench.spec.corruption import NONE, check_corruption, expand_corruption
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.model_source import parse_source
from sema_bench.spec.protocol import PROTOCOLS
from sema_bench.spec.resolution import MAX_SIDE, MIN_SIDE, USUAL_SIZES, Resolution

DTYPES = ("float32", "bfloat16", "float16")
#: Compiled with the weights as constants: they are folded, and packed for the machine's kernels.
FROZEN = "compile-frozen"
OPTIMIZED = "optimized"
#: The optimized form as one frozen graph.
OPTIMIZED_GRAPH = "compile-optimized"
#: Modes for inference only; their logits are compared with those of eager.
INFERENCE_MODES = (OPTIMIZED, OPTIMIZED_GRAPH, FROZEN)
MODES = (
    *("eager", OPTIMIZED, "compile", FROZEN, OPTIMIZED_GRAPH),
    *("compile-reduce-overhead", "compile-max-autotune", "cuda-graphs"),
)
STEPS = ("infer", "train")
SDPA_BACKENDS = ("auto", "flash", "efficient", "cudnn", "math")
#: Ways to turn a model's features into a class; see ``worker.readout``.
READOUTS = ("head", "linear", "knn")
#: The largest power of two that fused attention takes on CUDA, where a grid axis has at most 65,535 blocks.
MAX_BATCH = 2**15

#: Fields that a cell shares with the yardstick, and with any other plain forward pass beside it.
SURROUNDINGS = ("dtype", "tf32", "layout", "device", "threads", "allocator")


def check_model(name: str) -> str:
    """Return the canonical form of a model name; see ``parse_source``."""
    return parse_source(name).name


def check_device(name: str) -> str:
    """Return ``name``; raise UsageError unless it names a device."""
    if not re.fullmatch(r"auto|cpu|meta|cuda(:\d{1,4})?", name, re.ASCII):
        raise UsageError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:<index>, meta")
    return name


_SIDE = Axis(
    description="input height in pixels",
    suite_key="res",
    crossed=False,
    limits=(MIN_SIDE, MAX_SIDE),
    option="--res",
    metavar="SIZES",
    help="Resolutions: A..B (both, and the papers' sizes between), A..B:STEP, a list, HxW; usual: that of the task.",
    panel=MEASURED,
    key="@{}".format,
)


def _on_cuda(values: Mapping[str, Any]) -> bool:
    return str(values["device"]).startswith("cuda")


def _on_photographs(values: Mapping[str, Any]) -> bool:
    return bool(values["data"]) and not parse_data(str(values["data"])).drawn


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a plan. Its fields are its identity: two rows are compared only if all fields agree.

    With ``batch_policy="max"`` the batch is the largest power of two that fits (0 until the cell runs), and
    comparisons ignore it.
    """

    model: str = Axis(
        description="model, as --models takes it",
        suite_key="models",
        crossed=False,
        canonical=check_model,
        option="--models",
        help="Models, e.g. sema_tiny[linear],deit_small, or all; also timm:resnet18, or file.py:build for your own.",
        panel=MEASURED,
        key=str,
    ).field
    height: int = _SIDE.field
    width: int = dataclasses.replace(_SIDE, description="input width in pixels", help="", key="x{}".format).field
    batch: int = Axis(
        default=1,
        description="images of one forward pass",
        limits=(1, MAX_BATCH),
        help="Images per forward pass, e.g. 1 or 1,32; max: the largest power of two that fits.",
        panel=MEASURED,
        key=lambda batch: f"/b{batch or 'max'}",
        word=lambda batch: f"batch {batch}" if batch else "largest batch that fits",
    ).field
    dtype: str = Axis(
        default="float32",
        description="type of parameters and input",
        choices=DTYPES,
        help=f"{', '.join(DTYPES)}.",
    ).field
    tf32: bool = Axis(
        default=False,
        description="whether float32 products may use TF32 (CUDA)",
        applies=lambda values: _on_cuda(values) and values["dtype"] == "float32",
        idle=False,
        help="Compute matrix products of float32 cells in TF32 (CUDA).",
        key=("", "+tf32").__getitem__,
        word=("TF32 off", "TF32 on").__getitem__,
    ).field
    layout: str = Axis(
        default="channels_last",
        description="memory format of input and kernels",
        choices=("channels_last", "contiguous"),
        help="channels_last, contiguous.",
    ).field
    mode: str = Axis(
        default="eager",
        description="eager, optimized, compile, …",
        choices=MODES,
        cuda_only=("cuda-graphs", "compile-reduce-overhead"),
        why_cuda="replays CUDA graphs, which a CPU lacks; use compile",
        help=f"How the model runs: {', '.join(MODES)}; and which step: {', '.join(STEPS)}.",
    ).field
    device: str = Axis(
        default="cpu",
        description="cpu or cuda:<index>",
        crossed=False,
        canonical=check_device,
        metavar="DEVICE",
        help="auto, cpu, cuda, cuda:<index>, or meta: count and predict, run nothing.",
        panel=WHERE,
    ).field
    threads: int = Axis(
        default=1,
        description="intra-op threads",
        optional=True,
        limits=(1, 4096),
        help="Intra-op threads of a worker; default: the CPUs this process may use.",
        panel=WHERE,
        key="/t{}".format,
        word=lambda threads: f"{threads} thread{'' if threads == 1 else 's'}",
    ).field
    allocator: str = Axis(
        default="retain",
        description="C allocator setting (CPU)",
        optional=True,
        choices=("retain", "default"),
        applies=lambda values: not _on_cuda(values),
        idle="default",
        help="C allocator on CPU: retain (keep freed memory) or default.",
        slug="{}alloc".format,
        word="allocator {}".format,
    ).field
    step: str = Axis(
        default="infer",
        description="infer, or train: forward, loss, backward and optimizer",
        choices=STEPS,
        option="--mode",
        word={"infer": "inference", "train": "training step"}.__getitem__,
        unspoken="infer",
    ).field
    task: str = Axis(
        default="classify",
        description="the network around the model: its classifier, Mask R-CNN or UPerNet",
        choices=tuple(USUAL_SIZES),
        help=f"Network around the model: {', '.join(USUAL_SIZES)}; without --res at the size that papers count.",
        panel=MEASURED,
        word={"classify": "classification", "detect": "Mask R-CNN", "segment": "UPerNet"}.__getitem__,
        unspoken="classify",
    ).field
    checkpointing: bool = Axis(
        default=False,
        description="whether blocks are computed again in the backward pass",
        applies=lambda values: values["step"] == "train",
        idle=False,
        help="Recompute blocks in the backward pass, to save memory (training).",
        key=("", "/checkpointing").__getitem__,
        word=("", "checkpointing").__getitem__,
        unspoken=False,
    ).field
    sdpa: str = Axis(
        default="auto",
        description="kernels that scaled_dot_product_attention may use",
        choices=SDPA_BACKENDS,
        cuda_only=("efficient", "cudnn"),
        why_cuda="is a CUDA kernel; on a CPU there are auto, flash and math",
        help=f"Backend of fused attention: {', '.join(SDPA_BACKENDS)}.",
        key="/sdpa-{}".format,
        word="SDPA {}".format,
        unspoken="auto",
    ).field
    cudnn_benchmark: bool = Axis(
        default=False,
        description="whether cuDNN times its algorithms for each convolution and takes the fastest (CUDA)",
        applies=_on_cuda,
        idle=False,
        help="Let cuDNN time its algorithms and take the fastest (CUDA).",
        key=("", "/cudnn-benchmark").__getitem__,
        word=("cuDNN benchmark off", "cuDNN benchmark on").__getitem__,
        unspoken=False,
    ).field
    batch_policy: str = Axis(
        default="fixed",
        description="fixed, or max: batch is the largest that fits",
        suite_key="batch",
        crossed=False,
        choices=("fixed", "max"),
        option="--batch",
        panel=MEASURED,
        key=lambda policy: "",
    ).field
    data: str = Axis(
        default="",
        description="images that accuracy is measured on; empty without it",
        optional=True,
        canonical=lambda text: str(parse_data(text)) if text else "",
        metavar="DATA",
        help="Images for the accuracy probe; see sema-bench evaluate --help.",
        panel=MEASURED,
        unspoken="",
    ).field
    protocol: str = Axis(
        default="crop",
        description="how test photographs are prepared; crop where there are none",
        optional=True,
        choices=tuple(PROTOCOLS),
        applies=_on_photographs,
        idle="crop",
        help=f"How photographs are prepared: {', '.join(PROTOCOLS)}; default: as the model's authors do.",
        panel=MEASURED,
        word="protocol {}".format,
        unspoken="crop",
    ).field
    corrupt: str = Axis(
        default=NONE,
        description="how test images are corrupted, and the severity; none where they are not",
        optional=True,
        canonical=check_corruption,
        expand=expand_corruption,
        applies=lambda values: bool(values["data"]),
        idle=NONE,
        help="Corruptions of test images, e.g. none,fog:1..5,contrast:3, or all:1..5 (ImageNet-C's).",
        panel=MEASURED,
        slug=lambda text: text.replace(":", "-"),
        unspoken=NONE,
    ).field
    readout: str = Axis(
        default="head",
        description="what classifies features: the model's head, or a probe fitted to those of the training images",
        choices=READOUTS,
        applies=lambda values: bool(values["data"]),
        idle="head",
        help="What classifies the features: the model's own head, a linear or a k-NN probe.",
        panel=MEASURED,
        word={"head": "own head", "linear": "linear probe", "knn": "k-NN probe"}.__getitem__,
        unspoken="head",
    ).field
    weights: str = Axis(
        default="",
        description="where the weights come from; empty for random ones",
        suite_key="checkpoints",
        crossed=False,
        option="--checkpoint",
        metavar="MODEL=FILE",
        help="Weights of a model; may be repeated.",
        panel=MEASURED,
        unspoken="",
    ).field

    def __post_init__(self) -> None:
        for axis in AXES.values():
            value = getattr(self, axis.name)
            if type(value) is not axis.type:
                raise ValueError(f"cell: {axis.name} is {value!r}; expected {axis.type.__name__}")
            least = 0 if axis.name == "batch" else 1
            if type(value) is int and not least <= value <= LARGEST:
                raise ValueError(f"cell: {axis.name} is {value}; expected {least} to {LARGEST}")

    @functools.cached_property
    def id(self) -> str:
        """Readable key, unique within a run; equal exactly when all identity fields are equal."""
        values = {name: getattr(self, name) for name in AXES}
        if self.batch_policy == "max":
            values["batch"] = 0
        return "".join(axis.key(values[name]) for name, axis in AXES.items() if values[name] != axis.unspoken)

    @property
    def resolution(self) -> Resolution:
        return Resolution(self.height, self.width)

    @property
    def variant(self) -> tuple[str | int | bool, ...]:
        """The identity without the resolution: the cells of one variant form a scaling curve."""
        hidden = {"height", "width", *(["batch"] if self.batch_policy == "max" else [])}
        return tuple(value for key, value in dataclasses.asdict(self).items() if key not in hidden)

    @property
    def surroundings(self) -> dict[str, Any]:
        """Map the fields in ``SURROUNDINGS`` to their values."""
        return {name: getattr(self, name) for name in SURROUNDINGS}

    @property
    def compiled(self) -> bool:
        """True if its first forward pass compiles."""
        return self.mode.startswith("compile")

    @property
    def optimized(self) -> bool:
        """True if the model runs in its inference form."""
        return self.mode in (OPTIMIZED, OPTIMIZED_GRAPH)


#: Name → axis, in the order of columns.
AXES = axes_of(Cell)
IDENTITY_FIELDS = tuple(AXES)
#: Order of axes in headings; others follow.
HEADING_ORDER = ("device", "dtype", "tf32", "batch", "mode", "step", "checkpointing", "sdpa", "layout", "threads")
