"""Where the weights of a cell come from, as ``Cell.weights`` names it; read without torch.

- empty: random ones, from the run's seed;
- ``<file>@<digest>``: a checkpoint; a file that has changed since the run was planned is refused;
- ``seed <n>@<digest of the recipe>``: the run has trained them itself, on the cell's data.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sema.checkpoint_files import CheckpointError, file_format, first_line
from sema_bench.errors import UsageError
from sema_bench.spec.cell import Cell
from sema_bench.spec.files import check_regular_file
from sema_bench.spec.model_source import parse_source
from sema_bench.spec.recipe import Recipe
from sema_bench.text.escape import printable

WEIGHTS_FILE = "weights.safetensors"
#: Key of a safetensors header under which our description of the weights stands.
ABOUT_KEY = "sema_bench"
_TRAINED = re.compile(r"seed (\d+)@([0-9a-f]{8})")


def trained_weights(seed: int, recipe: Recipe) -> str:
    """Return the name of the weights that ``recipe`` gives from ``seed``."""
    return f"seed {seed}@{recipe.digest}"


def trained_seed(weights: str) -> int | None:
    """Return the seed of weights that a run has trained itself, None for others."""
    found = _TRAINED.fullmatch(weights)
    return int(found[1]) if found else None


def training_folder(run: Path, cell: Cell) -> Path:
    """Return where a run keeps the training that the weights of ``cell`` come from: readable, unique and inside it."""
    identity = f"{cell.model} {cell.data} {cell.weights}"
    words = re.sub(r"[^A-Za-z0-9_.=-]+", "-", f"{cell.model}-{cell.data}-s{trained_seed(cell.weights)}").strip("-.")
    return run / "trained" / f"{words[:80]}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def weights_path(run: Path, cell: Cell) -> Path | None:
    """Return the file with the weights of ``cell``; None where they are random.

    Raises:
        UsageError: a checkpoint is not there, or has changed since the run was planned.
    """
    if not cell.weights:
        return None
    if trained_seed(cell.weights) is not None:
        return training_folder(run, cell) / WEIGHTS_FILE
    text, _, digest = cell.weights.rpartition("@")
    if digest_of(Path(text)) != digest:
        raise UsageError(f"checkpoint {text} has changed since this run was planned; start a new run")
    return Path(text)


def check_checkpoint_file(path: Path) -> None:
    """Refuse a path that is there and is not a file, before anything opens it. A path that is not there passes.

    Raises:
        UsageError: a folder, a pipe, a device or a socket.
        OSError: it cannot be looked at.
    """
    if path.is_dir():
        inside = path / WEIGHTS_FILE
        advice = f"give {inside}" if inside.is_file() else "give the file in it"
        raise UsageError(f"checkpoint {str(path)!r} is a folder; {advice}")
    check_regular_file(path, "checkpoint")


def read_about(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself; empty where another program wrote it.

    Raises:
        UsageError: there is no such file, or it is no checkpoint, which its content tells.
    """
    from safetensors import SafetensorError, safe_open

    try:
        check_checkpoint_file(path)
        if file_format(path) != "safetensors":
            return {}
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(ABOUT_KEY, "{}")
        about = json.loads(text)
    except (CheckpointError, FileNotFoundError) as problem:
        raise UsageError(str(problem)) from None
    except (SafetensorError, OSError, ValueError, RecursionError) as problem:
        raise UsageError(f"{str(path)!r} is no complete safetensors file: {first_line(problem)}") from None
    return about if isinstance(about, dict) else {}


def check_weights_of(name: str, path: Path) -> None:
    """Look into a checkpoint before anything is built.

    Raises:
        UsageError: it cannot be read, or says that it is of another model than ``name``.
    """
    if problem := other_model(name, path, read_about(path)):
        raise UsageError(problem)


def other_model(name: str, path: Path, about: Mapping[str, Any]) -> str:
    """Return an error message if the checkpoint at ``path`` belongs to another model than ``name``, else ""."""
    belongs = about.get("model")
    asked = parse_source(name).name
    if isinstance(belongs, str) and belongs.partition("@")[0] != asked.partition("@")[0]:  # a file's digest is behind @
        return f"{path} has the weights of {printable(belongs)}; test that model, or give other weights"
    return ""


def digest_of(path: Path) -> str:
    """Return 8 hex digits over a file.

    Raises:
        UsageError: it is not a file, or cannot be read.
    """
    try:
        check_checkpoint_file(path)
        with path.open("rb") as file:
            found = hashlib.sha256()
            while block := file.read(1 << 20):
                found.update(block)
            return found.hexdigest()[:8]
    except (OSError, ValueError) as problem:  # ValueError: a path with a null character
        reason = getattr(problem, "strerror", None) or problem
        raise UsageError(f"checkpoint {str(path)!r} cannot be read: {reason}") from None


FAILURE = "failed.json"


def why_it_failed(folder: Path) -> str:
    """Return what a training that gave no weights ended with."""
    try:
        return str(json.loads((folder / FAILURE).read_text(encoding="utf-8"))["failed"])
    except (OSError, ValueError, KeyError, TypeError):
        return "it was stopped"
