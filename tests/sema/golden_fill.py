"""Fill a state dict with numbers that every implementation can reproduce; see ``tests/data/golden``.

Each element is a hash of its key and its index, scaled so that activations neither vanish nor explode.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "data" / "golden"

#: Buffers that a model derives from its shape; the recipe leaves them out.
DERIVED = frozenset({"rotations", "relative_position_index", "attn_mask"})

_NEAR_ONE = frozenset({"running_var", "gamma1", "gamma2", "gamma3", "gamma_1", "gamma_2", "stack"})
_TABLES = frozenset({"relative_position_bias_table", "pos_embed", "cls_token"})


def load_golden(name: str) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Return the shapes of the official state dict by key, and the answers of the official model."""
    golden = json.loads((GOLDEN / f"{name}.logits.json").read_text(encoding="utf-8"))
    keys = (GOLDEN / golden.get("keys", f"{name}.keys.json")).read_text(encoding="utf-8")
    return dict(json.loads(keys)), golden


def fill_value(key: str, shape: list[int], gain: float) -> torch.Tensor:
    """Return the tensor for a key of the state dict."""
    last, count = key.rsplit(".", 1)[-1], math.prod(shape)
    fan = count / shape[0]
    if last in _TABLES:
        amplitude = 0.5
    elif len(shape) <= 1:
        amplitude = 0.2
    elif len(shape) >= 3 and shape[1] == 1:
        amplitude = math.sqrt(0.75 / fan)
    else:
        amplitude = math.sqrt(gain / fan)
    values = amplitude * (2.0 * _uniform(zlib.crc32(key.encode()), count) - 1.0)
    if last in _NEAR_ONE or (last == "weight" and len(shape) == 1):
        values = values + 1.0
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def fill_state_dict(shapes: dict[str, list[int]], gain: float) -> dict[str, torch.Tensor]:
    """Return a state dict of all floating-point tensors; counters start at 0, derived buffers are left out."""
    filled = {}
    for key, shape in shapes.items():
        last = key.rsplit(".", 1)[-1]
        if last == "num_batches_tracked":
            filled[key] = torch.tensor(0)
        elif last not in DERIVED:
            filled[key] = fill_value(key, shape, gain)
    return filled


def golden_image(height: int, width: int) -> torch.Tensor:
    """Return the image (1, 3, H, W) that the golden logits are for."""
    wave = 0.5 * np.sin(0.001 * np.arange(3 * height * width, dtype=np.float64))
    return torch.from_numpy(wave.astype(np.float32).reshape(1, 3, height, width))


def _uniform(seed: int, count: int) -> np.ndarray:
    z = (np.arange(count, dtype=np.uint64) + np.uint64(seed)).astype(np.uint32)
    for _ in range(2):
        z = (z ^ (z >> np.uint32(16))) * np.uint32(0x45D9F3B)
    z = z ^ (z >> np.uint32(16))
    return z.astype(np.float64) / 2.0**32
