"""Choose a selective scan's kernel: by name, which is never overridden, or by device and shape with ``auto``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from sema.kernels.library import NativeUnavailableError, load_library
from sema.kernels.scan_native import selective_scan_native
from sema.layers.selective_scan import check_shapes, selective_scan

#: u, Δ, A, B, C of ``sema.layers.selective_scan.selective_scan`` → y.
Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

SCANS = ("auto", "torch", "native", "triton", "mamba_ssm")

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def load_scan(name: str) -> Scan:
    """Load the scan ``name``; ImportError if the package or the compiler that it needs is not installed."""
    if name not in SCANS:
        raise ValueError(f"scan must be one of {', '.join(SCANS)}; got {name!r}")
    if name == "auto":
        if _HAS_TRITON:  # import it now: a compiler that traces the call cannot register an operator
            importlib.import_module("sema.kernels.scan_triton")
        return _auto_scan
    if name == "torch":
        return selective_scan
    if name == "native":
        try:
            load_library("selective_scan")
        except NativeUnavailableError as problem:
            raise ImportError(f"scan='native' cannot be built: {problem}; use scan='torch'") from problem
        return selective_scan_native
    if importlib.util.find_spec(name) is None:
        raise ImportError(f"scan={name!r} needs the package {name}, which is not installed; use scan='torch'")
    if name == "triton":
        from sema.kernels.scan_triton import selective_scan_triton

        return selective_scan_triton
    return _mamba_ssm_scan


def auto_scan(device: torch.device, states: int) -> tuple[str, str]:
    """Name the scan that ``auto`` picks; on CUDA, also say why it is not Triton's.

    On CUDA, the PyTorch scan is thousands of launches.
    """
    if device.type != "cuda":
        return "torch", ""
    if not _HAS_TRITON:
        return "torch", "the package triton is not installed"
    from sema.kernels.scan_triton import MAX_STATES

    return ("torch", f"Triton's holds at most {MAX_STATES} states") if states > MAX_STATES else ("triton", "")


def _auto_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    if auto_scan(delta.device, a.shape[-1])[0] == "torch":
        return selective_scan(u, delta, a, b, c)
    from sema.kernels.scan_triton import selective_scan_triton

    return selective_scan_triton(u, delta, a, b, c)


def _mamba_ssm_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Scan with the CUDA kernel of ``mamba_ssm``; each direction becomes a sequence of (B, ·, L)."""
    check_shapes(u, delta, a, b, c)
    selective_scan_fn = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    directions = []
    for g in range(delta.shape[0]):
        parts = (x[g].flatten(1, 2).transpose(1, 2) for x in (u, delta, b, c))  # (B, ·, L)
        u_, delta_, b_, c_ = ((x.flip(-1) if g == 1 else x).contiguous() for x in parts)
        y = selective_scan_fn(u_, delta_, a[g].contiguous(), b_, c_)
        y = (y.flip(-1) if g == 1 else y).transpose(1, 2)
        directions.append(torch.unflatten(y, 1, delta.shape[2:4]))
    return torch.stack(directions)
