"""Test recipes, and random augmentation of images."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from training_support import DATA, recipe, write_photographs

from sema_bench.errors import UsageError
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.recipe import Recipe, parse_recipe
from sema_bench.training.images import TrainingImages
from sema_bench.training.loss import TrainingLoss
from sema_bench.training.state import Schedule, new_state
from sema_bench.worker.build_model import build_model

# The recipe


def rates_of(chosen: Recipe, *, steps_per_epoch: int = 4) -> list[float]:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=chosen.lr)
    schedule = Schedule(optimizer, chosen, steps_per_epoch=steps_per_epoch)
    return [schedule.set(step) for step in range(chosen.epochs * steps_per_epoch)]


def test_the_rate_rises_linearly_and_falls_along_a_cosine() -> None:
    rates = rates_of(recipe(epochs=10, min_lr=1e-4, warmup_epochs=2.0))
    assert rates[:8] == pytest.approx([1e-6 + (2e-3 - 1e-6) * k / 8 for k in range(8)])
    assert rates[8] == pytest.approx(2e-3)
    assert rates[24] == pytest.approx((2e-3 + 1e-4) / 2)
    assert all(a > b for a, b in itertools.pairwise(rates[8:]))
    assert rates[-1] > 1e-4


def test_a_short_training_warms_up_for_a_tenth_of_it() -> None:
    default = parse_recipe({}, source="test")
    assert default.warmup == 5
    assert default.changed({"epochs": 8}, source="test").warmup == pytest.approx(0.8)
    assert default.changed({"epochs": 8, "warmup_epochs": 2}, source="test").warmup == 2


def test_the_rate_can_stay_before_it_falls() -> None:
    rates = rates_of(recipe(epochs=10, min_lr=1e-4, warmup_epochs=2.0, decay_share=0.25))
    assert rates[8:33] == pytest.approx([2e-3] * 25)
    assert rates[36] == pytest.approx((2e-3 + 1e-4) / 2)
    assert all(a > b for a, b in itertools.pairwise(rates[32:]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": 0}, "epochs: must be at least 1; got 0"),
        ({"lr": "fast"}, "lr: "),
        ({"warmup_epochs": 5}, "leaves nothing of 2 epochs"),
        ({"min_lr": 1.0}, "above lr"),
        ({"accumulate": 3}, "does not divide into 3 parts"),
        ({"scale": [1.0, 0.5]}, "scale goes from a smaller share"),
        ({"amp": "fp8"}, "amp: "),
        ({"betas": [1.0, 0.9]}, "betas"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"res": [0, 64]}, "res"),
        ({"mesa": 1.0}, "mesa is a loss towards the moving average; add one"),
        ({"freeze_backbone": True, "ema": 0.9}, "ema does nothing for a frozen backbone; drop it"),
        ({"freeze_backbone": True, "drop_path": 0.1}, "drop_path does nothing for a frozen backbone"),
    ],
)
def test_a_wrong_recipe_is_told_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(**changes)


def test_the_digest_knows_what_decides_the_weights() -> None:
    assert recipe().digest == recipe(save_s=1.0, seeds=[3, 4]).digest
    assert recipe().digest != recipe(lr=1e-3).digest


def test_an_epoch_must_hold_a_batch() -> None:
    with pytest.raises(UsageError, match="an epoch of 32 images holds no batch of 64"):
        recipe(batch=64).steps_per_epoch(1000)


def test_an_epoch_has_no_more_images_than_there_are() -> None:
    with pytest.raises(UsageError, match="epoch_images 32 is more than the 24 images of the data"):
        recipe().steps_per_epoch(24)


@pytest.mark.parametrize(
    ("model", "spared"),
    [
        ("sema_micro[vmamba]", {"A_logs", "dt_projs_bias"}),
        ("swin_tiny", {"relative_position_bias_table"}),
        ("deit_tiny", {"cls_token", "pos_embed"}),
    ],
)
def test_weight_decay_falls_on_the_weights_of_products(model: str, spared: set[str]) -> None:
    network = build_model(model, (224, 224), classes=10)
    groups = new_state(network, recipe(weight_decay=0.1), torch.device("cpu")).optimizer.param_groups
    others, decayed = (group["params"] for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1]
    names = {id(parameter): name.rpartition(".")[2] for name, parameter in network.named_parameters()}
    assert {names[id(p)] for p in others if p.ndim > 1} == spared
    assert all(p.ndim > 1 for p in decayed)
    assert len(decayed) + len(others) == len(names)


# Mixing, averaging and cropping


def loss_of(chosen: Recipe, classes: int = 2) -> TrainingLoss:
    return TrainingLoss(chosen, classes, torch.device("cpu"))


def test_smoothing_spreads_the_target() -> None:
    seen = torch.randn(2, 4)
    loss = loss_of(recipe(label_smoothing=0.2), 4)(
        lambda images: seen, torch.zeros(2, 3, 8, 8), torch.tensor([1, 0]), None
    )
    expected = nn.functional.cross_entropy(seen, torch.tensor([1, 0]), label_smoothing=0.2)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_the_loss_knows_how_much_of_each_image_is_there(mixup: float, cutmix: float) -> None:
    """Image 0 is black and image 1 white, so brightness is the share of class 1, and no network has a lower loss."""
    loss = loss_of(recipe(mixup=mixup, cutmix=cutmix))
    mixed = 0
    for seed in range(20):
        np.random.seed(seed)
        shares = torch.empty(0)

        def network(images: torch.Tensor) -> torch.Tensor:
            nonlocal shares
            shares = torch.stack([1 - images.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3))], dim=1)
            return shares.clamp_min(1e-30).log()

        images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
        found = loss(network, images, torch.tensor([0, 1]), None)
        entropy = torch.special.entr(shares).sum(dim=1).mean()
        torch.testing.assert_close(found, entropy, rtol=1e-4, atol=1e-5)
        mixed += bool(entropy > 0.01)
    assert mixed > 5


def test_a_pair_is_mixed_and_the_image_that_is_left_over_waits() -> None:
    assert [loss_of(recipe(mixup=0.8)).usable(count) for count in (0, 1, 2, 5)] == [0, 0, 2, 4]
    assert loss_of(recipe()).usable(5) == 5


def test_mesa_pulls_towards_the_predictions_of_the_average() -> None:
    logits, believed = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4)
    labels, images = torch.tensor([1, 0]), torch.zeros(2, 3, 8, 8)
    chosen = recipe(mesa=1.5, ema=0.9)
    loss = loss_of(chosen, 4)(lambda _: logits, images, labels, lambda _: believed)
    plain = nn.functional.cross_entropy(logits, labels)
    pulled = nn.functional.cross_entropy(logits, believed.softmax(dim=1))
    torch.testing.assert_close(loss, plain + 1.5 * pulled)
    torch.testing.assert_close(loss_of(chosen, 4)(lambda _: logits, images, labels, None), plain)


def test_the_decay_of_the_average_follows_the_batch() -> None:
    mila = recipe(ema=0.9996, ema_batch=4096, batch=1024, epoch_images=1024)
    assert mila.ema_decay == pytest.approx(0.9999, abs=1e-6)
    assert mila.changed({"ema_batch": 0}, source="test").ema_decay == 0.9996


def test_the_average_follows_parameters_and_statistics() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = new_state(model, recipe(ema=0.9), torch.device("cpu")).average
    assert average is not None
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model[1].running_mean.fill_(5.0)
    average.update(model)
    torch.testing.assert_close(average.module[0].weight, start + 0.1)
    torch.testing.assert_close(average.module[1].running_mean, torch.full((2,), 0.5))


def test_the_whole_image_is_shown_if_nothing_is_cropped(tmp_path: Path) -> None:
    spec = parse_data(f"folder:{write_photographs(tmp_path)}")
    images = TrainingImages(spec, recipe(res=[32, 40]), seed=1)
    with Image.open(tmp_path / "b" / "1.png") as image:
        whole = np.asarray(image.resize((40, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(images.sample(0, np.array([7]), 0)[0], whole)  # 40×50 pixels, the shape of 32×40


def test_a_photograph_is_augmented_by_seed_epoch_and_place_alone(tmp_path: Path) -> None:
    spec = parse_data(f"folder:{write_photographs(tmp_path)}")
    chosen = recipe(res=32, scale=[0.2, 1.0], flip=0.5, randaugment="rand-m9-mstd0.5-inc1")
    one, other = (TrainingImages(spec, chosen, seed=1) for _ in range(2))
    order = np.full(12, 3)
    other.sample(0, order, 5)
    first = one.sample(2, order, 3)[0]
    assert np.array_equal(first, other.sample(2, order, 3)[0])
    assert not np.array_equal(first, one.sample(3, order, 3)[0])
    assert not np.array_equal(first, one.sample(2, order, 4)[0]), "a repeated image is another crop"
    assert not np.array_equal(first, TrainingImages(spec, chosen, seed=2).sample(2, order, 3)[0])
    assert sorted(one.order(0)) == list(range(12))
    assert list(one.order(0)) != list(one.order(1))


def test_repeats_show_fewer_images_more_often(tmp_path: Path) -> None:
    spec = parse_data(f"folder:{write_photographs(tmp_path)}")
    images = TrainingImages(spec, recipe(res=32, repeats=3), seed=1)
    order = list(images.order(0))
    assert len(order) == 12
    assert order[::3] == order[1::3] == order[2::3]
    assert len(set(order)) == 4


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    spec = parse_data(f"folder:{write_photographs(tmp_path)}")
    with pytest.raises(UsageError, match="not a policy of timm"):
        TrainingImages(spec, recipe(randaugment="nonsense"), seed=1)


@pytest.mark.parametrize("changes", [{"flip": 0.5}, {"repeats": 3}])
def test_what_is_for_photographs_is_refused_for_scenes(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(changes))} is for photographs"):
        TrainingImages(DATA, recipe(**changes), seed=0)
