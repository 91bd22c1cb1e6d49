"""Models by name, one line each."""

from __future__ import annotations

from sema.registry import Registry

MODELS = Registry(
    "model",
    ("sema_tiny", "sema.models.hierarchical:sema_tiny"),
    ("sema_small", "sema.models.hierarchical:sema_small"),
    ("sema_base", "sema.models.hierarchical:sema_base"),
    ("mila_tiny", "sema.models.hierarchical:mila_tiny"),
    ("mila_small", "sema.models.hierarchical:mila_small"),
    ("mila_base", "sema.models.hierarchical:mila_base"),
    ("deit_tiny", "sema.models.vit:deit_tiny"),
    ("deit_small", "sema.models.vit:deit_small"),
    ("deit_base", "sema.models.vit:deit_base"),
)

#: Models that take ``attention=``: any attention fits the same backbone.
ATTENTION_SWAPPABLE = frozenset({"sema_tiny", "sema_small", "sema_base", "mila_tiny", "mila_small", "mila_base"})
