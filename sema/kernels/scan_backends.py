"""The choice of a selective scan's kernel, by name; an unavailable one is refused, never replaced."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from sema.kernels.library import NativeUnavailableError, load_library
from sema.kernels.scan_native import selective_scan_native
from sema.layers.selective_scan import selective_scan

#: u, Δ, A, B, C of ``sema.layers.selective_scan.selective_scan`` → y.
Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

SCANS = ("torch", "native", "triton", "mamba_ssm")


def load_scan(name: str) -> Scan:
    """Load the scan of that name; ImportError if the package or the compiler that it needs is not installed."""
    if name not in SCANS:
        raise ValueError(f"scan must be one of {', '.join(SCANS)}; got {name!r}")
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


def _mamba_ssm_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Scan with the CUDA kernel of ``mamba_ssm``; each direction becomes a sequence of (B, ·, L)."""
    selective_scan_fn = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    directions = []
    for g in range(delta.shape[0]):
        parts = (x[g].flatten(1, 2).transpose(1, 2) for x in (u, delta, b, c))  # (B, ·, L)
        u_, delta_, b_, c_ = ((x.flip(-1) if g == 1 else x).contiguous() for x in parts)
        y = selective_scan_fn(u_, delta_, a[g].contiguous(), b_, c_)
        y = (y.flip(-1) if g == 1 else y).transpose(1, 2)
        directions.append(torch.unflatten(y, 1, delta.shape[2:4]))
    return torch.stack(directions)
