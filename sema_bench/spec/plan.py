"""A plan: the ordered cells of a suite, in groups that are measured side by side. No torch.

A group holds the cells that differ in the model alone; its throughput is sampled interleaved.
Groups go from small to large, so that what a size could not do tells what a larger one cannot.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sema_bench.errors import StoreError, UsageError, unknown_name
from sema_bench.spec.cell import ALLOCATORS, BATCH_POLICIES, DTYPES, LAYOUTS, MODES, SDPA_BACKENDS, STEPS, Cell
from sema_bench.spec.checks import check_count, check_device_has
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.model_source import YARDSTICK, ModelGoneError, check_networks_differ
from sema_bench.spec.probes import PROBES
from sema_bench.spec.recipe import Recipe, parse_recipe
from sema_bench.spec.resolution import parse_resolutions
from sema_bench.spec.sampling import EvaluationSettings, Sampling
from sema_bench.spec.suite import MAX_BATCH, MAX_THREADS, Suite, check_device, check_model, check_probe
from sema_bench.spec.weights_source import check_weights_of, digest_of, trained_weights

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
    check_count(suite)
    check_device_has(suite, device)
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
