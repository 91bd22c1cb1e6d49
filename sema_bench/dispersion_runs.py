"""Dispersion of models by name: what is built, what it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sema.attention.base import Attention
from sema_bench.axes import parse_resolutions
from sema_bench.data.loader import normalised
from sema_bench.data.opened import TestImages, Unreadable
from sema_bench.data.spec import DataSpec
from sema_bench.dispersion import Spread, attentions_of, random_spreads, trained_spreads
from sema_bench.errors import UsageError
from sema_bench.probes.base import ProbeError
from sema_bench.trained_model import build_model, build_with_weights, read_weights

_BUILD_AT = (224, 224)


def coefficients_of(name: str) -> list[Attention]:
    """Return the attentions of a model, with random weights, that weigh values by coefficients.

    Raises:
        UsageError: it has none.
    """
    try:
        return attentions_of(build_model(name, _BUILD_AT, classes=None))
    except ProbeError as problem:
        raise UsageError(f"{name}: {problem}") from None


def spreads_of_random_features(name: str, keys: Sequence[int], *, samples: int, seed: int) -> list[Spread]:
    """Return the spreads of the first attention of a model, with random weights on random features."""
    torch.manual_seed(seed)
    return list(random_spreads(name, coefficients_of(name)[0], keys, samples=samples, seed=seed))


def spreads_of_trained(name: str, checkpoint: Path, spec: DataSpec, res: str, *, samples: int) -> list[Spread]:
    """Return the spreads of all attentions of a model with trained weights, on scenes of each size.

    Raises:
        UsageError: sizes that do not suit, or a checkpoint that does not.
    """
    sizes = parse_resolutions(res)
    for size in sizes:
        spec.check_size(size)
        if size.height != size.width:
            raise UsageError(f"--res: scenes of dispersion are square; got {size.label}")
    if len(sizes) < 3:
        raise UsageError(f"--res: an exponent needs three sizes; got {len(sizes)}")
    images = TestImages(spec)

    def scene(sample: int, side: int) -> Tensor:
        found = images.sample(sample, (side, side))
        assert not isinstance(found, Unreadable)
        pixels = torch.from_numpy(found[0].copy())[None]
        return normalised(pixels, device=torch.device("cpu"), dtype=torch.float32, memory_format=torch.channels_last)

    try:
        network = build_with_weights(name, (sizes[0].height, sizes[0].width), read_weights(checkpoint)).eval()
        sides = [size.height for size in sizes]
        return list(trained_spreads(name, network, scene, sides, samples=samples))
    except ProbeError as problem:
        raise UsageError(f"{name}: {problem}") from None
