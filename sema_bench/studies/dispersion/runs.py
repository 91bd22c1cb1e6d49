"""Dispersion of models by name: what is built, what it is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sema.attention.base import Attention
from sema_bench.data.datasets import TestImages, Unreadable
from sema_bench.data.loader import normalised
from sema_bench.errors import ProbeError, UsageError
from sema_bench.spec.data_source import DataSpec
from sema_bench.studies.dispersion.coefficients import Spread, attentions_of, trained_spreads
from sema_bench.worker.trained_model import build_model, build_with_weights, read_weights

_BUILD_AT = (224, 224)


def first_attention(name: str, *, seed: int) -> Attention:
    """Return the first attention of a model, with random weights, that weighs values by coefficients.

    Raises:
        UsageError: it has none.
    """
    torch.manual_seed(seed)
    with _told_of(name):
        return attentions_of(build_model(name, _BUILD_AT, classes=None))[0]


def trained_network(name: str, checkpoint: Path, side: int) -> nn.Module:
    """Return a model with trained weights.

    Raises:
        UsageError: the checkpoint does not suit, or no attention of the model weighs values by coefficients.
    """
    with _told_of(name):
        network = build_with_weights(name, (side, side), read_weights(checkpoint)).eval()
        attentions_of(network)
    return network


def spreads_of_trained(
    name: str, network: nn.Module, spec: DataSpec, sides: Sequence[int], *, samples: int
) -> list[Spread]:
    """Return the spreads of all attentions of a trained model, on scenes of each side in pixels.

    Raises:
        UsageError: its coefficients are not finite.
    """
    images = TestImages(spec)

    def scene(sample: int, side: int) -> Tensor:
        found = images.sample(sample, (side, side))
        assert not isinstance(found, Unreadable)
        pixels = torch.from_numpy(found[0].copy())[None]
        return normalised(pixels, device=torch.device("cpu"), dtype=torch.float32, memory_format=torch.channels_last)

    with _told_of(name):
        return list(trained_spreads(name, network, scene, sides, samples=samples))


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    try:
        yield
    except ProbeError as problem:
        raise UsageError(f"{name}: {problem}") from None
