"""Write checkpoints as safetensors, whole or not at all; JSON in the header describes the tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sema.checkpoints import apart
from sema_bench.errors import StoreError, UsageError, first_line
from sema_bench.spec.weights_source import ABOUT_KEY, read_about
from sema_bench.store.files import write_own

_FORMAT = 2  # 1 had our own optimizer, average and random numbers


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write ``tensors`` and their JSON description ``about``; after a StoreError the old file is intact."""
    write_own(path, save(apart(tensors), metadata={ABOUT_KEY: json.dumps({"format": _FORMAT, **about})}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the description of our checkpoint; raise StoreError for a damaged or newer file."""
    try:
        about = read_about(path)
        tensors = load_file(path)
    except (SafetensorError, OSError, UsageError) as problem:
        raise StoreError(
            f"{path} cannot be read: {first_line(problem)}; put a copy of it back, or remove it to start over"
        ) from None
    if about.get("format") != _FORMAT:
        raise StoreError(
            f"{path} is not a checkpoint that this release can resume; resume with the release that wrote it, or "
            "remove it to start over"
        )
    return tensors, about
