"""Test the head that gives logits for each pixel."""

from __future__ import annotations

import pytest
import torch
from torch_counter import count_macs

import sema
from sema.layers.segmentation import SegmentationHead


def _linear_between(position, length, count):
    """Return the weights of ``count`` samples at ``position`` of ``length``: bilinear, from pixel centres."""
    x = min(max((position + 0.5) * count / length - 0.5, 0.0), count - 1.0)
    low = int(x)
    weights = [0.0] * count
    weights[low] += 1 - (x - low)
    weights[min(low + 1, count - 1)] += x - low
    return torch.tensor(weights, dtype=torch.float64)


def _enlarged(x, size):
    """Enlarge (B, H, W, C) to (B, *size, C), one pixel after the other."""
    rows = torch.stack([_linear_between(i, size[0], x.shape[1]) for i in range(size[0])])
    columns = torch.stack([_linear_between(i, size[1], x.shape[2]) for i in range(size[1])])
    return torch.einsum("ih,jw,bhwc->bijc", rows, columns, x)


def _normed(x, norm):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def _naive(head, maps, size):
    total = None
    for (norm, linear), x in reversed(list(zip(head.laterals, maps, strict=True))):
        projected = _normed(x, norm) @ linear.weight.T + linear.bias
        total = projected if total is None else projected + _enlarged(total, projected.shape[1:3])
    _, height, width, _ = total.shape
    padded = torch.zeros(total.shape[0], height + 2, width + 2, total.shape[3], dtype=total.dtype)
    padded[:, 1:-1, 1:-1] = total
    smooth = head.smooth.bias + sum(
        padded[:, i : i + height, j : j + width] @ head.smooth.weight[:, :, i, j].T for i in range(3) for j in range(3)
    )
    logits = smooth.clamp(min=0) @ head.classifier.weight.T + head.classifier.bias
    return _enlarged(logits, size).permute(0, 3, 1, 2)


@pytest.mark.parametrize("grids", [((5, 4), (3, 2)), ((3, 3),)], ids=["two maps", "one map"])
def test_the_head_gives_what_its_definition_says_and_so_do_its_gradients(grids):
    torch.manual_seed(0)
    channels = [6, 12][: len(grids)]
    head = SegmentationHead(channels, 4).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    maps = [
        torch.randn(2, *grid, dim, dtype=torch.float64, requires_grad=True)
        for grid, dim in zip(grids, channels, strict=True)
    ]
    given, expected = head(maps, (18, 17)), _naive(head, maps, (18, 17))
    torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(given)
    inputs = [*maps, *head.parameters()]
    of_head, of_naive = (torch.autograd.grad((logits * weight).sum(), inputs) for logits in (given, expected))
    torch.testing.assert_close(of_head, of_naive, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["sema_micro[linear,head=fpn]", "sema_tiny[head=fpn]"])
def test_each_pixel_has_its_logits_and_their_cost_is_counted(name):
    with torch.device("meta"):
        model = sema.create_model(name, num_classes=11).eval()
        shapes = []
        macs = count_macs(lambda: shapes.append(model(torch.zeros(2, 3, 64, 72)).shape))
    assert shapes == [(2, 11, 64, 72)]
    assert macs == 2 * model.macs((64, 72)).total


def test_every_parameter_of_a_segmenter_learns():
    model = sema.create_model("sema_tiny[linear,head=fpn]", num_classes=3)
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_the_inference_form_of_a_segmenter_gives_the_same_logits():
    torch.manual_seed(0)
    model = sema.create_model("sema_micro[sema,head=fpn]", num_classes=3).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(sema.optimize_for_inference(model)(images), model(images), rtol=1e-4, atol=1e-4)
