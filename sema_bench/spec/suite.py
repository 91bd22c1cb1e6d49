"""Read suites, which declare experiments in TOML, and check them."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from sema_bench.errors import SuiteError, UsageError, hints, unknown_name
from sema_bench.spec.axes import Axis
from sema_bench.spec.cell import AXES, MAX_BATCH, Cell, check_device, check_model
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.files import check_regular_file, similar_file
from sema_bench.spec.probes import PROBES
from sema_bench.spec.recipe import Recipe
from sema_bench.spec.resolution import USUAL, parse_resolutions, sizes_of
from sema_bench.spec.validation import key_of, message_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

read_toml: Callable[[str], dict[str, Any]] = tomllib.loads
#: More cells than this take weeks: a mistake, or a suite to split.
MAX_CELLS = 10_000
_USUAL_PROBES = ["params", "macs", "memory", "throughput", "telemetry", "roofline"]


def check_probe(name: str) -> str:
    """Return ``name``; raise UsageError unless it is a probe."""
    if name not in PROBES:
        raise unknown_name("probe", name, PROBES)
    return name


def _reader(read: Callable[[str], object]) -> Callable[[str], Any]:
    """Make ``read`` raise the errors that pydantic expects."""

    def validate(value: str) -> Any:
        try:
            return read(value)
        except UsageError as problem:
            raise ValueError(str(problem)) from None

    return validate


def _checked(check: Callable[[str], object]) -> AfterValidator:
    """Make a validator that checks a text and does not change it."""
    validate = _reader(check)
    return AfterValidator(lambda value: (validate(value), value)[1])


def _distinct(values: list[Any]) -> list[Any]:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value!r} occurs twice")
        seen.add(value)
    return values


def _countable(values: Any) -> Any:
    """Refuse a list that is too long for any plan, before its items are checked."""
    if isinstance(values, list) and len(values) > MAX_CELLS:
        raise ValueError(f"{len(values):,} values are too many; a run takes {MAX_CELLS:,} cells")
    return values


#: Name of data → the same without its options.
_source_of_data = _reader(lambda text: str(dataclasses.replace(parse_data(text), options={})))


def _with_full_sizes(deltas: dict[str, float]) -> dict[str, float]:
    """Write sizes as cells do: ``m@224`` is ``m@224x224``."""
    full = {}
    for name, delta in deltas.items():
        model, at, size = name.rpartition("@")
        with contextlib.suppress(UsageError):
            sizes = parse_resolutions(size) if at else []
            name = f"{model}@{sizes[0]}" if len(sizes) == 1 else name
        full[name] = delta
    return full


def _distinct_sources(table: Any) -> Any:
    if isinstance(table, dict):  # not a table: pydantic reports the wrong type
        _distinct([_source_of_data(str(data)) for data in table])
    return table


_Delta = Annotated[float, Field(ge=0.005, le=1.0)]
#: Axes that a suite lists under their names, and a plan crosses.
CROSSED = {name: axis for name, axis in AXES.items() if axis.crossed}

_Item = TypeVar("_Item")
_Model = TypeVar("_Model", bound=BaseModel)
#: An axis: at least one value, each once.
_Axis = Annotated[list[_Item], Field(min_length=1), AfterValidator(_distinct), BeforeValidator(_countable)]


def _item_of(axis: Axis) -> Any:
    if axis.choices:
        return Literal.__getitem__(axis.choices)
    if axis.canonical:
        return Annotated[str, AfterValidator(_reader(axis.canonical))]
    if axis.type is int:
        least, most = axis.limits
        number: Any = Annotated[int, Field(ge=least, le=most)]
        return number | Literal["max"] if axis.name == "batch" else number
    return axis.type


def _expander(expand: Callable[[str], list[str]]) -> Callable[[Any], Any]:
    """Replace each text of a list by the values that it stands for."""
    read = _reader(expand)
    return lambda values: (
        [each for text in values for each in (read(text) if isinstance(text, str) else [text])]
        if isinstance(values, list)
        else values
    )


def _with_axes(suite: type[_Model]) -> type[_Model]:
    """Add a list for each axis that a plan crosses."""
    fields: dict[str, Any] = {}
    lists: Any = _Axis
    for axis in CROSSED.values():
        values = lists[_item_of(axis)]
        if axis.expand:
            values = Annotated[values, BeforeValidator(_expander(axis.expand))]
        fields[axis.name] = (values | None, None) if axis.optional else (values, [axis.default])
    return create_model(suite.__name__, __base__=suite, __module__=__name__, __doc__=suite.__doc__, **fields)


class GateTable(BaseModel):
    """Settings of ``sema-bench gate`` in a suite.

    Attributes:
        delta: slowdown that is not accepted, 0.03 for 3 %.
        deltas: the same for some cells, by ``model`` or ``model@HxW``.
        budget_s: seconds after which no new measurement starts.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    delta: _Delta = 0.03
    deltas: Annotated[dict[str, _Delta], AfterValidator(_with_full_sizes)] = {}
    budget_s: Annotated[float, Field(gt=0, le=1e6)] | None = None

    def delta_of(self, cell: Cell) -> float:
        """Return the δ that applies to ``cell``."""
        name = cell.model.partition("@")[0]  # an edited file is the same model
        return self.deltas.get(f"{name}@{cell.resolution}", self.deltas.get(name, self.delta))


