"""A cell made real: its model and its input, on its device, in its dtype and layout."""

from __future__ import annotations

import copy
import gc
from functools import cached_property

import torch
from torch import Tensor, nn

import sema
from sema_bench.forecast import Forecast, forecast
from sema_bench.foreign_model import build_foreign, check_logits
from sema_bench.ledger.build import build_ledger
from sema_bench.ledger.costs import Ledger
from sema_bench.model_source import parse_source
from sema_bench.schema import Cell

IN_CHANS = 3
_OUT_OF_MEMORY_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class Subject:
    """Model and input of one cell; nothing is allocated before it is asked for.

    Args:
        cell: what to build.
        seed: seeds weights and input, so that two workers with one seed hold the same numbers.
    """

    def __init__(self, cell: Cell, *, seed: int = 0) -> None:
        self.cell = cell
        self.seed = seed
        self.source = parse_source(cell.model)
        self.device = torch.device(cell.device)
        self.dtype: torch.dtype = getattr(torch, cell.dtype)
        channels_last = cell.layout == "channels_last"
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        apply_global_settings(cell)

    @cached_property
    def network(self) -> nn.Module:
        """The model in eval mode, with its weights."""
        torch.manual_seed(self.seed)
        model = self._build().eval().to(self.device, self.dtype)
        return model.to(memory_format=self.memory_format)  # type: ignore[call-overload,no-any-return]

    @cached_property
    def model(self) -> nn.Module:
        """What is run: the network, compiled afresh for this very size where the cell's mode says so.

        Left to itself torch.compile would serve a second size with dynamic shapes, and after a few more run parts of
        the model eagerly without a word. One graph for one size, or an error.
        """
        if self.cell.mode == "eager":
            return self.network
        torch._dynamo.reset()
        return torch.compile(self.network, dynamic=False, fullgraph=True)  # type: ignore[return-value]

    @cached_property
    def input(self) -> Tensor:
        """The input batch (B, 3, H, W), standard normal."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.cell.batch, IN_CHANS, self.cell.height, self.cell.width)
        batch = torch.randn(shape, generator=generator).to(self.device, self.dtype)
        return batch.contiguous(memory_format=self.memory_format)

    def meta_model(self) -> nn.Module:
        """Return the model on the meta device: shapes without memory, always eager."""
        if self.source.kind != "registry":  # code that was not written for the meta device makes real tensors
            return self._build().to("meta")
        with torch.device("meta"):
            return self._build().eval()

    def ledger(self) -> Ledger:
        """Return the costs of one image by module, counted on shapes wherever shapes tell them."""
        foreign = self.source.kind != "registry"
        size = (self.cell.height, self.cell.width)
        return build_ledger(self.meta_model(), size, in_chans=IN_CHANS, real=self._build if foreign else None)

    def forecast(self) -> Forecast:
        """Return the memory that one eager forward pass will need, without running it."""
        shape = (self.cell.batch, IN_CHANS, self.cell.height, self.cell.width)
        device = "cpu" if self.device.type == "meta" else self.cell.device
        return forecast(self.meta_model(), shape, device=device, dtype=self.dtype, memory_format=self.memory_format)

    @torch.inference_mode()
    def forward(self) -> Tensor:
        """Run the model once on the input; returns the logits, not synchronised."""
        output = self.model(self.input)
        if self.source.kind != "registry":
            check_logits(output, self.cell.batch)
        return output  # type: ignore[no-any-return]

    def synchronise(self) -> None:
        """Wait until the device has finished (nothing to wait for on a CPU)."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def weights_bytes(self) -> int:
        """Return the bytes of parameters and buffers."""
        return sum(t.nbytes for t in (*self.network.parameters(), *self.network.buffers()))

    def resized(self, cell: Cell) -> Subject:
        """Return the subject of ``cell``, which differs in size or batch alone, around the same weights.

        A model that is not ours may be made for one size: it is built anew, from the same seed.
        """
        other = copy.copy(self)
        other.cell = cell
        made_for_the_size = ["input", "model", *(["network"] if self.source.kind != "registry" else [])]
        for name in made_for_the_size:
            other.__dict__.pop(name, None)
        return other

    def _build(self) -> nn.Module:
        if self.source.kind == "registry":
            return sema.create_model(self.cell.model)
        return build_foreign(self.source, self.cell.resolution)


def apply_global_settings(cell: Cell) -> None:
    """Set what torch keeps per process: TF32."""
    torch.backends.cuda.matmul.allow_tf32 = cell.tf32
    torch.backends.cudnn.allow_tf32 = cell.tf32


def is_out_of_memory(problem: BaseException) -> bool:
    """Tell whether ``problem``, or what caused it, says that memory ran out, on the host or on the device."""
    link: BaseException | None = problem
    while link is not None:
        if isinstance(link, MemoryError | torch.cuda.OutOfMemoryError):
            return True
        if isinstance(link, RuntimeError) and any(sign in str(link) for sign in _OUT_OF_MEMORY_SIGNS):
            return True
        link = getattr(link, "inner_exception", None) or link.__cause__
    return False


def free_memory() -> None:
    """Drop cycles and hand cached device memory back."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
