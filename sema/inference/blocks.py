"""Inference forms of blocks: residuals and activations in the epilogues of products, constant scales folded away.

Legend: B batch, H W token grid, C channels.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from sema.attention.vim import VimAttention
from sema.inference.attentions import LinearForm, SemaForm, VmiForm, scan_form
from sema.inference.builder import FormBuilder, stacked
from sema.inference.forms import form_of
from sema.kernels.activation import Gate
from sema.layers.mlp import Mlp
from sema.macs import Grid
from sema.models import cvt, hierarchical, vim, vmamba, vminet, xcit
from sema.models.backbone import TransformerBlock

#: Bytes of an MLP's hidden values computed at once; they stay in cache between its two products.
_PIECE_BYTES = 2 << 20
#: Products of fewer rows are slower: those of DeiT-S at 448 by a tenth with a third of the rows (AMD EPYC, AVX2).
_FEWEST_ROWS = 1024
#: QuickGELU is x·sigmoid(1.702 x), and SiLU x·sigmoid(x).
_QUICK_GELU = 1.702


class MlpForm(nn.Module):
    """x + γ·MLP(LN(x)), written over x, in pieces whose hidden values stay in cache.

    Args:
        norm: LN.
        mlp: two linear maps with GELU between them, or CvT's with QuickGELU.
        builder: builds the two linear maps.
        scale: γ, per channel.
    """

    def __init__(self, norm: nn.Module, mlp: Mlp, builder: FormBuilder, *, scale: Tensor | float = 1.0) -> None:
        super().__init__()
        self.norm = form_of(norm, builder)
        act, stretch = ("silu", _QUICK_GELU) if isinstance(mlp, cvt.QuickGeluMlp) else ("gelu", 1.0)
        self._most_rows = max(_FEWEST_ROWS, _PIECE_BYTES // (mlp.fc1.out_features * builder.weight_dtype.itemsize))
        rows = builder.rows(mlp.fc1)
        piece = None if rows is None else math.ceil(rows / self._num_pieces(rows))
        self.fc1 = builder.linear(mlp.fc1, act=act, scale=stretch, rows=piece)
        self.fc2 = builder.linear(mlp.fc2, scale=scale, input_scale=1 / stretch, rows=piece)
        self.fc1.returns, self.fc2.returns = self.fc2.dtype, builder.dtype  # the hidden values are not rounded twice

    def _num_pieces(self, rows: int) -> int:
        return math.ceil(rows / self._most_rows)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, x.shape[-1])
        if len(rows) <= self._most_rows:
            return self.fc2(self.fc1(self.norm(x)), add=x)
        for piece in rows.tensor_split(self._num_pieces(len(rows))):
            piece.copy_(self.fc2(self.fc1(self.norm(piece)), add=piece))
        return x


@form_of.register(hierarchical.Block)
class MilaBlockForm(nn.Module):
    """MILA's block: (B, H, W, C) → (B, H, W, C); the residual of the CPE is folded into its kernels.

    Around an attention whose kernel takes a gate, one product computes the inner map and the gate, and the kernel
    applies the SiLU of the gate.
    """

    def __init__(self, block: hierarchical.Block, builder: FormBuilder) -> None:
        super().__init__()
        self.cpe1 = builder.conv(block.cpe1, plus_input=True)
        self.norm1 = form_of(block.norm1, builder)
        self.attn = form_of(block.attn, builder)
        self.is_gated = isinstance(self.attn, SemaForm | LinearForm)
        if self.is_gated:
            both = stacked(block.in_proj, block.act_proj)
            self.in_act_proj = builder.linear(both, rows=builder.rows(block.in_proj))
        else:
            self.in_proj = builder.linear(block.in_proj)
            self.act_proj = builder.linear(block.act_proj, act="silu")
        self.dwc = builder.conv(block.dwc, act="silu", slices=2 if self.is_gated else 1)
        self.out_proj = builder.linear(block.out_proj)
        self.cpe2 = builder.conv(block.cpe2, plus_input=True)
        self.mlp = MlpForm(block.norm2, block.mlp, builder)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cpe1(x)
        mixed = self._mixed(self.norm1(x))
        return self.mlp(self.cpe2(self.out_proj(mixed, add=x)))

    def _mixed(self, normed: Tensor) -> Tensor:
        if not self.is_gated:
            return self.attn(self.dwc(self.in_proj(normed))) * self.act_proj(normed)
        inner, gate = self.in_act_proj(normed).chunk(2, dim=-1)
        return self.attn(self.dwc(inner), Gate(gate, "silu"))


@form_of.register(TransformerBlock)
class TransformerBlockForm(nn.Module):
    """x + proj(attn(LN(x))), then its MLP: the block of ViT, of Swin, and of CvT, whose attention needs the grid."""

    def __init__(self, block: TransformerBlock, builder: FormBuilder) -> None:
        super().__init__()
        self.norm1 = form_of(block.norm1, builder)
        self.attn = form_of(block.attn, builder)
        self.proj = builder.linear(block.proj)
        self.mlp = MlpForm(block.norm2, block.mlp, builder)

    def forward(self, x: Tensor, *grid: Grid) -> Tensor:
        return self.mlp(self.proj(self.attn(self.norm1(x), *grid), add=x))


@form_of.register(vmamba.Block)
class VmambaBlockForm(nn.Module):
    """x + SS2D(LN(x)), then its MLP."""

    def __init__(self, block: vmamba.Block, builder: FormBuilder) -> None:
        super().__init__()
        self.norm = form_of(block.norm, builder)
        self.in_proj = builder.linear(block.op.in_proj)
        self.conv2d = builder.conv(block.op.conv2d, act="silu")
        self.scan = scan_form(block.op, builder)
        self.out_proj = builder.linear(block.op.out_proj)
        self.mlp = MlpForm(block.norm2, block.mlp, builder)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.scan(self.conv2d(self.in_proj(self.norm(x))))
        return self.mlp(self.out_proj(mixed, add=x))


@form_of.register(vim.Block)
class VimBlockForm(nn.Module):
    """x + mixer(RMSNorm(x)) on tokens (B, L, C)."""

    def __init__(self, block: vim.Block, builder: FormBuilder) -> None:
        super().__init__()
        mixer = block.mixer
        self.norm = block.norm
        self.u_proj = builder.linear(mixer.in_proj, outputs=slice(0, mixer.dim))
        self.z_proj = builder.linear(mixer.in_proj, outputs=slice(mixer.dim, 2 * mixer.dim), act="silu")
        self.scan = scan_form(mixer, builder)
        self.out_proj = builder.linear(mixer.out_proj)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.scan, VimAttention)
        normed = self.norm(x)
        return self.out_proj(self.scan.mix_sequence(self.u_proj(normed)) * self.z_proj(normed), add=x)


@form_of.register(vminet.Block)
class VminetBlockForm(nn.Module):
    """x + BN(VMI-SA(BN(dw7×7(x)))); batch norms are folded into the products before them."""

    def __init__(self, block: vminet.Block, builder: FormBuilder) -> None:
        super().__init__()
        self.dwconv = form_of(block.dwconv, builder)
        self.attn = VmiForm(block.attn, builder, norm=block.norm if isinstance(block.norm, nn.BatchNorm2d) else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(self.dwconv(x), add=x)


@form_of.register(xcit.Block)
class XcitBlockForm(nn.Module):
    """Attention, local patch interaction and MLP; the scale of each residual is folded into the product before it."""

    def __init__(self, block: xcit.Block, builder: FormBuilder) -> None:
        super().__init__()
        self.norm1 = form_of(block.norm1, builder)
        self.attn = form_of(block.attn, builder)
        self.proj = builder.linear(block.proj, scale=block.gamma1.detach())
        self.norm3 = form_of(block.norm3, builder)
        interaction: Any = block.local_mp
        self.conv1 = builder.conv(interaction.conv1, act="gelu")
        self.bn = interaction.bn  # not folded: the next convolution pads its output with zeros
        self.conv2 = builder.conv(interaction.conv2, scale=block.gamma3.detach())
        self.mlp = MlpForm(block.norm2, block.mlp, builder, scale=block.gamma2.detach())

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(self.attn(self.norm1(x)), add=x)
        return self.mlp(self.conv2(self.bn(self.conv1(self.norm3(x))), add=x))
