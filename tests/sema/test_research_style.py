"""The yardstick of the speed comparison computes what our models compute."""

from __future__ import annotations

import pytest
import torch
from golden_fill import fill_value
from research_style import research_mila_tiny, research_sema_tiny

import sema


@pytest.mark.parametrize(("name", "build"), [("sema_tiny", research_sema_tiny), ("mila_tiny", research_mila_tiny)])
@pytest.mark.parametrize("resolution", [(224, 224), (100, 150)])
def test_research_form_gives_the_logits_of_ours(name, build, resolution):
    ours, research = sema.create_model(name).eval(), build().eval()
    filled = {
        key: fill_value(key, list(value.shape), gain=6.0) if value.is_floating_point() else value
        for key, value in ours.state_dict().items()
    }
    ours.load_state_dict(filled)
    research.load_state_dict(filled, strict=True)
    image = torch.randn(1, 3, *resolution)
    with torch.inference_mode():
        expected, got = research(image), ours(image)
    # float32 rounding through 18 blocks, relative to logits of order one
    assert (got - expected).norm() / expected.norm() < 1e-4
