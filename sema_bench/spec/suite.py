"""Suites: declared experiments in TOML, read and checked without torch."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from sema_bench.errors import SuiteError, UsageError, unknown_name
from sema_bench.spec.cell import ALLOCATORS, DTYPES, LAYOUTS, MODES, SDPA_BACKENDS, STEPS
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.files import check_regular_file
from sema_bench.spec.model_source import parse_source
from sema_bench.spec.probes import PROBES
from sema_bench.spec.recipe import Recipe
from sema_bench.spec.resolution import parse_resolutions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: More cells than this take weeks: a mistake, or a suite to split.
MAX_CELLS = 10_000
MAX_BATCH = 65536
MAX_THREADS = 4096
MAX_WORKERS = 256


def check_model(name: str) -> str:
    """Return the canonical form of a model name such as ``sema_tiny[linear]`` or ``file.py:build``.

    Raises:
        UsageError: see ``sema_bench.spec.model_source.parse_source``.
    """
    return parse_source(name).name


def check_device(name: str) -> str:
    """Return ``name`` if it has the form of a device.

    Raises:
        UsageError: it has not.
    """
    if not re.fullmatch(r"auto|cpu|meta|cuda(:\d{1,4})?", name, re.ASCII):
        raise UsageError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:<index>, meta")
    return name


def check_probe(name: str) -> str:
    """Return ``name`` if it is a probe.

    Raises:
        UsageError: it is not; the message lists the known ones.
    """
    if name not in PROBES:
        raise unknown_name("probe", name, PROBES)
    return name


def _checked(check: Any) -> AfterValidator:
    def validate(value: str) -> str:
        try:
            check(value)
        except UsageError as problem:
            raise ValueError(str(problem)) from None
        return value

    return AfterValidator(validate)


def _distinct(values: list[Any]) -> list[Any]:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value!r} occurs twice")
        seen.add(value)
    return values


def _countable(values: Any) -> Any:
    """Refuse a list that no plan could hold before its items are looked at, one by one."""
    if isinstance(values, list) and len(values) > MAX_CELLS:
        raise ValueError(f"{len(values):,} values are too many; a run takes {MAX_CELLS:,} cells")
    return values


def _source_of_data(text: str) -> str:
    """Return data without its options."""
    return str(parse_data(_canonical_data(text)).without_options)


def _with_full_sizes(deltas: dict[str, float]) -> dict[str, float]:
    """Return ``deltas`` with sizes as cells have them: ``m@224`` is ``m@224x224``."""
    found = {}
    for name, delta in deltas.items():
        model, at, size = name.rpartition("@")
        with contextlib.suppress(UsageError):
            sizes = parse_resolutions(size) if at else []
            name = f"{model}@{sizes[0]}" if len(sizes) == 1 else name
        found[name] = delta
    return found


def _distinct_sources(table: Any) -> Any:
    if isinstance(table, dict):  # what is no table is told of by its type
        _distinct([_source_of_data(str(data)) for data in table])
    return table


def _canonical_data(text: str) -> str:
    try:
        return str(parse_data(text))
    except UsageError as problem:
        raise ValueError(str(problem)) from None


_Delta = Annotated[float, Field(ge=0.005, le=1.0)]
_DType = Literal[DTYPES]  # type: ignore[valid-type]
_Layout = Literal[LAYOUTS]  # type: ignore[valid-type]
_Mode = Literal[MODES]  # type: ignore[valid-type]
_Step = Literal[STEPS]  # type: ignore[valid-type]
_Sdpa = Literal[SDPA_BACKENDS]  # type: ignore[valid-type]
_Allocator = Literal[ALLOCATORS]  # type: ignore[valid-type]


_Item = TypeVar("_Item")
#: An axis: at least one value, each once.
_Axis = Annotated[list[_Item], Field(min_length=1), AfterValidator(_distinct), BeforeValidator(_countable)]


class GateTable(BaseModel):
    """What ``sema-bench gate`` reads of a suite.

    Attributes:
        delta: slowdown that is not accepted, 0.03 for 3 %.
        deltas: the same for some cells, by ``model`` or ``model@HxW``.
        budget_s: seconds after which nothing new is begun.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    delta: _Delta = 0.03
    deltas: Annotated[dict[str, _Delta], AfterValidator(_with_full_sizes)] = {}
    budget_s: Annotated[float, Field(gt=0, le=1e6)] | None = None


