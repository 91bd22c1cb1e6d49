"""Test pooling of the last map into one vector."""

from __future__ import annotations

import pytest
import torch
from torch_counter import count_macs

import sema
from sema.layers.pooling import POOLINGS, create_pooling


@pytest.mark.parametrize("head", POOLINGS)
def test_a_head_pools_as_its_definition_says(head):
    torch.manual_seed(0)
    pooling = create_pooling(head, dim=12, num_heads=3).double()
    x = torch.randn(2, 3, 5, 12, dtype=torch.float64)
    tokens = x.reshape(2, 15, 12)
    if head == "attention":
        scores = tokens @ pooling.score.weight.T
        weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
        expected = torch.cat(
            [sum(weights[:, n, h, None] * tokens[:, n, 4 * h : 4 * h + 4] for n in range(15)) for h in range(3)], dim=1
        )
    else:
        expected = tokens.mean(dim=1) if head == "mean" else tokens.max(dim=1).values
    torch.testing.assert_close(pooling(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head", POOLINGS)
def test_a_name_says_which_head_and_its_cost_is_counted(head):
    model = sema.create_model(f"sema_micro[linear,head={head}]", num_classes=10).eval()
    assert type(model.pooling).__name__ == f"{head.capitalize()}Pooling"
    assert count_macs(lambda: model(torch.zeros(1, 3, 64, 72))) == model.macs((64, 72)).total


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="head must be one of mean, max, attention, fpn; got 'median'"):
        sema.create_model("sema_micro[head=median]")
