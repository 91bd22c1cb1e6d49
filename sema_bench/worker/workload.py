"""Build a cell in a worker: its model, its input and the step to run."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import sema
from sema_bench.counting.build import build_ledger
from sema_bench.counting.costs import Ledger
from sema_bench.errors import ProbeError
from sema_bench.machine.processes import COMPILER_CACHE
from sema_bench.machine.torch_settings import SDPA_SWITCHES
from sema_bench.spec import units as fmt
from sema_bench.spec.cell import FROZEN, OPTIMIZED_GRAPH, Cell
from sema_bench.spec.model_code import MODEL_FILES
from sema_bench.spec.model_source import parse_source
from sema_bench.spec.protocol import network_name
from sema_bench.worker.allocator import trim_heap
from sema_bench.worker.build_model import IN_CHANS, build_foreign, build_with_weights, check_logits, read_weights
from sema_bench.worker.forecast import Forecast, forecast
from sema_bench.worker.model_imports import uncovered_files
from sema_bench.worker.parts import PARTS, noting_parts
from sema_bench.worker.training_step import TrainingStep, checkpoint_blocks

#: Takes one step; returns the logits (B, classes), or the outputs of a detector or a segmenter, all (B, …).
Step = Callable[[], Any]
#: Modes whose compiler replays the model as CUDA graphs, on CUDA.
_REPLAYED_MODES = ("compile-reduce-overhead", "compile-max-autotune")
#: First part of the names of modules that inductor writes.
_COMPILED_CODE = "torch._inductor.runtime.compile_tasks."
#: Largest relative ℓ2 error of a frozen graph's logits; half precision rounds, and tens of blocks add that up.
_ROUNDING = {"float32": 1e-3, "tf32": 5e-3, "float16": 5e-2, "bfloat16": 2e-1}
_ANY_SDPA = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]


class Workload:
    """Model and input of one cell, each allocated at its first use.

    Two workers with equal ``seed`` hold the same input and, without a checkpoint ``weights``, the same random weights.
    """

    def __init__(self, cell: Cell, *, seed: int = 0, weights: Path | None = None) -> None:
        self.cell = cell
        self.seed = seed
        self.weights = None if weights is None else read_weights(weights)
        self.source = parse_source(network_name(cell.model, cell.protocol))
        self.device = torch.device(cell.device)
        self.dtype: torch.dtype = getattr(torch, cell.dtype)
        channels_last = cell.layout == "channels_last"
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.trains = cell.step == "train"
        self.foreign = self.source.kind != "registry"
        #: Submodules that a detector or a segmenter consists of.
        self.parts: tuple[str, ...] = () if cell.task == "classify" else PARTS
        self._made_maps = ""
        apply_global_settings(cell)

    @cached_property
    def network(self) -> nn.Module:
        """The model with its weights, in train mode if the cell is a training step, in eval mode otherwise."""
        torch.manual_seed(self.seed)
        model = self._build().train(self.trains).to(self._current_device(), self.dtype)
        if self.cell.checkpointing:
            checkpoint_blocks(model)
        return model.to(memory_format=self.memory_format)  # type: ignore[call-overload,no-any-return]

    @cached_property
    def model(self) -> nn.Module:
        """The network in the form that its mode runs: as built, in its inference form, or compiled for this size.

        Each size is compiled into its own graph, or fails. By default torch.compile serves a second size with
        dynamic shapes, and after a few more sizes silently runs parts of the model eagerly.
        """
        if self.cell.optimized:
            torch.manual_seed(self.seed)
            plain = self._build().eval().to(self._current_device())  # not cached: it would be a second set of weights
            model: nn.Module = sema.optimize_for_inference(plain, dtype=self.dtype, example_size=self._shape)
        else:
            model = self.network
        if not self.cell.compiled:
            return model
        _isolate_compile_cache(self.cell)
        _drop_graphs()
        freezes = self.cell.mode in (FROZEN, OPTIMIZED_GRAPH)
        torch._inductor.config.freezing = freezes  # as an option of torch.compile it freezes nothing
        how = "default" if freezes or self.cell.mode == "compile" else self.cell.mode.removeprefix("compile-")
        return cast(nn.Module, torch.compile(model, dynamic=False, fullgraph=True, mode=how))

    @property
    def uncompiled(self) -> nn.Module:
        """The model without its compiled graph."""
        return getattr(self.model, "_orig_mod", self.model)

    @cached_property
    def input(self) -> Tensor:
        """The input batch (B, 3, H, W), standard normal."""
        generator = torch.Generator().manual_seed(self.seed)
        batch = torch.randn(self._shape, generator=generator).to(self._current_device(), self.dtype)
        return batch.contiguous(memory_format=self.memory_format)

    def meta_model(self) -> nn.Module:
        """Build the model on the meta device: shapes without memory, always eager."""
        if self.foreign or self.weights:  # code that was not written for the meta device makes real tensors
            return self._build().eval().to("meta")
        with torch.device("meta"):
            return self._build().eval()

    def parameters_on_shapes(self) -> list[nn.Parameter]:
        """List the parameters of the meta model; a foreign one may create some of them only when it runs."""
        model = self.meta_model()
        if self.foreign:
            with contextlib.suppress(Exception), torch.no_grad(), torch.device("meta"):  # some models need values
                model(torch.empty(1, IN_CHANS, *self.cell.resolution))
        return list(model.parameters())

    def ledger(self) -> Ledger:
        """Count the costs of one image by module, on the meta device if the model runs there."""
        with sdpa_kernel(_ANY_SDPA):  # shapes have no kernels to choose from
            return build_ledger(self.meta_model(), self._size, real=self._build if self.foreign else None)

    @property
    def forecast_device(self) -> str:
        """The cell's device; a CPU for meta, and for training where torch sees no card: CUDA's backward needs one."""
        without_card = self.device.type == "cuda" and self.trains and not torch.cuda.is_available()
        return "cpu" if without_card or self.device.type == "meta" else self.cell.device

    def forecast(self) -> Forecast:
        """Predict the memory of one eager step on ``forecast_device``, without running it."""
        model = self.meta_model()
        if self.cell.checkpointing:
            checkpoint_blocks(model)
        elsewhere = self.device.type != self.forecast_device.partition(":")[0]
        fused = elsewhere and self.cell.sdpa != "math"  # a CPU has none of the kernels that the axis may name
        with sdpa_kernel(_ANY_SDPA) if fused else contextlib.nullcontext():
            return forecast(
                model,
                self._shape,
                device=self.forecast_device,
                dtype=self.dtype,
                memory_format=self.memory_format,
                train=self.trains,
                parts=self.parts,
            )

    @cached_property
    def training_step(self) -> TrainingStep:
        return TrainingStep(self.model, self.input)

    @cached_property
    def step(self) -> Step:
        """The call that a sample times, bound once; ``running`` gives it the context that it needs."""
        if self.trains:
            step: Step = self.training_step
        elif self.cell.mode == "cuda-graphs":
            step = CapturedForward(self.network, self.input)
        else:
            step = functools.partial(self.model, self.input)
        return functools.partial(_begin_and_take, step) if self.cell.compiled else step

    def noting_parts(self, note: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """Call ``note`` as each part of a detector or segmenter begins, in eager mode; other modes fuse the parts."""
        has_parts = self.parts and self.cell.mode == "eager"
        return noting_parts(self.network, self.parts, note) if has_parts else contextlib.nullcontext()

    @contextlib.contextmanager
    def running(self) -> Iterator[Step]:
        """Yield the step, on the cell's device and, unless the cell trains, in inference mode."""
        step = self.step  # inference mode must not reach the weights
        with on_device(self.device), contextlib.nullcontext() if self.trains else torch.inference_mode():
            yield step

    def forward(self) -> Any:
        """Take one step and return its output, not synchronised."""
        with self.running() as step:
            output = step()
        self.check(output)
        return output

    def check(self, output: object) -> None:
        """Raise ProbeError if a foreign classifier gave something other than logits of images, or of their pixels."""
        if self.foreign and self.cell.task == "classify":
            check_logits(output, self._shape)

    def check_frozen(self, output: Tensor) -> None:
        """Raise ProbeError if folding and packing the weights has changed the logits by more than rounding does."""
        if self.cell.mode not in (FROZEN, OPTIMIZED_GRAPH):
            return
        with torch.inference_mode():
            expected = (self.network if self.cell.mode == FROZEN else self.uncompiled)(self.input).double()
        error = float((output.double() - expected).norm() / expected.norm().clamp(min=1e-30))
        if not error <= (largest := _ROUNDING["tf32" if self.cell.tf32 else self.cell.dtype]):
            raise ProbeError(f"its frozen graph differs from the model by {error:.1e}, more than {largest:.0e}")

    def first_step(self) -> tuple[Any, float, bool]:
        """Take the first step; return its output, wall time in seconds, and whether no compiler cache shortened it."""
        self.step  # noqa: B018 - build it before the clock starts
        fresh, before, started = _nothing_compiled(self.cell), _cache_hits(), time.perf_counter()
        output = self.forward()
        self.synchronise()
        return output, time.perf_counter() - started, fresh and _cache_hits() == before

    @property
    def replays_graphs(self) -> bool:
        """True if its mode has the compiler replay CUDA graphs."""
        return self.device.type == "cuda" and self.cell.mode in _REPLAYED_MODES

    def mode_details(self) -> dict[str, Any]:
        """Describe, for a record, the effect of the mode: the kernels chosen, and what a compiler only logs."""
        if self.cell.optimized:
            return {"kernels": self.uncompiled.kernels}
        # Read by name: the gate runs this code on trees without ``ScanAttention``.
        kernels = (getattr(module, "scan_kernel", None) for module in self.network.modules())
        scans = sorted({name for name in kernels if isinstance(name, str)})
        details: dict[str, Any] = {"kernels": {"selective_scan": ", ".join(scans)}} if scans else {}
        if self.device.type != "cuda" or self.cell.mode != "compile-max-autotune":
            return details
        from torch._inductor.utils import is_big_gpu

        return details | {"products_tuned": is_big_gpu(self.device)}  # a small card keeps the library's matrix products

    def check_spill(self) -> None:
        """Raise MemoryError if this process has reserved more than its card has.

        Under WSL and Windows the driver then moves memory to the host, and only the time shows it.
        """
        if self.device.type != "cuda":
            return
        reserved = torch.cuda.max_memory_reserved(self.device)
        total = torch.cuda.get_device_properties(self.device).total_memory
        if reserved > total:
            raise MemoryError(
                f"it reserved {fmt.size(reserved)} on a card of {fmt.size(total)}: the driver moved the rest to the "
                "host, and times mean nothing"
            )

    def output_shape(self) -> tuple[int, ...]:
        """Return the shape of the logits."""
        with torch.inference_mode():
            output: Tensor = self.model(self.input)
        self.check(output)
        return tuple(output.shape)

    def may_use_winograd(self) -> bool:
        """True if cuDNN may compute a convolution with fewer products than its MACs: dense, 3×3, stride 1."""
        return self.device.type == "cuda" and any(
            isinstance(module, nn.Conv2d) and (module.kernel_size, module.stride, module.groups) == ((3, 3), (1, 1), 1)
            for module in self.model.modules()
        )

    def synchronise(self) -> None:
        """Wait until the device has finished (nothing to wait for on a CPU)."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def weights_bytes(self) -> int:
        """Sum the bytes of parameters and buffers."""
        if self.cell.optimized:
            return int(self.uncompiled.weights_bytes)  # type: ignore[arg-type]
        return sum(t.nbytes for t in (*self.network.parameters(), *self.network.buffers()))

    def frozen_bytes(self) -> int:
        """Sum the bytes of weights held besides the model's own, but not those in a graph of ``compile-optimized``."""
        if self.cell.optimized:  # by name: the gate runs this code on trees without it
            return int(getattr(self.uncompiled, "spare_bytes", 0))
        if self.cell.mode != FROZEN:
            return 0
        own = {t.data_ptr() for t in (*self.network.parameters(), *self.network.buffers())}
        frozen = {t for module in _compiled_code() for t in vars(module).values() if isinstance(t, Tensor)}
        # packed ones have neither a pointer nor ``nbytes``
        return sum(t.numel() * t.itemsize for t in frozen if t.is_mkldnn or t.data_ptr() not in own)

    def resized(self, cell: Cell) -> Workload:
        """Make the workload of ``cell``, which differs only in size or batch, around the same weights."""
        other = copy.copy(self)
        other.cell = cell
        other.reset_size()
        if self.foreign:  # it may be made for one size, so it is rebuilt from the same seed
            other.__dict__.pop("network", None)
        return other

    def reset_size(self) -> None:
        """Drop the input, the compiled form and recorded graphs, but not the weights."""
        compiled = "model" in self.__dict__ and self.cell.compiled
        for name in ("input", "model", "training_step", "step"):
            self.__dict__.pop(name, None)
        if compiled:
            _drop_graphs()

    @property
    def _size(self) -> tuple[int, int]:
        return self.cell.height, self.cell.width

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        return self.cell.batch, IN_CHANS, *self._size

    def model_details(self) -> dict[str, Any]:
        """Describe, for a record, files that the model's name does not cover, and maps that are made of others."""
        files = uncovered_files(Path(self.source.target).resolve()) if self.source.kind == "file" else {}
        return ({MODEL_FILES: files} if files else {}) | ({"pyramid": self._made_maps} if self._made_maps else {})

    def _current_device(self) -> torch.device:
        """Make the cell's card the current one: Triton launches kernels there, wherever their tensors are."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        return self.device

    def _build(self) -> nn.Module:
        if self.cell.task != "classify":
            from sema_bench.worker.build_dense import build_dense  # the gate runs this code on trees without its parts

            built = build_dense(self.source, self._size, task=self.cell.task)
            self._made_maps = built.note
            return built
        if self.weights:
            return build_with_weights(self.cell.model, self._size, self.weights, protocol=self.cell.protocol)
        if self.source.kind == "registry":
            return sema.create_model(self.source.name)
        return build_foreign(self.source, self._size)


def _isolate_compile_cache(cell: Cell) -> None:
    """Hide the compiler's results for other cells from this one.

    They would shorten the time to compile, and the compiler's keys lack some settings that change the code, such as
    SDPA backends. Inductor names Triton's folder once in a process, and would find kernels of other sizes there.
    """
    if folder := _compiler_cache(cell):
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}


def _drop_graphs() -> None:
    """Drop the compiled graphs of this process; frozen ones hold a second set of weights."""
    from torch._inductor import utils

    torch._dynamo.reset()
    for name in ("clear_caches", "clear_inductor_caches"):  # the cache in this process; the function's name has changed
        getattr(utils, name, lambda: None)()
    for module in _compiled_code():
        del sys.modules[module.__name__]


def _compiled_code() -> list[ModuleType]:
    """List the modules that the compiler has written in this process; constants are their attributes."""
    return [module for name, module in sys.modules.items() if name.startswith(_COMPILED_CODE)]


def _compiler_cache(cell: Cell) -> Path | None:
    """Name the cache folder of the compiler for ``cell`` in this run; None outside a run."""
    base = os.environ.get(COMPILER_CACHE)
    return Path(base) / hashlib.sha256(cell.id.encode()).hexdigest()[:16] if base else None


def _nothing_compiled(cell: Cell) -> bool:
    """Check that no other worker has compiled ``cell``: Triton does not count what it takes from its folder."""
    folder = _compiler_cache(cell)
    return folder is None or not any(path.is_file() for path in folder.rglob("*"))


def _cache_hits() -> int:
    """Count the graphs that this process took from the compiler's caches."""
    return sum(count for name, count in _compiler_counts().items() if "cache_hit" in name)


