"""Register our models with timm: call ``sema.register_with_timm()``, then ``timm.create_model("sema_tiny")``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from sema.feature_maps import backbone
from sema.models import MODELS


def register_with_timm() -> list[str]:
    """Register every model of ``sema.list_models()`` with timm under its own name; return the names.

    ``timm.create_model`` then takes those names with ``num_classes``, ``in_chans``, ``drop_path_rate`` and ``img_size``
    where a model declares them, and ``features_only`` with ``out_indices``. There are no pretrained weights. A second
    call changes nothing.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm already has another model with one of these names; nothing is registered.
    """
    try:
        import timm
    except ImportError:
        raise ImportError("timm is not installed; pip install 'sema-bench[timm]'") from None

    module = sys.modules[__name__]
    known = set(timm.list_models(module=__name__.rpartition(".")[2]))
    taken = [name for name in MODELS if name not in known and timm.is_model(name)]
    if taken:
        raise ValueError(f"timm {timm.__version__} already has a model {taken[0]!r}; nothing was registered")
    for name in MODELS:
        if name not in known:
            entry = _entry_point(name)
            setattr(module, name, timm.models.register_model(entry))
    return list(MODELS)


def _entry_point(name: str) -> Callable[..., nn.Module]:
    """Make an entry point with timm's signature: weight settings first, then the model's own options."""

    def entry(
        pretrained: bool = False,
        pretrained_cfg: object = None,
        pretrained_cfg_overlay: object = None,
        cache_dir: object = None,
        **options: Any,
    ) -> nn.Module:
        if pretrained:
            raise ValueError(f"no pretrained weights come with {name!r}; use sema.load_checkpoint")
        if not options.pop("features_only", False):
            return MODELS.build(name, **options)
        from timm.models import FeatureInfo

        maps = backbone(name, options.pop("out_indices", None), **options)
        maps.feature_info = FeatureInfo(maps.feature_info, maps.out_indices)
        return maps

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = __name__
    entry.__doc__ = MODELS.summary(name)
    return entry
