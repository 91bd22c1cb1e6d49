"""Draw the maps of several models at several sizes, measure receptive fields, and write the run's folder."""

from __future__ import annotations

import copy
import functools
import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from sema_bench.data.base import Pixels, Unreadable, UnreadableImageError
from sema_bench.data.datasets import TestImages
from sema_bench.data.decode import decode
from sema_bench.data.preprocess import resized_and_cropped
from sema_bench.errors import UsageError
from sema_bench.machine.environment import capture, environment_json
from sema_bench.machine.host_memory import available_memory_bytes
from sema_bench.report.figure_style import write_figure
from sema_bench.report.progress import ProgressDisplay
from sema_bench.spec import units as fmt
from sema_bench.spec.data_source import DataSpec
from sema_bench.spec.resolution import MAX_SIDE, MIN_SIDE, Resolution
from sema_bench.spec.weights_source import digest_of
from sema_bench.store.files import write_own
from sema_bench.store.run_folder import RunFolder, creation_facts
from sema_bench.studies.dispersion.study import network_input
from sema_bench.studies.maps.cam import OWN, check_method, class_map
from sema_bench.studies.maps.coefficients import attention_maps, has_coefficients, rollout
from sema_bench.studies.maps.field import FieldArea, area_pixels, receptive_field
from sema_bench.studies.maps.figure import Panels, heads_figure, maps_figure
from sema_bench.studies.maps.last_map import Token
from sema_bench.studies.maps.report import areas_csv, print_areas
from sema_bench.text.console import UNLIMITED, SafeConsole
from sema_bench.worker.build_model import build_model, build_with_weights, read_weights, usage_errors
from sema_bench.worker.forecast import forecast

_CENTRE = (0.5, 0.5)
#: The forecast takes longer than the maps of one small image, which fit into this much memory.
_SMALL_PIXELS, _AMPLE_BYTES = 256**2, 8 << 30
_NONE = "no coefficients"


@dataclass(frozen=True)
class Study:
    """Maps to draw, of which models, on which images."""

    models: Sequence[str]
    weights: Mapping[str, Path]  # model → checkpoint; others have random weights
    shown: DataSpec | Path  # the image that is drawn: of this data, or a file
    index: int  # of the image in the data
    drawn_from: DataSpec | None  # images for receptive fields; None: normal noise
    sizes: Sequence[Resolution]  # empty: the file's own size
    kinds: Sequence[str]  # cam, rollout, heads, erf
    strict: bool  # refuse a model that lacks one of them, instead of saying so in its panel
    token: Token | None  # None: the class token
    label: int | None  # class; None: the predicted one
    method: str  # of the class map
    samples: int  # images of a receptive field
    seeds: Sequence[int]  # of random weights, and of the images of a receptive field


def draw_maps(study: Study, out: Path, run: str | None) -> tuple[list[Path], Callable[[Console], None]]:
    """Draw the maps and write a new run; return the paths of its files, and a function that prints the areas."""
    if "cam" in study.kinds:
        check_method(study.method)
    fields = TestImages(study.drawn_from) if "erf" in study.kinds and study.drawn_from else None
    pictures = list(_pictures(study))
    digests = {name: f"{path}@{digest_of(path)}" for name, path in study.weights.items()}
    rows: list[Panels] = []
    areas: list[FieldArea] = []
    with ProgressDisplay() as progress:
        for name in study.models:
            for pixels, title, classes in pictures:
                with usage_errors(f"{name}: "):
                    panels, measured = _measure(study, name, pixels, title, classes, fields)
                rows.append(panels)
                areas += measured
                progress.say(f"{name} at {pixels.shape[0]}x{pixels.shape[1]}: drawn")
    metadata = {**creation_facts(), "environment": environment_json(capture()), "checkpoints": digests}
    folder = RunFolder.create(out, "maps", run, metadata=metadata)
    paths = write_figure(maps_figure(rows, study.token), folder.path / "plots", "maps")
    if "heads" in study.kinds:
        drawn = [row for row in rows if row.heads]
        for number, row in enumerate(drawn, start=1):
            stem = "heads" if len(drawn) == 1 else f"heads-{number}"
            paths += write_figure(heads_figure(row, study.token), folder.path / "plots", stem)
    report = functools.partial(print_areas, areas)
    if areas:
        write_own(folder.path / "erf.csv", areas_csv(areas))
        text = io.StringIO()
        report(SafeConsole(file=text, width=UNLIMITED))
        write_own(folder.path / "report.txt", text.getvalue())
        paths += [folder.path / "erf.csv", folder.path / "report.txt"]
    return paths, report


