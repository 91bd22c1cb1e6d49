"""Measure how attention coefficients spread over a growing number of keys: largest one, entropy, effective support.

For a query the mechanism weighs N keys by α_1 … α_N (``Attention.coefficients``, without sign and divided by Σ|α|):

- the largest, max_j α_j: Θ(1/N) is dispersion, Θ(1) is none;
- the entropy −Σ α_j log α_j over log N: 1 is an even spread;
- the effective support exp(entropy): the number of keys that matter.

Two settings. *Random*: tokens with channels drawn independently and evenly from [−1, 1], and projections with Gaussian
weights of variance 3 / C, so that queries and keys have variance 1 at any width: bounded features and continuous maps,
as the theorem of SEMA (arXiv 2506.08297, Theorem 3.4) supposes. *Trained*: every attention of a network with trained
weights, on the features that it gets from scenes of growing size.

Only some rows of the N×N matrix are computed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from sema.attention.base import Attention
from sema_bench.analysis.scaling import MIN_SIZES, Estimate, fit_power_law
from sema_bench.errors import ProbeError
from sema_bench.statistics import mean_interval

#: Queries whose rows are computed, evenly spread over the tokens.
QUERIES = 64
#: Coefficients in memory at once.
_HELD = 1 << 24
_INPUT_VARIANCE = 1 / 3  # of the even distribution on [−1, 1]


@dataclass(frozen=True)
class Spread:
    """The spread of one attention; means over queries and heads of one sample."""

    model: str
    layer: int  # index of the attention in the model; 0 for random features
    setting: str  # random or trained
    sample: int  # index of the draw of features, or of the scene
    keys: int  # N
    largest: float  # the largest coefficient
    entropy_share: float  # entropy / log N
    support: float  # exp(entropy), in keys


@dataclass(frozen=True)
class Growth:
    """Growth of the largest coefficient of one attention with the number of keys: ∝ N^exponent."""

    exponent: Estimate  # mean of the slopes in log-log of the samples, with Student's t 95 % interval over them
    exponent_large: Estimate | None  # the same over the larger half of the numbers of keys; None with fewer than three
    first: Spread  # mean over the samples at the fewest keys
    last: Spread  # and at the most


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
        drawn = _with_random_weights(attention, generator)
        for count in keys:
            side = math.isqrt(count)
            features = torch.rand((1, side, side, attention.dim), generator=generator) * 2 - 1
            yield Spread(model, 0, "random", sample, count, *_statistics(drawn, features))


def trained_spreads(
    model: str, network: nn.Module, scenes: Callable[[int, int], Tensor], sides: Sequence[int], *, samples: int
) -> Iterator[Spread]:
    """Yield the spread of every attention of a trained network in eval mode, for each scene and side in pixels.

    ``scenes`` maps (sample, side) to the normalised image (1, 3, side, side).
    """
    for sample in range(samples):
        for side in sides:
            for index, layer, features in attention_inputs(network, scenes(sample, side)):
                keys = features.shape[1] * features.shape[2]
                yield Spread(model, index, "trained", sample, keys, *_statistics(layer, features))


def growth(spreads: Sequence[Spread]) -> list[Growth]:
    """Fit the largest coefficient of each model, layer and setting, in the order they appear."""
    groups = pd.DataFrame(spreads).groupby(["model", "layer", "setting"], sort=False)
    return [_growth(group) for _, group in groups]


@torch.inference_mode()
def _statistics(attention: Attention, features: Tensor) -> tuple[float, float, float]:
    """Compute largest coefficient, entropy / log N and effective support, means over queries and heads."""
    tokens = features.shape[1] * features.shape[2]
    queries = torch.linspace(0, tokens - 1, min(QUERIES, tokens)).round().long().to(features.device)
    largest, entropy, support = [], [], []
    for rows in queries.split(max(1, _HELD // (tokens * attention.num_heads))):
        weights = attention.coefficients(features, rows).double().abs()
        weights = weights / weights.sum(dim=-1, keepdim=True)
        each = -torch.special.xlogy(weights, weights).sum(dim=-1)
        if not torch.isfinite(weights).all():
            raise ProbeError("its coefficients are not finite; check its weights, or use smaller features")
        largest.append(weights.amax(dim=-1).flatten())
        entropy.append(each.flatten())
        support.append(each.exp().flatten())
    means = [float(torch.cat(parts).mean()) for parts in (largest, entropy, support)]
    return means[0], means[1] / math.log(tokens), means[2]


def _with_random_weights(attention: Attention, generator: torch.Generator) -> Attention:
    drawn = copy.deepcopy(attention).eval()
    with torch.no_grad():
        for module in drawn.modules():
            if isinstance(module, nn.Linear):
                deviation = (1 / (module.in_features * _INPUT_VARIANCE)) ** 0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * deviation)
                if module.bias is not None:
                    module.bias.zero_()
    return drawn


def _growth(group: pd.DataFrame) -> Growth:
    fewest, most = group["keys"].min(), group["keys"].max()
    large = group[group["keys"] >= math.sqrt(fewest * most)]
    enough = large["keys"].nunique() >= MIN_SIZES
    first, last = (_mean(group[group["keys"] == keys]) for keys in (fewest, most))
    return Growth(_slope(group), _slope(large) if enough else None, first, last)


def _slope(group: pd.DataFrame) -> Estimate:
    fits = (fit_power_law(zip(each["keys"], each["largest"], strict=True)) for _, each in group.groupby("sample"))
    return Estimate(*mean_interval([fit.exponent.value for fit in fits]))


def _mean(group: pd.DataFrame) -> Spread:
    """Average the samples of one number of keys."""
    means = group[["largest", "entropy_share", "support"]].mean()
    one = group.iloc[0]
    return Spread(one["model"], int(one["layer"]), one["setting"], -1, int(one["keys"]), *map(float, means))
