"""Flex attention for counters: they cannot look into it, so while they count it is dense attention of the same shapes.

``flex_attention`` compiles itself and refuses tensors without a device. Models hold on to the function object under any
name, compiled or not, so it is its code that is exchanged, and put back afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: How often dense attention has stood in since the last ``flex_as_dense`` began.
_calls: list[None] = []


@contextmanager
def flex_as_dense(*, load: bool) -> Iterator[list[None]]:
    """Let every call of ``flex_attention`` be fused dense attention; gives a list that grows by one with each call.

    What a block mask or a score modification would change is not looked at.

    Args:
        load: import it where nothing has yet, for a model that may do so as it runs; with the compiler behind it that
            takes seconds.
    """
    _calls.clear()
    if not load and "torch.nn.attention.flex_attention" not in sys.modules:
        yield _calls
        return
    from torch.nn.attention.flex_attention import flex_attention

    names = ("__code__", "__defaults__", "__kwdefaults__")
    before = {name: getattr(flex_attention, name) for name in names}
    for name in names:
        setattr(flex_attention, name, getattr(_dense, name))
    torch.compiler.set_stance("force_eager")
    try:
        yield _calls
    finally:
        torch.compiler.set_stance("default")
        for name, value in before.items():
            setattr(flex_attention, name, value)


def _dense(query, key, value, *_, return_lse=False, return_aux=None, enable_gqa=False, **__):  # type: ignore[no-untyped-def]
    # This code runs in torch's module: it can name nothing of this one.
    from torch.nn.functional import scaled_dot_product_attention

    from sema_bench.counting.flex import _calls

    _calls.append(None)
    out = scaled_dot_product_attention(query, key, value, enable_gqa=enable_gqa)
    sums = query.new_empty(query.shape[:-1])
    return (out, sums) if return_lse or return_aux is not None else out
