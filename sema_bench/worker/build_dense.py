"""Build the detector or segmenter around a model: ours, one of timm, or one that describes its maps as timm does."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

import sema
from sema_bench.errors import ProbeError
from sema_bench.spec.model_source import ModelSource
from sema_bench.worker.build_model import build_foreign
from sema_bench.worker.dense import DenseModel


def build_dense(source: ModelSource, size: tuple[int, int], *, task: str) -> DenseModel:
    """Build the detector or segmenter around a model's maps, for images of ``size`` (H, W).

    The model has ``feature_info`` as in timm, with the channels and the stride of each map that it returns.

    Raises:
        ProbeError: the model has none.
        SizeNotSupportedError: see ``build_foreign``.
    """
    if source.kind == "registry":
        backbone: nn.Module = sema.backbone(source.name)
    elif source.kind == "library":
        backbone = build_foreign(dataclasses.replace(source, options={**source.options, "features_only": True}), size)
        if str(getattr(backbone, "output_fmt", "")).endswith("NHWC"):
            backbone = _ChannelsFirst(backbone)
    else:
        backbone = build_foreign(source, size)
    info: Any = getattr(backbone, "feature_info", None)
    if info is None:
        raise ProbeError(f"task {task} needs maps, and {source.name} has no feature_info; see docs/guide/dense.md")
    channels, strides = zip(*((each["num_chs"], each["reduction"]) for each in _described(info)), strict=True)
    return DenseModel(backbone, channels, strides, task=task)


def _described(info: Any) -> list[dict[str, Any]]:
    """List the maps that a model returns; timm's object describes others, too."""
    return list(info.get_dicts() if hasattr(info, "get_dicts") else info)


class _ChannelsFirst(nn.Module):
    """A model whose maps are (B, H, W, C), with maps (B, C, H, W)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.feature_info = model, model.feature_info

    def forward(self, image: Tensor) -> list[Tensor]:
        return [each.permute(0, 3, 1, 2) for each in self.model(image)]
