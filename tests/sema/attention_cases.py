"""The attentions that the contract tests cover: every name in the registry, and options off their defaults."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sema
from sema.attention.base import Attention

DIM, NUM_HEADS = 16, 2

#: Options to test besides the defaults; a new attention joins the contract without an entry here.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("sema", {"window_size": 4}),
    ("sema", {"scale": 1.0}),
    ("sema", {"lepe": False}),
    ("sema", {"pooling": "none"}),
    ("sema", {"pooling": "max"}),
    ("sema", {"pooling": "max", "lepe": False}),
    ("sema", {"lepe": False, "pooling": "none", "qkv_bias": False}),
    ("window", {"window_size": 4, "shift_size": 2}),
    ("window", {"window_size": 7, "shift_size": 3, "relative_position_bias": True}),
    ("window", {"window_size": 5, "relative_position_bias": True, "scale": 1.0, "qkv_bias": False}),
    ("window", {"windows": "padded"}),
    ("window", {"windows": "padded", "shift_size": 3, "relative_position_bias": True}),
    ("window", {"windows": "scaled"}),
    ("window", {"windows": (7, 14), "shift_size": 3, "relative_position_bias": True}),
    ("softmax", {"scale": 1.0, "qkv_bias": False}),
    ("linear", {"qkv_bias": False}),
    ("mila", {"lepe": False, "qkv_bias": False}),
    ("sima", {"product_order": "quadratic"}),
    ("sima", {"product_order": "linear", "qkv_bias": False}),
    ("vmi", {"token_grid": (13, 22)}),
    ("vmi", {"token_grid": (5, 3), "expansion": 2}),
    ("vmi", {"token_grid": (13, 22), "masked": True}),
    ("vmi", {"token_grid": (5, 3), "expansion": 2, "masked": True}),
    ("focused", {"token_grid": (13, 22)}),
    ("focused", {"token_grid": (5, 3), "focusing_factor": 2, "kernel_size": 3, "qkv_bias": False}),
    ("inline", {"qkv_bias": False}),
    ("xca", {"qkv_bias": False}),
    ("vmamba", {"state_dim": 3, "dt_rank": 2}),
    ("vim", {"state_dim": 2, "conv_size": 3, "dt_rank": 3}),
]

CASES = [pytest.param(name, {}, id=name) for name in sema.list_attentions()] + [
    pytest.param(name, options, id=f"{name}-{'-'.join(f'{key}={value}' for key, value in options.items())}")
    for name, options in VARIANTS
]

#: The same for tests that take a second per case: options off their defaults are left to the slow tests.
FEWER_CASES = [
    case if not case.values[1] else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow) for case in CASES
]

#: No window divides 13×22, the default window divides 14×7, and the others are smaller than a window.
GRIDS = [(13, 22), (14, 7), (3, 5), (1, 1)]


def build_attention(name: str, options: dict[str, Any], *, dim: int = DIM, num_heads: int = NUM_HEADS) -> Attention:
    """Build an attention in which every parameter has an effect: no zero bias, no table near zero."""
    attention = sema.create_attention(name, dim=dim, num_heads=num_heads, **options)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(0.0, 0.5 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
    return attention


WITH_COEFFICIENTS = [case for case in CASES if build_attention(*case.values).has_coefficients]
