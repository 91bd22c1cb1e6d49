"""``optimize_for_inference``: the same network, arranged for speed on this machine."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sema.inference import rules  # noqa: F401 - registers the forms
from sema.inference.forms import form_of
from sema.inference.kit import Kit

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_EXAMPLE = (1, 3, 224, 224)


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

    Raises:
        UnsupportedError: it cannot be computed so on this machine.
        ValueError: ``dtype`` or ``example_size`` is not possible.
    """
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise UnsupportedError(f"{type(model).__name__} has no parameters, so there is nothing to arrange")
    if parameter.device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"inference forms run on CPUs and CUDA devices, and the model is on {parameter.device}")
    chosen = parameter.dtype if dtype is None else dtype
    if chosen not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _DTYPES))}; got {chosen}")
    size = tuple(_EXAMPLE if example_size is None else example_size)
    if len(size) != 4 or min(size) < 1:
        raise ValueError(f"example_size must be (B, C, H, W); got {size}")
    taken_apart = copy.deepcopy(model).eval().requires_grad_(False)
    rows = _rows_of(taken_apart, size, parameter.device)
    form = form_of(taken_apart, Kit(parameter.device, chosen, rows)).to(chosen)
    form.register_forward_pre_hook(lambda module, inputs: (_as_input(inputs[0], chosen), *inputs[1:]))
    return form.eval()


def _as_input(image: Tensor, dtype: torch.dtype) -> Tensor:
    return image.to(dtype=dtype, memory_format=torch.channels_last)


def _rows_of(model: nn.Module, size: tuple[int, ...], device: torch.device) -> dict[nn.Module, int]:
    """Return how many rows each linear map gets from an image batch of ``size``.

    Raises:
        UnsupportedError: the model does not run at this size.
    """
    found: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[module] = inputs[0].numel() // inputs[0].shape[-1]

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        with torch.inference_mode():
            model(torch.zeros(size, device=device, dtype=next(model.parameters()).dtype))
    except (ValueError, RuntimeError) as problem:
        raise UnsupportedError(f"{type(model).__name__} does not run on a batch of {size}: {problem}") from problem
    finally:
        for handle in handles:
            handle.remove()
    return found
