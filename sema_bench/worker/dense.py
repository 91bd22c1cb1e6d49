"""Detectors and segmenters around a backbone: Mask R-CNN and UPerNet, to measure what a backbone costs in them.

They are whole networks with random weights, without post-processing: no proposal is chosen, no box decoded or
suppressed, no mask resized to the image. Proposals are fixed, so that the cost depends only on the size of the image.

Papers: Mask R-CNN, arXiv 1703.06870; FPN, arXiv 1612.03144; UPerNet, arXiv 1807.10221; ViTDet, arXiv 2203.16527.

Legend: B batch, C channels, H W size of a map, K proposals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.layers.counted import chain_macs
from sema.macs import Grid, Macs, conv_macs, total_macs

#: Strides of the maps that a neck takes.
STRIDES = (4, 8, 16, 32)
#: Number of proposals that the box head classifies, and of those that get a mask, as MMDetection counts.
PROPOSALS, MASKED = 1000, 100
COCO_CLASSES, ADE20K_CLASSES = 80, 150
_FPN_CHANNELS, _UPERNET_CHANNELS, _AUXILIARY_CHANNELS = 256, 512, 256
_POOLED = (1, 2, 3, 6)


class DenseModel(nn.Module):
    """Backbone, neck and head: (B, 3, H, W) → the outputs of the head.

    Args:
        backbone: (B, 3, H, W) → maps (B, C, H, W), the finest first.
        channels, strides: of its maps.
        task: ``detect`` or ``segment``.
    """

    def __init__(self, backbone: nn.Module, channels: Sequence[int], strides: Sequence[int], *, task: str) -> None:
        super().__init__()
        self.backbone = backbone
        pyramid = Pyramid(channels, strides)
        if task == "detect":
            self.neck: nn.Module = FeaturePyramid(pyramid)
            self.head: nn.Module = MaskRcnnHead()
        else:
            self.neck = PoolingPyramid(pyramid)
            self.head = UperNetHead()
            #: A second classifier, of the map of stride 16. It runs only in training: it has parameters but no MACs.
            self.auxiliary = nn.Sequential(
                _conv_norm(pyramid.channels[2], _AUXILIARY_CHANNELS, 3),
                nn.Conv2d(_AUXILIARY_CHANNELS, ADE20K_CLASSES, 1),
            )
        self.note = pyramid.note

    def forward(self, image: Tensor) -> Any:
        return self.head(self.neck(self.backbone(image)))

    @property
    def macs(self) -> Callable[[tuple[int, int]], Macs] | None:
        """Count the MACs of ``forward``, on the meta device; None if the backbone has no formula."""
        return self._macs if hasattr(self.backbone, "macs") else None

    def _macs(self, resolution: tuple[int, int]) -> Macs:
        maps = self.backbone(torch.empty(1, 3, *resolution, device="meta"))
        neck, grids = _macs_of(self.neck, [each.shape[2:] for each in maps])
        return total_macs(self.backbone.macs(resolution), neck, self.head.macs(grids))  # type: ignore[operator]


class Pyramid(nn.Module):
    """Maps of strides 4, 8, 16 and 32: those of the backbone, and missing ones made from its last map.

    A finer map takes a deconvolution for each factor of 2, which halves the channels, and a coarser one max pooling:
    ViTDet's simple feature pyramid if the backbone has only stride 16.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.channels: list[int] = []
        self._sources: list[int] = []
        self.steps = nn.ModuleList()
        missing = [stride for stride in STRIDES if stride not in strides]
        for stride in STRIDES:
            source = len(strides) - 1 - list(reversed(strides)).index(stride) if stride in strides else -1
            step, width = _resampled(channels[source], strides[source], stride)
            self._sources.append(source)
            self.steps.append(step)
            self.channels.append(width)
        self.note = ""
        if missing:
            self.note = (
                f"the backbone's last map has stride {strides[-1]}; maps of stride {', '.join(map(str, missing))} are "
                "made of it by deconvolutions and max pooling (simple feature pyramid)"
            )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [step(maps[source]) for step, source in zip(self.steps, self._sources, strict=True)]

    def macs(self, grids: Sequence[Grid]) -> tuple[Macs, list[Grid]]:
        counted = [chain_macs([step], grids[at]) for step, at in zip(self.steps, self._sources, strict=True)]
        return total_macs(*(macs for macs, _ in counted)), [grid for _, grid in counted]


