"""Inputs for the C++ kernels, and marks for tests that need a compiler or a library."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sema.inference.fused import has_mkl, has_packed_kernels
from sema.kernels.depthwise_conv import depthwise_conv_native
from sema.kernels.library import NativeUnavailableError, load_library
from sema.layers.conv import DepthwiseConv2d

try:
    load_library("window_attention")
    MISSING = ""
except NativeUnavailableError as problem:
    MISSING = str(problem)
needs_compiler = pytest.mark.skipif(bool(MISSING), reason=f"nothing can be built here: {MISSING}")
needs_packed_kernels = pytest.mark.skipif(
    not has_packed_kernels(torch.device("cpu"), torch.float32), reason="this CPU build of torch has no oneDNN"
)
needs_bfloat16 = pytest.mark.skipif(
    not has_packed_kernels(torch.device("cpu"), torch.bfloat16), reason="this CPU has no products of bfloat16"
)
needs_mkl = pytest.mark.skipif(not has_mkl(), reason="this build of torch has no MKL")

#: Images, height, width, channels, heads. Heads of 16, 24, 5, 48, 4, 64 and 80 channels; tokens around multiples of
#: pieces and chunks.
SHAPES = [
    (2, 5, 7, 32, 2),
    (1, 8, 8, 24, 1),
    (1, 13, 10, 20, 4),
    (3, 1, 197, 96, 2),
    (1, 1, 3, 8, 2),
    (1, 32, 16, 128, 2),
    (2, 27, 20, 160, 2),
    (2, 5, 7, 48, 2),
]


def tensors(images: int, height: int, width: int, heads: int, depth: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    channels = heads * depth
    grid = (images, height, width)
    return {
        "qk": torch.randn(*grid, 2 * channels),
        "v": torch.randn(*grid, channels),
        "onto": torch.randn(*grid, channels),
        "plus": torch.randn(images, 1, 1, channels),
        "gate": torch.randn(*grid, channels),
    }


#: Directions, sequences, rows, columns, channels, states. They cover maps and sequences, channels that do and do not
#: fill registers, states with and without a loop of their own, and one token.
SCANS = [
    (2, 2, 13, 22, 5, 1),
    (2, 1, 1, 197, 32, 16),
    (1, 2, 9, 4, 70, 3),
    (2, 1, 1, 1, 3, 2),
    (2, 3, 4, 4, 48, 1),
    (1, 1, 1, 30, 16, 64),
]


def scanned(shape: tuple[int, ...], *, requires_grad: bool = False) -> list[Tensor]:
    torch.manual_seed(0)
    g, b, p, q, d, n = shape
    made = [
        torch.randn(g, b, p, q, d),
        0.3 * torch.rand(g, b, p, q, d),
        -0.1 - 2 * torch.rand(g, d, n),
        torch.randn(g, b, p, q, n),
        torch.randn(g, b, p, q, n),
    ]
    return [x.requires_grad_(requires_grad) for x in made]


def convolved(shape: tuple[int, ...], size: int) -> tuple[DepthwiseConv2d, Tensor, Tensor]:
    torch.manual_seed(0)
    conv = DepthwiseConv2d(shape[-1], kernel_size=size).requires_grad_(False)
    return conv, 3 * torch.randn(shape), torch.randn(shape)


def run_depthwise(conv: nn.Conv2d, x: Tensor, add: Tensor | None = None, act: str = "none") -> Tensor:
    weight = conv.weight[:, 0].permute(1, 2, 0).float().contiguous()
    return depthwise_conv_native(x, weight, conv.bias.float(), add, act)
