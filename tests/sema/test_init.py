"""Test initialization of models: the distribution of their parameters, and the stochastic depth of each block."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from golden_fill import GOLDEN, load_golden

import sema
from sema.layers.drop_path import DropPath


def assert_same_law(sample, n, mean, std):
    """Compare with the mean and deviation of another ``n`` values; both are means of ``n`` terms.

    The mean of n values has a standard error of std/√n. The deviation of uniform or normal values has one of at most
    std/√(2n). The difference of two samples has √2 times that. The test allows five of these, and 0.1 % for the
    rounding of the data. Constants, whose deviation is 0, must be equal.
    """
    assert sample.numel() == n
    sample = sample.double()
    assert sample.mean().item() == pytest.approx(mean, rel=0, abs=std * (5 * math.sqrt(2 / n) + 1e-3))
    assert sample.std().item() == pytest.approx(std, rel=0, abs=std * (5 / math.sqrt(n) + 1e-3))


@pytest.mark.parametrize("name", ["vminet2_ti", "vminet_ti"])
def test_vminet_starts_as_the_official_code_does(name):
    torch.manual_seed(0)
    model = sema.create_model(name)
    official = json.loads((GOLDEN / "vminet2_ti.init.json").read_text(encoding="utf-8"))
    samples = defaultdict(list)  # the blocks of a stage are pooled
    for key in load_golden("vminet2_ti")[0]:
        group = re.sub(r"^(stages\.\d+)\.\d+\.", r"\1.#.", key)
        if group in official:
            samples[group].append(model.get_parameter(model.checkpoint_layout.translate(key)).detach().flatten())
    assert samples.keys() == official.keys()
    for group, (n, mean, std) in official.items():
        assert_same_law(torch.cat(samples[group]), n, mean, std)


@pytest.mark.parametrize(("name", "last"), [("vminet2_ti", 0.0), ("vim_tiny", 0.0), ("vim_small", 0.05)])
def test_stochastic_depth_is_that_of_the_official_recipe(name, last):
    with torch.device("meta"):
        model = sema.create_model(name)
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([last * block / 23 for block in range(24)])


def test_vims_backward_scan_starts_with_long_steps_as_in_the_official_code_unless_asked_otherwise():
    torch.manual_seed(0)
    official, intended = sema.create_model("vim_tiny"), sema.create_model("vim_tiny[init=intended]")
    assert all(not block.mixer.dt_proj_b.bias.any() for block in official.layers)
    for model, direction in ((official, "dt_proj"), (intended, "dt_proj"), (intended, "dt_proj_b")):
        biases = torch.cat([block.mixer.get_submodule(direction).bias for block in model.layers])
        # softplus(bias) is log-uniform between 0.001 and 0.1
        assert_same_law(F.softplus(biases).log(), 24 * 384, math.log(1e-2), math.log(100) / math.sqrt(12))
    with pytest.raises(ValueError, match="init must be one of official, intended; got 'paper'"):
        sema.create_model("vim_tiny[init=paper]")


def test_vims_patches_start_with_the_deviation_of_the_official_code():
    torch.manual_seed(0)
    weight = sema.create_model("vim_tiny").patch_embed.proj.weight.detach()
    assert_same_law(weight, 192 * 768, 0.0, 768**-0.5 / 0.87962566)  # timm 0.4.12 cuts at ±2, far outside