class Suite(BaseModel):
    """One declared experiment: what to run (``models`` × ``res`` × axes), what to measure, and how well.

    Every list is an axis; a suite crosses them all. ``time_limit_s`` bounds the sampling of one cell,
    ``precision`` is the relative half-width of the 95 % interval of the median at which sampling stops.
    Without an ``allocator`` cells on a CPU use ``retain``; it is no axis on CUDA. A ``batch`` of ``max`` is the largest
    power of two that fits. Without ``threads`` a worker gets all CPUs that this process may use.

    The probe ``accuracy`` needs ``data`` and weights: ``checkpoints`` (model → file), or ``training``, a recipe by
    which every model is trained on each of ``data``, once for each seed; ``training_for`` (data without options →
    keys of a recipe) is what differs on some of them. ``evaluation_batch`` images pass at once, and ``workers``
    processes prepare them; neither changes what is found.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    claim: str = ""
    cost: str = ""
    models: _Axis[Annotated[str, _checked(check_model)]]
    res: Annotated[str, _checked(parse_resolutions)]
    probes: _Axis[Annotated[str, _checked(check_probe)]] = [
        "params",
        "macs",
        "memory",
        "throughput",
        "telemetry",
        "roofline",
    ]
    batch: _Axis[Annotated[int, Field(ge=1, le=MAX_BATCH)] | Literal["max"]] = [1]
    dtype: _Axis[_DType] = ["float32"]
    tf32: _Axis[bool] = [False]
    layout: _Axis[_Layout] = ["channels_last"]
    mode: _Axis[_Mode] = ["eager"]
    step: _Axis[_Step] = ["infer"]
    checkpointing: _Axis[bool] = [False]
    sdpa: _Axis[_Sdpa] = ["auto"]
    allocator: _Axis[_Allocator] | None = None
    device: Annotated[str, _checked(check_device)] = "auto"
    requires_cuda: bool = False
    threads: _Axis[Annotated[int, Field(ge=1, le=MAX_THREADS)]] | None = None
    data: _Axis[Annotated[str, AfterValidator(_canonical_data)]] | None = None
    checkpoints: dict[Annotated[str, _checked(check_model)], Annotated[str, Field(min_length=1)]] | None = None
    training: Recipe | None = None
    training_for: Annotated[
        dict[Annotated[str, AfterValidator(_source_of_data)], dict[str, Any]], BeforeValidator(_distinct_sources)
    ] = {}
    gate: GateTable | None = None
    evaluation_batch: int = Field(default=32, ge=1, le=MAX_BATCH)
    workers: int | None = Field(default=None, ge=0, le=MAX_WORKERS)
    precision: float = Field(default=0.01, gt=0, lt=1)
    time_limit_s: float = Field(default=15.0, gt=0, le=1e6)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _trainings_fit(self) -> Suite:
        for data, changes in self.training_for.items():
            if not self.training or data not in map(_source_of_data, self.data or []):
                raise ValueError(f"training_for changes the training on {data!r}, and there is none")
            if "seeds" in changes:
                raise ValueError("training_for has no seeds; give those of all data in [training]")
            try:
                self.recipe(data)
            except UsageError as problem:
                raise ValueError(str(problem)) from None
        return self

    def recipe(self, data: str) -> Recipe | None:
        """Return the recipe of trainings on ``data``, None where nothing is trained."""
        changes = self.training_for.get(_source_of_data(data), {})
        return self.training.changed(changes, source="training_for") if self.training else None


def suites_folder() -> Path:
    """Return the folder of the suites that come with the project (installed, or in a checkout)."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_suites"
    return installed if installed.is_dir() else package.parent / "suites"


def list_suites() -> dict[str, Path]:
    """Return name → file of the suites that come with the project."""
    return {path.stem: path for path in sorted(suites_folder().glob("*.toml"))}


def load_suite(name_or_path: str) -> Suite:
    """Read a suite: a path, or the name of one that comes with the project (``scaling``, ``suites/scaling.toml``).

    Raises:
        SuiteError: the file is missing, is not TOML, or has an unknown key or a wrong value; the message
            names the file, the key and what was expected.
    """
    path = Path(name_or_path)
    try:
        check_regular_file(path, "suite")
        exists = path.is_file()
    except OSError as problem:
        raise SuiteError(f"suite {name_or_path[:100]!r} cannot be read: {problem.strerror}") from None
    if not exists:
        known = list_suites()
        stem = path.stem if path.suffix == ".toml" else name_or_path
        bundled = str(path) == stem or path.parent == Path("suites")
        if not bundled or stem not in known:
            raise SuiteError(f"no suite {name_or_path!r}; give a TOML file or one of: {', '.join(known)}")
        path = known[stem]
    try:
        body = read_toml(path.read_text(encoding="utf-8-sig"))
    except OSError as problem:
        raise SuiteError(f"{path}: cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:  # what tomllib and the decoder raise is a ValueError
        raise SuiteError(f"{path}: not valid TOML: {problem}") from None
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64] or "suite"
    return parse_suite({"name": name, **body}, source=str(path))


def read_toml(text: str) -> dict[str, Any]:
    """Return what TOML text holds.

    Raises:
        ValueError: it is no TOML.
    """
    body: dict[str, Any] = tomllib.loads(text)
    return body


def parse_suite(body: dict[str, Any], *, source: str) -> Suite:
    """Return the suite that ``body`` declares; ``source`` names it in messages.

    Raises:
        SuiteError: an unknown key, a wrong type or an impossible value.
    """
    try:
        return Suite.model_validate(body)
    except ValidationError as problem:
        raise SuiteError(f"{source}: {'; '.join(_explain(error) for error in problem.errors()[:3])}") from None


def override(suite: Suite, changes: dict[str, Any]) -> Suite:
    """Return ``suite`` with the given fields replaced, checked again.

    Raises:
        UsageError: a value is not possible; the message names the option.
    """
    try:
        changed = Suite.model_validate({**suite.model_dump(), **changes, "training_for": {}})
    except ValidationError as problem:
        first = problem.errors()[0]
        option = "--" + {"step": "mode"}.get(str(first["loc"][0]), str(first["loc"][0])).replace("_", "-").removesuffix(
            "-s"
        )
        raise UsageError(f"{option}: {_message(first)}") from None
    sources = set(map(_source_of_data, changed.data or []))
    kept = {data: keys for data, keys in suite.training_for.items() if data in sources}
    return changed.model_copy(update={"training_for": kept})


def _explain(error: Any) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        table, _, key = location.rpartition(".")
        tables: dict[str, type[BaseModel]] = {"training": Recipe, "gate": GateTable}
        return _unknown_key(key, tables.get(table, Suite).model_fields)
    if error["type"] == "missing":
        return f"key {location!r} is missing"
    return f"key {location!r}: {_message(error)}" if location else _message(error)


def _unknown_key(key: str, known: Iterable[str]) -> str:
    return str(unknown_name("key", key, known))


def _message(error: Any) -> str:
    text = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "too_short":
        return "give at least one"
    if error["type"] == "value_error":
        return text
    return f"{text}; got {error['input']!r}"
