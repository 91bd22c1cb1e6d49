"""What a recipe says, and what chance makes of images."""

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
from sema_bench.spec.recipe import parse_recipe
from sema_bench.training.images import TrainingImages, random_crop
from sema_bench.training.mixing import mixed, soft_targets
from sema_bench.training.state import MovingAverage, decay_groups
from sema_bench.worker.build_model import build_model

# The recipe


def test_the_rate_rises_linearly_and_falls_along_a_cosine() -> None:
    rates = [recipe(epochs=10, min_lr=1e-4, warmup_epochs=2.0).learning_rate(step, 4) for step in range(40)]
    assert rates[:8] == pytest.approx([2e-3 * (k + 1) / 8 for k in range(8)])
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
    kept = recipe(epochs=10, min_lr=1e-4, warmup_epochs=2.0, decay_share=0.25)
    rates = [kept.learning_rate(step, 4) for step in range(40)]
    assert rates[8:33] == pytest.approx([2e-3] * 25)
    assert rates[36] == pytest.approx((2e-3 + 1e-4) / 2)
    assert all(a > b for a, b in itertools.pairwise(rates[32:]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": 0}, "epochs: Input should be greater than or equal to 1"),
        ({"lr": "fast"}, "lr: "),
        ({"warmup_epochs": 5}, "leaves nothing of 2 epochs"),
        ({"min_lr": 1.0}, "above lr"),
        ({"accumulate": 3}, "does not divide into 3 parts"),
        ({"scale": [1.0, 0.5]}, "scale goes from a smaller share"),
        ({"amp": "fp8"}, "amp: "),
        ({"betas": [1.0, 0.9]}, "betas"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"res": [0, 64]}, "res"),
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
    decayed, others = (group["params"] for group in decay_groups(network, 0.1))
    names = {id(parameter): name.rpartition(".")[2] for name, parameter in network.named_parameters()}
    assert {names[id(p)] for p in others if p.ndim > 1} == spared
    assert all(p.ndim > 1 for p in decayed)
    assert len(decayed) + len(others) == len(names)


# What is mixed, averaged and cropped


def test_soft_targets_share_what_smoothing_takes() -> None:
    targets = soft_targets(torch.tensor([1, 0]), 4, 0.2)
    torch.testing.assert_close(targets, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]]))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_targets_say_how_much_of_each_image_is_there(mixup: float, cutmix: float) -> None:
    images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    targets = torch.eye(2)
    for seed in range(20):
        found, shared = mixed(
            images, targets, mixup=mixup, cutmix=cutmix, generator=torch.Generator().manual_seed(seed)
        )
        # Image 0 is black and image 1 white, so brightness is the share of class 1.
        torch.testing.assert_close(found.mean(dim=(1, 2, 3)), shared[:, 1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(shared.sum(dim=1), torch.ones(2))


def test_one_image_alone_is_not_mixed() -> None:
    image, target = torch.rand(1, 3, 4, 4), torch.eye(2)[:1]
    found, shared = mixed(image, target, mixup=0.8, cutmix=1.0, generator=torch.Generator())
    assert found is image
    assert shared is target


def test_the_average_follows_parameters_and_copies_statistics() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = MovingAverage(model, 0.9)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model[1].running_mean.fill_(5.0)
    average.update(model, step=1000)
    torch.testing.assert_close(average.state["0.weight"], start + 0.1)
    torch.testing.assert_close(average.state["1.running_mean"], torch.full((2,), 5.0))


def test_random_crops_have_the_area_and_shape_that_are_asked_for() -> None:
    rows, columns = np.mgrid[0:200, 0:300]
    image = Image.fromarray(np.stack([rows, columns % 256, columns // 256], axis=-1).astype(np.uint8))
    areas = []
    for seed in range(50):
        crop = np.asarray(random_crop(image, (32, 48), (0.1, 0.5), np.random.default_rng(seed))).astype(float)
        assert crop.shape == (32, 48, 3)
        height = crop[-1, 0, 0] - crop[0, 0, 0]
        areas.append(height)
    assert 30 < min(areas) < max(areas) < 200
    thin = Image.new("RGB", (1, 400))
    assert random_crop(thin, (8, 8), (0.9, 1.0), np.random.default_rng(0)).size == (8, 8)


def test_a_photograph_is_augmented_by_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    spec = parse_data(f"folder:{write_photographs(tmp_path)}")
    chosen = recipe(res=32, scale=[0.2, 1.0], flip=0.5)
    one, other = (TrainingImages(spec, chosen, seed=1) for _ in range(2))
    other.sample(0, 5)
    assert np.array_equal(one.sample(2, 3)[0], other.sample(2, 3)[0])
    assert not np.array_equal(one.sample(2, 3)[0], one.sample(3, 3)[0])
    assert not np.array_equal(one.sample(2, 3)[0], TrainingImages(spec, chosen, seed=2).sample(2, 3)[0])
    assert sorted(one.order(0)) == list(range(12))
    assert list(one.order(0)) != list(one.order(1))


def test_randaugment_draws_from_the_same_chance(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    spec = parse_data(f"folder:{write_photographs(tmp_path)}")
    images = TrainingImages(spec, recipe(res=32, randaugment="rand-m9-mstd0.5-inc1"), seed=1)
    assert np.array_equal(images.sample(0, 3)[0], images.sample(0, 3)[0])
    assert any(not np.array_equal(images.sample(0, i)[0], images.sample(1, i)[0]) for i in range(6))
    with pytest.raises(UsageError, match="not a policy of timm"):
        TrainingImages(spec, recipe(randaugment="nonsense"), seed=1)


def test_what_is_for_photographs_is_refused_for_scenes() -> None:
    with pytest.raises(UsageError, match="flip is for photographs"):
        TrainingImages(DATA, recipe(flip=0.5), seed=0)
