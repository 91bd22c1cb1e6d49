"""Settings that torch keeps for the whole process: read them, put them back, name the one that a model changed.

A model's code can change any of them when it is imported, built or run. Its cell would then be measured under other
settings than its record states, and so would the next model in the same worker.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

THREADS = "torch's threads"

#: Backend → torch's switches of it; flash and math hold for a CPU, too.
SDPA_SWITCHES = (
    ("flash", torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    ("efficient", torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    ("cudnn", torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    ("math", torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
)
#: Newer torch has these beside the flags of TF32. They reach convolutions and products on a CPU, too.
_PRECISIONS = tuple(
    f"{owner}fp32_precision"
    for owner in (
        "",
        *("cudnn.", "cudnn.conv.", "cudnn.rnn.", "cuda.matmul."),
        *("mkldnn.", "mkldnn.conv.", "mkldnn.rnn.", "mkldnn.matmul."),
    )
)


@dataclass(frozen=True)
class _Setting:
    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _backend_flag(path: str) -> _Setting:
    owner, _, flag = path.rpartition(".")
    holder = operator.attrgetter(owner)(torch.backends) if owner else torch.backends
    return _Setting(f"torch.backends.{path}", lambda: getattr(holder, flag), lambda value: setattr(holder, flag, value))


def _has_backend_flag(path: str) -> bool:
    try:
        operator.attrgetter(path)(torch.backends)
    except AttributeError:
        return False
    return True


#: In the order in which they are put back: the flags of TF32 write ``fp32_precision``, which therefore comes last.
_SETTINGS = (
    _Setting(THREADS, torch.get_num_threads, torch.set_num_threads),
    _Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting(
        "torch's default device",
        torch.get_default_device,
        # to set "cpu" would make torch look at each call from then on
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
    *(
        _backend_flag(path)
        for path in (
            "cuda.matmul.allow_tf32",
            "cudnn.allow_tf32",
            "cudnn.enabled",
            "cudnn.benchmark",
            "cudnn.deterministic",
        )
    ),
    *(_Setting(f"torch's {name} backend of SDPA", enabled, enable) for name, enabled, enable in SDPA_SWITCHES),
    *(_backend_flag(path) for path in _PRECISIONS if _has_backend_flag(path)),
)


def read_settings() -> dict[str, Any]:
    """Return setting → value; None where torch refuses to tell.

    It refuses for flags of TF32 after an ``fp32_precision`` was set, which is a setting of its own here.
    """
    return {setting.name: _value(setting) for setting in _SETTINGS}


def put_back(settings: Mapping[str, Any]) -> None:
    """Set what differs from ``settings``, as ``read_settings`` gave them."""
    for setting in _SETTINGS:
        wanted = settings[setting.name]
        if wanted is not None and _value(setting) != wanted:
            setting.write(wanted)


def first_change(wanted: Mapping[str, Any]) -> str:
    """Return a message about the first setting that is no longer what ``wanted`` says, else ""."""
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
