"""Test weights of timm and torchvision at sizes other than their training size: positions are interpolated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sema_bench.worker.build_model import build_model, build_with_weights, read_weights


@pytest.mark.parametrize(
    ("name", "trained", "sizes"),
    [
        ("timm:deit_tiny_patch16_224", (224, 224), [(256, 256), (224, 288), (96, 96)]),
        ("timm:vit_tiny_patch16_224[dynamic_img_size=True]", (224, 224), [(256, 320)]),
        ("timm:beit_base_patch16_224[depth=2,embed_dim=48,num_heads=3]", (224, 224), [(256, 256)]),
        ("timm:swin_tiny_patch4_window7_224[embed_dim=24]", (224, 224), [(256, 256)]),
        ("timm:resnet18", (224, 224), [(256, 192)]),
        ("torchvision:vit_b_32", (64, 64), [(96, 96)]),
    ],
)
def test_weights_load_at_any_size_and_keep_their_classes(
    name: str, trained: tuple[int, int], sizes: list[tuple[int, int]], tmp_path: Path
) -> None:
    pytest.importorskip(name.partition(":")[0])
    torch.manual_seed(0)
    model = build_model(name, trained, classes=5)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth")
    for size in (*sizes, trained):
        loaded = build_with_weights(name, size, weights).eval()
        with torch.no_grad():
            assert loaded(torch.randn(1, 3, *size)).shape == (1, 5)
    same = loaded.state_dict()
    assert all(torch.equal(value, same[key]) for key, value in model.state_dict().items())


def test_positions_are_resized_as_timm_resizes_them(tmp_path: Path) -> None:
    layers = pytest.importorskip("timm.layers")
    name = "timm:deit_tiny_patch16_224"
    model = build_model(name, (224, 224), classes=5)
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    larger = build_with_weights(name, (256, 320), read_weights(tmp_path / "w.pth"))
    wanted = layers.resample_abs_pos_embed(model.pos_embed, new_size=[16, 20], num_prefix_tokens=1)
    torch.testing.assert_close(larger.pos_embed, wanted)
