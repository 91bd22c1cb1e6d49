"""``optimize_for_inference``: the same network, optimized for inference on this machine."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sema.inference import attentions, blocks  # noqa: F401 - register the forms
from sema.inference.builder import FormBuilder
from sema.inference.forms import UnsupportedError, form_of
from sema.inference.fused import FusedConv2d, FusedLinear
from sema.kernels.pairs import PAIRED, pairs_are_faster

_EXAMPLE = (1, 3, 224, 224)
#: Largest relative ℓ2 error of the logits; half precision rounds, and the error adds up over tens of blocks.
_ERRORS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
#: The same for float32 on CUDA if TF32 is allowed, which rounds the inputs of products to 10 bits. Simulated on a CPU,
#: the forms of SEMA-T and SEMA-S were off by 0.7e-3 and 2.0e-3.
_TF32_ERROR = 5e-3


#: What is chosen by timing: nothing, kernels, or also whether to compile.
Tune = Literal["off", "quick", "full"]


class OptimizedModel(nn.Module):
    """A model in its inference form; takes images of any dtype and memory format.

    Attributes:
        form: the module that computes the model.
        dtype: the dtype that images are cast to.
        weights_bytes: size of parameters and buffers.
        spare_bytes: size of a second set of some weights, for inputs of other sizes than the example.
        kernels: name of a kernel, or of a kind of parts → what computes it: C++, oneDNN, MKL, or torch with the reason.
    """

    def __init__(self, form: nn.Module, *, dtype: torch.dtype, weights_bytes: int, kernels: Mapping[str, str]) -> None:
        super().__init__()
        self.form = form
        self.dtype = dtype
        self.weights_bytes = weights_bytes
        products = (part for part in form.modules() if isinstance(part, FusedLinear))
        self.spare_bytes = sum(part.num_spare_weights * part.dtype.itemsize for part in products)
        self.kernels = dict(kernels)

    def forward(self, image: Tensor) -> Any:  # a tensor, or the list of maps of a backbone
        with torch.autocast(image.device.type, enabled=False):  # the form has its own dtype
            return self.form(image.to(dtype=self.dtype, memory_format=torch.channels_last))

    def forward_features(self, image: Tensor) -> list[Tensor]:
        form: Any = self.form
        with torch.autocast(image.device.type, enabled=False):
            return form.forward_features(image.to(dtype=self.dtype, memory_format=torch.channels_last))


def optimize_for_inference(
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    example_size: Sequence[int] | None = None,
    tune: Tune = "quick",
) -> OptimizedModel:
    """Build the inference form of ``model``: same inputs, same outputs up to rounding, and faster.

    Batch norms and constant scales are folded into the products before them. Activations and residuals run in the
    epilogues of products and convolutions, or in place. Weights are packed for this CPU, and long sequences are
    processed in pieces that stay in cache. ``model`` does not change; the form holds copies of its weights and cannot
    be trained.

    Args:
        model: a model of this library, or any module made of torch's own layers that returns a tensor or a list of
            them.
        dtype: of the values between layers; None: the model's. On a CPU without kernels for ``dtype``, products and
            convolutions have weights in float32 and compute in it.
        example_size: the usual (B, C, H, W); other sizes work, too.
        tune: what is chosen by timing on this machine. ``quick`` times up to five kernels for each linear map and each
            convolution, and two for softmax attention; this takes seconds, and the user's cache keeps the result. One
            of the kernels, MKL's, holds its weights twice; some multiply half precision in float32. ``full`` also
            compiles the form and the model for ``example_size``, a minute or so each, and keeps the faster graph if it
            saves more than 2 %; a graph holds its own weights. ``off`` times no kernel.

    Returns:
        The form. C++ kernels are built once for this CPU; without a compiler, torch's operators replace them, and
        ``kernels`` says so.

    Raises:
        UnsupportedError: the model or the machine has no exact form; every form is run once and compared with the
            model.
        ValueError: ``dtype``, ``example_size`` or ``tune`` is invalid.
    """
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise UnsupportedError(f"{type(model).__name__} has no parameters, so there is nothing to optimize")
    if parameter.device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"the model is on {parameter.device}; move it to a CPU or a CUDA device")
    chosen = parameter.dtype if dtype is None else dtype
    if unknown := {chosen, parameter.dtype} - set(_ERRORS):
        raise ValueError(f"dtype must be one of {', '.join(map(str, _ERRORS))}; got {unknown.pop()}")
    size = tuple(_EXAMPLE if example_size is None else example_size)
    if len(size) != 4 or min(size) < 1:
        raise ValueError(f"example_size must be (B, C, H, W); got {size}")
    if tune not in get_args(Tune):
        raise ValueError(f"tune must be one of {', '.join(get_args(Tune))}; got {tune!r}")
    parts = copy.deepcopy(model).eval().requires_grad_(False)
    image = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(parameter)
    expected, shapes = _run(parts, image)
    builder = FormBuilder(parameter.device, chosen, shapes, timed=tune != "off")
    form = form_of(parts, builder).to(chosen).requires_grad_(False)
    optimized = OptimizedModel(
        form,
        dtype=chosen,
        weights_bytes=_weights_bytes(model, form, chosen),
        kernels=_kernels(form, builder),
    ).eval()
    tolerance = max(_largest_error(dtype, builder.device) for dtype in (chosen, parameter.dtype))
    check = functools.partial(_check, image=image, expected=expected, tolerance=tolerance)
    check(optimized)
    if tune == "full":
        from sema.inference.graph import fastest  # the compiler takes seconds to import

        def stock() -> nn.Module:
            unchanged: Any = copy.deepcopy(model).eval().requires_grad_(False)
            return unchanged.to(dtype=chosen, memory_format=torch.channels_last)

        optimized.form, optimized.kernels["graph"] = fastest(
            form,
            networks={"the form": lambda: form, "the model": stock},
            example=image.to(dtype=chosen, memory_format=torch.channels_last),
            check=lambda graph: check(
                OptimizedModel(graph, dtype=chosen, weights_bytes=0, kernels={}), name="the graph"
            ),
        )
    return optimized


def _kernels(form: nn.Module, builder: FormBuilder) -> dict[str, str]:
    """Name the kernels of a form: for its products, its convolutions, and all that the builder lists."""
    products = [part for part in form.modules() if isinstance(part, FusedLinear)]
    convs = [part for part in form.modules() if isinstance(part, FusedConv2d) and part.num_weights]  # 0 in products
    if any(part.act != "none" and part.kernel not in ("oneDNN", "oneDNN, float32") for part in (*products, *convs)):
        builder.has_native("activation", dtype=builder.weight_dtype)
    kernels = ({"products": _shares(products)} if products else {}) | builder.kernels
    if builder.weight_dtype != builder.dtype:
        kernels["weights"] = str(builder.weight_dtype).removeprefix("torch.")
    if kernels.get("depthwise_conv") == "C++":
        depthwise = [part for part in convs if part.groups == part.in_channels > 1]
        kernels["depthwise_conv"] = _shares(depthwise)
        convs = [part for part in convs if part not in depthwise]
    if convs:
        kernels["convolutions"] = _shares(convs)
    if builder.dtype == torch.bfloat16:
        in_pairs = (name for name in PAIRED if kernels.get(name) == "C++" and pairs_are_faster())
        kernels |= dict.fromkeys(in_pairs, "C++, pairs of bfloat16")
    return kernels


def _shares(parts: Sequence[FusedLinear | FusedConv2d]) -> str:
    counts = Counter(part.kernel for part in parts).most_common()
    return "; ".join(f"{name} ({count} of {len(parts)})" if len(counts) > 1 else name for name, count in counts)


def _largest_error(dtype: torch.dtype, device: torch.device) -> float:
    allowed = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return _TF32_ERROR if dtype == torch.float32 and device.type == "cuda" and allowed else _ERRORS[dtype]


def _weights_bytes(model: nn.Module, form: nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes of parameters and buffers: in ``dtype``, but for parts of the form in another dtype."""
    tensors = (*model.parameters(), *model.buffers())
    in_dtype = sum(t.numel() * dtype.itemsize if t.is_floating_point() else t.nbytes for t in tensors)
    parts = (part for part in form.modules() if isinstance(part, FusedLinear | FusedConv2d))
    return in_dtype + sum(part.num_weights * (part.dtype.itemsize - dtype.itemsize) for part in parts)


