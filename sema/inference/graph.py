"""A form compiled into one graph for one size, kept if that is faster on this machine."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn

from sema.inference.choices import ratios_of_times


class GraphForm(nn.Module):
    """A form with a graph of ``torch.compile`` for images like ``example``, weights frozen; at other sizes the form."""

    def __init__(self, form: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.form = form
        self._size = example.shape

        def call(image: Tensor) -> Any:
            return form(image)

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


def with_graph_if_faster(form: nn.Module, example: Tensor) -> tuple[nn.Module, str]:
    """Compile ``form`` for ``example``, time both, and return the faster one and what was found."""
    graph = GraphForm(form, example)
    try:
        with torch.inference_mode():
            graph(example)
    except Exception as problem:  # no compiler, or one that fails
        reason = str(problem).strip().partition("\n")[0]
        return form, f"none ({type(problem).__name__}: {reason[:200]})"
    ratio = statistics.median(ratios_of_times(functools.partial(graph, example), functools.partial(form, example)))
    found = f"{ratio:.2f} of the time without it"
    return (graph, f"compiled ({found})") if ratio < 1 else (form, f"none (compiled it takes {found})")
