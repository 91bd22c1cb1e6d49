"""A plan: the ordered cells of a suite, in groups that are measured side by side. No torch.

A group holds the cells that differ in the model alone; its throughput is sampled interleaved.
Groups go from small to large, so that what a size could not do tells what a larger one cannot.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sema_bench.axes import parse_resolutions
from sema_bench.data.spec import parse_data
from sema_bench.errors import StoreError, UsageError, unknown_name
from sema_bench.model_source import YARDSTICK, ModelGoneError, check_networks_differ
from sema_bench.probes import PROBES
from sema_bench.schema import (
    ALLOCATORS,
    BATCH_POLICIES,
    DTYPES,
    LAYOUTS,
    MODES,
    SDPA_BACKENDS,
    STEPS,
    Cell,
)
from sema_bench.suite import MAX_BATCH, MAX_CELLS, MAX_THREADS, Suite, check_device, check_model, check_probe
from sema_bench.training.recipe import Recipe, parse_recipe
from sema_bench.weights_source import check_weights_of, digest_of, trained_weights

#: The timed part of a cell may take this many times its sampling limit (building, warm-up, three samples) …
WALL_LIMIT_FACTOR = 10.0
#: … but never less than this, in seconds: starting a worker alone takes seconds.
MIN_WALL_LIMIT_S = 30.0
#: Compilation is not sampling; a compiled cell gets this much more time, in seconds.
COMPILE_ALLOWANCE_S = 600.0


@dataclass(frozen=True)
class Sampling:
    """How well to measure: the stop rule of the throughput probe.

    Attributes:
        precision: relative half-width of the 95 % interval of the median at which sampling may stop.
        time_limit_s: sampling time of one cell after which it stops in any case (three samples are always taken).
        seed: seeds weights, inputs and the order of interleaving.
    """

    precision: float = 0.01
    time_limit_s: float = 15.0
    seed: int = 0

    def wall_limit_s(self, mode: str) -> float:
        """Return the wall time after which a cell of ``mode`` is stopped from outside."""
        allowance = COMPILE_ALLOWANCE_S if mode.startswith("compile") else 0.0
        return max(MIN_WALL_LIMIT_S, WALL_LIMIT_FACTOR * self.time_limit_s) + allowance


@dataclass(frozen=True)
class EvaluationSettings:
    """How images pass through a model whose accuracy is taken; nothing of it changes what is found.

    Attributes:
        batch: images of one forward pass.
        workers: processes that prepare images; None: as many as there are CPUs to spare.
    """

    batch: int = 32
    workers: int | None = None


#: Axes of a suite that are lists.
_CROSSED = (
    *("models", "batch", "dtype", "tf32", "layout", "mode", "step"),
    *("checkpointing", "sdpa", "allocator", "threads", "data"),
)
#: Side of the yardstick's image in pixels, and its batch on a card, which one image would leave idle.
_YARDSTICK_SIDE, _YARDSTICK_BATCH = 224, 32


@dataclass(frozen=True)
class Plan:
    """Cells in groups, what to measure on them, and how.

    Attributes:
        suite: name of the suite it came from.
        groups: cells that differ in the model alone, smallest resolution first.
        probes: names of the probes to run on every cell.
        sampling: the stop rule.
        evaluation: how accuracy is taken.
        recipes: of the trainings that come before the cells, by the data that they are on.
    """

    suite: str
    groups: tuple[tuple[Cell, ...], ...]
    probes: tuple[str, ...]
    sampling: Sampling
    evaluation: EvaluationSettings = field(default_factory=lambda: EvaluationSettings())
    recipes: Mapping[str, Recipe] = field(default_factory=dict)

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(itertools.chain.from_iterable(self.groups))

    @property
    def yardstick(self) -> Cell:
        """What is timed beside every group: a fixed network, on the device and in the dtype of the first cell."""
        first = self.cells[0]
        return Cell(
            model=YARDSTICK,
            height=_YARDSTICK_SIDE,
            width=_YARDSTICK_SIDE,
            batch=1 if first.device == "cpu" else _YARDSTICK_BATCH,
            **{name: getattr(first, name) for name in ("dtype", "tf32", "layout", "device", "threads", "allocator")},
        )

    def to_json(self) -> dict[str, Any]:
        plain = dataclasses.asdict(dataclasses.replace(self, recipes={}))
        plain["yardstick"] = dataclasses.asdict(self.yardstick)
        return plain | {"recipes": {data: recipe.model_dump(mode="json") for data, recipe in self.recipes.items()}}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Plan:
        """Return the plan that run.json holds.

        Raises:
            StoreError: the body is not a plan of this release.
            ModelGoneError: a model file has changed or is gone, or a library is no longer installed.
        """
        try:
            groups = tuple(tuple(_checked_cell(Cell(**cell)) for cell in group) for group in body["groups"])
            if not groups or not all(groups):
                raise ValueError("it has no cells")
            return cls(
                suite=body["suite"],
                groups=groups,
                probes=tuple(check_probe(name) for name in body["probes"]),
                sampling=Sampling(
                    precision=float(body["sampling"]["precision"]),
                    time_limit_s=float(body["sampling"]["time_limit_s"]),
                    seed=int(body["sampling"]["seed"]),
                ),
                evaluation=EvaluationSettings(**body.get("evaluation", {})),
                recipes={  # of all that is trained; a cell without one would be found missing hours later
                    data: parse_recipe(recipe, source="run.json") for data, recipe in body.get("recipes", {}).items()
                },
            )
        except ModelGoneError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, UsageError) as problem:
            raise StoreError(f"run.json holds no plan that this release can read: {problem}") from None


def work(cell: Cell) -> float:
    """How long a cell takes, in arbitrary units: half of it whatever its size, and as much again at 512 × 512."""
    return 1.0 + (1 if cell.batch_policy == "max" else cell.batch) * cell.resolution.pixels / 512**2


def build_plan(suite: Suite, *, device: str, threads: int) -> Plan:
    """Cross the axes of ``suite`` into a plan for ``device`` (``cpu``, ``cuda:<index>`` or ``meta``).

    On ``meta`` nothing is run: probes that need a device are left out, and memory is predicted. TF32 is an axis of
    float32 on CUDA, activation checkpointing one of training; what they are crossed with beside that appears once.
    ``threads`` holds where the suite names none.

    Raises:
        UsageError: the suite needs CUDA and the device is a CPU, or sets something that the device does not have.
    """
    _check_count(suite)
    _check_device_has(suite, device)
    on_cuda = device.startswith("cuda")
    models = list(dict.fromkeys(check_model(name) for name in suite.models))
    check_networks_differ(models)
    axes = itertools.product(
        suite.batch,
        suite.dtype,
        suite.tf32,
        suite.layout,
        suite.mode,
        suite.step,
        suite.checkpointing,
        suite.sdpa,
        suite.threads or [threads],
        ["default"] if on_cuda else suite.allocator or ["retain"],
        suite.data if suite.data and "accuracy" in suite.probes else [""],
        suite.training.seeds if suite.training else [None],
        parse_resolutions(suite.res),
    )
    groups: dict[tuple[Cell, ...], None] = {}
    for batch, dtype, tf32, layout, mode, step, checkpointing, sdpa, workers, allocator, data, seed, resolution in axes:
        group = tuple(
            Cell(
                model=model,
                height=resolution.height,
                width=resolution.width,
                batch=0 if batch == "max" else batch,
                batch_policy="max" if batch == "max" else "fixed",
                dtype=dtype,
                tf32=tf32 and on_cuda and dtype == "float32",
                layout=layout,
                mode=mode,
                step=step,
                checkpointing=checkpointing and step == "train",
                sdpa=sdpa,
                device=device,
                threads=workers,
                allocator=allocator,
                data=data,
                weights=_weights(suite, model, data, seed),
            )
            for model in models
        )
        groups[group] = None
    sampling = Sampling(precision=suite.precision, time_limit_s=suite.time_limit_s, seed=suite.seed)
    probes = _counting_probes(suite.probes) if device == "meta" else tuple(suite.probes)
    evaluation = EvaluationSettings(batch=suite.evaluation_batch, workers=suite.workers)
    return Plan(
        suite=suite.name,
        groups=tuple(groups),
        probes=probes,
        sampling=sampling,
        evaluation=evaluation,
        recipes={data: recipe for data in suite.data or [] if (recipe := suite.recipe(data))},
    )


def _check_count(suite: Suite) -> None:
    """Count the cells of a suite before any is made.

    Raises:
        UsageError: there are more than ``MAX_CELLS``.
    """
    axes = {name: len(getattr(suite, name) or [None]) for name in _CROSSED}
    axes["seeds"] = len(suite.training.seeds) if suite.training else 1
    axes["res"] = len(parse_resolutions(suite.res))
    cells = math.prod(axes.values())
    if cells > MAX_CELLS:
        product = " × ".join(f"{count:,} {name}" for name, count in axes.items() if count > 1)
        raise UsageError(
            f"suite {suite.name!r} has {cells:,} cells ({product}), and a run takes {MAX_CELLS:,}; split it"
        )


def _weights(suite: Suite, model: str, data: str, seed: int | None) -> str:
    """Return where a model of ``suite`` has its weights from, as ``Cell.weights`` names it."""
    if seed is not None:
        recipe = suite.recipe(data)
        assert recipe is not None
        return trained_weights(seed, recipe)
    path = {check_model(name): path for name, path in (suite.checkpoints or {}).items()}.get(model)
    if path is None:
        return ""
    digest = digest_of(Path(path))
    check_weights_of(model, Path(path))
    return f"{path}@{digest}"


def _check_device_has(suite: Suite, device: str) -> None:
    """Refuse what ``device`` cannot do, and axes that mean nothing together.

    Raises:
        UsageError: see there.
    """
    on_cuda, on_meta = device.startswith("cuda"), device == "meta"
    if suite.requires_cuda and not on_cuda:
        raise UsageError(
            f"suite {suite.name!r} needs a CUDA device, and this run is on {device}; "
            "use another suite, or a machine with a GPU"
        )
    if not on_cuda and suite.tf32 == [True]:
        raise UsageError("tf32 asks for TF32 products, which only CUDA has; drop it or use a CUDA device")
    if suite.tf32 == [True] and "float32" not in suite.dtype:
        raise UsageError(f"tf32 is a way to multiply float32, and the dtype is {', '.join(suite.dtype)}; drop one")
    if on_cuda and suite.allocator is not None:
        raise UsageError("allocator sets the C allocator of CPU cells, which CUDA cells do not use; drop it")
    if not on_cuda and (lacking := sorted({"cuda-graphs", "compile-reduce-overhead"} & set(suite.mode))):
        raise UsageError(f"mode {lacking[0]} replays CUDA graphs, which a CPU has not; use compile")
    if not on_cuda and (lacking := sorted({"efficient", "cudnn"} & set(suite.sdpa))):
        raise UsageError(f"sdpa {lacking[0]} is a CUDA kernel; on a CPU there are auto, flash and math")
    if "cuda-graphs" in suite.mode and "train" in suite.step:
        raise UsageError("mode cuda-graphs captures inference; for training use compile-reduce-overhead")
    if "optimized" in suite.mode and "train" in suite.step:
        raise UsageError("mode optimized is a form for inference alone; drop it, or --mode train")
    if suite.checkpointing == [True] and "train" not in suite.step:
        raise UsageError("checkpointing saves memory of training; add --mode train, or drop it")
    if on_meta and "max" in suite.batch:
        raise UsageError("batch max is what fits in memory, and device meta has no limit; give a number")
    _check_accuracy(suite, on_meta=on_meta)
    if "telemetry" in suite.probes and not on_meta and "throughput" not in suite.probes:
        raise UsageError("probe telemetry watches the machine while throughput samples; ask for that too")
    if "roofline" in suite.probes and not on_meta and not {"macs", "throughput"} <= set(suite.probes):
        raise UsageError("probe roofline puts together what macs and throughput find; ask for both of them too")


def _check_accuracy(suite: Suite, *, on_meta: bool) -> None:
    """Refuse an accuracy without data or weights, and data without an accuracy.

    Raises:
        UsageError: see there.
    """
    wanted = "accuracy" in suite.probes
    models = {check_model(name) for name in suite.models}
    with_weights = {check_model(name) for name in suite.checkpoints or {}}
    if suite.training and suite.checkpoints:
        raise UsageError("weights come from training or from checkpoints; drop one of them")
    if other := sorted(with_weights - models):
        raise UsageError(f"there is a checkpoint for {other[0]}, which is none of the models; drop it")
    if not wanted:
        if suite.data or suite.training:
            raise UsageError("data and training are for the probe accuracy; ask for it, or drop them")
        return
    if on_meta:
        raise UsageError("device meta runs nothing, so it has no accuracy; drop the probe, or use another device")
    if "train" in suite.step:
        raise UsageError("accuracy is of trained weights, and a training step changes them; drop --mode train")
    if not suite.data:
        raise UsageError("probe accuracy needs images; give --data, e.g. digits:field or folder:PATH")
    if not suite.training and (lacking := sorted(models - with_weights)):
        raise UsageError(
            f"probe accuracy needs trained weights, and {lacking[0]} has none; give --checkpoint, or train it first: "
            "sema-bench train --help"
        )
    for text in suite.data:
        for resolution in parse_resolutions(suite.res):
            parse_data(text).check_size(resolution)


def _counting_probes(probes: Sequence[str]) -> tuple[str, ...]:
    """Return what the meta device can give: counts, and predicted memory in place of measured memory.

    Raises:
        UsageError: nothing is left.
    """
    known = dict.fromkeys("forecast" if name == "memory" else name for name in probes)
    kept = tuple(name for name in known if PROBES.load(name).on_meta)
    if not kept:
        raise UsageError(
            f"device meta runs nothing, so it has no {', '.join(probes)}; probes that count: {_counting()}"
        )
    return kept


def _counting() -> str:
    return ", ".join(name for name in PROBES if PROBES.load(name).on_meta)


def _checked_cell(cell: Cell) -> Cell:
    """Return ``cell`` if this release could have planned it."""
    choices = {
        "dtype": DTYPES,
        "layout": LAYOUTS,
        "mode": MODES,
        "allocator": ALLOCATORS,
        "step": STEPS,
        "sdpa": SDPA_BACKENDS,
        "batch_policy": BATCH_POLICIES,
    }
    for name, known in choices.items():
        if getattr(cell, name) not in known:
            raise unknown_name(name, getattr(cell, name), known)
    check_device(cell.device)
    if cell.data and str(parse_data(cell.data)) != cell.data:
        raise ValueError(f"cell {cell.id!r}")
    if check_model(cell.model) != cell.model or parse_resolutions(str(cell.resolution)) != (cell.resolution,):
        raise ValueError(f"cell {cell.id!r}")
    fewest = 0 if cell.batch_policy == "max" else 1
    if not fewest <= cell.batch <= MAX_BATCH or not 1 <= cell.threads <= MAX_THREADS:
        raise ValueError(f"cell {cell.id!r}")
    return cell
