"""Map where a class gets its score from: Grad-CAM, and the other methods of pytorch-grad-cam.

Grad-CAM (Selvaraju et al., arXiv 1610.02391), for a map A (H, W, C) and the score y of a class:

    w_c = mean over tokens of ∂y/∂A_c;   cam = ReLU(Σ_c w_c A_c), its largest value 1

A is the last map on whose tokens the score depends. In a network that reads a class token after its last block, that is
the map before this block.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sema_bench.errors import ProbeError, UsageError, unknown_name
from sema_bench.studies.maps.last_map import as_map, recorded_blocks
from sema_bench.worker.build_model import check_logits

OWN = "gradcam"
#: Names of the command line → classes of pytorch-grad-cam; AblationCAM and FullGrad need layers of one layout.
_LIBRARY = {
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "elementwise": "GradCAMElementWise",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "scorecam": "ScoreCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "kpcacam": "KPCA_CAM",
}


@dataclass(frozen=True)
class ClassMap:
    """Where the score of a class comes from."""

    label: int
    weights: NDArray[np.float32]  # (H, W), from 0 to 1: the map's grid, or the image's pixels


def check_method(method: str) -> None:
    """Raise UsageError if ``method`` is unknown, or needs a package that is not installed."""
    if method not in (OWN, *_LIBRARY):
        raise unknown_name("method of --cam", method, (OWN, *_LIBRARY))
    if method != OWN and importlib.util.find_spec("pytorch_grad_cam") is None:
        raise UsageError(f"--cam {method} needs pytorch-grad-cam; pip install 'sema-bench[cam]', or use {OWN}")


def class_map(model: nn.Module, image: Tensor, label: int | None, method: str = OWN) -> ClassMap:
    """Compute the map of class ``label``, None for the predicted one, of an image (1, 3, H, W); model in eval mode.

    Raises:
        UsageError: there is no such class.
        ProbeError: the logits are of pixels, are not finite, or depend on no map.
    """
    size = (image.shape[2], image.shape[3])
    with recorded_blocks(model) as calls, torch.enable_grad():
        logits = model(image.clone().requires_grad_())
        check_logits(logits, image.shape)
        if logits.ndim != 2:
            raise ProbeError("cam draws a class of an image, and this model gives one of each pixel; use --show erf")
        if not torch.isfinite(logits).all():
            raise ProbeError("this model's logits are not finite; check the weights")
        if label is not None and label >= logits.shape[1]:
            raise UsageError(f"--class: this model has classes 0 to {logits.shape[1] - 1}; got {label}")
        label = int(logits.argmax()) if label is None else label
        for block, output in reversed(calls):
            features = as_map(output, model, size)
            if features is None or not output.requires_grad:
                continue
            (gradient,) = torch.autograd.grad(logits[0, label], output, retain_graph=True, allow_unused=True)
            slopes = as_map(gradient, model, size)
            if slopes is not None and slopes.any():
                if method == OWN:
                    return ClassMap(label, grad_cam(features, slopes))
                return ClassMap(label, _by_library(method, model, block, image, label))
    raise ProbeError(
        f"the score of class {label} depends on no map of more than one token; give a larger image, weights whose "
        "classifier is not 0, or leave cam out of --show"
    )


def grad_cam(features: Tensor, slopes: Tensor) -> NDArray[np.float32]:
    """Compute Grad-CAM (H, W) from a map (1, H, W, C) and the gradient of the score with respect to it."""
    cam = (features * slopes.mean(dim=(1, 2), keepdim=True)).sum(dim=-1)[0].relu().detach()
    scaled: NDArray[np.float32] = (cam / cam.max() if cam.any() else cam).numpy()
    return scaled


def _by_library(method: str, model: nn.Module, block: nn.Module, image: Tensor, label: int) -> NDArray[np.float32]:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def channels_first(output: Tensor) -> Tensor:
        features = as_map(output, model, (image.shape[2], image.shape[3]))
        assert features is not None
        return features.permute(0, 3, 1, 2)

    kind = getattr(pytorch_grad_cam, _LIBRARY[method])
    with kind(model=model, target_layers=[block], reshape_transform=channels_first) as cam:
        weights: NDArray[np.float32] = cam(input_tensor=image, targets=[ClassifierOutputTarget(label)])[0]
    return weights
