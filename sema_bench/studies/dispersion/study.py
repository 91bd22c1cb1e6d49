"""Measure attentions over more and more keys, and write the run's folder."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from sema.attention.base import Attention
from sema_bench.data.base import Pixels, Unreadable
from sema_bench.data.datasets import TestImages
from sema_bench.data.loader import normalised
from sema_bench.errors import UsageError
from sema_bench.machine.environment import capture, environment_json
from sema_bench.machine.host_memory import available_memory_bytes
from sema_bench.report.figure_style import write_figure
from sema_bench.report.progress import ProgressDisplay
from sema_bench.spec import units as fmt
from sema_bench.spec.data_source import DataSpec
from sema_bench.spec.weights_source import digest_of
from sema_bench.store.files import write_own
from sema_bench.store.run_folder import RunFolder, creation_facts
from sema_bench.studies.dispersion.coefficients import Spread, attentions_of, growth, random_spreads, trained_spreads
from sema_bench.studies.dispersion.mean import Distance, check_scores, random_distances, trained_distances
from sema_bench.studies.dispersion.mean_report import mean_figure, print_approach
from sema_bench.studies.dispersion.report import dispersion_figure, print_growths, rows_csv
from sema_bench.text.console import UNLIMITED, SafeConsole
from sema_bench.worker.build_model import build_model, build_with_weights, read_weights, usage_errors

_BUILD_AT = (224, 224)
#: Bytes of memory for the distances from the mean, per channel and key; 58 were measured: seven arrays in float64.
_BYTES = 64
Report = Callable[[Console], None]


@dataclass(frozen=True)
class Study:
    """Inputs of the attentions: random features, and scenes for trained weights."""

    keys: Sequence[int]  # numbers of keys, squares
    weights: Mapping[str, str]  # model → checkpoint that is measured on scenes
    data: DataSpec  # draws the scenes
    sides: Sequence[int]  # of the scenes, in pixels
    samples: int  # number of random features, and of scenes
    seed: int  # of features and weights

    def networks(self) -> dict[str, nn.Module]:
        """Load the trained networks."""
        return {name: trained_network(name, Path(path), self.sides[0]) for name, path in self.weights.items()}

    def scenes(self) -> Callable[[int, int], Tensor]:
        """Return the function that draws a scene, by sample and side, as the input of a network."""
        images = TestImages(self.data)

        def scene(sample: int, side: int) -> Tensor:
            image = images.sample(sample, (side, side))
            assert not isinstance(image, Unreadable)
            return network_input(image[0])

        return scene

    def metadata(self) -> dict[str, Any]:
        """Describe this run for its run.json."""
        digests = {name: f"{path}@{digest_of(Path(path))}" for name, path in self.weights.items()}
        return {**creation_facts(), "environment": environment_json(capture()), "checkpoints": digests}


def measure_dispersion(study: Study, models: Sequence[str], out: Path, run: str | None) -> Report:
    """Measure coefficients, on random features for the first attention of each of ``models``; write a new run.

    Return the function that prints the result on a console.
    """
    # Load everything first: a name or a file may be wrong.
    attentions = {name: first_attention(name, seed=study.seed) for name in models}
    networks, scenes, metadata = study.networks(), study.scenes(), study.metadata()
    trained: list[Spread] = []
    random: list[Spread] = []
    with ProgressDisplay() as progress:
        for name, network in networks.items():  # first: the weights may not be finite
            progress.say(f"{name}: {study.weights[name]}")
            with usage_errors(f"{name}: "):
                trained += trained_spreads(name, network, scenes, study.sides, samples=study.samples)
        for name, attention in attentions.items():
            progress.say(f"{name}: random features")
            random += random_spreads(name, attention, study.keys, samples=study.samples, seed=study.seed)
        folder = RunFolder.create(out, "dispersion", run, metadata=metadata)
        spreads = random + trained
        report = functools.partial(print_growths, growth(spreads))
        write_own(folder.path / "dispersion.csv", rows_csv(spreads))
        _write(folder, "dispersion", functools.partial(dispersion_figure, spreads), report)
        progress.say(f"written to {folder.path}")
    return report


def measure_mean(study: Study, channels: Sequence[int], common: Sequence[float], out: Path, run: str | None) -> Report:
    """Measure the distance of softmax from the mean, on random features of these widths and common shares; write a run.

    Return the function that prints the result on a console.
    """
    needed, free = _BYTES * max(channels) * max(study.keys), available_memory_bytes()
    if needed > free:
        raise UsageError(
            f"--mean with {max(study.keys)} keys of {max(channels)} channels needs about {fmt.size(needed)} of memory, "
            f"and {fmt.size(free)} are free; give fewer --keys or --channels"
        )
    networks, scenes, metadata = study.networks(), study.scenes(), study.metadata()
    for name, network in networks.items():
        with usage_errors(f"{name}: "):
            check_scores(network)
    trained: list[Distance] = []
    random: list[Distance] = []
    with ProgressDisplay() as progress:
        for name, network in networks.items():
            progress.say(f"{name}: {study.weights[name]}")
            with usage_errors(f"{name}: "):
                trained += trained_distances(name, network, scenes, study.sides, samples=study.samples)
        for width in channels:
            progress.say(f"random features of {width} channels")
            random += random_distances(
                study.keys, channels=width, common=common, samples=study.samples, seed=study.seed
            )
        folder = RunFolder.create(out, "dispersion-mean", run, metadata=metadata)
        distances = random + trained
        report = functools.partial(print_approach, distances)
        write_own(folder.path / "mean.csv", rows_csv(distances))
        _write(folder, "mean", functools.partial(mean_figure, distances), report)
        progress.say(f"written to {folder.path}")
    return report


def _write(folder: RunFolder, name: str, draw: Callable[[str], Figure | None], report: Report) -> None:
    """Write the picture of each setting, and the report."""
    for setting in ("random", "trained"):
        if figure := draw(setting):
            write_figure(figure, folder.path / "plots", f"{name}-{setting}")
    text = io.StringIO()
    report(SafeConsole(file=text, width=UNLIMITED))
    write_own(folder.path / "report.txt", text.getvalue())


def first_attention(name: str, *, seed: int) -> Attention:
    """Build a model with random weights; return its first attention that weighs values by coefficients."""
    torch.manual_seed(seed)
    with usage_errors(f"{name}: "):
        return attentions_of(build_model(name, _BUILD_AT, classes=None))[0]


def trained_network(name: str, checkpoint: Path, side: int) -> nn.Module:
    """Build a model with trained weights; raise UsageError if no attention of it weighs values by coefficients."""
    with usage_errors(f"{name}: "):
        network = build_with_weights(name, (side, side), read_weights(checkpoint)).eval()
        attentions_of(network)
    return network


def network_input(pixels: Pixels) -> Tensor:
    """Normalise one image for a network on the CPU."""
    batch = torch.from_numpy(pixels.copy())[None]
    return normalised(batch, device=torch.device("cpu"), dtype=torch.float32, memory_format=torch.channels_last)
