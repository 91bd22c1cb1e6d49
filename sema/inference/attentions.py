"""Inference forms of attentions: constants are folded into the projections, work is cut into pieces that fit in cache.

Legend: B batch, H W token grid, C channels, h heads, d = C / h, w window size, t tokens of one window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.focused import FocusedLinearAttention, HeadwiseConv2d
from sema.attention.inline import InLineAttention
from sema.attention.linear import LinearAttention
from sema.attention.mila import MilaAttention
from sema.attention.sema import SemaAttention, pool_tokens
from sema.attention.sima import SimaAttention
from sema.attention.softmax import SoftmaxAttention
from sema.attention.vim import VimAttention
from sema.attention.vmamba import VmambaAttention
from sema.attention.vmi import TokenSum, VmiAttention, add_token_sum
from sema.attention.window import WindowAttention
from sema.attention.xca import CrossCovarianceAttention
from sema.inference.builder import FormBuilder, stacked
from sema.inference.forms import form_of, with_forms
from sema.kernels.activation import Gate
from sema.kernels.channel_attention import attend_through_channels_native
from sema.kernels.depthwise_conv import depthwise_conv_native
from sema.kernels.focused_features import focus_native
from sema.kernels.library import REGISTER_CHANNELS
from sema.kernels.linear_attention import HEAD_CHANNELS, Features, attend_linearly_native
from sema.kernels.scan_native import MAX_STATES
from sema.kernels.softmax_attention import softmax_attention_native
from sema.kernels.token_sum import add_token_sum_native
from sema.kernels.window_attention import SwinTerms, attend_in_windows_native
from sema.layers.class_attention import ClassAttention
from sema.layers.conv import DepthwiseConv2d
from sema.layers.positions import FourierPositions
from sema.layers.tokens import token_mean
from sema.layers.windows import pad_map
from sema.macs import Grid
from sema.models.cvt import ConvolutionalAttention

_QUADRATIC = "products in quadratic order"
#: Slices of the images, and of the rows of the map.
_Piece = tuple[slice, slice]
#: Bytes of queries and keys computed at once.
_PIECE_BYTES = 2 << 20


class SemaForm(nn.Module):
    """SEMA on a CPU by the kernel in C++: (B, H, W, C) → (B, H, W, C).

    Values are computed for the whole map, because their mean and LePE's convolution need all of them. If all queries
    and keys of the example fit in cache, the same product computes them, in larger maps, too; otherwise another product
    computes them for a few rows of windows at a time. In one pass, the kernel attends, adds the mean and multiplies by
    the block's gate.
    """

    def __init__(self, attention: SemaAttention, builder: FormBuilder) -> None:
        super().__init__()
        self.num_heads, self.window_size, self.pooling = attention.num_heads, attention.window_size, attention.pooling
        self.dim = dim = attention.dim
        scale = _query_scale(attention, builder)
        rows = _piece_rows(attention, builder)
        in_pieces = rows != builder.rows(attention.qkv)
        self.qk = builder.linear(attention.qkv, scale=scale, outputs=slice(2 * dim), rows=rows) if in_pieces else None
        self.proj = builder.linear(attention.qkv, scale=scale, outputs=slice(2 * dim if in_pieces else 0, 3 * dim))
        slices = 1 if in_pieces else 3
        self.lepe = None if attention.lepe is None else builder.conv(attention.lepe, slices=slices)

    def forward(self, x: Tensor, gate: Gate | None = None) -> Tensor:
        """Mix the tokens; multiply the result by ``gate``."""
        projected = self.proj(x)
        v = projected[..., -self.dim :]
        pooled = None if self.pooling == "none" else pool_tokens(v, self.pooling)
        out = x.new_zeros(x.shape) if self.lepe is None else self.lepe(v)
        if self.qk is None:
            pieces: Iterable[_Piece] = [(slice(None), slice(None))]
        else:
            pieces = _pieces(x, self.window_size)
        for piece in pieces:
            attend_in_windows_native(
                projected[..., : 2 * self.dim] if self.qk is None else self.qk(x[piece]), v[piece], onto=out[piece],
                num_heads=self.num_heads, window_size=self.window_size,
                plus=None if pooled is None else pooled[piece[0]],
                gate=None if gate is None else Gate(gate.maps[piece], gate.act),
            )  # fmt: skip
        return out


def _piece_rows(attention: SemaAttention, builder: FormBuilder) -> int | None:
    """Count the tokens of the first piece of the example."""
    shape = builder.shapes.get(attention.qkv)
    if shape is None:
        return None
    example = torch.empty(shape, dtype=builder.dtype, device="meta")
    first = next(_pieces(example, attention.window_size))
    return example[first].shape[:-1].numel()


def _pieces(x: Tensor, size: int) -> Iterator[_Piece]:
    """Cut (B, H, W, C) into pieces that fit in cache: whole images, or rows of windows of one image."""
    batch, height, width, dim = x.shape
    token_bytes = 2 * dim * x.itemsize  # a query and a key
    images = _PIECE_BYTES // (token_bytes * height * width)
    if images:
        yield from ((slice(start, start + images), slice(None)) for start in range(0, batch, images))
        return
    rows = max(1, _PIECE_BYTES // (token_bytes * width * size)) * size
    yield from (
        (slice(image, image + 1), slice(top, top + rows)) for image in range(batch) for top in range(0, height, rows)
    )


@form_of.register(SemaAttention)
def _sema(attention: SemaAttention, builder: FormBuilder) -> nn.Module:
    return SemaForm(attention, builder) if builder.has_native("window_attention") else with_forms(attention, builder)


class WindowForm(nn.Module):
    """Window attention on a CPU with the C++ kernel, which reads the rolled map in place: (B, H, W, C) → the same."""

    def __init__(self, attention: WindowAttention, builder: FormBuilder) -> None:
        super().__init__()
        self.num_heads, self.rule, self.dim = attention.num_heads, attention.rule, attention.dim
        self.qkv = builder.linear(attention.qkv, scale=_query_scale(attention, builder))
        biases = attention.biases((self.rule.size, self.rule.size))
        # Not a buffer: it stays in float32 when the form is cast.
        self._bias = None if biases is None else biases[0].detach().float()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        layout = self.rule.layout((height, width))
        x = pad_map(x, layout.grid)
        qk, v = self.qkv(x).split((2 * self.dim, self.dim), dim=-1)
        out = x.new_zeros(x.shape)
        attend_in_windows_native(
            qk, v, onto=out, num_heads=self.num_heads, window_size=self.rule.size,
            swin=SwinTerms(self._bias, layout.shift[0]),
        )  # fmt: skip
        return out[:, :height, :width]


@form_of.register(WindowAttention)
def _window(attention: WindowAttention, builder: FormBuilder) -> nn.Module:
    if attention.rule.form == "scaled":
        builder.kernels["window_attention"] = "torch (the kernel in C++ has no scaled windows)"
    elif builder.has_native("window_attention"):
        return WindowForm(attention, builder)
    return with_forms(attention, builder)


def _query_scale(attention: SemaAttention | SoftmaxAttention | WindowAttention, builder: FormBuilder) -> Tensor:
    """Return factors for the outputs of the projection that fold the scale of the scores into the queries."""
    scale = torch.ones(3 * attention.dim, dtype=torch.float64, device=builder.device)
    scale[: attention.dim] = attention.scale
    return scale


class SoftmaxForm(nn.Module):
    """Softmax attention on a CPU by the kernel in C++: (B, H, W, C) → (B, H, W, C)."""

    def __init__(self, attention: SoftmaxAttention, builder: FormBuilder) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.qkv = builder.linear(attention.qkv, scale=_query_scale(attention, builder))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return softmax_attention_native(q, k, v, self.num_heads)


@form_of.register(SoftmaxAttention)
def _softmax(attention: SoftmaxAttention, builder: FormBuilder) -> nn.Module:
    tokens = _tokens(builder, attention.qkv)
    if builder.takes_softmax_kernel(tokens, tokens, num_heads=attention.num_heads):
        return SoftmaxForm(attention, builder)
    return with_forms(attention, builder)


def _tokens(builder: FormBuilder, linear: nn.Linear) -> torch.Size | None:
    """Return the shape of the example's input of ``linear``, as (B, N, C)."""
    shape = builder.shapes.get(linear)
    return None if shape is None else torch.Size((shape[0], shape[1:-1].numel(), shape[-1]))


