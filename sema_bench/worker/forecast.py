"""Peak memory of a forward pass without running it: the same operators on fake tensors, storages counted.

Fake tensors have a device, a shape and strides but no memory, so operators choose the same paths as on the device
(fused attention or not, which copies a layout needs), at any size. A storage counts from the operator that makes it
until Python drops its last reference, as in a real forward pass. ``_SCRATCH`` lists operators that allocate much
temporary memory inside.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sema.layers.selective_scan import scan_backward_scratch_bytes, scan_scratch_bytes
from sema_bench.machine.torch_settings import SDPA_SWITCHES
from sema_bench.worker.parts import noting_parts
from sema_bench.worker.training_step import TrainingStep

_DEVICE = torch.ops.prim.device.default

#: Operator → function from its arguments to the bytes that it takes besides its results.
_SCRATCH: dict[str, Callable[..., int]] = {
    "selective_scan": lambda u, delta, a, b, c: scan_scratch_bytes(delta, a),
    "selective_scan_triton": lambda *given: _triton_scan_scratch(*given),
    "selective_scan_backward": lambda dy, u, delta, a, b, c: scan_backward_scratch_bytes(delta, a),
}


def _triton_scan_scratch(*given: Tensor) -> int:
    from sema.kernels.scan_triton import triton_scratch_bytes  # it imports triton, which this operator's caller has

    return triton_scratch_bytes(*given)


@dataclass(frozen=True)
class Forecast:
    """Bytes of one step, by metric: the peak of live tensors, and its constant parts; no optimizer in inference.

    The last three are the peaks while the parts of a detector or segmenter run.
    """

    predicted_peak_bytes: int
    weights_bytes: int
    input_bytes: int
    optimizer_bytes: int | None
    predicted_backbone_bytes: int | None = None
    predicted_neck_bytes: int | None = None
    predicted_head_bytes: int | None = None


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operators create, from birth to death; ``live`` and ``peak`` are their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:  # half of all calls: fake tensors ask for one another's device
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        if getattr(func, "is_view", False):
            return result
        scratch = _SCRATCH.get(func._overloadpacket.__name__)
        inside = 0 if scratch is None else scratch(*args)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.follow(tensor)
        self.peak = max(self.peak, self.live + inside)
        return result

    def follow(self, tensor: Tensor, *, counted: bool = True) -> None:
        """Count a tensor's storage until it dies; one that existed before is not ``counted``."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes() if counted else 0

        def died(_: object) -> None:
            self.live -= self._alive.pop(key)[1]

        self._alive[key] = (weakref.ref(storage, died), size)
        self.live += size


class FusedAttention(TorchFunctionMode):
    """Sends fused attention in inference to CUDA's memory-efficient kernel, if torch sees no card to choose for.

    Torch itself would choose the math form, with 24 times the activations in deit_small at 1024².
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _efficient_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    if options.pop("enable_gqa", False):
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3) for x in (key, value))
    bias = None if attn_mask is None else attn_mask.expand(*query.shape[:-1], key.shape[-2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    result: Tensor = kernel(query, key, value, bias, False, dropout_p, is_causal, **options)[0]
    return result


def forecast(
    model: nn.Module,
    shape: tuple[int, int, int, int],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    train: bool = False,
    parts: Sequence[str] = (),
) -> Forecast:
    """Predict the memory of one forward pass of ``model`` on a batch of ``shape`` (B, C, H, W), as on ``device``.

    With ``train``, predict the second training step: the optimizer has its state by then. The model is on the meta
    device, its tensors are replaced by fake ones, and it may raise any error on tensors without values.

    Args:
        parts: submodules that run one after another; the peak of each is predicted, too.
    """
    model = model.train(train).to(dtype).to(memory_format=memory_format)  # type: ignore[call-overload]
    may_fuse = any(enabled() for backend, enabled, _ in SDPA_SWITCHES if backend != "math")
    without_card = device.startswith("cuda") and not torch.cuda.is_available()
    attention = FusedAttention() if without_card and may_fuse else contextlib.nullcontext()
    with FakeTensorMode(), torch.set_grad_enabled(train), attention:
        _make_fake(model, device)
        batch = torch.empty(shape, dtype=dtype, device=device).contiguous(memory_format=memory_format)
        with LiveBytes() as tracker:
            weights = [*model.parameters(), *model.buffers()]
            for tensor in (*weights, batch):
                tracker.follow(tensor, counted=False)
            state: int | None = None
            peaks: list[int] = []

            def part_begins() -> None:
                peaks.append(tracker.peak)
                tracker.peak = tracker.live

            if train:
                step = TrainingStep(model, batch)
                step()
                state = step.optimizer_bytes
                tracker.peak = tracker.live
                step()
            else:
                with noting_parts(model, parts, part_begins):
                    model(batch)
        peaks.append(tracker.peak)
        weights_bytes = sum(t.nbytes for t in weights)
    standing = weights_bytes + batch.nbytes
    of_parts = {f"predicted_{part}_bytes": standing + peak for part, peak in zip(parts, peaks[1:], strict=False)}
    return Forecast(standing + max(peaks), weights_bytes, batch.nbytes, state, **of_parts)


def _make_fake(model: nn.Module, device: str) -> None:
    """Replace every parameter and buffer by a fake one on ``device``; shared ones stay shared."""
    fakes: dict[int, Tensor] = {}

    def fake(x: Tensor) -> Tensor:
        if id(x) not in fakes:
            empty = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
            fakes[id(x)] = nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty
        return fakes[id(x)]

    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            table |= {name: fake(tensor) for name, tensor in table.items() if tensor is not None}
