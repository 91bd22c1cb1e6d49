"""Compile the form or the unchanged model into a graph for one size, and keep it if it is faster on this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn

from sema.inference.choices import shortest_times

#: Keep a graph only if its time is below this share of the form's: it holds a second set of weights.
_MARGIN = 0.98


class GraphForm(nn.Module):
    """A graph of ``inside`` with frozen weights for images like ``example``; other sizes go to ``form``."""

    def __init__(self, inside: nn.Module, *, form: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.form = form
        self._size = example.shape

        def call(image: Tensor) -> Any:
            return inside(image)

        # Graphs belong to code objects: without its own, a second form would run the first form's graph.
        call.__code__ = call.__code__.replace()
        self._graph = torch.compile(call, dynamic=False, fullgraph=True)

    def forward(self, image: Tensor) -> Any:
        if image.shape != self._size:
            return self.form(image)
        # Otherwise each mode of autograd, and each kind of tensor, would get its own graph.
        with torch.inference_mode(False), torch.no_grad(), torch._inductor.config.patch(freezing=True):
            return self._graph(image.clone() if image.is_inference() else image)

    def forward_features(self, image: Tensor) -> list[Tensor]:
        form: Any = self.form
        return form.forward_features(image)


def fastest(
    form: nn.Module,
    *,
    networks: Mapping[str, Callable[[], nn.Module]],
    example: Tensor,
    check: Callable[[nn.Module], None],
) -> tuple[nn.Module, str]:
    """Compile each network for ``example`` and time it against ``form``.

    Args:
        form: takes images like ``example``.
        networks: name → function that builds a network that computes the same as ``form``.
        example: an image batch.
        check: raises an error if a graph does not run or computes something else.

    Returns:
        The form or the fastest graph, and a report: the chosen network and all times.
    """
    best, best_name, least, report = form, "none", _MARGIN, []
    for name, build in networks.items():
        try:
            graph = GraphForm(build(), form=form, example=example)
            check(graph)
            compiled, plain = (functools.partial(each, example) for each in (graph, form))
            without, time = shortest_times([plain, compiled], device=example.device)
            ratio = time / without
        except Exception as problem:  # no compiler, one that fails, or no memory for a second set of weights
            reason = str(problem).strip().partition("\n")[0]
            report.append(f"{name}: {type(problem).__name__}: {reason[:200]}")
            continue
        report.append(f"{name}: {ratio:.2f} of the time without")
        if ratio < least:
            best, best_name, least = graph, name, ratio
    return best, f"{best_name} ({'; '.join(report)})"
