"""Measure how attention coefficients spread over a growing number of keys: largest, smallest, effective support.

For a query the mechanism weighs N keys by α_1 … α_N (``Attention.coefficients``, without sign and divided by Σ|α|):

- the largest, max_j α_j, and the smallest, min_j α_j: dispersion means that both are Θ(1/N);
- the effective support 1 / Σ α_j² as a share of N: 1 is an even spread, 1/N is one key;
- the negative share: how much of Σ|α| negative coefficients hold.

By the theorem of SEMA (arXiv 2506.08297) every coefficient is Θ(1/N) if features are bounded, φ is continuous and
positive, and a query weighs all keys. It covers linear attention and softmax, for which Veličković et al. (arXiv
2410.01104) proved it before. The others are only measured: RoPE in MILA, SimA and InLine make coefficients negative,
windows hold a fixed number of keys, and only an ε of 1e-6 keeps those of FLatten positive.

Two settings. *Random*: tokens with independent channels, uniform in [−1, 1], and projections with Gaussian
weights of variance 3 / C, so that queries and keys have variance 1 at any width: bounded features and continuous maps.
*Trained*: every attention of a network with trained weights, on the features that it gets from scenes of growing size.

Only some rows of the N×N matrix are computed, in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from sema.attention.base import Attention
from sema_bench.errors import ProbeError
from sema_bench.studies.dispersion.trend import Summary, summaries

#: Queries whose rows are computed.
QUERIES = 64
#: Coefficients in memory at once.
HELD = 1 << 23
#: Mechanisms that the theorem covers.
WITHIN_THEOREM = ("softmax", "linear")
_Attention = TypeVar("_Attention", bound=Attention)
_INPUT_VARIANCE = 1 / 3  # of the uniform distribution on [−1, 1]


@dataclass(frozen=True)
class Spread:
    """The spread of one attention; means over queries and heads of one sample."""

    model: str
    layer: int  # index of the attention in the model; 0 for random features
    setting: str  # random or trained
    sample: int  # index of the draw of features, or of the scene
    keys: int  # N
    largest: float  # the largest coefficient
    smallest: float  # the smallest coefficient
    support_share: float  # effective support 1 / Σα², over N
    negative_share: float  # of Σ|α|


def attentions_of(model: nn.Module) -> list[Attention]:
    """List the attentions of ``model`` that weigh values by coefficients; raise ProbeError if there is none."""
    attentions = [module for module in model.modules() if isinstance(module, Attention) and module.has_coefficients]
    if not attentions:
        raise ProbeError("no attention of this model is a weighting of values, so it has no coefficients")
    return attentions


@torch.inference_mode()
def attention_inputs(network: nn.Module, image: Tensor) -> list[tuple[int, Attention, Tensor]]:
    """Run ``network`` on an image; list the index, the module and the input of each of its ``attentions_of``."""
    inputs: list[tuple[int, Attention, Tensor]] = []
    handles = [
        layer.register_forward_pre_hook(lambda module, args, index=index: inputs.append((index, module, args[0])))
        for index, layer in enumerate(attentions_of(network))
    ]
    try:
        network(image)
    finally:
        for handle in handles:
            handle.remove()
    return inputs


def random_spreads(
    model: str, attention: Attention, keys: Sequence[int], *, samples: int, seed: int = 0
) -> Iterator[Spread]:
    """Yield the spread over random features: each draw of features and weights, each number of keys (squares)."""
    for sample in range(samples):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + sample)
        drawn = with_random_weights(attention, generator)
        for count in keys:
            side = math.isqrt(count)
            features = torch.rand((1, side, side, attention.dim), generator=generator) * 2 - 1
            yield Spread(model, 0, "random", sample, count, *_statistics(drawn, features))


def trained_features(
    network: nn.Module, scenes: Callable[[int, int], Tensor], sides: Sequence[int], *, samples: int
) -> Iterator[tuple[int, int, Attention, Tensor]]:
    """Yield sample, index, module and input of every attention of a network, for each scene and side in pixels.

    ``scenes`` maps (sample, side) to the normalised image (1, 3, side, side).
    """
    for sample in range(samples):
        for side in sides:
            for index, layer, features in attention_inputs(network, scenes(sample, side)):
                yield sample, index, layer, features


def trained_spreads(
    model: str, network: nn.Module, scenes: Callable[[int, int], Tensor], sides: Sequence[int], *, samples: int
) -> Iterator[Spread]:
    """Yield the spread of every attention of a trained network in eval mode, see ``trained_features``."""
    for sample, index, layer, features in trained_features(network, scenes, sides, samples=samples):
        keys = features.shape[1] * features.shape[2]
        yield Spread(model, index, "trained", sample, keys, *_statistics(layer, features))


def growth(spreads: Sequence[Spread]) -> list[Summary]:
    """Summarise each model, layer and setting, in the order they appear."""
    measures = ("largest", "smallest", "support_share", "negative_share")
    return summaries(spreads, by=("model", "layer", "setting"), measures=measures)


def query_rows(tokens: int, heads: int) -> Iterator[Tensor]:
    """Yield the indices of ``QUERIES`` tokens, always the same, in parts whose coefficients fit into memory."""
    # Drawn at random: a regular step may hit the same columns of the grid in every row, even only its border.
    queries = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))[:QUERIES]
    yield from queries.split(max(1, HELD // (tokens * heads)))


@torch.inference_mode()
def _statistics(attention: Attention, features: Tensor) -> tuple[float, float, float, float]:
    """Compute the measures of ``Spread``, means over queries and heads."""
    exact, features = copy.deepcopy(attention).double(), features.double()
    tokens = features.shape[1] * features.shape[2]
    parts = []
    for rows in query_rows(tokens, attention.num_heads):
        signed = exact.coefficients(features, rows)
        signed = signed / signed.abs().sum(dim=-1, keepdim=True)
        if not torch.isfinite(signed).all():
            raise ProbeError("its coefficients are not finite; check its weights, or use smaller features")
        weights = signed.abs()
        support_share = 1 / weights.square().sum(dim=-1) / tokens
        negative_share = signed.clamp(max=0).abs().sum(dim=-1)
        parts.append(
            torch.stack((weights.amax(dim=-1), weights.amin(dim=-1), support_share, negative_share)).flatten(1)
        )
    largest, smallest, support_share, negative_share = torch.cat(parts, dim=1).mean(dim=1).tolist()
    return largest, smallest, support_share, negative_share


def with_random_weights(attention: _Attention, generator: torch.Generator) -> _Attention:
    """Copy an attention and draw its linear maps so that they keep the variance of random features at 1."""
    drawn = copy.deepcopy(attention).eval()
    with torch.no_grad():
        for module in drawn.modules():
            if isinstance(module, nn.Linear):
                deviation = (1 / (module.in_features * _INPUT_VARIANCE)) ** 0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * deviation)
                if module.bias is not None:
                    module.bias.zero_()
    return drawn
