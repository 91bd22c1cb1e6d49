"""Compute the loss of a batch of images and labels: erasing, mixing, label smoothing, and MESA.

timm draws from the global generators, which the trainer seeds for each part of a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.data.random_erasing import RandomErasing
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from sema_bench.spec.recipe import Recipe

Network = Callable[[Tensor], Tensor]


class TrainingLoss:
    """The loss of ``recipe`` for a data set of ``classes`` classes."""

    def __init__(self, recipe: Recipe, classes: int, device: torch.device) -> None:
        self._classes = classes
        self._smoothing = recipe.label_smoothing
        self._mesa = recipe.mesa
        self._erase = RandomErasing(recipe.erasing, mode="pixel", device=device) if recipe.erasing else None
        self._mix = None
        if recipe.mixup or recipe.cutmix:
            self._mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes)
        self._cross_entropy: nn.Module = SoftTargetCrossEntropy()

    def usable(self, images: int) -> int:
        """Count the images of a batch that can be used: timm mixes pairs, so an odd batch loses its last image."""
        return images - images % 2 if self._mix else images

    def __call__(self, network: Network, images: Tensor, labels: Tensor, average: Network | None) -> Tensor:
        """Compute the loss on normalised ``images`` (n, 3, H, W), of ``usable`` size; they may be overwritten.

        With the moving ``average`` of the network, add MESA (Du et al., arXiv 2205.14083), as MILA's authors do: λ
        times the cross-entropy with the average's softmax on the same images. The paper's loss has KL instead, with
        the same gradient, and a temperature.
        """
        if labels.ndim > 1:  # a class per pixel; the rest is for images of one class
            return F.cross_entropy(network(images).float(), labels, label_smoothing=self._smoothing)
        if self._erase:
            images = self._erase(images)
        if self._mix:
            images, targets = self._mix(images, labels)
        else:
            targets = mixup_target(labels, self._classes, smoothing=self._smoothing)
        believed = None
        if average is not None:  # first: its activations are gone before the network's come
            with torch.no_grad():
                believed = average(images).float().softmax(dim=1)
        logits = network(images).float()
        loss: Tensor = self._cross_entropy(logits, targets)
        return loss if believed is None else loss + self._mesa * self._cross_entropy(logits, believed)
