"""A cell made real: its model and its input, on its device, in its dtype and layout."""

from __future__ import annotations

import copy
import gc
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import sema
from sema_bench.schema import Cell

IN_CHANS = 3


class Subject:
    """Model and input of one cell; nothing is allocated before it is asked for.

    Args:
        cell: what to build.
        seed: seeds weights and input, so that two workers with one seed hold the same numbers.
    """

    def __init__(self, cell: Cell, *, seed: int = 0) -> None:
        self.cell = cell
        self.seed = seed
        self.device = torch.device(cell.device)
        self.dtype: torch.dtype = getattr(torch, cell.dtype)
        channels_last = cell.layout == "channels_last"
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        apply_global_settings(cell)

    @cached_property
    def model(self) -> nn.Module:
        """The model in eval mode, compiled where the cell's mode says so."""
        torch.manual_seed(self.seed)
        model: nn.Module = sema.create_model(self.cell.model).eval().to(self.device, self.dtype)
        model = model.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        if self.cell.mode == "compile":
            return torch.compile(model)  # type: ignore[return-value]
        return model

    @cached_property
    def input(self) -> Tensor:
        """The input batch (B, 3, H, W), standard normal."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.cell.batch, IN_CHANS, self.cell.height, self.cell.width)
        batch = torch.randn(shape, generator=generator).to(self.device, self.dtype)
        return batch.contiguous(memory_format=self.memory_format)

    def meta_model(self) -> nn.Module:
        """Return the model on the meta device: shapes without memory, always eager."""
        with torch.device("meta"):
            return sema.create_model(self.cell.model).eval()

    def meta_image(self) -> Tensor:
        """Return one image on the meta device, (1, 3, H, W)."""
        return torch.empty(1, IN_CHANS, self.cell.height, self.cell.width, device="meta")

    @torch.inference_mode()
    def forward(self) -> Tensor:
        """Run the model once on the input; returns the logits, not synchronised."""
        return self.model(self.input)  # type: ignore[no-any-return]

    def synchronise(self) -> None:
        """Wait until the device has finished (nothing to wait for on a CPU)."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def weights_bytes(self) -> int:
        """Return the bytes of parameters and buffers."""
        module: Any = self.model
        return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))

    def resized(self, cell: Cell) -> Subject:
        """Return the subject of ``cell``, which differs in size or batch alone, around the same model."""
        other = copy.copy(self)
        other.cell = cell
        other.__dict__.pop("input", None)
        return other


def apply_global_settings(cell: Cell) -> None:
    """Set what torch keeps per process: TF32."""
    torch.backends.cuda.matmul.allow_tf32 = cell.tf32
    torch.backends.cudnn.allow_tf32 = cell.tf32


def is_out_of_memory(problem: BaseException) -> bool:
    """Tell whether ``problem`` says that memory ran out, on the host or on the device."""
    if isinstance(problem, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(problem)
    return isinstance(problem, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)


def free_memory() -> None:
    """Drop cycles and hand cached device memory back."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
