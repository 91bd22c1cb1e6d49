"""Models as backbones of detectors and segmenters: the maps of their stages in place of logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sema.build import create_model
from sema.checkpoints import load_checkpoint
from sema.models.backbone import StagedBackbone

#: Side in pixels of the image that shows the strides; 32 divides it.
_SIDE = 224
#: What follows the last map, by its name in a family. DistributedDataParallel would wait for its gradients.
_CLASSIFIERS = ("norm", "norm_f", "pooling", "head", "classifier", "cls_attn_blocks")


def feature_info(name: str, **options: Any) -> list[dict[str, Any]]:
    """Describe each map of a model as timm does: ``num_chs`` C, ``reduction`` (its stride) and ``module``."""
    with torch.device("meta"):
        model = create_model(name, **options).eval()
        maps = _maps(model, torch.empty(1, options.get("in_chans", 3), _SIDE, _SIDE))
    modules = _modules(model, len(maps))
    return [
        {"num_chs": each.shape[3], "reduction": _SIDE // each.shape[1], "module": module}
        for each, module in zip(maps, modules, strict=True)
    ]


class FeatureMaps(nn.Module):
    """A model without its classifier: (B, in_chans, H, W) → a list of maps, (B, C, H, W) or (B, H, W, C).

    ``feature_info`` describes every map of the model, and ``out_indices`` chooses those that ``forward`` returns.
    """

    def __init__(
        self, model: nn.Module, *, info: Sequence[dict[str, Any]], out_indices: Sequence[int], channels_first: bool
    ) -> None:
        super().__init__()
        self.model, self.feature_info = model, info
        self.out_indices, self.channels_first = tuple(out_indices), channels_first
        for name in _CLASSIFIERS:
            if hasattr(model, name):
                delattr(model, name)
        if model._get_name() == "XCiT":  # its class token joins after the last map
            del model.cls_token

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = _maps(self.model, x)
        return [maps[i].permute(0, 3, 1, 2) if self.channels_first else maps[i] for i in self.out_indices]


def backbone(
    name: str,
    out_indices: int | Sequence[int] | None = None,
    *,
    pretrained: str | Path | None = None,
    channels_first: bool = True,
    **options: Any,
) -> FeatureMaps:
    """Build a model that returns the maps of its stages, as its last block of each leaves them.

    Models without stages (DeiT, XCiT, Vim) give maps after each quarter of their depth, all of stride 16.

    Args:
        name: as for ``create_model``.
        out_indices: the maps to return; a number n means the last n; None means all.
        pretrained: a checkpoint to load, as ``load_checkpoint`` reads it.
        channels_first: return (B, C, H, W), otherwise (B, H, W, C).
        options: as for ``create_model``.

    Raises:
        ValueError: an index that the model does not have.
    """
    info = feature_info(name, **options)
    chosen = range(len(info)) if out_indices is None else out_indices
    chosen = range(-chosen, 0) if isinstance(chosen, int) else chosen
    if not chosen or any(not -len(info) <= index < len(info) for index in chosen):
        raise ValueError(f"{name} has maps 0 to {len(info) - 1}; got out_indices={out_indices}; choose among these")
    model = create_model(name, **options)
    if pretrained is not None:
        load_checkpoint(model, pretrained)
    indices = [index % len(info) for index in chosen]
    return FeatureMaps(model, info=info, out_indices=indices, channels_first=channels_first)


def _maps(model: nn.Module, image: Tensor) -> list[Tensor]:
    make: Callable[[Tensor], list[Tensor]] = model.forward_features  # type: ignore[assignment] # to mypy maybe a Tensor
    return make(image)


def _modules(model: nn.Module, count: int) -> list[str]:
    """Name the module whose output is each map."""
    children = dict(model.named_children())
    if isinstance(model, StagedBackbone):
        return [f"layers.{index}.blocks" for index in range(count)]
    if "stages" in children:
        return [f"stages.{index}" for index in range(count)]
    if "stage0" in children:
        return [f"stage{index}" for index in range(count)]
    blocks = "blocks" if "blocks" in children else "layers"
    quarter = len(list(children[blocks].children())) // count
    return [f"{blocks}.{quarter * (index + 1) - 1}" for index in range(count)]