def _check(
    form: nn.Module, *, image: Tensor, expected: object, tolerance: float, name: str = "its inference form"
) -> None:
    """Compare the output of a form with the model's.

    Raises:
        UnsupportedError: the form fails, or its output differs; the message calls it ``name``.
    """
    try:
        with torch.inference_mode():
            got = form(image)
    except Exception as problem:  # code that is not ours may need a part that was replaced
        if isinstance(problem, MemoryError | torch.cuda.OutOfMemoryError) or "memory" in str(problem):
            raise
        raise UnsupportedError(f"{name} does not run: {type(problem).__name__}: {problem}") from problem
    for ours, theirs in zip(_tensors(got), _tensors(expected), strict=True):
        error = float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-30))
        if not error <= tolerance:
            raise UnsupportedError(f"{name} differs from it by {error:.1e}, more than {tolerance:.0e}")


def _tensors(output: object) -> list[Tensor]:
    tensors = output if isinstance(output, list | tuple) else [output]
    if not tensors or not all(isinstance(each, Tensor) for each in tensors):
        raise UnsupportedError(f"it gives {type(output).__name__}; expected one tensor or a list of tensors")
    return list(tensors)


def _run(model: nn.Module, image: Tensor) -> tuple[object, dict[nn.Module, torch.Size]]:
    """Return the model's output for an image batch, and the shape of the input of each linear map and convolution.

    Raises:
        UnsupportedError: the model does not run at this size.
    """
    shapes: dict[nn.Module, torch.Size] = {}  # the largest, if a module runs more than once

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs and inputs[0].numel() > shapes.get(module, torch.Size([0])).numel():
            shapes[module] = inputs[0].shape

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    try:
        with torch.inference_mode():
            return model(image), shapes
    except (ValueError, RuntimeError) as problem:
        size = tuple(image.shape)
        raise UnsupportedError(f"{type(model).__name__} does not run on a batch of {size}: {problem}") from problem
    finally:
        for handle in handles:
            handle.remove()
