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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

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
    """The spread of one attention over ``keys`` keys; means over queries and heads of one sample.

    Attributes:
        model: its name.
        layer: index of the attention in the model; 0 for random features.
        setting: ``random`` or ``trained``.
        sample: index of the draw of features, or of the scene.
        keys: N.
        largest: the largest coefficient.
        entropy_share: entropy / log N.
        support: exp(entropy), in keys.
    """

    model: str
    layer: int
    setting: str
    sample: int
    keys: int
    largest: float
    entropy_share: float
    support: float


@dataclass(frozen=True)
class Growth:
    """Growth of the largest coefficient of one attention with the number of keys: ∝ N^exponent.

    Attributes:
        model, layer, setting: see ``Spread``.
        exponent: mean of the slopes in log-log of the samples, with Student's t 95 % interval over them.
        exponent_large: the same over the larger half of the numbers of keys; None with fewer than three of them.
        first, last: means over the samples at the fewest and at the most keys.
    """

    model: str
    layer: int
    setting: str
    exponent: Estimate
    exponent_large: Estimate | None
    first: Spread
    last: Spread


def attentions_of(model: nn.Module) -> list[Attention]:
    """Return the attentions of ``model`` that weigh values by coefficients; raise ProbeError if there is none."""
    attentions = [module for module in model.modules() if isinstance(module, Attention) and module.has_coefficients]
    if not attentions:
        raise ProbeError("no attention of this model is a weighting of values, so it has no coefficients")
    return attentions


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
    """Yield the spread of every attention of a trained network, for each scene and size.

    Args:
        model: its name.
        network: in eval mode.
        scenes: (sample, side in pixels) → the normalised image (1, 3, side, side).
        sides: sizes in pixels.
        samples: how many scenes.
    """
    seen: list[tuple[int, Attention, Tensor]] = []
    layers = attentions_of(network)
    handles = [
        layer.register_forward_pre_hook(lambda module, inputs, index=index: seen.append((index, module, inputs[0])))
        for index, layer in enumerate(layers)
    ]
    try:
        for sample in range(samples):
            for side in sides:
                seen.clear()
                with torch.inference_mode():
                    network(scenes(sample, side))
                for index, layer, features in seen:
                    keys = features.shape[1] * features.shape[2]
                    yield Spread(model, index, "trained", sample, keys, *_statistics(layer, features))
    finally:
        for handle in handles:
            handle.remove()


def growth(spreads: Sequence[Spread]) -> list[Growth]:
    """Return the exponent of the largest coefficient of each model, layer and setting, in the order they appear."""
    groups: dict[tuple[str, int, str], list[Spread]] = {}
    for spread in spreads:
        groups.setdefault((spread.model, spread.layer, spread.setting), []).append(spread)
    return [_growth(group) for group in groups.values()]


@torch.inference_mode()
def _statistics(attention: Attention, features: Tensor) -> tuple[float, float, float]:
    """Return largest coefficient, entropy / log N and effective support, means over queries and heads."""
    tokens = features.shape[1] * features.shape[2]
    queries = torch.linspace(0, tokens - 1, min(QUERIES, tokens)).round().long().to(features.device)
    largest, entropy, support = [], [], []
    for rows in queries.split(max(1, _HELD // (tokens * attention.num_heads))):
        weights = attention.coefficients(features, rows).double().abs()
        weights = weights / weights.sum(dim=-1, keepdim=True)
        each = -torch.special.xlogy(weights, weights).sum(dim=-1)
        if not torch.isfinite(weights).all():
            raise ProbeError("its coefficients are not finite; its weights are no good, or too large for such features")
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


def _growth(group: Sequence[Spread]) -> Growth:
    samples: dict[int, list[Spread]] = {}
    for spread in group:
        samples.setdefault(spread.sample, []).append(spread)
    fewest, most = min(s.keys for s in group), max(s.keys for s in group)
    large = [[s for s in each if s.keys >= math.sqrt(fewest * most)] for each in samples.values()]
    enough = len({s.keys for s in large[0]}) >= MIN_SIZES
    first, last = (_mean([s for s in group if s.keys == keys]) for keys in (fewest, most))
    return Growth(
        group[0].model,
        group[0].layer,
        group[0].setting,
        _slope(samples.values()),
        _slope(large) if enough else None,
        first,
        last,
    )


def _slope(samples: Iterable[Sequence[Spread]]) -> Estimate:
    """Return the mean over the samples of the exponent that each of them shows."""
    values = [fit_power_law([(s.keys, s.largest) for s in each]).exponent.value for each in samples]
    return Estimate(*mean_interval(values))


def _mean(group: Sequence[Spread]) -> Spread:
    def of(name: str) -> float:
        return math.fsum(getattr(each, name) for each in group) / len(group)

    one = group[0]
    return Spread(one.model, one.layer, one.setting, -1, one.keys, of("largest"), of("entropy_share"), of("support"))