class LinearForm(nn.Module):
    """Linear attention or MILA's on a CPU by the kernel in C++: (B, H, W, C) → (B, H, W, C)."""

    def __init__(self, attention: LinearAttention | MilaAttention, builder: FormBuilder) -> None:
        super().__init__()
        self.num_heads, self.dim = attention.num_heads, attention.dim
        self.features: Features = "rotated" if isinstance(attention, MilaAttention) else "elu"
        self.lepe: nn.Module | None = None
        if isinstance(attention, MilaAttention):
            channels = torch.arange(2 * self.dim).view(2 * self.num_heads, -1, 2)
            self.proj = builder.linear(attention.qk, outputs=channels.transpose(1, 2).flatten())  # even ones first
            self.lepe = None if attention.lepe is None else builder.conv(attention.lepe)
        else:
            self.proj = builder.linear(attention.qkv)

    def forward(self, x: Tensor, gate: Gate | None = None) -> Tensor:
        """Mix the tokens; multiply the result by ``gate``."""
        projected = self.proj(x)
        qk, v = projected[..., : 2 * self.dim], projected[..., 2 * self.dim :]
        if self.features == "rotated":  # MILA's values are its input
            v = x.contiguous()
        out = x.new_zeros(x.shape) if self.lepe is None else self.lepe(x)
        attend_linearly_native(qk, v, onto=out, num_heads=self.num_heads, features=self.features, gate=gate)
        return out