def skipped_graphs() -> int:
    """Count the CUDA graphs that the compiler of this process did not make; it only logs that."""
    return _compiler_counts()["cudagraph_skips"]


def graph_partitions(device: torch.device) -> int | None:
    """Count the parts of the model that the compiler replays as CUDA graphs; each cut adds one. None: unknown.

    Torch has no counter of them, and its manager of graphs is private.
    """
    trees: Any = sys.modules.get("torch._inductor.cudagraph_trees")
    with contextlib.suppress(AttributeError):
        return len(trees.get_manager(device.index, create_if_none_exists=False).ids_to_funcs)
    return None


def _compiler_counts() -> Counter[str]:
    """Read the counters of torch.compile; they are empty before it was used, since loading it takes seconds."""
    compiler = sys.modules.get("torch._dynamo.utils")
    if compiler is None:
        return Counter()
    return Counter(compiler.counters["inductor"]) + Counter(compiler.counters["aot_autograd"])


def _begin_and_take(step: Step) -> Any:
    torch.compiler.cudagraph_mark_step_begin()  # a graph may overwrite its last output
    return step()


class CapturedForward:
    """A forward pass recorded as a CUDA graph, whose kernels the CPU launches all at once."""

    def __init__(self, model: nn.Module, batch: Tensor) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(batch.device), torch.inference_mode():
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # libraries initialise themselves outside the recording
                for _ in range(3):
                    model(batch)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self._graph):
                self._output: Tensor = model(batch)

    def __call__(self) -> Tensor:
        self._graph.replay()
        return self._output


def apply_global_settings(cell: Cell) -> None:
    """Apply a cell's process-wide settings of torch: TF32, cuDNN's choice, and the backends of fused attention."""
    torch.backends.cuda.matmul.allow_tf32 = cell.tf32
    torch.backends.cudnn.allow_tf32 = cell.tf32
    torch.backends.cudnn.benchmark = cell.cudnn_benchmark
    for backend, _, enable in SDPA_SWITCHES:
        enable(cell.sdpa in ("auto", backend))


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make a CUDA device the current one while the body runs."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def free_memory() -> None:
    """Drop cycles, and return free memory of host and device."""
    gc.collect()
    trim_heap()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