def _measure(
    study: Study, name: str, pixels: Pixels, title: str, classes: int | None, fields: TestImages | None
) -> tuple[Panels, list[FieldArea]]:
    """Compute the panels of one model and image, and the areas of the receptive field of each seed."""
    size, checkpoint = Resolution(*pixels.shape[:2]), study.weights.get(name)
    model, names = _build(name, size, checkpoint, classes, study.seeds[0])
    _check_memory(model, size)
    if study.strict and {"rollout", "heads"} & {*study.kinds} and not has_coefficients(model):
        raise UsageError(f"{name}: no attention of it has coefficients; drop rollout and heads from --show")
    # Receptive fields have nothing to do with the image.
    title = "" if set(study.kinds) == {"erf"} else title
    panels = Panels(name, checkpoint.name if checkpoint else "random weights", title, pixels)
    image = network_input(pixels)
    if "cam" in study.kinds:
        cam = class_map(model, image, study.label, study.method)
        label = names[cam.label] if names and cam.label < len(names) else str(cam.label)
        method = "Grad-CAM" if study.method == OWN else study.method
        panels.add(f"{method}, class {label}", cam.weights, over_image=True)
    if "rollout" in study.kinds:
        values = rollout(model, image, study.token) if has_coefficients(model) else None
        panels.add("attention rollout" if values is not None else f"attention rollout:\n{_NONE}", values)
    if "heads" in study.kinds and has_coefficients(model):
        panels.heads = attention_maps(model, image, study.token)
    if "erf" not in study.kinds:
        return panels, []
    token = study.token or _CENTRE
    areas = []
    for seed in study.seeds:
        if seed != study.seeds[0] and not checkpoint:
            model, _ = _build(name, size, None, classes, seed)
        field = receptive_field(model, _field_images(fields, study.samples, size, seed), token)
        fewest = [area_pixels(field, share) for share in (0.5, 0.9)]
        if seed == study.seeds[0]:
            shares = " and ".join(f"{100 * count / size.pixels:.1f}" for count in fewest)
            panels.add(f"receptive field: 50 and 90 %\nin {shares} % of the pixels", field)
        area = FieldArea(
            model=name,
            weights=str(checkpoint or ""),
            images=str(study.drawn_from) if fields else "noise",
            height_px=size.height,
            width_px=size.width,
            token_y_share=token[0],
            token_x_share=token[1],
            seed=seed,
            samples=min(study.samples, len(fields)) if fields else study.samples,
            area_50_share=fewest[0] / size.pixels,
            area_90_share=fewest[1] / size.pixels,
            area_50_px=fewest[0],
            area_90_px=fewest[1],
        )
        areas.append(area)
    return panels, areas


def _build(
    name: str, size: Resolution, checkpoint: Path | None, classes: int | None, seed: int
) -> tuple[nn.Module, tuple[str, ...] | None]:
    """Build a model in eval mode; also return the names of its classes, if its checkpoint has them."""
    torch.manual_seed(seed)
    if checkpoint is None:
        return build_model(name, size, classes=classes).eval(), None
    weights = read_weights(checkpoint)
    return build_with_weights(name, size, weights).eval(), weights.classes


def _pictures(study: Study) -> Iterator[tuple[Pixels, str, int | None]]:
    """Yield the image at every size, its name, and how many classes its data has."""
    if isinstance(study.shown, Path):
        try:
            photograph = decode(study.shown)
        except UnreadableImageError as problem:
            raise UsageError(f"--image {study.shown} cannot be read: {problem}") from None
        own = Resolution(photograph.height, photograph.width)
        if not MIN_SIDE <= min(own) <= max(own) <= MAX_SIDE:
            raise UsageError(
                f"--image {study.shown} is {own} pixels (HxW); give one of {MIN_SIDE} or more on each side"
            )
        for size in study.sizes or [own]:
            # At its own size nothing is resized.
            yield resized_and_cropped(photograph, size, crop_pct=1.0), study.shown.name, None
        return
    images = TestImages(study.shown)
    if study.index >= len(images):
        raise UsageError(f"--index: there are {len(images)} images; got {study.index}")
    for size in study.sizes:
        sample = images.sample(study.index, size)
        if isinstance(sample, Unreadable):
            raise UsageError(f"{sample.name} cannot be read: {sample.reason}")
        pixels, label = sample
        of_class = "" if images.segmented else f", class {images.classes[label]}"
        yield pixels, f"image {study.index} of {study.shown}{of_class}", len(images.classes)


def _field_images(images: TestImages | None, count: int, size: Resolution, seed: int) -> Iterator[Tensor]:
    """Draw images at random, or normal noise, as inputs of a network."""
    if images is None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            yield torch.randn((1, 3, *size), generator=generator)
        return
    for index in random.Random(seed).sample(range(len(images)), min(count, len(images))):
        sample = images.sample(index, size)
        if isinstance(sample, Unreadable):
            raise UsageError(f"{sample.name} cannot be read: {sample.reason}")
        yield network_input(sample[0])


def _check_memory(model: nn.Module, size: Resolution) -> None:
    """Raise UsageError if the gradients of one image do not fit into memory."""
    free = available_memory_bytes()
    if size.pixels <= _SMALL_PIXELS and free >= _AMPLE_BYTES:
        return
    try:
        step = forecast(copy.deepcopy(model).to("meta"), (1, 3, *size), train=True)
    except Exception:  # a model may do anything to a tensor without values
        return
    if step.predicted_peak_bytes > free:
        raise UsageError(
            f"maps at {size} need about {fmt.size(step.predicted_peak_bytes)} of memory, and {fmt.size(free)} are "
            "free; give a smaller --res"
        )
