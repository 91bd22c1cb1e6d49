"""What computes a selective scan, chosen by name; nothing here falls back to another choice."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from sema.layers.selective_scan import selective_scan

#: u, Δ, A, B, C of ``sema.layers.selective_scan.selective_scan`` → y.
Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

SCANS = ("torch", "native", "triton", "mamba_ssm")


def load_scan(name: str) -> Scan:
    """Return the scan of that name.

    Raises:
        ValueError: an unknown name.
        ImportError: the package or the compiler that it needs is not installed.
    """
    if name not in SCANS:
        raise ValueError(f"scan must be one of {', '.join(SCANS)}; got {name!r}")
    if name == "torch":
        return selective_scan
    if name == "native":
        return _load_native_scan()
    if importlib.util.find_spec(name) is None:
        raise ImportError(f"scan={name!r} needs the package {name}, which is not installed; use scan='torch'")
    if name == "triton":
        from sema.layers.scan_triton import selective_scan_triton

        return selective_scan_triton
    return _mamba_ssm_scan


def _load_native_scan() -> Scan:
    from sema.native.library import NativeUnavailableError, load_library
    from sema.native.selective_scan import selective_scan_native

    try:
        load_library("selective_scan")
    except NativeUnavailableError as problem:
        raise ImportError(f"scan='native' cannot be built: {problem}; use scan='torch'") from problem
    return selective_scan_native


def _mamba_ssm_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Scan with the CUDA kernel of ``mamba_ssm``; each direction becomes a sequence of (B, ·, L)."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # type: ignore[import-not-found]

    directions = []
    for g in range(delta.shape[0]):
        parts = [x[g].flatten(1, 2).transpose(1, 2) for x in (u, delta, b, c)]  # (B, ·, L)
        if g == 1:
            parts = [x.flip(-1) for x in parts]
        u_, delta_, b_, c_ = (x.contiguous() for x in parts)
        y = selective_scan_fn(u_, delta_, a[g].contiguous(), b_, c_)
        y = (y.flip(-1) if g == 1 else y).transpose(1, 2)
        directions.append(torch.unflatten(y, 1, delta.shape[2:4]))
    return torch.stack(directions)
