"""CvT: convolutions embed the tokens and make the queries, keys and values; and SimA in the same network.

Papers: CvT: Introducing Convolutions to Vision Transformers, arXiv 2103.15808; SimA, arXiv 2206.08898.

Legend: B batch, H W token grid of the stage at hand, N = H·W, C channels, h heads, d = C / h.

    image (B, in_chans, H, W) → three stages → LN → class token → head
    stage:  overlapping convolution (7×7 of stride 4, then 3×3 of stride 2), LN → blocks; a class token in the last
    block:  x ← x + proj(attn(LN(x)));  x ← x + MLP(LN(x)),  MLP with QuickGELU, x·sigmoid(1.702 x)

Attention: q, k and v are linear maps of LN(x) after a depthwise 3×3 convolution with BN each, of stride 2 for k and v.
The class token takes part without the convolutions. Scores are scaled by 1/√C, the whole width and not a head's, as in
the official code.

With SimA the scores are q̂·k̂ without softmax and scale, every channel divided by its ℓ1 norm over its tokens.

Deviations from the papers: none. No position embedding exists: any size from 3 pixels runs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.sima import l1_over_tokens
from sema.checkpoint_layout import CheckpointLayout
from sema.layers.drop_path import DropPath, drop_path_rates
from sema.layers.image import check_image
from sema.macs import Grid, Macs, conv_macs, linear_macs
from sema.models.backbone import head_macs, init_linear

_DIMS, _DEPTHS, _HEADS = (64, 192, 384), (1, 2, 10), (1, 3, 6)
#: Side, stride and padding of each stage's convolution.
_EMBEDDINGS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
_MIN_RESOLUTION = 3
_MECHANISMS = ("softmax", "sima")


class ConvProjection(nn.Module):
    """Depthwise 3×3 convolution and batch norm: (B, H, W, C) → tokens (B, ⌈H/stride⌉·⌈W/stride⌉, C)."""

    def __init__(self, dim: int, *, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1).flatten(1, 2)

    def out_grid(self, grid: Grid) -> Grid:
        """Return the size of the map that ``grid`` becomes."""
        stride = self.conv.stride[0]
        return -(-grid[0] // stride), -(-grid[1] // stride)


class ConvolutionalAttention(nn.Module):
    """Attention whose q, k and v come from convolutions, without the output projection.

    Args:
        dim: channels C.
        num_heads: heads h.
        mechanism: ``softmax``, or ``sima``.
    """

    def __init__(self, dim: int, num_heads: int, *, mechanism: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.mechanism = mechanism
        self.conv_proj_q = ConvProjection(dim, stride=1)
        self.conv_proj_k, self.conv_proj_v = (ConvProjection(dim, stride=2) for _ in range(2))
        self.proj_q, self.proj_k, self.proj_v = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Mix tokens (B, N, C) of ``grid``, or (B, 1 + N, C) with a class token in front; returns the same shape."""
        extra = x.shape[1] - grid[0] * grid[1]
        patches = torch.unflatten(x[:, extra:], 1, grid)
        heads = []
        for conv, linear in (
            (self.conv_proj_q, self.proj_q),
            (self.conv_proj_k, self.proj_k),
            (self.conv_proj_v, self.proj_v),
        ):
            tokens = conv(patches)
            if extra:
                tokens = torch.cat((x[:, :extra], tokens), dim=1)
            heads.append(torch.unflatten(linear(tokens), -1, (self.num_heads, -1)).transpose(1, 2))  # (B, h, N, d)
        q, k, v = heads
        if self.mechanism == "softmax":
            out = F.scaled_dot_product_attention(q, k, v, scale=x.shape[-1] ** -0.5)
        else:
            q, k = ((part / l1_over_tokens(part)).to(v.dtype) for part in (q, k))
            is_quadratic = self._is_quadratic(q.shape[2], k.shape[2])
            out = (q @ k.transpose(-2, -1)) @ v if is_quadratic else q @ (k.transpose(-2, -1) @ v)
        return out.transpose(1, 2).flatten(2)

    def reference(self, x: Tensor, grid: Grid) -> Tensor:
        """State the attention with the N×M matrix of weights, in eval mode or in training mode."""
        extra, dim = x.shape[1] - grid[0] * grid[1], x.shape[-1]
        parts = []
        for name in "qkv":
            conv, linear = getattr(self, f"conv_proj_{name}"), getattr(self, f"proj_{name}")
            image = torch.unflatten(x[:, extra:], 1, grid).permute(0, 3, 1, 2)
            padded, stride = F.pad(image, (1, 1, 1, 1)), conv.conv.stride[0]
            mapped = torch.zeros_like(image[..., ::stride, ::stride])
            for row in range(3):
                for column in range(3):
                    shifted = padded[..., row : row + grid[0] : stride, column : column + grid[1] : stride]
                    mapped = mapped + conv.conv.weight[:, 0, row, column].view(-1, 1, 1) * shifted
            tokens = conv.bn(mapped).flatten(2).transpose(1, 2)
            tokens = linear(torch.cat((x[:, :extra], tokens), dim=1))
            parts.append(torch.unflatten(tokens, -1, (self.num_heads, -1)).transpose(1, 2))
        q, k, v = parts
        if self.mechanism == "softmax":
            weights = (q @ k.transpose(-2, -1) * dim**-0.5).softmax(dim=-1)
        else:
            q, k = (part / part.abs().sum(dim=2, keepdim=True) for part in (q, k))
            weights = q @ k.transpose(-2, -1)
        out: Tensor = weights @ v
        return out.transpose(1, 2).flatten(2)

    def macs(self, grid: Grid, *, extra: int) -> Macs:
        """Return the MACs on a map of ``grid`` and ``extra`` class tokens."""
        dim = self.proj_q.in_features
        total = Macs()
        counts = []
        for conv in (self.conv_proj_q, self.conv_proj_k, self.conv_proj_v):
            after = conv.out_grid(grid)
            counts.append(after[0] * after[1] + extra)
            total = total.plus(conv_macs(after, dim, dim, 3, groups=dim)).plus(linear_macs(counts[-1], dim, dim))
        queries, keys, _ = counts
        products = 2 * queries * keys
        if self.mechanism == "sima" and not self._is_quadratic(queries, keys):
            products = (queries + keys) * (dim // self.num_heads)
        return total.plus(Macs(attention=products * dim))

    def _is_quadratic(self, queries: int, keys: int) -> bool:
        """Whether (Q Kᵀ) V has fewer MACs than Q (Kᵀ V)."""
        return 2 * queries * keys < (queries + keys) * (self.proj_q.in_features // self.num_heads)


class Mlp(nn.Module):
    """Linear, QuickGELU, Linear, on the last dimension."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class Block(nn.Module):
    """Pre-norm block on tokens (B, L, C): attention and MLP, each with a residual."""

    def __init__(self, dim: int, num_heads: int, *, mechanism: str, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ConvolutionalAttention(dim, num_heads, mechanism=mechanism)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = x + self.drop_path(self.proj(self.attn(self.norm1(x), grid)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def macs(self, grid: Grid, *, extra: int) -> Macs:
        """Return the MACs on a map of ``grid`` and ``extra`` class tokens."""
        tokens, dim = grid[0] * grid[1] + extra, self.proj.in_features
        return self.attn.macs(grid, extra=extra).plus(linear_macs(tokens, dim, 9 * dim))


class ConvEmbed(nn.Module):
    """Overlapping convolution and LN: (B, H, W, C) → a smaller map (B, H', W', C')."""

    def __init__(self, in_channels: int, dim: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        # A map in channels-first memory is copied once, here: everything behind it then stays channels-last.
        x = x.contiguous().permute(0, 3, 1, 2)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        """Return the MACs on a map of ``grid``, and the size of what it gives."""
        size, stride, padding = self.proj.kernel_size[0], self.proj.stride[0], int(self.proj.padding[0])
        height, width = ((side + 2 * padding - size) // stride + 1 for side in grid)
        return conv_macs((height, width), self.proj.in_channels, self.proj.out_channels, size), (height, width)


class Stage(nn.Module):
    """One size: the embedding, then blocks, with a class token in front of the tokens in the last stage."""

    def __init__(self, embed: ConvEmbed, blocks: list[Block], *, class_token: bool) -> None:
        super().__init__()
        self.patch_embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.cls_token: nn.Parameter | None = None
        if class_token:
            dim = embed.proj.out_channels
            self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, 1, dim), std=0.02))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map (B, H, W, C) → the map of this stage and its class token (B, C)."""
        x = self.patch_embed(x)
        grid = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        for block in self.blocks:
            x = block(x, grid)
        if self.cls_token is None:
            return torch.unflatten(x, 1, grid), None
        return torch.unflatten(x[:, 1:], 1, grid), x[:, 0]

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        """Return the MACs on a map of ``grid``, and the size of the map that it gives."""
        total, grid = self.patch_embed.macs(grid)
        for block in self.blocks:
            assert isinstance(block, Block)
            total = total.plus(block.macs(grid, extra=int(self.cls_token is not None)))
        return total, grid


class CvT(nn.Module):
    """CvT-13's three stages and a classifier: (B, in_chans, H, W) → (B, num_classes).

    Args:
        mechanism: ``softmax`` or ``sima``.
        num_classes: outputs of the classifier.
        in_chans: channels of the input image.
        drop_path_rate: stochastic depth of the last block; in the last stage alone, rising linearly from 0.

    Raises:
        ValueError: an unknown ``mechanism``.
    """

    checkpoint_layout = CheckpointLayout(renames=((r"^(stage\d+\.blocks\.\d+)\.attn\.proj\.", r"\1.proj."),))

    def __init__(
        self, mechanism: str, *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        if mechanism not in _MECHANISMS:
            raise ValueError(f"mechanism must be one of {', '.join(_MECHANISMS)}; got {mechanism!r}")
        self.in_chans = in_chans
        self.num_classes = num_classes
        channels = in_chans
        for index, (dim, depth, heads, embedding) in enumerate(zip(_DIMS, _DEPTHS, _HEADS, _EMBEDDINGS, strict=True)):
            is_last = index == len(_DIMS) - 1
            blocks = [
                Block(dim, heads, mechanism=mechanism, drop_path_rate=rate)
                for rate in drop_path_rates(drop_path_rate if is_last else 0.0, depth)
            ]
            self.add_module(f"stage{index}", Stage(ConvEmbed(channels, dim, *embedding), blocks, class_token=is_last))
            channels = dim
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, in_chans=self.in_chans, min_resolution=_MIN_RESOLUTION)
        x, token = x.permute(0, 2, 3, 1), None
        for stage in self._stages():
            x, token = stage(x)
        return self.head(self.norm(token))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return the map of each of the three stages, (B, H, W, C), without the class token."""
        check_image(x, in_chans=self.in_chans, min_resolution=_MIN_RESOLUTION)
        x = x.permute(0, 2, 3, 1)
        maps = []
        for stage in self._stages():
            x, _ = stage(x)
            maps.append(x)
        return maps

    def macs(self, resolution: tuple[int, int]) -> Macs:
        """Return the MACs of ``forward`` on one image of ``resolution`` (H, W) pixels."""
        total, grid = Macs(), resolution
        for stage in self._stages():
            macs, grid = stage.macs(grid)
            total = total.plus(macs)
        return total.plus(head_macs(self.head))

    def _stages(self) -> list[Stage]:
        stages = [self.get_submodule(f"stage{index}") for index in range(len(_DIMS))]
        return [stage for stage in stages if isinstance(stage, Stage)]
