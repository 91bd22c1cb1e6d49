"""Models by name; the numbers that make each stand in ``sema.models.presets``."""

from __future__ import annotations

from sema.models.presets import ATTENTION_SWAPPABLE, MODELS

__all__ = ["ATTENTION_SWAPPABLE", "MODELS"]