class FocusedForm(nn.Module):
    """Focused linear attention on a CPU by kernels in C++: (B, H, W, C) → (B, H, W, C)."""

    def __init__(self, attention: FocusedLinearAttention, builder: FormBuilder) -> None:
        super().__init__()
        self.num_heads, self.dim, self.power = attention.num_heads, attention.dim, attention.focusing_factor
        # Not a buffer: it stays in float32 when the form is cast.
        self._rates = 1 / F.softplus(attention.scale.detach().double()).flatten().float()
        kernels = attention.dwc
        wide = DepthwiseConv2d(attention.dim, kernel_size=kernels.kernel_size[0]).requires_grad_(False)
        wide.load_state_dict({name: torch.cat([x] * self.num_heads) for name, x in kernels.state_dict().items()})
        self.dwc = builder.conv(wide)
        self.attention: Any = with_forms(attention, builder)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.attention.qkv(x)
        qk, v = projected[..., : 2 * self.dim], projected[..., 2 * self.dim :]
        focus_native(qk, self.attention.positions((x.shape[1], x.shape[2])).float(), self._rates, self.power)
        out = self.dwc(v)
        attend_linearly_native(qk, v, onto=out, num_heads=self.num_heads, features="given")
        return out


@form_of.register(LinearAttention)
@form_of.register(MilaAttention)
@form_of.register(FocusedLinearAttention)
def _linear(attention: LinearAttention | MilaAttention | FocusedLinearAttention, builder: FormBuilder) -> nn.Module:
    """Take the kernel if a head fills whole registers, and all its channel pairs turn with the row or the column."""
    if attention.head_dim % HEAD_CHANNELS:
        builder.note_torch("linear_attention", f"heads of {attention.head_dim} channels")
    elif isinstance(attention, MilaAttention) and attention.num_heads % 2:
        builder.note_torch("linear_attention", "rotary positions with an odd number of heads")
    elif builder.has_native("linear_attention"):
        if not isinstance(attention, FocusedLinearAttention):
            return LinearForm(attention, builder)
        if builder.has_native("focused_features"):
            return FocusedForm(attention, builder)
    return with_forms(attention, builder)


