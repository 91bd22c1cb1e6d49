"""Read and restore torch's process-wide settings, and name the one that a model changed.

Otherwise its cell, and the next one in the same worker, would run with settings that their records do not state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

THREADS = "torch's threads"

#: Backend of SDPA, and its switches in torch; flash and math also exist on a CPU.
SDPA_SWITCHES: tuple[tuple[str, Callable[[], bool], Callable[[bool], object]], ...] = (
    ("flash", torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    ("efficient", torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    ("cudnn", torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    ("math", torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
)
#: Flags of ``torch.backends``. Newer torch has ``fp32_precision`` besides the TF32 flags; it also affects a CPU.
_FLAGS = (
    *("cuda.matmul.allow_tf32", "cudnn.allow_tf32", "cudnn.enabled", "cudnn.benchmark", "cudnn.deterministic"),
    *("fp32_precision", "cudnn.fp32_precision", "cudnn.conv.fp32_precision", "cudnn.rnn.fp32_precision"),
    *("cuda.matmul.fp32_precision", "mkldnn.fp32_precision", "mkldnn.conv.fp32_precision"),
    *("mkldnn.rnn.fp32_precision", "mkldnn.matmul.fp32_precision"),
)


class _Setting(NamedTuple):
    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _flags() -> Iterator[_Setting]:
    """Yield the flags that this torch has."""
    for path in _FLAGS:
        *owners, flag = path.split(".")
        owner: Any = torch.backends
        for name in owners:
            owner = getattr(owner, name, None)
        if hasattr(owner, flag):
            read, write = functools.partial(getattr, owner, flag), functools.partial(setattr, owner, flag)
            yield _Setting(f"torch.backends.{path}", read, write)


#: In the order to restore them: the flags of TF32 write ``fp32_precision``, so that comes last.
_SETTINGS = (
    _Setting(THREADS, torch.get_num_threads, torch.set_num_threads),
    _Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting(
        "torch's default device",
        lambda: torch.empty(0).device,  # get_default_device fails in torch 2.6 after set_default_device(None)
        # after set_default_device("cpu") torch would inspect each call
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    ),
    _Setting("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
    _Setting(
        "torch's deterministic algorithms",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    _Setting(
        "torch's float32 matmul precision (allow_tf32)",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    *(_Setting(f"torch's {name} backend of SDPA", enabled, enable) for name, enabled, enable in SDPA_SWITCHES),
    *_flags(),
)


def read_settings() -> dict[str, Any]:
    """Map settings to values; None for flags of TF32 that torch refuses to read once ``fp32_precision`` is set."""
    return {setting.name: _value(setting) for setting in _SETTINGS}


def put_back(settings: Mapping[str, Any]) -> None:
    """Restore ``settings`` from ``read_settings``."""
    for setting in _SETTINGS:
        wanted = settings[setting.name]
        if wanted is not None and _value(setting) != wanted:
            setting.write(wanted)


def first_change(wanted: Mapping[str, Any]) -> str:
    """Describe the first setting that differs from ``wanted``; "" if none does."""
    for name, now in read_settings().items():
        if now is not None and now != wanted[name]:
            return (
                f"the model set {name} to {now}; the cell is measured with {wanted[name]}; "
                "take that out of the model's code"
            )
    return ""


def _value(setting: _Setting) -> Any:
    try:
        return setting.read()
    except RuntimeError:
        return None
