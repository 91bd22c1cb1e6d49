"""Measure how far the output of softmax attention is from the mean of its values, which SEMA adds to its windows.

For query i over N keys, o_i = Σ_j α_ij v_j, with α_i the softmax over j of the scores s q_i·k_j. To first order in the
scores' spread, o_i = v̄ + s Cov(v, k) q_i, with v̄ the mean of the values and Cov(v, k) their d×d covariance with the
keys, per head. Three distances, each a quotient of root mean squares over queries and channels:

- ‖o − v̄‖ / ‖v‖: how far the output is from the mean, beside the size of a value;
- ‖o − v̄‖ / ‖o‖: the relative error of the mean as an approximation of the output;
- ‖o − v̄ − s Cov(v, k) q‖ / ‖o‖: the relative error that the first-order term leaves.

Two numbers say where on these scales the features lie: ‖v̄‖² / ‖v‖², the common part of the values, and the standard
deviation of the scores over the keys.

*Random*: features as in ``coefficients``, √(1 − p) times a part that each token draws for itself plus √p times a part
that all tokens share, both uniform in [−1, 1]: p is the common part's share of the mean square. *Trained*: q, k and v
of each layer of a trained network, on scenes of growing size. For a layer of windows, such as SEMA's, o is the output
of softmax over all tokens with its q, k and v.

Everything is computed in float64, from features in the precision of the network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from sema.attention.softmax import SoftmaxAttention
from sema.attention.window import WindowAttention
from sema_bench.errors import ProbeError
from sema_bench.studies.dispersion.coefficients import query_rows, trained_features, with_random_weights
from sema_bench.studies.dispersion.trend import Summary, summaries

#: Channels of a head for random features.
HEAD_DIM = 32
#: Distance → how to write it.
DISTANCES = {
    "mean_of_values": "‖o − v̄‖ / ‖v‖",
    "mean_of_output": "‖o − v̄‖ / ‖o‖",
    "residual_of_output": "‖o − v̄ − s Cov(v,k) q‖ / ‖o‖",
}


@dataclass(frozen=True)
class Distance:
    """The distances of one attention and one sample; see the module."""

    model: str
    layer: int  # index of the attention in the model; 0 for random features
    setting: str  # random or trained
    channels: int  # C
    common: float | None  # share p of random features; None for trained ones
    sample: int  # index of the draw of features, or of the scene
    keys: int  # N
    mean_of_values: float
    mean_of_output: float
    residual_of_output: float
    common_of_values: float  # ‖v̄‖² / ‖v‖²
    score_deviation: float  # root mean square over queries and heads


def random_distances(
    keys: Sequence[int], *, channels: int, common: Sequence[float], samples: int, seed: int = 0
) -> Iterator[Distance]:
    """Yield the distances over random features, for each draw, common share and number of keys (squares)."""
    attention = SoftmaxAttention(channels, channels // HEAD_DIM)
    for sample in range(samples):
        for share in common:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + sample)  # the same draw for every share
            drawn = with_random_weights(attention, generator)
            shared = _even(channels, generator=generator)
            for count in keys:
                own = _even(1, math.isqrt(count), math.isqrt(count), channels, generator=generator)
                features = math.sqrt(1 - share) * own + math.sqrt(share) * shared
                measured = distances_from_mean(drawn, features)
                yield Distance("softmax", 0, "random", channels, share, sample, count, *measured)


def trained_distances(
    model: str, network: nn.Module, scenes: Callable[[int, int], Tensor], sides: Sequence[int], *, samples: int
) -> Iterator[Distance]:
    """Yield the distances of every attention of a trained network that ``has_scores``, see ``trained_features``."""
    for sample, index, layer, features in trained_features(network, scenes, sides, samples=samples):
        if has_scores(layer):
            keys, channels = features.shape[1] * features.shape[2], layer.dim
            measured = distances_from_mean(layer, features)
            yield Distance(model, index, "trained", channels, None, sample, keys, *measured)


def approach(distances: Sequence[Distance]) -> list[Summary]:
    """Summarise each layer, or each width and common share, against the number of keys."""
    by = ("model", "layer", "setting", "channels", "common")
    return summaries(distances, by=by, measures=(*DISTANCES, "common_of_values", "score_deviation"))


def approach_in_width(distances: Sequence[Distance]) -> list[Summary]:
    """Summarise each common share of random features against the channels, at the most keys."""
    random = [each for each in distances if each.setting == "random"]
    most = max(each.keys for each in random)
    last = [each for each in random if each.keys == most]
    return summaries(last, by=("common",), measures=tuple(DISTANCES), across="channels")


def has_scores(layer: nn.Module) -> TypeGuard[SoftmaxAttention | WindowAttention]:
    """Check whether a layer has q, k and v, and its softmax depends only on s q·k."""
    if isinstance(layer, WindowAttention):
        return layer.relative_position_bias_table is None
    return isinstance(layer, SoftmaxAttention)


def check_scores(network: nn.Module) -> None:
    """Raise ProbeError if no layer ``has_scores``."""
    if not any(map(has_scores, network.modules())):
        raise ProbeError("no attention of this model is a softmax of q·k alone, so --mean cannot measure it")


@torch.inference_mode()
def distances_from_mean(
    attention: SoftmaxAttention | WindowAttention, features: Tensor
) -> tuple[float, float, float, float, float]:
    """Compute the measures of ``Distance`` for features (1, H, W, C)."""
    q, k, v = copy.deepcopy(attention).double().heads(features.double())  # (1, h, N, d)
    v_mean, k_mean = (part.mean(dim=-2, keepdim=True) for part in (v, k))  # (1, h, 1, d)
    covariance = (k - k_mean).transpose(-2, -1) @ (v - v_mean) / k.shape[-2]  # (1, h, d, d)
    sums, queries = torch.zeros(4, dtype=torch.float64), 0
    for rows in query_rows(k.shape[-2], attention.num_heads):
        scaled = attention.scale * q.index_select(-2, rows)
        scores = scaled @ k.transpose(-2, -1)
        output = scores.softmax(dim=-1) @ v
        offset = output - v_mean
        parts = (output, offset, offset - scaled @ covariance, scores.std(dim=-1, correction=0))
        sums += torch.stack([part.square().sum() for part in parts])
        queries += len(rows)
    size_of_v = float(v.square().sum()) / v.shape[-2]
    size_of_o, size_of_offset, size_of_residual, deviation = (sums / queries).tolist()
    if not math.isfinite(size_of_o) or not size_of_o * size_of_v:
        raise ProbeError("the outputs of its softmax are not finite, or all zero; check its weights")
    return (
        math.sqrt(size_of_offset / size_of_v),
        math.sqrt(size_of_offset / size_of_o),
        math.sqrt(size_of_residual / size_of_o),
        float(v_mean.square().sum()) / size_of_v,
        math.sqrt(deviation / attention.num_heads),
    )


def _even(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
