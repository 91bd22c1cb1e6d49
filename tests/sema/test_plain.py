"""Test that the plain models of the speed comparison compute what our models compute."""

from __future__ import annotations

import pytest
import torch
from golden_fill import fill_value
from plain import PLAIN

import sema

#: One size of each family; the others differ only in size.
FAMILIES = [name for name in PLAIN if not any(size in name for size in ("small", "base", "medium", "_s", "_b"))]


def test_every_model_of_a_paper_has_a_plain_form():
    assert set(PLAIN) == set(sema.list_models()) - {"sema_micro"}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_plain_form_gives_the_logits_of_ours(name):
    ours, plain = sema.create_model(name).eval(), PLAIN[name]().eval()
    filled = {
        key: fill_value(key, list(value.shape), gain=3.0) if value.is_floating_point() else value
        for key, value in ours.state_dict().items()
    }
    ours.load_state_dict(filled)
    plain.load_state_dict(filled, strict=True)
    for resolution in ((224, 224), (96, 160)):
        image = torch.randn(1, 3, *resolution)
        with torch.inference_mode():
            expected, got = plain(image), ours(image)
        # float32 rounding through some twenty blocks, relative to logits of order one; scans amplify it
        assert (got - expected).norm() / expected.norm() < (1e-3 if "vim" in name else 1e-4)