@form_of.register(VmiAttention)
class VmiForm(nn.Module):
    """BN(VMI-SA(x)) + add, with the kernel in C++ on a CPU; a mask needs torch's operators.

    ``norm`` is BN, folded into the last product; None for none.
    """

    def __init__(self, attention: VmiAttention, builder: FormBuilder, *, norm: nn.BatchNorm2d | None = None) -> None:
        super().__init__()
        self.sum, self.stack = attention.sum, attention.stack
        self._factors = attention.stack.detach().float()  # not a buffer: it stays in float32 when the form is cast
        fits = not attention.sum.masked and attention.hidden_dim % REGISTER_CHANNELS == 0
        self.is_native = fits and builder.has_native("token_sum")
        if self.is_native:
            self.f = builder.linear(stacked(attention.f1, attention.f2), rows=builder.rows(attention.f1))
        else:
            if not fits:
                builder.note_torch("token_sum", f"masked, or {attention.hidden_dim} channels")
            self.f1 = builder.linear(attention.f1, act="relu6")
            self.f2 = builder.linear(attention.f2)
        self.g = builder.linear(attention.g, norm=norm)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if not self.is_native:
            return self.g(add_token_sum(self.f1(x).mul_(self.f2(x)), self.sum, self.stack), add=add)
        weights = self.sum.weights((x.shape[1], x.shape[2])).float().flatten()
        return self.g(add_token_sum_native(self.f(x), weights, self._factors), add=add)


class ChannelForm(nn.Module):
    """The attention of XCiT or SimA on a CPU by the kernel in C++: (B, H, W, C) → (B, H, W, C)."""

    def __init__(self, attention: CrossCovarianceAttention | SimaAttention, builder: FormBuilder) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.qkv = builder.linear(attention.qkv)
        self._temperatures: Tensor | None = None
        if isinstance(attention, CrossCovarianceAttention):
            # Not a buffer: it stays in float32 when the form is cast.
            self._temperatures = attention.temperature.detach().flatten().float()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return attend_through_channels_native(q, k, v, self.num_heads, self._temperatures)


@form_of.register(CrossCovarianceAttention)
@form_of.register(SimaAttention)
def _channels(attention: CrossCovarianceAttention | SimaAttention, builder: FormBuilder) -> nn.Module:
    """Take the kernel, but not if SimA needs fewer MACs in its other order, with fewer tokens than channels a head."""
    shape = builder.shapes.get(attention.qkv)
    grid = None if shape is None else (shape[1], shape[2])
    if isinstance(attention, SimaAttention) and attention.is_quadratic(grid):
        builder.note_torch("channel_attention", _QUADRATIC)
    elif builder.has_native("channel_attention"):
        return ChannelForm(attention, builder)
    return with_forms(attention, builder)


class InLineForm(nn.Module):
    """InLine attention on a CPU by kernels in C++: (B, H, W, C) → (B, H, W, C)."""

    def __init__(self, attention: InLineAttention, builder: FormBuilder) -> None:
        super().__init__()
        self.attention: Any = with_forms(attention, builder)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attention.qkv(x).chunk(3, dim=-1)
        kernels = self._kernels(x)
        local = depthwise_conv_native(v, kernels, kernels.new_zeros(kernels.shape[-1]), None, "none")
        return attend_through_channels_native(q, k, v, self.attention.num_heads, add=local)

    def _kernels(self, x: Tensor) -> Tensor:
        """Make the kernels of each image from its mean token, as products: (B, H, W, C) → (B, 3, 3, C), float32."""
        heads = self.attention.num_heads
        made = token_mean(x).view(len(x), heads, -1).permute(1, 2, 0)  # (h, d, B)
        for layer in self.attention.residual:
            if isinstance(layer, nn.GELU):
                made = layer(made)
            else:
                made = torch.baddbmm(layer.bias.view(heads, -1, 1), layer.weight.view(heads, -1, made.shape[1]), made)
        return made.view(heads, -1, 3, 3, len(x)).permute(4, 2, 3, 0, 1).flatten(3).float().contiguous()


