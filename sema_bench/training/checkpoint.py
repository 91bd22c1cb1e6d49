"""Checkpoints as safetensors: weights to use, with the classes that they know, and the state to go on from.

A file is replaced whole or not at all, and nothing in one is ever executed. What describes the tensors is JSON in the
file's own header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sema.checkpoints import apart
from sema_bench.errors import StoreError, UsageError
from sema_bench.spec.weights_source import ABOUT_KEY, read_about
from sema_bench.store.files import write_own

_FORMAT = 1


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write ``tensors``, and ``about`` them what JSON can hold.

    Raises:
        StoreError: the disk is full or the folder not writable; the file is what it was.
    """
    from safetensors.torch import save

    body = save(apart(tensors), metadata={ABOUT_KEY: json.dumps({"format": _FORMAT, **about})})
    write_own(path, body)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a checkpoint of ours, and what it says of itself.

    Raises:
        StoreError: it is damaged, or of a newer release.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        about = read_about(path)
        tensors = load_file(path)
    except (SafetensorError, OSError, UsageError) as problem:
        raise StoreError(
            f"{path} cannot be read: {_first_line(problem)}; put a copy of it back, or remove it to start over"
        ) from None
    if about.get("format") != _FORMAT:
        raise StoreError(f"{path} is no checkpoint that this release can go on from")
    return tensors, about


def _first_line(problem: BaseException) -> str:
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)[:200]