@_with_axes
class Suite(BaseModel):
    """One declared experiment: what to run (``models`` × ``res`` × axes), what to measure, and how well.

    Each axis in ``CROSSED`` is a list of values too; a plan crosses them all.

    The probe ``accuracy`` needs ``data`` and weights: ``checkpoints`` (model → file), or ``training``, the recipe by
    which every model is trained on each of ``data``, once for each seed. ``training_for`` (data without options → keys
    of a recipe) changes it for some of the data.
    """

    if TYPE_CHECKING:  # the lists of the axes

        def __getattr__(self, name: str) -> Any: ...

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    claim: str = ""
    cost: str = ""
    models: _Axis[Annotated[str, _checked(check_model)]]
    res: Annotated[str, _checked(sizes_of)]
    probes: _Axis[Annotated[str, _checked(check_probe)]] = _USUAL_PROBES
    device: Annotated[str, _checked(check_device)] = "auto"
    requires_cuda: bool = False
    checkpoints: dict[Annotated[str, _checked(check_model)], Annotated[str, Field(min_length=1)]] | None = None
    training: Recipe | None = None
    training_for: Annotated[
        dict[Annotated[str, AfterValidator(_source_of_data)], dict[str, Any]], BeforeValidator(_distinct_sources)
    ] = {}
    gate: GateTable | None = None
    evaluation_batch: int = Field(default=32, ge=1, le=MAX_BATCH)
    workers: int | None = Field(default=None, ge=0, le=256)
    precision: float = Field(default=0.02, gt=0, lt=1)
    time_limit_s: float = Field(default=15.0, gt=0, le=1e6)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _trainings_fit(self) -> Suite:
        for data, changes in self.training_for.items():
            if not self.training or data not in map(_source_of_data, self.data or []):
                raise ValueError(f"training_for has {data!r}, but no model is trained on it; add it to data or drop it")
            if "seeds" in changes:
                raise ValueError("training_for cannot set seeds; set them for all data in [training]")
            try:
                self.recipe(data)
            except UsageError as problem:
                raise ValueError(str(problem)) from None
        return self

    def recipe(self, data: str) -> Recipe | None:
        """Build the recipe of trainings on ``data``, None if nothing is trained."""
        changes = self.training_for.get(_source_of_data(data), {})
        return self.training.changed(changes, source="training_for") if self.training else None


def suites_folder() -> Path:
    """Find the folder of the suites that come with the project, installed or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_suites"
    return installed if installed.is_dir() else package.parent / "suites"


def list_suites() -> dict[str, Path]:
    """Map the names of the suites that come with the project to their files."""
    return {path.stem: path for path in sorted(suites_folder().glob("*.toml"))}


def load_suite(name_or_path: str) -> Suite:
    """Read a suite: a path, or one that comes with the project, as ``scaling``; raise SuiteError for a bad one."""
    path = Path(name_or_path)
    try:
        check_regular_file(path, "suite")
        if not path.is_file():
            known = list_suites()
            name = path.stem if path == Path("suites", f"{path.stem}.toml") else name_or_path
            if name not in known:
                hint = similar_file(path) or f"; {hints(name, known)}"
                raise SuiteError(f"no suite and no file {name_or_path!r}{hint}")
            path = known[name]
        body = read_toml(path.read_text(encoding="utf-8-sig"))
    except OSError as problem:
        raise SuiteError(f"suite {name_or_path[:100]!r} cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:  # both tomllib and the decoder raise ValueError
        raise SuiteError(f"{path}: not valid TOML: {problem}") from None
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64] or "suite"
    return parse_suite({"name": name, **body}, source=str(path))


def parse_suite(body: dict[str, Any], *, source: str) -> Suite:
    """Read a suite; raise SuiteError, which names ``source``, for an unknown key or a wrong value."""
    try:
        return Suite.model_validate(body)
    except ValidationError as problem:
        raise SuiteError(f"{source}: {'; '.join(_explain(error) for error in problem.errors()[:3])}") from None


def override(suite: Suite, changes: dict[str, Any]) -> Suite:
    """Replace fields of ``suite``; raise UsageError, which names the option, for a wrong value.

    If ``changes`` set a task but no sizes, the usual size of that task replaces those of the suite.

    The claim of a suite is about its own models; a change of models drops it.
    """
    if "task" in changes:
        changes = {"res": USUAL, **changes}
    try:
        changed = Suite.model_validate({**suite.model_dump(), **changes, "training_for": {}})
    except ValidationError as problem:
        first = problem.errors()[0]
        raise UsageError(f"{option_of(str(first['loc'][0]))}: {message_of(first)}") from None
    sources = set(map(_source_of_data, changed.data or []))
    changes_of = {data: keys for data, keys in suite.training_for.items() if data in sources}
    same = changed.models == suite.models
    return changed.model_copy(update={"training_for": changes_of, "claim": suite.claim if same else ""})


def option_of(key: str) -> str:
    """Name the command-line option that changes ``key`` of a suite."""
    options = {axis.suite_key: axis.option for axis in AXES.values()}
    return options.get(key) or f"--{key.removesuffix('_s').replace('_', '-')}"


def _explain(error: Any) -> str:
    location = key_of(error)
    if error["type"] == "extra_forbidden":
        table, _, key = location.rpartition(".")
        tables: dict[str, type[BaseModel]] = {"training": Recipe, "gate": GateTable}
        return str(unknown_name("key", key, tables.get(table, Suite).model_fields))
    if error["type"] == "missing":
        return f"key {location!r} is missing"
    key, comma, entry = location.partition(", ")
    return f"key {key!r}{comma}{entry}: {message_of(error)}" if key else message_of(error)
