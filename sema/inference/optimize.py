"""``optimize_for_inference``: the same network, arranged for speed on this machine."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sema.inference import rules  # noqa: F401 - registers the forms
from sema.inference.forms import form_of
from sema.inference.kit import Kit

_EXAMPLE = (1, 3, 224, 224)
#: Largest relative ℓ2 error of the logits; half precision rounds, and networks of tens of blocks add that up.
_ERRORS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


class UnsupportedError(RuntimeError):
    """A network or a machine for which there is no exact inference form; one line that says why."""


def optimize_for_inference(
    model: nn.Module, *, dtype: torch.dtype | None = None, example_size: Sequence[int] | None = None
) -> nn.Module:
    """Return the inference form of ``model``: same inputs, same outputs to rounding, and faster.

    Batch norms and constant scales are folded into the products before them, activations and residuals happen in the
    epilogues of products and convolutions, weights are packed for this CPU, and long sequences are worked through in
    pieces that stay in cache. ``model`` itself is left as it is; the form holds weights of its own, cannot be trained,
    and takes images of any dtype and memory format.

    Args:
        model: of this library, or any module made of torch's own layers.
        dtype: in which it computes; None: that of the model.
        example_size: the (B, C, H, W) that it will mostly see. Others work, too.

    Returns:
        The form. Its attribute ``weights_bytes`` says how large its weights are, and ``kernels`` what computes it:
        kernels in C++ are built once for this CPU where there is a compiler, and torch's operators serve where not.

    Raises:
        UnsupportedError: it cannot be computed so on this machine; every form is run once and held against the model.
        ValueError: ``dtype`` or ``example_size`` is not possible.
    """
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise UnsupportedError(f"{type(model).__name__} has no parameters, so there is nothing to arrange")
    if parameter.device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"inference forms run on CPUs and CUDA devices, and the model is on {parameter.device}")
    chosen = parameter.dtype if dtype is None else dtype
    if unknown := {chosen, parameter.dtype} - set(_ERRORS):
        raise ValueError(f"dtype must be one of {', '.join(map(str, _ERRORS))}; got {unknown.pop()}")
    size = tuple(_EXAMPLE if example_size is None else example_size)
    if len(size) != 4 or min(size) < 1:
        raise ValueError(f"example_size must be (B, C, H, W); got {size}")
    taken_apart = copy.deepcopy(model).eval().requires_grad_(False)
    image = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(parameter)
    expected, rows = _run(taken_apart, image)
    kit = Kit(parameter.device, chosen, rows)
    form = form_of(taken_apart, kit).to(chosen).eval()
    form.register_forward_pre_hook(lambda module, inputs: (_as_input(inputs[0], chosen), *inputs[1:]))
    form.weights_bytes = _bytes_of(model, chosen)  # type: ignore[assignment]
    form.kernels = {"products": "oneDNN, packed" if kit.packed else "torch", **kit.kernels}  # type: ignore[assignment]
    _check(form, image, expected, max(_ERRORS[chosen], _ERRORS[parameter.dtype]))
    return form


def _bytes_of(model: nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes of parameters and buffers, those of numbers in ``dtype``."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(t.numel() * dtype.itemsize if t.is_floating_point() else t.nbytes for t in tensors)


def _as_input(image: Tensor, dtype: torch.dtype) -> Tensor:
    return image.to(dtype=dtype, memory_format=torch.channels_last)


def _check(form: nn.Module, image: Tensor, expected: object, tolerance: float) -> None:
    """Hold a form against what the model gave.

    Raises:
        UnsupportedError: it fails, or gives something else.
    """
    try:
        with torch.inference_mode():
            got = form(image)
    except Exception as problem:  # code that is not ours may need a part as it was
        if isinstance(problem, MemoryError | torch.cuda.OutOfMemoryError) or "memory" in str(problem):
            raise
        raise UnsupportedError(f"its inference form does not run: {type(problem).__name__}: {problem}") from problem
    if not isinstance(got, Tensor) or not isinstance(expected, Tensor):
        raise UnsupportedError(f"it gives {type(expected).__name__}; expected one tensor")
    error = float((got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))
    if not error <= tolerance:
        raise UnsupportedError(f"its inference form differs from it by {error:.1e}, more than {tolerance:.0e}")


def _run(model: nn.Module, image: Tensor) -> tuple[object, dict[nn.Module, int]]:
    """Return what the model gives for an image batch, and how many rows each linear map got.

    Raises:
        UnsupportedError: the model does not run at this size.
    """
    found: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[module] = inputs[0].numel() // inputs[0].shape[-1]

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        with torch.inference_mode():
            return model(image), found
    except (ValueError, RuntimeError) as problem:
        size = tuple(image.shape)
        raise UnsupportedError(f"{type(model).__name__} does not run on a batch of {size}: {problem}") from problem
    finally:
        for handle in handles:
            handle.remove()
