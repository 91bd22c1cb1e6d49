"""Measure how coefficients spread over more and more keys, and write the run's folder."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sema.attention.base import Attention
from sema_bench.data.base import Pixels, Unreadable
from sema_bench.data.datasets import TestImages
from sema_bench.data.loader import normalised
from sema_bench.machine.environment import capture, environment_json
from sema_bench.report.figure_style import render
from sema_bench.report.progress import ProgressDisplay
from sema_bench.spec.data_source import DataSpec
from sema_bench.spec.weights_source import digest_of
from sema_bench.store.files import write_own
from sema_bench.store.run_folder import RunFolder, creation_facts
from sema_bench.studies.dispersion.coefficients import (
    Growth,
    Spread,
    attentions_of,
    growth,
    random_spreads,
    trained_spreads,
)
from sema_bench.studies.dispersion.report import dispersion_figure, print_growths, spreads_csv
from sema_bench.text.console import UNLIMITED, SafeConsole
from sema_bench.worker.build_model import build_model, build_with_weights, read_weights, usage_errors

_BUILD_AT = (224, 224)


@dataclass(frozen=True)
class DispersionStudy:
    """A study of dispersion."""

    models: Sequence[str]  # the first attention of each is measured on random features
    keys: Sequence[int]  # numbers of keys, squares
    weights: Mapping[str, str]  # model → checkpoint that is measured on scenes
    scenes: DataSpec  # the data that draws them
    sides: Sequence[int]  # of the scenes, in pixels
    samples: int  # number of random features, and of scenes
    seed: int  # of features and weights


def measure_dispersion(study: DispersionStudy, out: Path, run: str | None) -> list[Growth]:
    """Measure ``study``, write a new run ``run`` of ``out``, and return the exponents."""
    # Load everything first: a name or a file may be wrong.
    attentions = {name: first_attention(name, seed=study.seed) for name in study.models}
    networks = {name: trained_network(name, Path(path), study.sides[0]) for name, path in study.weights.items()}
    metadata = {
        **creation_facts(),
        "environment": environment_json(capture()),
        "checkpoints": {name: f"{path}@{digest_of(Path(path))}" for name, path in study.weights.items()},
    }
    with ProgressDisplay() as progress:
        trained: list[Spread] = []
        for name, network in networks.items():  # first: the weights may not be finite
            progress.say(f"{name}: {study.weights[name]}")
            trained += spreads_of_trained(study, name, network)
        spreads: list[Spread] = []
        for name, attention in attentions.items():
            progress.say(f"{name}: random features")
            spreads += random_spreads(name, attention, study.keys, samples=study.samples, seed=study.seed)
        spreads += trained
        folder = RunFolder.create(out, "dispersion", run, metadata=metadata)
        write_own(folder.path / "dispersion.csv", spreads_csv(spreads))
        for setting in ("random", "trained"):
            if figure := dispersion_figure(spreads, setting):
                for kind in ("svg", "png"):
                    write_own(folder.path / "plots" / f"dispersion-{setting}.{kind}", render(figure, kind))
        grown, report = growth(spreads), io.StringIO()
        print_growths(grown, SafeConsole(file=report, width=UNLIMITED))
        write_own(folder.path / "report.txt", report.getvalue())
        progress.say(f"written to {folder.path}")
    return grown


def first_attention(name: str, *, seed: int) -> Attention:
    """Build a model with random weights; return its first attention that weighs values by coefficients."""
    torch.manual_seed(seed)
    with usage_errors(f"{name}: "):
        return attentions_of(build_model(name, _BUILD_AT, classes=None))[0]


def trained_network(name: str, checkpoint: Path, side: int) -> nn.Module:
    """Build a model with trained weights, of which some attention must weigh values by coefficients."""
    with usage_errors(f"{name}: "):
        network = build_with_weights(name, (side, side), read_weights(checkpoint)).eval()
        attentions_of(network)
    return network


def spreads_of_trained(study: DispersionStudy, name: str, network: nn.Module) -> list[Spread]:
    """Measure the spreads of all attentions of a trained model on the scenes of ``study``."""
    images = TestImages(study.scenes)

    def scene(sample: int, side: int) -> Tensor:
        image = images.sample(sample, (side, side))
        assert not isinstance(image, Unreadable)
        return network_input(image[0])

    with usage_errors(f"{name}: "):
        return list(trained_spreads(name, network, scene, study.sides, samples=study.samples))


def network_input(pixels: Pixels) -> Tensor:
    """Normalise one image for a network on the CPU."""
    batch = torch.from_numpy(pixels.copy())[None]
    return normalised(batch, device=torch.device("cpu"), dtype=torch.float32, memory_format=torch.channels_last)