@form_of.register(InLineAttention)
def _inline(attention: InLineAttention, builder: FormBuilder) -> nn.Module:
    if attention.dim % REGISTER_CHANNELS:
        builder.note_torch("channel_attention", f"{attention.dim} channels")
    elif builder.has_native("channel_attention") and builder.has_native("depthwise_conv"):
        builder.kernels["depthwise_conv of InLine"] = "C++"
        return InLineForm(attention, builder)
    return with_forms(attention, builder)


class ConvolutionalForm(nn.Module):
    """CvT's attention on a CPU by the kernels in C++, on tokens (B, N, C)."""

    def __init__(self, attention: ConvolutionalAttention, builder: FormBuilder) -> None:
        super().__init__()
        if attention.mechanism == "softmax":
            scaled = builder.linear(attention.proj_q, scale=attention.proj_q.in_features**-0.5)
            attention.set_submodule("proj_q", scaled)
        self.attention: Any = with_forms(attention, builder)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        q, k, v = (tokens.unsqueeze(1) for tokens in self.attention.projected(x, grid))
        is_softmax = self.attention.mechanism == "softmax"
        attend = softmax_attention_native if is_softmax else attend_through_channels_native
        return attend(q, k, v, self.attention.num_heads).squeeze(1)


@form_of.register(ConvolutionalAttention)
def _convolutional(attention: ConvolutionalAttention, builder: FormBuilder) -> nn.Module:
    """Take the kernel of softmax attention if it is faster, and that for SimA as ``_channels`` does."""
    q, k = (_tokens(builder, linear) for linear in (attention.proj_q, attention.proj_k))
    if attention.mechanism == "softmax":
        if builder.takes_softmax_kernel(q, k, num_heads=attention.num_heads):
            return ConvolutionalForm(attention, builder)
    elif q is not None and k is not None and attention.is_quadratic(q[1], k[1]):
        builder.note_torch("channel_attention", _QUADRATIC)
    elif builder.has_native("channel_attention"):
        return ConvolutionalForm(attention, builder)
    return with_forms(attention, builder)


@form_of.register(VmambaAttention)
@form_of.register(VimAttention)
def scan_form(attention: VmambaAttention | VimAttention, builder: FormBuilder) -> nn.Module:
    """Build the bare attention with the C++ scan, unless another one was named or C++ cannot be built."""
    fits = attention.scan == "auto" and attention.state_dim <= MAX_STATES
    is_native = fits and builder.has_native("selective_scan")
    builder.kernels.setdefault("selective_scan", attention.scan_kernel)
    return with_forms(attention.with_scan("native" if is_native else attention.scan), builder)


class ClassAttentionForm(nn.Module):
    """Softmax class attention, (B, 1 + N, C) → (B, 1, C): it computes only the class token's query."""

    def __init__(self, attention: ClassAttention, builder: FormBuilder) -> None:
        super().__init__()
        dim = attention.proj.in_features
        self.num_heads = attention.num_heads
        self.q = builder.linear(attention.qkv, outputs=slice(0, dim), scale=(dim // self.num_heads) ** -0.5)
        self.kv = builder.linear(attention.qkv, outputs=slice(dim, 3 * dim))
        self.proj = builder.linear(attention.proj)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x[:, :1]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, h, 1, d)
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, L, d)
        gathered = (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(gathered.transpose(1, 2).flatten(2))


@form_of.register(ClassAttention)
def _class_attention(attention: ClassAttention, builder: FormBuilder) -> nn.Module:
    return ClassAttentionForm(attention, builder) if attention.softmax else with_forms(attention, builder)


@form_of.register(FourierPositions)
@form_of.register(HeadwiseConv2d)
@form_of.register(TokenSum)
def _unchanged(module: nn.Module, builder: FormBuilder) -> nn.Module:
    """Keep tables that are cached by size, and kernels that are shared by the heads."""
    return module
