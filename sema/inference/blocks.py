"""Inference forms of blocks: residuals and activations in the epilogues of products, constant scales folded away.

Legend: B batch, H W token grid, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.vmamba import VmambaAttention
from sema.attention.vmi import VmiAttention
from sema.inference.attentions import SemaForm, with_fast_scan
from sema.inference.forms import form_of
from sema.inference.kit import Kit, affine_of
from sema.layers import mila_block
from sema.layers.class_attention import ClassAttention
from sema.layers.mlp import Mlp
from sema.macs import Grid
from sema.models import cvt, swin, vim, vit, vmamba, vminet, xcit

#: Hidden values of an MLP that are made at once: they stay in cache between its two products.
_HELD_BYTES = 2 << 20
_FEWEST_ROWS = 64
#: QuickGELU is x·sigmoid(1.702 x), and SiLU x·sigmoid(x).
_QUICK_GELU = 1.702


class MlpForm(nn.Module):
    """x + γ·MLP(LN(x)), written over x, in pieces whose hidden values stay in cache.

    Args:
        norm: LN.
        mlp: two linear maps with an activation between them.
        kit: what it is built from.
        act: that activation …
        stretch: … of its input times this, its output divided by this.
        scale: γ, by channel.
    """

    def __init__(
        self,
        norm: nn.Module,
        mlp: Mlp | cvt.Mlp,
        kit: Kit,
        *,
        act: str = "gelu",
        stretch: float = 1.0,
        scale: Tensor | float = 1.0,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.fc1 = kit.linear(mlp.fc1, act=act, scale=stretch)
        self.fc2 = kit.linear(mlp.fc2, scale=scale, of_input=1 / stretch)
        self._rows = max(_FEWEST_ROWS, _HELD_BYTES // (mlp.fc1.out_features * kit.dtype.itemsize))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, x.shape[-1])
        if len(rows) <= self._rows:
            return self.fc2(self.fc1(self.norm(x)), add=x)  # type: ignore[no-any-return]
        for piece in rows.split(self._rows):
            piece.copy_(self.fc2(self.fc1(self.norm(piece)), add=piece))
        return x


class MilaBlockForm(nn.Module):
    """MILA's block: (B, H, W, C) → (B, H, W, C); the CPE's residual is in its kernels."""

    def __init__(self, block: mila_block.Block, kit: Kit) -> None:
        super().__init__()
        self.cpe1 = kit.conv(block.cpe1, plus_input=True)
        self.norm1 = block.norm1
        self.in_proj = kit.linear(block.in_proj)
        self.act_proj = kit.linear(block.act_proj, act="silu")
        self.dwc = kit.conv(block.dwc, act="silu")
        self.attn = form_of(block.attn, kit)
        self.out_proj = kit.linear(block.out_proj)
        self.cpe2 = kit.conv(block.cpe2, plus_input=True)
        self.mlp = MlpForm(block.norm2, block.mlp, kit)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cpe1(x)
        normed = self.norm1(x)
        inner, gate = self.dwc(self.in_proj(normed)), self.act_proj(normed)
        mixed = self.attn(inner, gate) if isinstance(self.attn, SemaForm) else self.attn(inner) * gate
        return self.mlp(self.cpe2(self.out_proj(mixed, add=x)))  # type: ignore[no-any-return]


class TransformerBlockForm(nn.Module):
    """x + proj(attn(LN(x))), then its MLP: the block of ViT and of Swin."""

    def __init__(self, block: vit.Block | swin.Block, kit: Kit) -> None:
        super().__init__()
        self.norm1 = block.norm1
        self.attn = form_of(block.attn, kit)
        self.proj = kit.linear(block.proj)
        self.mlp = MlpForm(block.norm2, block.mlp, kit)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.proj(self.attn(self.norm1(x)), add=x))  # type: ignore[no-any-return]


class CvtBlockForm(nn.Module):
    """The same with CvT's attention and QuickGELU."""

    def __init__(self, block: cvt.Block, kit: Kit) -> None:
        super().__init__()
        self.norm1 = block.norm1
        self.attn = form_of(block.attn, kit)
        self.proj = kit.linear(block.proj)
        self.mlp = MlpForm(block.norm2, block.mlp, kit, act="silu", stretch=_QUICK_GELU)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return self.mlp(self.proj(self.attn(self.norm1(x), grid), add=x))  # type: ignore[no-any-return]


class CvtProjectionForm(nn.Module):
    """Depthwise convolution with its batch norm folded in: (B, H, W, C) → tokens (B, N, C)."""

    def __init__(self, projection: cvt.ConvProjection, kit: Kit) -> None:
        super().__init__()
        self.conv = kit.conv(projection.conv, **affine_of(projection.bn))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)  # type: ignore[no-any-return]