class Deconvolution(nn.ConvTranspose2d):
    """Doubles the height and width: each position meets one filter for each of its four new ones."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 2, 2)

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        return conv_macs(grid, self.in_channels, self.out_channels, 2), (2 * grid[0], 2 * grid[1])


class _Pooling(nn.MaxPool2d):
    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        factor = int(self.kernel_size)  # type: ignore[arg-type]
        return Macs(), (grid[0] // factor, grid[1] // factor)


class _ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _resampled(channels: int, stride: int, target: int) -> tuple[nn.Module, int]:
    """Make the module that resamples a map from ``stride`` to ``target``; also return the channels of its result."""
    if target > stride:
        return _Pooling(target // stride), channels
    steps = nn.Sequential()
    while stride > target:
        if len(steps):
            steps.extend([_ChannelNorm(channels), nn.GELU()])
        steps.append(Deconvolution(channels, channels // 2))
        channels, stride = channels // 2, stride // 2
    return steps, channels


class FeaturePyramid(nn.Module):
    """FPN: maps of strides 4 to 32 → maps of 256 channels, strides 4 to 64."""

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.lateral = nn.ModuleList(nn.Conv2d(width, _FPN_CHANNELS, 1) for width in pyramid.channels)
        self.output = nn.ModuleList(nn.Conv2d(_FPN_CHANNELS, _FPN_CHANNELS, 3, padding=1) for _ in STRIDES)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        laterals = _each(self.lateral, self.pyramid(maps))
        outputs = _each(self.output, _top_down(laterals, "nearest"))
        return [*outputs, F.max_pool2d(outputs[-1], 1, 2)]

    def macs(self, grids: Sequence[Grid]) -> tuple[Macs, list[Grid]]:
        total, grids = self.pyramid.macs(grids)
        height, width = grids[-1]
        total = total_macs(total, *_each_macs(self.lateral, grids), *_each_macs(self.output, grids))
        return total, [*grids, ((height + 1) // 2, (width + 1) // 2)]


class MaskRcnnHead(nn.Module):
    """Region proposals on every map, classes and boxes of 1,000 proposals, masks of 100 of them.

    A quarter of the proposals lies on each of strides 4 to 32, with sides of 1/16, 1/8, 1/4 and 1/2 of the image:
    FPN's rule puts boxes of such sizes there at 800 × 1280.
    """

    def __init__(self, classes: int = COCO_CLASSES) -> None:
        super().__init__()
        width = _FPN_CHANNELS
        self.rpn = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.objectness = nn.Conv2d(width, 3, 1)
        self.anchor_deltas = nn.Conv2d(width, 4 * 3, 1)
        self.box = nn.Sequential(nn.Linear(width * 7 * 7, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU())
        self.scores = nn.Linear(1024, classes + 1)
        self.deltas = nn.Linear(1024, 4 * classes)
        convs = (layer for _ in range(4) for layer in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU()))
        self.mask = nn.Sequential(*convs, Deconvolution(width, width), nn.ReLU(), nn.Conv2d(width, classes, 1))
        self.boxes: Tensor
        self.register_buffer("boxes", _fixed_boxes(), persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return objectness and deltas of anchors, scores and deltas of proposals, and mask logits, all (B, …)."""
        images = len(maps[0])
        anchors = [self.rpn(each) for each in maps]
        proposed = [
            torch.cat([conv(x).flatten(1) for x in anchors], 1) for conv in (self.objectness, self.anchor_deltas)
        ]
        boxes = self.box(roi_align(maps, self.boxes, 7).flatten(1))
        classified = [layer(boxes).unflatten(0, (images, PROPOSALS)) for layer in (self.scores, self.deltas)]
        masks = self.mask(roi_align(maps, self.boxes[:, : MASKED // len(STRIDES)], 14))
        return *proposed, *classified, masks.unflatten(0, (images, MASKED))

    def macs(self, grids: Sequence[Grid]) -> Macs:
        convs = (*self.rpn, self.objectness, self.anchor_deltas)
        of_boxes = chain_macs((self.box,), (PROPOSALS, 1))[0]
        outputs = (chain_macs((layer,), (PROPOSALS, 1))[0] for layer in (self.scores, self.deltas))
        mask = chain_macs((self.mask,), (14, 14))[0]
        return total_macs(*(chain_macs(convs, grid)[0] for grid in grids), of_boxes, *outputs, *[mask] * MASKED)


def _fixed_boxes() -> Tensor:
    """Spread the proposals evenly over the image: (4 strides, K / 4, x0 y0 x1 y1), as shares of width and height."""
    index = torch.arange(1, PROPOSALS // len(STRIDES) + 1)
    spread = torch.stack([index * step % 1 for step in (0.7548776662, 0.5698402910)], -1)  # the R2 sequence
    sides = [2.0**-power for power in (4, 3, 2, 1)]
    return torch.stack([torch.cat([spread * (1 - side), spread * (1 - side) + side], -1) for side in sides])


def roi_align(maps: Sequence[Tensor], boxes: Tensor, size: int) -> Tensor:
    """Sample each box from the map of its stride: (B, C, H, W) each → (B · K, C, size, size).

    RoIAlign with 2 × 2 samples a bin and half-pixel offsets (``aligned``), for boxes inside the image.

    Args:
        boxes: (strides, K / strides, 4): x0, y0, x1, y1 as shares of the width and the height.
    """
    at = (torch.arange(2 * size, device=boxes.device, dtype=boxes.dtype) + 0.5) / (2 * size)
    x, y = (boxes[..., i, None] * (1 - at) + boxes[..., i + 2, None] * at for i in (0, 1))  # (strides, k, 2 size)
    grids = 2 * torch.stack(torch.broadcast_tensors(x[:, :, None, :], y[:, :, :, None]), -1) - 1
    sampled = [
        F.grid_sample(
            each, grid.flatten(0, 1).expand(len(each), -1, -1, -1), padding_mode="border", align_corners=False
        )
        for each, grid in zip(maps, grids, strict=False)  # (B, C, k · 2 size, 2 size); the coarsest map has no boxes
    ]
    pooled = [F.avg_pool2d(each, 2).unflatten(2, (-1, size)) for each in sampled]
    return torch.cat(pooled, 2).transpose(1, 2).flatten(0, 1)


class PoolingPyramid(nn.Module):
    """UPerNet's neck: pooling pyramid on the coarsest map, FPN: maps of strides 4 to 32 → the same of 512 channels."""

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.pyramid = pyramid
        *finer, last = pyramid.channels
        width = _UPERNET_CHANNELS
        self.pooled = nn.ModuleList(_conv_norm(last, width, 1) for _ in _POOLED)
        self.bottleneck = _conv_norm(last + len(_POOLED) * width, width, 3)
        self.lateral = nn.ModuleList(_conv_norm(channels, width, 1) for channels in finer)
        self.output = nn.ModuleList(_conv_norm(width, width, 3) for _ in finer)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        *finer, last = self.pyramid(maps)
        pooled = _each(self.pooled, [F.adaptive_avg_pool2d(last, side) for side in _POOLED])
        context = self.bottleneck(torch.cat([last, *(_resized(each, last) for each in pooled)], 1))
        *finer, last = _top_down([*_each(self.lateral, finer), context], "bilinear")
        return [*_each(self.output, finer), last]

    def macs(self, grids: Sequence[Grid]) -> tuple[Macs, list[Grid]]:
        total, grids = self.pyramid.macs(grids)
        *finer, last = grids
        pooled = _each_macs(self.pooled, [(side, side) for side in _POOLED])
        around = (*_each_macs(self.lateral, finer), *_each_macs(self.output, finer))
        return total_macs(total, *pooled, chain_macs((self.bottleneck,), last)[0], *around), grids


class UperNetHead(nn.Module):
    """Join four maps at the finest size, and classify: (B, classes, H/4, W/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.fuse = _conv_norm(len(STRIDES) * _UPERNET_CHANNELS, _UPERNET_CHANNELS, 3)
        self.classify = nn.Conv2d(_UPERNET_CHANNELS, ADE20K_CLASSES, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.classify(self.fuse(torch.cat([_resized(each, maps[0]) for each in maps], 1)))
        return logits

    def macs(self, grids: Sequence[Grid]) -> Macs:
        return chain_macs((self.fuse, self.classify), grids[0])[0]


def _conv_norm(channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def _resized(x: Tensor, like: Tensor, mode: str = "bilinear") -> Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode=mode, align_corners=None if mode == "nearest" else False)


def _top_down(maps: Sequence[Tensor], mode: str) -> list[Tensor]:
    """Add to each map the coarser one, which already holds those above it."""
    sums = [maps[-1]]
    for each in reversed(maps[:-1]):
        sums.insert(0, each + _resized(sums[0], each, mode))
    return sums


def _each(layers: Iterable[nn.Module], maps: Sequence[Tensor]) -> list[Tensor]:
    return [layer(each) for layer, each in zip(layers, maps, strict=True)]


def _each_macs(layers: Iterable[nn.Module], grids: Sequence[Grid]) -> list[Macs]:
    return [chain_macs((layer,), grid)[0] for layer, grid in zip(layers, grids, strict=True)]


def _macs_of(neck: Any, grids: Sequence[Any]) -> tuple[Macs, list[Grid]]:
    counted: tuple[Macs, list[Grid]] = neck.macs([(height, width) for height, width in grids])
    return counted
