"""Test our models against the official implementations' logits, on weights that everyone can make."""

from __future__ import annotations

import pytest
import torch
from golden_fill import DERIVED, fill_state_dict, golden_image, load_golden

import sema

#: Our model, the data of the official one, and the largest relative ℓ2 difference. The official code itself varies by
#: 4e-7 between two float32 backends (Vim, whose scan amplifies roundings, by 3e-5); a wrong term moves logits by 2e-4.
MODELS = [
    ("mila_tiny", "mlla_t", 1e-5),
    ("vminet_xs", "vminet_xs", 1e-5),
    ("vminet2_ti", "vminet2_ti", 1e-5),
    ("sima_small_12_p16", "sima_small_12_p16", 1e-5),
    ("swin_tiny", "swin_t", 1e-5),
    ("swin_tiny[windows=padded]", "swin_t_dense", 1e-5),
    ("vmamba_tiny_s1l8", "vmamba_t_s1l8", 1e-5),
    ("vim_tiny", "vim_ti", 1e-3),
    ("cvt_13", "cvt_13", 1e-5),
]


@pytest.mark.parametrize(("name", "data", "tolerance"), MODELS, ids=[name for name, _, _ in MODELS])
def test_an_official_checkpoint_gives_the_official_logits_at_every_size(name, data, tolerance):
    shapes, golden = load_golden(data)
    model = sema.create_model(name).eval()
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    # Official files have derived buffers; their values must not matter.
    derived = {key: torch.zeros(shape) for key, shape in shapes.items() if key.rsplit(".", 1)[-1] in DERIVED}
    report = sema.load_checkpoint(model, fill_state_dict(shapes, golden["G"]) | derived)
    assert not any(report)
    height, width = golden["input"][-2:]
    # VMINet 2.0 has a weight per token, so another size needs another state dict; that is tested below.
    others = () if data == "vminet2_ti" else golden.get("other_resolutions", ())
    for expected in ({**golden, "H": height, "W": width}, *others):
        check_logits(model, expected, tolerance)


@pytest.mark.parametrize("img_size", [160, 224])
def test_a_checkpoint_of_vminet2_for_another_size_gives_the_official_logits_at_that_size(img_size):
    shapes, golden = load_golden("vminet2_ti")
    (other,) = golden["other_resolutions"]
    for key, shape in shapes.items():
        if key.endswith("sum.weight"):
            shape[1] = shape[1] * (other["H"] * other["W"]) // 224**2  # one weight per token
    model = sema.create_model("vminet2_ti", img_size=img_size).eval()
    assert not any(sema.load_checkpoint(model, fill_state_dict(shapes, golden["G"])))
    check_logits(model, other, 1e-5)


def check_logits(model, expected, tolerance):
    with torch.inference_mode():
        logits = model(golden_image(expected["H"], expected["W"]))[0].double()
    official = torch.tensor(expected["logits16"], dtype=torch.float64)
    assert (logits[:16] - official).norm() / official.norm() <= tolerance, (expected["H"], expected["W"])
    assert logits.norm().item() == pytest.approx(expected["l2"], rel=tolerance)
    assert logits.argmax().item() == expected["argmax"]


def test_mila_has_the_official_keys_but_for_derived_buffers():
    shapes, _ = load_golden("mlla_t")
    official = {key: tuple(shape) for key, shape in shapes.items() if key.rsplit(".", 1)[-1] not in DERIVED}
    assert {key: tuple(value.shape) for key, value in sema.create_model("mila_tiny").state_dict().items()} == official
