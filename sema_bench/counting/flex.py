"""Replace flex attention by dense attention of the same shapes for counters, which cannot see into it.

``flex_attention`` compiles itself and refuses tensors without a device. Models hold the function under any name,
compiled or not, so the code of the function object is replaced, and restored afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: One entry for each call of dense attention since the last ``flex_as_dense`` began.
_calls: list[None] = []


@contextmanager
def flex_as_dense(*, load: bool) -> Iterator[list[None]]:
    """Run ``flex_attention`` as fused dense attention, without its masks; yield a list with an entry for each call.

    With ``load``, import it now, for a model that may import it later; it loads the compiler, which takes seconds.
    """
    _calls.clear()
    if not load and "torch.nn.attention.flex_attention" not in sys.modules:
        yield _calls
        return
    from torch.nn.attention.flex_attention import flex_attention  # takes seconds

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


def _dense(query: Any, key: Any, value: Any, *_: Any, enable_gqa: Any = False, **options: Any) -> Any:
    # This code runs in torch's module, where the names of this one are unknown.
    from torch.nn.functional import scaled_dot_product_attention

    from sema_bench.counting.flex import _calls

    _calls.append(None)
    out = scaled_dot_product_attention(query, key, value, enable_gqa=enable_gqa)
    sums = query.new_empty(query.shape[:-1])
    return (out, sums) if options.get("return_lse") or options.get("return_aux") is not None else out
