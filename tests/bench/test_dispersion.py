"""Test dispersion: the statistics of known coefficients, and the results of the mechanisms."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from command_support import invoke
from torch import Tensor

import sema
from sema.attention.base import Attention
from sema_bench.errors import ProbeError
from sema_bench.studies.dispersion.coefficients import (
    _statistics,
    attentions_of,
    growth,
    query_rows,
    random_spreads,
    trained_spreads,
)
from sema_bench.studies.dispersion.mean import approach_in_width, distances_from_mean, has_scores, random_distances
from sema_bench.studies.dispersion.study import first_attention
from sema_bench.training.checkpoint import write_checkpoint


class Known(Attention):
    """Gives ``heavy`` keys equal weights, half of them negative, and all other keys none."""

    has_coefficients = True

    def __init__(self, heavy: int) -> None:
        super().__init__(4, 2)
        self.heavy = heavy

    def coefficients(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        tokens = x.shape[1] * x.shape[2]
        weights = torch.zeros(1, 2, tokens if rows is None else len(rows), tokens)
        weights[..., : self.heavy] = 3.0  # the scale does not matter
        weights[..., : self.heavy // 2] *= -1
        return weights


def test_statistics_of_known_coefficients() -> None:
    largest, smallest, support_share, negative_share = _statistics(Known(8), torch.zeros(1, 16, 16, 4))
    assert (largest, smallest, negative_share) == pytest.approx((1 / 8, 0, 1 / 2))
    assert support_share * 256 == pytest.approx(8)
    assert _statistics(Known(256), torch.zeros(1, 16, 16, 4))[:3] == pytest.approx((1 / 256, 1 / 256, 1))


def test_statistics_are_means_over_all_rows_whatever_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    attention = sema.create_attention("softmax", dim=8, num_heads=2).eval()
    features = torch.randn(1, 6, 6, 8)
    whole = _statistics(attention, features)
    distances = distances_from_mean(attention, features)
    monkeypatch.setattr("sema_bench.studies.dispersion.coefficients.HELD", 100)
    assert _statistics(attention, features) == pytest.approx(whole, rel=1e-12)
    assert distances_from_mean(attention, features) == pytest.approx(distances, rel=1e-12)
    weights = attention.double().coefficients(features.double()).detach()
    expected = [each.mean() for each in (weights.amax(dim=-1), weights.amin(dim=-1))]
    assert whole[:2] == pytest.approx(list(map(float, expected)), rel=1e-12)


@pytest.mark.parametrize("side", [42, 64, 126, 168])
def test_queries_lie_anywhere_on_the_grid(side: int) -> None:
    queries = torch.cat(list(query_rows(side * side, 1)))
    assert len(queries.unique()) == len(queries) == 64
    assert min(len((queries % side).unique()), len((queries // side).unique())) > 20
    assert int(((queries % side) % (side - 1) == 0).sum()) < 10, "on the left or right border"


#: Mechanism → exponents of the largest and the smallest coefficient; None: some are 0.
EXPECTED = {"linear": (-1.0, -1.0), "window": (0.0, None), "sema": (0.0, -1.0)}


@pytest.mark.parametrize("name", EXPECTED)
def test_coefficients_disperse_where_every_key_and_no_other_term_has_a_part(name: str) -> None:
    torch.manual_seed(0)
    attention = sema.create_attention(name, dim=16, num_heads=2)
    spreads = list(random_spreads(name, attention, (1024, 4096, 16384), samples=3))
    (found,) = growth(spreads)
    assert (found.first_size, found.last_size) == (1024, 16384)
    for side, expected in zip(("largest", "smallest"), EXPECTED[name], strict=True):
        exponent = found.trends[side].exponent
        assert (exponent is None) == (expected is None)
        if exponent and exponent.low is not None and exponent.high is not None:
            assert exponent.value == pytest.approx(expected, abs=0.12)
            assert exponent.low <= exponent.value <= exponent.high


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
        normed = block.norm1(block.cpe1(x))
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
    assert "exponent of" in shown
    assert "sema_micro[window]" in shown
    table = pd.read_csv(tmp_path / "d" / "dispersion.csv")
    assert len(table) == 2 * 2 * 3
    assert (table["smallest"] > 0).tolist() == (table["model"] == "sema_micro[linear]").tolist()
    assert (tmp_path / "d" / "plots" / "dispersion-random.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--keys", "17..100"), "17 is not a square"),
        (("--keys", "16,64"), "needs three numbers of keys"),
        (("--keys", "many"), "takes A..B or a list"),
        (("--models", "sema_micro[vmi]"), "no coefficients"),
        (("--data", "folder:x"), "it needs drawn ones"),
        (("--mean", "--models", "sema_micro"), "drop --models"),
        (("--common", "0.5"), "are for the features of --mean"),
        (("--mean", "--channels", "48"), "48 is not a multiple of 32"),
        (("--mean", "--common", "0,1"), "takes shares from 0 to below 1"),
    ],
)
def test_a_wrong_request_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = invoke("dispersion", *arguments, "--out", str(tmp_path))
    assert code == 2
    assert message in err


# The mean


def test_distances_are_those_of_the_whole_matrix() -> None:
    torch.manual_seed(0)
    attention = sema.create_attention("softmax", dim=8, num_heads=2).eval().double()
    features = torch.randn(1, 4, 5, 8, dtype=torch.float64)  # fewer tokens than queries: every row is used
    with torch.no_grad():
        out = attention.coefficients(features) @ attention.values(features)
        q, k, v = attention.heads(features)
        mean = v.mean(dim=-2, keepdim=True)
        scores = q @ k.transpose(-2, -1) / math.sqrt(4)
        cross = torch.stack([torch.cov(torch.cat((k[0, h], v[0, h]), dim=1).T, correction=0)[:4, 4:] for h in range(2)])
        first_order = q @ cross / math.sqrt(4)
    expected = (
        (out - mean).norm() / v.norm(),
        (out - mean).norm() / out.norm(),
        (out - mean - first_order).norm() / out.norm(),
        mean.square().sum() / v.square().sum() * 20,
        scores.var(dim=-1, correction=0).mean().sqrt(),
    )
    assert distances_from_mean(attention, features) == pytest.approx(list(map(float, expected)), rel=1e-10)


def test_the_first_order_term_leaves_what_is_quadratic_in_the_scores() -> None:
    torch.manual_seed(0)
    attention = sema.create_attention("softmax", dim=8, num_heads=2).eval()
    features = torch.randn(1, 16, 16, 8)
    found = []
    for _ in range(2):
        with torch.no_grad():
            attention.qkv.weight[:8] /= 16  # the queries
            attention.qkv.bias[:8] /= 16
        found.append(distances_from_mean(attention, features))
    assert found[0][1] / found[1][1] == pytest.approx(16, rel=0.1)
    assert found[0][2] / found[1][2] == pytest.approx(256, rel=0.2)


def test_random_features_have_the_common_share_and_distance_that_theory_gives() -> None:
    distances = [
        each
        for width in (32, 64, 128)
        for each in random_distances([64, 256, 4096], channels=width, common=(0.0, 0.5), samples=3)
    ]
    last = (
        pd.DataFrame([each for each in distances if each.keys == 4096])
        .groupby(["common", "channels"])
        .mean(numeric_only=True)
    )
    # The keys are nearly Gaussian: o − v̄ = Cov(v, k) q / √d, whose size relative to v is 1/√C.
    assert last.loc[0.0]["mean_of_values"].tolist() == pytest.approx([c**-0.5 for c in (32, 64, 128)], rel=0.15)
    assert last.loc[0.0]["mean_of_output"].min() > 0.9
    assert last.loc[0.5]["common_of_values"].tolist() == pytest.approx([0.5] * 3, abs=0.1)
    (zero_mean, _) = approach_in_width(distances)
    slope = zero_mean.trends["mean_of_values"].exponent
    assert slope is not None
    assert slope.value == pytest.approx(-0.5, abs=0.1)


def test_only_a_softmax_of_scores_alone_is_compared_with_the_mean() -> None:
    names = {"softmax": True, "window": True, "sema": True, "linear": False, "mila": False}
    assert {name: has_scores(sema.create_attention(name, dim=8, num_heads=2)) for name in names} == names
    assert not has_scores(sema.create_attention("window", dim=8, num_heads=2, relative_position_bias=True))


def test_the_command_measures_the_mean(tmp_path: Path) -> None:
    name = "sema_micro[{},head=max]"
    for attention in ("softmax", "linear"):
        weights = sema.create_model(name.format(attention), num_classes=10).state_dict()
        write_checkpoint(tmp_path / f"{attention}.safetensors", weights, {"data": "digits:field"})
    base = ("dispersion", "--mean", "--keys", "16,64,256", "--channels", "32,64", "--common", "0,0.5", "--samples", "2")
    base += ("--res", "64,96,128", "--out", str(tmp_path), "--run", "m", "--checkpoint")
    code, _, err = invoke(*base, f"{name.format('linear')}={tmp_path / 'linear.safetensors'}")
    assert (code, "no attention of this model is a softmax" in err) == (2, True), err
    assert not (tmp_path / "m").exists()
    code, shown, err = invoke(*base, f"{name.format('softmax')}={tmp_path / 'softmax.safetensors'}")
    assert code == 0, err
    assert "‖o − v̄‖ / ‖o‖" in shown
    table = pd.read_csv(tmp_path / "m" / "mean.csv")
    assert len(table) == 2 * 2 * 2 * 3 + 2 * 2 * 3
    assert set(table[table["setting"] == "trained"]["layer"]) == {0, 1}
    assert {path.name for path in (tmp_path / "m" / "plots").glob("*.png")} == {"mean-random.png", "mean-trained.png"}


def test_features_that_do_not_fit_into_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sema_bench.studies.dispersion.study.available_memory_bytes", lambda: 2**20)
    code, _, err = invoke("dispersion", "--mean", "--keys", "16,64,1024", "--out", str(tmp_path))
    assert (code, "give fewer --keys or --channels" in err) == (2, True), err


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


def test_coefficients_that_are_no_numbers_are_refused() -> None:
    model = sema.create_model("sema_micro", attention="softmax").eval()
    next(module for module in model.modules() if isinstance(module, Attention)).qkv.weight.data.fill_(math.nan)
    with pytest.raises(ProbeError, match="coefficients are not finite"):
        list(trained_spreads("m", model, lambda sample, side: torch.zeros(1, 3, side, side), [32], samples=1))
