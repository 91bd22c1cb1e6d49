"""Which modules of the library have an inference form of their own."""

from __future__ import annotations

from torch import nn

from sema.attention.focused import FocusedLinearAttention
from sema.attention.sema import SemaAttention
from sema.attention.vim import VimAttention
from sema.attention.vmamba import VmambaAttention
from sema.attention.vmi import VmiAttention
from sema.attention.window import WindowAttention
from sema.inference import attentions, blocks
from sema.inference.forms import form_of
from sema.inference.kit import Kit, affine_of
from sema.layers.class_attention import ClassAttention
from sema.layers.conv import ConvNormAct
from sema.layers.drop_path import DropPath
from sema.layers.fourier import FourierPositions
from sema.layers.mila_block import Block as MilaBlock
from sema.models import cvt, swin, vim, vit, vmamba, vminet, xcit

form_of.register(MilaBlock, blocks.MilaBlockForm)
form_of.register(vit.Block, blocks.TransformerBlockForm)
form_of.register(swin.Block, blocks.TransformerBlockForm)
form_of.register(cvt.Block, blocks.CvtBlockForm)
form_of.register(cvt.ConvProjection, blocks.CvtProjectionForm)
form_of.register(vmamba.Block, blocks.VmambaBlockForm)
form_of.register(vim.Block, blocks.VimBlockForm)
form_of.register(vminet.Block, blocks.VminetBlockForm)
form_of.register(xcit.Block, blocks.XcitBlockForm)


@form_of.register
def _(module: ConvNormAct, kit: Kit) -> nn.Module:
    return kit.conv(module.conv, act="relu" if module.act else "none", **affine_of(module.norm))


@form_of.register
def _(module: vminet.ConvBn, kit: Kit) -> nn.Module:
    return kit.conv(module.conv, **affine_of(module.bn))


@form_of.register
def _(module: DropPath, kit: Kit) -> nn.Module:
    return nn.Identity()


@form_of.register
def _(module: FourierPositions, kit: Kit) -> nn.Module:
    return module  # made once for a size, and kept


@form_of.register
def _(module: WindowAttention, kit: Kit) -> nn.Module:
    if kit.has_native("window_attention"):
        return attentions.WindowForm(module, kit)
    return attentions.scaled_window_attention(module, kit)


@form_of.register
def _(module: SemaAttention, kit: Kit) -> nn.Module:
    if kit.device.type == "cpu":
        return attentions.SemaForm(module, kit)
    module.qkv = kit.linear(module.qkv)  # type: ignore[assignment]
    return module


@form_of.register
def _(module: ClassAttention, kit: Kit) -> nn.Module:
    if module.softmax:
        return blocks.ClassAttentionForm(module, kit)
    module.qkv, module.proj = kit.linear(module.qkv), kit.linear(module.proj)  # type: ignore[assignment]
    return module


@form_of.register
def _(module: FocusedLinearAttention, kit: Kit) -> nn.Module:
    module.qkv = kit.linear(module.qkv)  # type: ignore[assignment]
    return module  # its convolution repeats its kernels for the heads


@form_of.register
def _(module: VmiAttention, kit: Kit) -> nn.Module:
    module.f1, module.f2, module.g = (kit.linear(part) for part in (module.f1, module.f2, module.g))  # type: ignore[assignment]
    return module  # its sum is no linear map of channels


@form_of.register
def _(module: VmambaAttention, kit: Kit) -> nn.Module:
    return attentions.with_fast_scan(module, kit)


@form_of.register
def _(module: VimAttention, kit: Kit) -> nn.Module:
    module.x_proj, module.x_proj_b = kit.linear(module.x_proj), kit.linear(module.x_proj_b)  # type: ignore[assignment]
    return attentions.with_fast_scan(module, kit)