class VmambaBlockForm(nn.Module):
    """x + SS2D(LN(x)), then its MLP."""

    def __init__(self, block: vmamba.Block, kit: Kit) -> None:
        super().__init__()
        self.norm = block.norm
        self.in_proj = kit.linear(block.op.in_proj)
        self.conv2d = kit.conv(block.op.conv2d, act="silu")
        self.out_proj = kit.linear(block.op.out_proj)
        self.mlp = MlpForm(block.norm2, block.mlp, kit)
        self.scan = with_fast_scan(block.op, kit)
        del self.scan.in_proj, self.scan.conv2d, self.scan.out_proj

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv2d(self.in_proj(self.norm(x)))
        return self.mlp(self.out_proj(VmambaAttention.forward(self.scan, inner), add=x))  # type: ignore[no-any-return]


class VimBlockForm(nn.Module):
    """x + mixer(RMSNorm(x)) on tokens (B, L, C)."""

    def __init__(self, block: vim.Block, kit: Kit) -> None:
        super().__init__()
        self.norm = block.norm
        mixer = block.mixer
        inner = mixer.dim
        self.u_proj = kit.linear(mixer.in_proj, outputs=slice(0, inner))
        self.z_proj = kit.linear(mixer.in_proj, outputs=slice(inner, 2 * inner), act="silu")
        self.out_proj = kit.linear(mixer.out_proj)
        self.scan = with_fast_scan(mixer, kit)
        del self.scan.in_proj, self.scan.out_proj
        form_of(mixer, kit)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        assert isinstance(self.scan, vim.Mixer)
        return self.out_proj(self.scan.mix_sequence(self.u_proj(normed)) * self.z_proj(normed), add=x)  # type: ignore[no-any-return]


class VminetBlockForm(nn.Module):
    """x + BN(VMI-SA(BN(dw7×7(x)))); both batch norms are folded into the products before them."""

    def __init__(self, block: vminet.Block, kit: Kit) -> None:
        super().__init__()
        self.dwconv = form_of(block.dwconv, kit)
        attention = block.attn
        self.f1 = kit.linear(attention.f1, act="relu6")
        self.f2 = kit.linear(attention.f2)
        self.g = kit.linear(attention.g, **affine_of(block.norm))
        self.sum = attention
        del self.sum.f1, self.sum.f2, self.sum.g

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.dwconv(x)
        hidden = self.f1(mixed) * self.f2(mixed)
        assert isinstance(self.sum, VmiAttention)
        total = self.sum.token_weights((x.shape[1], x.shape[2])).to(x.dtype) @ hidden.flatten(1, 2)
        hidden = self.sum.stack[0] * total.unsqueeze(1) + self.sum.stack[1] * hidden
        return self.g(F.relu6(hidden), add=x)  # type: ignore[no-any-return]


class XcitBlockForm(nn.Module):
    """Attention, local patch interaction and MLP; the scales of the residuals are folded into what gives them."""

    def __init__(self, block: xcit.Block, kit: Kit) -> None:
        super().__init__()
        self.norm1 = block.norm1
        self.attn = form_of(block.attn, kit)
        self.proj = kit.linear(block.proj, scale=block.gamma1.detach())
        self.norm3 = block.norm3
        self.conv1 = kit.conv(block.local_mp.conv1, act="gelu")
        self.bn = block.local_mp.bn  # between it and the next convolution lies the padding, of zeros
        self.conv2 = kit.conv(block.local_mp.conv2, scale=block.gamma3.detach())
        self.mlp = MlpForm(block.norm2, block.mlp, kit, scale=block.gamma2.detach())

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(self.attn(self.norm1(x)), add=x)
        return self.mlp(self.conv2(self.bn(self.conv1(self.norm3(x))), add=x))  # type: ignore[no-any-return]


class ClassAttentionForm(nn.Module):
    """Softmax class attention, (B, 1 + N, C) → (B, 1, C): the class token's query is the only one that is made."""

    def __init__(self, attention: ClassAttention, kit: Kit) -> None:
        super().__init__()
        dim = attention.proj.in_features
        self.num_heads = attention.num_heads
        self.q = kit.linear(attention.qkv, outputs=slice(0, dim), scale=(dim // self.num_heads) ** -0.5)
        self.kv = kit.linear(attention.qkv, outputs=slice(dim, 3 * dim))
        self.proj = kit.linear(attention.proj)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x[:, :1]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, h, 1, d)
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, L, d)
        gathered = (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(gathered.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
