"""Models by name; ``sema.models.presets`` holds the numbers that define each."""

from __future__ import annotations

from sema.models.presets import ATTENTION_SWAPPABLE, MODELS

__all__ = ["ATTENTION_SWAPPABLE", "MODELS"]
