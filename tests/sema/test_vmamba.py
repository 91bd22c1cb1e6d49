"""Test VMamba: its sizes, its cost with and without scans, and its outputs at any size."""

from __future__ import annotations

import pytest
import torch
from torch_counter import count_macs

import sema
from sema.models.vmamba import VMamba


def on_meta(name):
    with torch.device("meta"):
        return sema.create_model(name).eval()


def small_vmamba(**options):
    arguments = {"dim": 8, "depths": (1, 1, 2, 1), "ssm_ratio": 2, "num_classes": 5, **options}
    return VMamba(**arguments)


def test_scan_flops_are_those_that_the_paper_adds_to_its_macs():
    model = on_meta("vmamba_tiny_s1l8")
    published = {224: 0.063, 256: 0.083, 384: 0.186, 512: 0.330, 768: 0.743, 1024: 1.321}
    assert {side: round(model.macs((side, side)).scan_flops / 1e9, 3) for side in published} == published


@pytest.mark.parametrize("resolution", [(33, 47), (3, 5)])
def test_macs_equal_what_torch_counts(resolution):
    model = on_meta("vmamba_tiny_s1l8")
    assert model.macs(resolution).total == count_macs(lambda: model(torch.empty(1, 3, *resolution, device="meta")))


@pytest.mark.parametrize("resolution", [(33, 47), (1, 1)])
def test_any_resolution_trains_with_drop_path(resolution):
    model = small_vmamba(drop_path_rate=0.2)
    out = model(torch.randn(2, 3, *resolution))
    assert out.shape == (2, 5)
    out.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_mixer_equals_its_reference():
    op = small_vmamba().layers[0].blocks[0].op.double()
    x = torch.randn(2, 5, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(op(x), op.reference(x), rtol=1e-10, atol=1e-10)


def test_features_are_the_four_maps_before_downsampling():
    maps = small_vmamba().forward_features(torch.randn(2, 3, 97, 65))
    assert [tuple(m.shape) for m in maps] == [(2, 25, 17, 8), (2, 13, 9, 16), (2, 7, 5, 32), (2, 4, 3, 64)]


def test_a_scan_that_is_not_there_is_refused_when_the_model_is_built():
    with pytest.raises(ValueError, match="scan must be one of auto, torch, native, triton, mamba_ssm; got 'fast'"):
        small_vmamba(scan="fast")
