"""Name weights, and find the files that the names in ``Cell.weights`` stand for.

- empty: random weights, from the run's seed;
- ``<file>@<digest>``: a checkpoint; a file that has changed since the run was planned is refused;
- ``seed <n>@<digest of the recipe>``: weights that the run has trained itself, on the cell's data.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sema_bench.errors import UsageError
from sema_bench.spec.cell import Cell
from sema_bench.spec.files import check_regular_file, sha256_of
from sema_bench.spec.model_source import parse_source
from sema_bench.spec.recipe import Recipe
from sema_bench.text.escape import printable

WEIGHTS_FILE, FAILURE = "weights.safetensors", "failed.json"
#: Key of our description of the weights in a safetensors header.
ABOUT_KEY = "sema_bench"
_TRAINED = re.compile(r"seed (\d+)@([0-9a-f]{8})")


def trained_weights(seed: int, recipe: Recipe) -> str:
    """Name the weights that ``recipe`` trains from ``seed``."""
    return f"seed {seed}@{recipe.digest}"


def trained_seed(weights: str) -> int | None:
    """Read the seed from the name of weights that a run trains itself; None for other weights."""
    match = _TRAINED.fullmatch(weights)
    return int(match[1]) if match else None


def training_folder(run: Path, cell: Cell) -> Path:
    """Name the folder inside a run's folder in which the weights of ``cell`` are trained."""
    identity = f"{cell.model} {cell.data} {cell.weights}"
    words = re.sub(r"[^A-Za-z0-9_.=-]+", "-", f"{cell.model}-{cell.data}-s{trained_seed(cell.weights)}").strip("-.")
    return run / "trained" / f"{words[:80]}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def weights_path(run: Path, cell: Cell) -> Path | None:
    """Find the file with the weights of ``cell``, None if they are random; refuse a checkpoint that has changed."""
    if not cell.weights:
        return None
    if trained_seed(cell.weights) is not None:
        return training_folder(run, cell) / WEIGHTS_FILE
    return unchanged_checkpoint(cell.weights)


def unchanged_checkpoint(name: str) -> Path:
    """Find the file ``<file>@<digest>``; raise UsageError if it has changed."""
    text, _, digest = name.rpartition("@")
    if digest_of(Path(text)) != digest:
        raise UsageError(f"checkpoint {text} has changed since this run was planned; start a new run")
    return Path(text)


def check_checkpoint_file(path: Path) -> None:
    """Raise UsageError for a path that exists and is not a file; a missing file passes."""
    if path.is_dir():
        inside = path / WEIGHTS_FILE
        advice = f"give {inside}" if inside.is_file() else "give the file in it"
        raise UsageError(f"checkpoint {str(path)!r} is a folder; {advice}")
    check_regular_file(path, "checkpoint")


def read_about(path: Path) -> dict[str, Any]:
    """Read our description of the weights from a checkpoint, if it has one; raise UsageError for an unreadable file."""
    # a gate runs this file with another commit's ``sema``, which may lack this module, and reads no checkpoint
    from sema.checkpoint_files import CheckpointError, file_format, first_line

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
        raise UsageError(f"{str(path)!r} is not a complete safetensors file: {first_line(problem)}") from None
    return about if isinstance(about, dict) else {}


def check_weights_of(name: str, path: Path) -> None:
    """Raise UsageError if a checkpoint cannot be read, or belongs to another model than ``name``."""
    if problem := other_model(name, path, read_about(path)):
        raise UsageError(problem)


def other_model(name: str, path: Path, about: Mapping[str, Any]) -> str:
    """Return an error message if the checkpoint at ``path`` belongs to another model than ``name``, else ""."""
    owner = about.get("model")
    if isinstance(owner, str) and owner.partition("@")[0] != parse_source(name).name.partition("@")[0]:  # @: a digest
        return f"{path} has the weights of {printable(owner)}; test that model, or give other weights"
    return ""


def digest_of(path: Path) -> str:
    """Hash a checkpoint to 8 hex digits; raise UsageError if it cannot be read."""
    try:
        check_checkpoint_file(path)
        return sha256_of(path)
    except (OSError, ValueError) as problem:  # ValueError: a path with a null character
        reason = getattr(problem, "strerror", None) or problem
        raise UsageError(f"checkpoint {str(path)!r} cannot be read: {reason}") from None


def why_it_failed(folder: Path) -> str:
    """Read the error that ended a training."""
    try:
        return str(json.loads((folder / FAILURE).read_text(encoding="utf-8"))["failed"])
    except (OSError, ValueError, KeyError, TypeError):
        return "it was stopped"
