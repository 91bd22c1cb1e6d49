"""Graphs of ``torch.compile`` for one size, of the form or of the model as it is; kept if faster on this machine."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn

from sema.inference.choices import ratios_of_times


class GraphForm(nn.Module):
    """A graph of ``compiled`` for images like ``example``, weights frozen; images of other sizes go to ``form``."""

    def __init__(self, compiled: nn.Module, form: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.form = form
        self._size = example.shape

        def call(image: Tensor) -> Any:
            return compiled(image)

        # Graphs belong to code objects: without its own, a second form would run the graph of the first.
        call.__code__ = call.__code__.replace()
        self._graph = torch.compile(call, dynamic=False, fullgraph=True)

    def forward(self, image: Tensor) -> Any:
        if image.shape != self._size:
            return self.form(image)
        # Each mode of autograd, and each kind of tensor, would have a graph of its own.
        with torch.inference_mode(False), torch.no_grad(), torch._inductor.config.patch(freezing=True):
            return self._graph(image.clone() if image.is_inference() else image)

    def forward_features(self, image: Tensor) -> list[Tensor]:
        form: Any = self.form
        return form.forward_features(image)


def fastest(form: nn.Module, model: nn.Module, example: Tensor) -> tuple[nn.Module, str]:
    """Compile ``form`` and ``model`` for ``example``; return the fastest of both graphs and ``form``, and the times.

    Both compute the same, in the dtype of ``example``.
    """
    candidates, found = {1.0: form}, []
    for name, compiled in (("form", form), ("model", model)):
        graph = GraphForm(compiled, form, example)
        try:
            with torch.inference_mode():
                graph(example)
        except Exception as problem:  # no compiler, or one that fails
            reason = str(problem).strip().partition("\n")[0]
            found.append(f"{name}: {type(problem).__name__}: {reason[:200]}")
            continue
        ratio = statistics.median(ratios_of_times(functools.partial(graph, example), functools.partial(form, example)))
        candidates[ratio] = graph
        found.append(f"{name}: {ratio:.2f} of the time without")
    best = candidates[min(candidates)]
    return best, f"{'none' if best is form else 'compiled'} ({'; '.join(found)})"
