"""Models as backbones of detectors and segmenters: they return the maps of their stages instead of logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from sema.build import create_model
from sema.checkpoints import load_checkpoint
from sema.macs import Macs
from sema.models.backbone import Backbone


class FeatureMaps(nn.Module):
    """A model cut off after the last requested map: (B, in_chans, H, W) → a list of maps.

    Attributes:
        feature_info: all maps of the model, each with its channels ``num_chs``, stride ``reduction`` and ``module``.
        out_indices: the maps that ``forward`` returns, by their index in ``feature_info``.
        channels, strides: of the maps that ``forward`` returns.
        channels_first: True if the maps are (B, C, H, W), False if they are (B, H, W, C).
    """

    def __init__(self, model: Backbone, out_indices: Sequence[int], *, channels_first: bool) -> None:
        super().__init__()
        model.end_at_map(max(out_indices))
        self.model = model
        self.feature_info: Any = model.feature_info  # or timm's object
        self.out_indices = tuple(out_indices)
        self.channels = [model.feature_info[index]["num_chs"] for index in out_indices]
        self.strides = [model.feature_info[index]["reduction"] for index in out_indices]
        self.channels_first = channels_first

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.model.forward_features(x)
        return [maps[i].permute(0, 3, 1, 2) if self.channels_first else maps[i] for i in self.out_indices]

    def macs(self, resolution: tuple[int, int]) -> Macs:
        """Count the MACs of ``forward`` on one image of ``resolution`` (H, W) pixels."""
        return self.model.macs(resolution)


def backbone(
    name: str,
    out_indices: int | Sequence[int] | None = None,
    *,
    pretrained: str | Path | None = None,
    channels_first: bool = True,
    **options: Any,
) -> FeatureMaps:
    """Build a model that returns the maps of its stages: the output of each stage's last block.

    Models without stages (DeiT, XCiT, Vim) return a map after each quarter of their depth, all at stride 16. Layers
    after the last requested map are removed, including the classifier.

    Args:
        name: as for ``create_model``.
        out_indices: indices of the maps to return, from 0, in this order; a number n means the last n; None means all.
        pretrained: a checkpoint of the whole model to load, see ``load_checkpoint``.
        channels_first: return (B, C, H, W) maps instead of (B, H, W, C).
        options: as for ``create_model``; ``num_classes`` must match the checkpoint.

    Raises:
        ValueError: an index that the model does not have.
        CheckpointError: a checkpoint that does not fit the model.
    """
    model = cast(Backbone, create_model(name, **options))
    count = len(model.feature_info)
    chosen = count if out_indices is None else out_indices
    indices = range(-chosen, 0) if isinstance(chosen, int) else chosen
    if not indices or any(index not in range(-count, count) for index in indices):
        raise ValueError(f"{name} has maps 0 to {count - 1}; got out_indices={out_indices!r}; choose among these")
    if pretrained is not None:
        load_checkpoint(model, pretrained)
    return FeatureMaps(model, [index % count for index in indices], channels_first=channels_first)
