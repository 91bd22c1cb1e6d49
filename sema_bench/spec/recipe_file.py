"""Read the papers' recipes: TOML files with the keys of a recipe, and changes for single models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from sema_bench.errors import UsageError, unknown_name
from sema_bench.spec.cell import check_model
from sema_bench.spec.files import check_regular_file
from sema_bench.spec.recipe import Recipe, parse_recipe
from sema_bench.spec.suite import read_toml, suites_folder


class _Tables(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    training: dict[str, Any]
    training_of: dict[str, dict[str, Any]] = {}


def list_recipes() -> dict[str, Path]:
    """Map the names of the recipes that come with the project to their files."""
    return {path.stem: path for path in sorted((suites_folder() / "recipes").glob("*.toml"))}


def load_recipe(name: str, model: str = "") -> Recipe:
    """Read the recipe ``name``, or that of a TOML file, for ``model``; raise UsageError for a bad one.

    The table ``[training]`` is the recipe, and ``[training_of.MODEL]`` changes keys of it for that model.
    """
    tables = _read(name)
    changes = tables.training_of.get(model.partition("[")[0], {})
    return parse_recipe({**tables.training, **changes}, source=name)


def _read(name: str) -> _Tables:
    known = list_recipes()
    path = known.get(name, Path(name))
    try:
        check_regular_file(path, "recipe")
        if not path.is_file():
            raise unknown_name("recipe", name, known)
        tables = _Tables.model_validate(read_toml(path.read_text(encoding="utf-8-sig")))
    except OSError as problem:
        raise UsageError(f"recipe {name[:100]!r} cannot be read: {problem.strerror}") from None
    except ValidationError:
        raise UsageError(
            f"{path} is no recipe; expected a table [training], and perhaps [training_of.MODEL] with changes"
        ) from None
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{path}: not valid TOML: {problem}") from None
    for model in tables.training_of:
        check_model(model)  # a mistyped one would change nothing
    return tables
