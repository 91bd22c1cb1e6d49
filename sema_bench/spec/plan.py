"""Plan a suite: put its cells into groups that are sampled side by side, smallest size first.

If a size does not fit, a larger one is not tried.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sema_bench.errors import StoreError, UsageError, unknown_name
from sema_bench.spec.cell import AXES, Cell, check_model
from sema_bench.spec.checks import check_suite, counting_probes
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.model_source import YARDSTICK, ModelGoneError, check_networks_differ
from sema_bench.spec.protocol import default_protocol
from sema_bench.spec.recipe import Recipe, parse_recipe
from sema_bench.spec.resolution import sizes_of
from sema_bench.spec.sampling import EvaluationSettings, Sampling
from sema_bench.spec.suite import CROSSED, Suite, check_probe
from sema_bench.spec.target import Card
from sema_bench.spec.weights_source import check_weights_of, digest_of, trained_weights


@dataclass(frozen=True)
class Plan:
    """Cells in groups, and the way to measure them."""

    suite: str
    groups: tuple[tuple[Cell, ...], ...]  # cells that differ only in model and protocol, smallest resolution first
    probes: tuple[str, ...]
    sampling: Sampling
    yardstick: Cell | None = None  # timed beside every group
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    recipes: Mapping[str, Recipe] = field(default_factory=dict)  # data → recipe of the trainings on it

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(itertools.chain.from_iterable(self.groups))

    def to_json(self) -> dict[str, Any]:
        plain = dataclasses.asdict(dataclasses.replace(self, recipes={}))
        return plain | {"recipes": {data: recipe.model_dump(mode="json") for data, recipe in self.recipes.items()}}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Plan:
        """Read the plan in run.json; raise StoreError for another body, ModelGoneError if a model's code is gone."""
        try:
            groups = tuple(tuple(_checked_cell(Cell(**cell)) for cell in group) for group in body["groups"])
            if not all(groups):
                raise ValueError("it has no cells")
            sampling, recipes = body["sampling"], body.get("recipes", {})
            return cls(
                suite=body["suite"],
                groups=groups,
                probes=tuple(check_probe(name) for name in body["probes"]),
                sampling=Sampling(
                    float(sampling["precision"]), float(sampling["time_limit_s"]), seed=int(sampling["seed"])
                ),
                yardstick=Cell(**body["yardstick"]) if body.get("yardstick") else None,
                evaluation=EvaluationSettings(**body.get("evaluation", {})),
                recipes={data: parse_recipe(recipe, source="run.json") for data, recipe in recipes.items()},
            )
        except ModelGoneError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, UsageError) as problem:
            raise StoreError(f"run.json holds no plan that this release can read: {problem}") from None


def work(cell: Cell) -> float:
    """Estimate how long a cell takes, in arbitrary units: 1 for any size, and 1 more at 512 × 512."""
    return 1.0 + (1 if cell.batch_policy == "max" else cell.batch) * cell.resolution.pixels / 512**2


def build_plan(
    suite: Suite,
    *,
    device: str,
    threads: int,
    card: Card = Card(),  # noqa: B008 - frozen
) -> Plan:
    """Cross the axes of ``suite`` into a plan for ``device`` (``cpu``, ``cuda:<index>`` or ``meta``).

    An axis that does not apply to a cell, such as TF32 to bfloat16 or to an old ``card``, has its idle value there.
    ``threads`` is used if the suite names none. Raise UsageError if ``check_suite`` refuses the suite, or if two models
    are one network.
    """
    check_suite(suite, device, card)
    if card.is_before_ampere:
        suite = suite.model_copy(update={"tf32": [False]})
    models = list(dict.fromkeys(check_model(name) for name in suite.models))
    check_networks_differ(models)
    checkpoints = _checkpoints(suite)
    lists = [getattr(suite, name) or [threads if name == "threads" else axis.default] for name, axis in CROSSED.items()]
    seeds = suite.training.seeds if suite.training else [None]
    groups: dict[tuple[Cell, ...], None] = {}
    for *values, seed in itertools.product(*lists, seeds):
        given = dict(zip(CROSSED, values, strict=True)) | {"device": device}
        settings = {name: value if AXES[name].applies(given) else AXES[name].idle for name, value in given.items()}
        if given["batch"] == "max":
            settings |= {"batch": 0, "batch_policy": "max"}
        recipe = suite.recipe(settings["data"]) if suite.training else None
        tested = parse_data(settings["data"]) if settings["data"] and suite.protocol is None else None
        sizes = sizes_of(suite.res, settings["task"])
        for resolution in sizes:
            group = tuple(
                Cell(
                    model=model,
                    height=resolution.height,
                    width=resolution.width,
                    weights=trained_weights(seed, recipe) if recipe else checkpoints.get(model, ""),
                    **settings | ({"protocol": default_protocol(model, sizes, tested)} if tested else {}),
                )
                for model in models
            )
            groups[group] = None
    first = next(iter(groups))[0]
    return Plan(
        suite=suite.name,
        groups=tuple(groups),
        probes=counting_probes(suite.probes) if device == "meta" else tuple(suite.probes),
        sampling=Sampling(precision=suite.precision, time_limit_s=suite.time_limit_s, seed=suite.seed),
        yardstick=Cell(
            model=YARDSTICK,
            height=224,
            width=224,
            batch=1 if first.device == "cpu" else 32,  # one image would leave a card idle
            **first.surroundings,
        ),
        evaluation=EvaluationSettings(batch=suite.evaluation_batch, workers=suite.workers),
        recipes={data: recipe for data in suite.data or [] if (recipe := suite.recipe(data))},
    )


def _checkpoints(suite: Suite) -> dict[str, str]:
    """Map models to their checkpoints as ``Cell.weights`` names them; refuse those of other models."""
    weights = {}
    for name, path in (suite.checkpoints or {}).items():
        weights[check_model(name)] = f"{path}@{digest_of(Path(path))}"
        check_weights_of(name, Path(path))
    return weights


def _checked_cell(cell: Cell) -> Cell:
    """Return ``cell``; raise UsageError or ValueError if this release could not have planned it."""
    for axis in AXES.values():
        value = getattr(cell, axis.name)
        if axis.choices and value not in axis.choices:
            raise unknown_name(axis.name, value, axis.choices)
        if axis.canonical and axis.canonical(value) != value:
            raise ValueError(f"cell {cell.id!r}")
        least, most = axis.limits
        if axis.name == "batch" and cell.batch_policy == "max":
            least = 0  # it is chosen when the cell runs
        if axis.type is int and not least <= value <= most:
            raise ValueError(f"cell {cell.id!r}")
    return cell
