"""A cell: one point of a plan, and its identity."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from sema_bench.spec.resolution import Resolution

DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("channels_last", "contiguous")
MODES = ("eager", "optimized", "compile", "compile-reduce-overhead", "compile-max-autotune", "cuda-graphs")
STEPS = ("infer", "train")
SDPA_BACKENDS = ("auto", "flash", "efficient", "cudnn", "math")
BATCH_POLICIES = ("fixed", "max")
ALLOCATORS = ("retain", "default")

#: What any number of a cell can be at most: as many pixels, images or threads no machine has.
_LARGEST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a plan. Its fields are its identity: two rows compare only where all of them agree.

    Attributes:
        model: name as tables show it, ``sema_tiny`` or ``sema_tiny[linear]``.
        height, width: input size in pixels.
        batch: images per forward pass.
        batch_policy: ``fixed``, or ``max``: ``batch`` is the largest power of two that fits, found when the cell runs
            (0 before), and stands for itself in no comparison.
        dtype: parameter and input type, one of ``DTYPES``.
        tf32: whether float32 products may use TF32 on CUDA.
        layout: memory format of the input and the convolution weights, one of ``LAYOUTS``.
        mode: how it is run, one of ``MODES``.
        step: ``infer``, or ``train``: forward, loss, backward and optimiser.
        checkpointing: whether blocks are computed again in the backward pass instead of kept.
        sdpa: what ``scaled_dot_product_attention`` may use, one of ``SDPA_BACKENDS``.
        device: ``cpu`` or ``cuda:<index>``.
        threads: intra-op threads of the worker.
        allocator: C allocator setting on CPU, one of ``ALLOCATORS``.
        data: what accuracy is taken on, as ``sema_bench.spec.data_source`` names it; empty where it is not.
        weights: where the weights come from: empty for random ones, ``<file>@<digest>`` for a checkpoint,
            ``seed <n>@<digest of the recipe>`` for what the run itself has trained on ``data``.
    """

    model: str
    height: int
    width: int
    batch: int = 1
    dtype: str = "float32"
    tf32: bool = False
    layout: str = "channels_last"
    mode: str = "eager"
    device: str = "cpu"
    threads: int = 1
    allocator: str = "retain"
    step: str = "infer"
    checkpointing: bool = False
    sdpa: str = "auto"
    batch_policy: str = "fixed"
    data: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if type(value).__name__ != each.type:
                raise ValueError(f"cell: {each.name} is {value!r}; expected {each.type}")
            least = {"batch": 0}.get(each.name, 1)
            if each.type == "int" and not least <= value <= _LARGEST:
                raise ValueError(f"cell: {each.name} is {value}; expected {least} to {_LARGEST}")

    @functools.cached_property
    def id(self) -> str:
        """Readable key, unique within a run; equal exactly when all identity fields are equal.

        Fields that came later appear only where they are not at their defaults, so that older keys stay what they were.
        """
        batch = "max" if self.batch_policy == "max" else self.batch
        precision = f"{self.dtype}{'+tf32' if self.tf32 else ''}"
        where = f"{self.device}/t{self.threads}/{self.allocator}"
        key = f"{self.model}@{self.resolution}/b{batch}/{precision}/{self.layout}/{self.mode}/{where}"
        key += f"/{self.step}" if self.step != "infer" else ""
        key += "/checkpointing" if self.checkpointing else ""
        key += f"/sdpa-{self.sdpa}" if self.sdpa != "auto" else ""
        key += f"/{self.data}" if self.data else ""
        return key + (f"/{self.weights}" if self.weights else "")

    @property
    def resolution(self) -> Resolution:
        return Resolution(self.height, self.width)

    @property
    def variant(self) -> tuple[str | int | bool, ...]:
        """The identity without the resolution: the cells of one variant form a scaling curve."""
        hidden = {"height", "width", *(["batch"] if self.batch_policy == "max" else [])}
        return tuple(value for key, value in dataclasses.asdict(self).items() if key not in hidden)

    @property
    def compiled(self) -> bool:
        """Whether its first forward pass compiles."""
        return self.mode.startswith("compile")


IDENTITY_FIELDS = tuple(f.name for f in dataclasses.fields(Cell))
