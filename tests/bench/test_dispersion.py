"""Dispersion: what the statistics are, on coefficients that are known, and what the mechanisms show."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from command_support import invoke
from torch import Tensor

import sema
from sema.attention.base import Attention
from sema_bench.cli.maps import _trained_on
from sema_bench.errors import ProbeError
from sema_bench.studies.dispersion.coefficients import (
    _statistics,
    attentions_of,
    growth,
    random_spreads,
    trained_spreads,
)
from sema_bench.studies.dispersion.study import first_attention
from sema_bench.studies.maps.coefficients import _grid, attention_maps, receptive_field
from sema_bench.training.checkpoint import write_checkpoint


class Known(Attention):
    """Weighs ``heavy`` keys alike and no other."""

    has_coefficients = True

    def __init__(self, heavy: int) -> None:
        super().__init__(4, 2)
        self.heavy = heavy

    def coefficients(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        tokens = x.shape[1] * x.shape[2]
        weights = torch.zeros(1, 2, tokens if rows is None else len(rows), tokens)
        weights[..., : self.heavy] = -3.0  # neither sign nor scale is looked at
        return weights


def test_statistics_of_known_coefficients() -> None:
    largest, entropy_share, support = _statistics(Known(8), torch.zeros(1, 16, 16, 4))
    assert largest == pytest.approx(1 / 8)
    assert entropy_share == pytest.approx(math.log(8) / math.log(256))
    assert support == pytest.approx(8)


def test_statistics_are_means_over_all_rows_whatever_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    attention = sema.create_attention("softmax", dim=8, num_heads=2).eval()
    features = torch.randn(1, 6, 6, 8)
    whole = _statistics(attention, features)
    monkeypatch.setattr("sema_bench.studies.dispersion.coefficients._HELD", 100)
    assert _statistics(attention, features) == pytest.approx(whole, rel=1e-6)
    weights = attention.coefficients(features).double()
    assert whole[0] == pytest.approx(float(weights.detach().amax(dim=-1).mean()), rel=1e-6)


EXPECTED = {"linear": -1.0, "mila": -1.0, "window": 0.0, "sema": 0.0}


@pytest.mark.parametrize("name", EXPECTED)
def test_coefficients_disperse_where_every_key_has_a_part(name: str) -> None:
    torch.manual_seed(0)
    attention = sema.create_attention(name, dim=16, num_heads=2)
    spreads = list(random_spreads(name, attention, (1024, 4096, 16384), samples=3))
    (found,) = growth(spreads)
    assert found.exponent.value == pytest.approx(EXPECTED[name], abs=0.12)
    assert found.exponent.low is not None
    assert found.exponent.low <= found.exponent.value <= found.exponent.high
    assert (found.first.keys, found.last.keys) == (1024, 16384)


def test_trained_features_are_those_that_each_attention_gets() -> None:
    torch.manual_seed(0)
    network = sema.create_model("sema_micro[softmax]", num_classes=10).eval()
    image = torch.randn(1, 3, 96, 96)
    spreads = list(trained_spreads("m", network, lambda sample, side: image[..., :side, :side], (64, 96), samples=1))
    assert [(s.layer, s.keys) for s in spreads] == [(0, 256), (1, 256), (0, 576), (1, 576)]
    with torch.inference_mode():
        first = attentions_of(network)[0]
        block = network.layers[0].blocks[0]
        x = network.patch_embed(network.to_map(image))
        normed = block.norm1(x + block.cpe1(x))
        features = torch.nn.functional.silu(block.dwc(block.in_proj(normed)))
    assert spreads[2].largest == pytest.approx(_statistics(first, features)[0], rel=1e-5)


def test_a_model_without_coefficients_says_so() -> None:
    with pytest.raises(ProbeError, match="no coefficients"):
        attentions_of(sema.create_model("sema_micro[vmi]"))


def test_the_command_prints_exponents_and_writes_a_picture(tmp_path: Path) -> None:
    code, shown, err = invoke(
        *("dispersion", "--models", "sema_micro[linear],sema_micro[window]", "--keys", "64,256,1024"),
        *("--samples", "2", "--out", str(tmp_path), "--run", "d"),
    )
    assert code == 0, err
    assert "exponent of the" in shown
    assert "sema_micro[window]" in shown
    assert len((tmp_path / "d" / "dispersion.csv").read_text().splitlines()) == 1 + 2 * 2 * 3
    assert (tmp_path / "d" / "plots" / "dispersion-random.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--keys", "17..100"), "17 is not a square"),
        (("--keys", "16,64"), "needs three numbers of keys"),
        (("--keys", "many"), "takes A..B or a list"),
        (("--models", "sema_micro[vmi]"), "no coefficients"),
        (("--data", "folder:x"), "it needs drawn ones"),
    ],
)
def test_a_wrong_request_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = invoke("dispersion", *arguments, "--out", str(tmp_path))
    assert code == 2
    assert message in err


# Maps


def test_a_map_is_the_row_of_the_token() -> None:
    torch.manual_seed(0)
    network = sema.create_model("sema_micro[window]", num_classes=10).eval()
    maps = attention_maps(network, torch.randn(1, 3, 64, 96), (0.5, 0.99))
    assert [each.layer for each in maps] == [0, 1]
    assert maps[0].token == (8, 23)
    # The window of token (8, 23) in a grid of 16×24 has rows 7 to 13 and columns 21 to 23.
    inside = np.zeros((16, 24), dtype=bool)
    inside[7:14, 21:24] = True
    assert np.array_equal(maps[0].weights > 0, inside)
    assert float(maps[0].weights.sum()) == pytest.approx(1.0, abs=1e-5)


def test_weights_that_are_no_numbers_are_told() -> None:
    model = sema.create_model("sema_micro", attention="softmax").eval()
    next(module for module in model.modules() if isinstance(module, Attention)).qkv.weight.data.fill_(math.nan)
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ProbeError, match="coefficients of attention 1 are not finite"):
        attention_maps(model, image, (0.5, 0.5))
    with pytest.raises(ProbeError, match="features are not finite"):
        receptive_field(model, [image], (0.5, 0.5))
    with pytest.raises(ProbeError, match="coefficients are not finite"):
        list(trained_spreads("m", model, lambda sample, side: torch.zeros(1, 3, side, side), [32], samples=1))


def test_a_sequence_with_a_class_token_becomes_the_grid_of_its_patches() -> None:
    network = sema.create_model("deit_tiny", num_classes=10, img_size=(64, 96)).eval()
    maps = attention_maps(network, torch.randn(1, 3, 64, 96), (0.5, 0.5))
    assert {(each.weights.shape, each.token) for each in maps} == {((4, 6), (2, 3))}
    assert float(maps[0].weights.sum()) < 1  # the class token has the rest


def test_no_grid_has_any_number_of_tokens() -> None:
    assert _grid(1, 197, 1.0) == (1, 14, 14)
    assert _grid(1, 198, 1.0) == (2, 14, 14)
    assert _grid(5, 7, 1.0) == (0, 5, 7)
    with pytest.raises(ProbeError, match="sequence of 23 tokens"):
        _grid(1, 23, 1.0)


def test_the_seed_decides_random_features_and_weights() -> None:
    first, again, other = (
        list(random_spreads("swin", first_attention("swin_tiny", seed=seed), [49, 196], samples=1, seed=seed))
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_weights_that_are_no_numbers_are_told_in_one_line(tmp_path: Path) -> None:
    name = "sema_micro[linear,head=max]"
    weights = sema.create_model(name, num_classes=10).state_dict()
    spoiled = {key: value.fill_(math.nan) if value.is_floating_point() else value for key, value in weights.items()}
    write_checkpoint(tmp_path / "nan.safetensors", spoiled, {"data": "digits:field"})
    code, _, err = invoke(
        *("dispersion", "--models", "sema_micro", "--keys", "16,64,256", "--samples", "2", "--res", "64,96,128"),
        *("--checkpoint", f"{name}={tmp_path / 'nan.safetensors'}", "--out", str(tmp_path), "--run", "d"),
    )
    assert (code, f"{name}: its coefficients are not finite" in err.splitlines()[-1]) == (2, True), err
    assert not (tmp_path / "d").exists()


def test_the_receptive_field_is_where_pixels_matter() -> None:
    class Blur(torch.nn.Module):
        def forward_features(self, x: Tensor) -> list[Tensor]:
            return [torch.nn.functional.avg_pool2d(x, 5, 1, 2).permute(0, 2, 3, 1)]

    field = receptive_field(Blur(), [torch.randn(1, 3, 20, 20)], (0.5, 0.25))
    expected = torch.zeros(20, 20)
    expected[8:13, 3:8] = 1.0
    torch.testing.assert_close(torch.from_numpy(field), expected)
    with pytest.raises(ProbeError, match="no feature maps"):
        receptive_field(torch.nn.Identity(), [torch.randn(1, 3, 8, 8)], (0.5, 0.5))


def test_the_command_draws_maps(tmp_path: Path) -> None:
    code, shown, err = invoke(
        *("maps", "--model", "sema_micro[sema,head=max]", "--res", "64", "--samples", "2"),
        *("--out", str(tmp_path), "--run", "m"),
    )
    assert code == 0, err
    assert (tmp_path / "m" / "plots" / "maps.png").stat().st_size > 10_000
    assert "maps.svg" in shown
    weights = tmp_path / "weights.safetensors"
    write_checkpoint(weights, {}, {"data": "digits:zoom"})
    assert (_trained_on(weights), _trained_on(None)) == ("digits:zoom", "")
    write_checkpoint(weights, {}, {"data": "folder:/elsewhere"})
    assert _trained_on(weights) == "", "files may be gone"
    code, _, err = invoke("maps", "--model", "sema_micro", "--token", "2,0")
    assert (code, "two shares from 0 to 1" in err) == (2, True)
