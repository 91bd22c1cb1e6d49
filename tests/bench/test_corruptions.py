"""Test corrupted images: ImageNet-C's definitions, the same pixels for every model, and refusals."""

from __future__ import annotations

import colorsys
import io
from pathlib import Path

import numpy as np
import pytest
from command_support import invoke
from data_support import gradient
from PIL import Image

from sema_bench.data.corruptions import _CORRUPTIONS, corrupted
from sema_bench.data.datasets import TestImages
from sema_bench.errors import SuiteError, UsageError
from sema_bench.spec.corruption import BENCHMARK, CORRUPTIONS, SEVERITIES, expand_corruption
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.plan import build_plan
from sema_bench.spec.suite import parse_suite
from sema_bench.spec.weights_source import training_folder


def landscape(side: int, seed: int) -> np.ndarray:
    """Draw colours at every scale, the coarse ones strongest, as in a photograph."""
    draw = np.random.default_rng(seed)
    total = np.full((side, side, 3), 128.0)
    for cells in (2, 4, 8, 16, 32, 64):
        noise = Image.fromarray(draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += (np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC)) - 128.0) * 0.8 / cells**0.5
    return np.clip(total, 0, 255).astype(np.uint8)


IMAGES = [landscape(64, seed) for seed in range(6)]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_is_farther_from_the_image(name):
    for images, side in ((IMAGES, 64), ([landscape(224, 9), landscape(224, 10)], 224)):
        distances = [0.0]
        for severity in SEVERITIES:
            pairs = [(corrupted(x, f"{name}:{severity}", index), x) for index, x in enumerate(images)]
            assert all(y.dtype == np.uint8 and y.shape == x.shape for y, x in pairs)
            distances.append(float(np.mean([(y.astype(float) - x) ** 2 for y, x in pairs])))
        assert distances == sorted(set(distances)), side


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_draws_depend_on_the_image_alone(name):
    before = IMAGES[0].copy()
    first = corrupted(IMAGES[0], f"{name}:3", 7)
    np.random.default_rng(0).random(5)
    assert np.array_equal(corrupted(IMAGES[0], f"{name}:3", 7), first)
    assert np.array_equal(IMAGES[0], before)
    drawn = name.endswith("noise") or name in ("motion_blur", "fog")
    assert np.array_equal(corrupted(IMAGES[0], f"{name}:3", 8), first) != drawn


def test_every_name_has_its_function():
    assert tuple(_CORRUPTIONS) == CORRUPTIONS
    assert all(len(parameters) == len(SEVERITIES) for _, parameters in _CORRUPTIONS.values())


def test_pixels_are_those_of_the_definition():
    image = landscape(224, 4)
    bright = corrupted(image, "brightness:2", 0)
    for row, column in ((0, 0), (80, 80), (223, 100)):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[row, column] / 255)
        expected = np.array(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.2))) * 255
        assert np.abs(bright[row, column] - expected).max() <= 1
    mean = image.mean(axis=(0, 1))
    assert np.abs(corrupted(image, "contrast:4", 0) - ((image - mean) * 0.1 + mean)).max() <= 1
    small = Image.fromarray(image).resize((67, 67), Image.Resampling.BOX)  # int(224 · 0.3)
    assert np.array_equal(corrupted(image, "pixelate:4", 0), np.asarray(small.resize((224, 224), Image.Resampling.BOX)))
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=15)
    assert np.array_equal(corrupted(image, "jpeg_compression:3", 0), np.asarray(Image.open(file)))


def test_noise_has_the_strength_of_its_severity():
    grey = np.full((224, 224, 3), 128, dtype=np.uint8)
    assert np.std(corrupted(grey, "gaussian_noise:2", 0) / 255.0) == pytest.approx(0.12, rel=0.02)
    assert np.std(corrupted(grey, "shot_noise:1", 0) / 255.0) == pytest.approx((0.502 / 60) ** 0.5, rel=0.02)
    assert np.std(corrupted(grey, "speckle_noise:1", 0) / 255.0) == pytest.approx(0.502 * 0.15, rel=0.02)
    impulses = corrupted(grey, "impulse_noise:5", 0)
    assert [(impulses == value).mean() for value in (0, 255)] == pytest.approx([0.135, 0.135], rel=0.03)


@pytest.mark.parametrize("name", ["defocus_blur", "gaussian_blur"])
def test_a_blur_spreads_a_point_as_wide_as_the_image_asks(name):
    # second moment along an axis: r² / 4 for a disk of radius r, σ² for a normal distribution
    for side, scale in ((224, 1), (448, 2)):
        point = np.zeros((side, side, 3), dtype=np.uint8)
        point[side // 2 - 24 : side // 2 + 24, side // 2 - 24 : side // 2 + 24] = 255
        spread = corrupted(point, f"{name}:3", 0)[..., 0].astype(float)
        rows = np.arange(side) - np.average(np.arange(side), weights=spread.sum(axis=1))
        moment = np.average(rows**2, weights=spread.sum(axis=1)) - (48**2 - 1) / 12
        length = 6 * scale if name == "defocus_blur" else 3 * scale
        assert moment == pytest.approx(length**2 / (4 if name == "defocus_blur" else 1), rel=0.1)


def test_a_motion_runs_along_one_line():
    point = np.zeros((224, 224, 3), dtype=np.uint8)
    point[112, 112] = 255
    hit = np.argwhere(corrupted(point, "motion_blur:1", 3)[..., 0]) - 112
    assert len(hit) > 5
    assert np.linalg.matrix_rank(hit[np.abs(hit).sum(axis=1) > 3] / np.abs(hit).max(), tol=0.3) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(4):
            gradient(40 + index, 50).save(tmp_path / "images" / name / f"{index}.png")
    return tmp_path / "images"


def test_all_readers_of_an_image_see_the_same_pixels(folder):
    spec, size = parse_data(f"folder:{folder}"), (48, 48)
    clean, one, other = (TestImages(spec, corrupt=each) for each in ("none", "fog:3", "fog:3"))
    some = TestImages(parse_data(f"folder:{folder},limit=4"), corrupt="fog:3")
    for index in range(8):
        pixels, label = clean.sample(index, size)
        assert np.array_equal(one.sample(index, size)[0], corrupted(pixels, "fog:3", index))  # after the crop
        assert np.array_equal(one.sample(index, size)[0], other.sample(index, size)[0])
        assert one.sample(index, size)[1] == label
        if index % 2 == 0:
            assert np.array_equal(some.sample(index // 2, size)[0], one.sample(index, size)[0])
    assert clean.mark != one.mark == other.mark
    assert one.stated()["corrupt"] == "fog:3"
    assert "corrupt" not in clean.stated()


def test_names_stand_for_several_corruptions():
    assert expand_corruption("fog:2..4") == ["fog:2", "fog:3", "fog:4"]
    assert expand_corruption("all:5") == [f"{name}:5" for name in BENCHMARK]
    assert expand_corruption("none") == ["none"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fog:6", "severities are 1 to 5; write fog:1..5"),
        ("fog:0..5", "severities are 1 to 5"),
        ("fog:4..2", "severities are 1 to 5"),
        ("fogg:1", "unknown corruption 'fogg'; did you mean 'fog'?"),
        ("jpeg:1", "unknown corruption 'jpeg'"),
        ("fog", "has no severity; write fog:3 or fog:1..5"),
        ("fog:1.5", "has no severity"),
        ("", "unknown corruption ''"),
    ],
)
def test_a_bad_corruption_is_explained(text, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        expand_corruption(text)


BODY = {
    "name": "s",
    "models": ["sema_micro"],
    "data": ["digits:field"],
    "res": "64",
    "probes": ["accuracy"],
    "corrupt": ["none", "fog:1..5", "contrast:3"],
    "training": {"res": 64, "epochs": 2},
}


def test_a_suite_crosses_corruptions_and_trains_once():
    plan = build_plan(parse_suite(BODY, source="s.toml"), device="cpu", threads=1)
    assert [cell.corrupt for cell in plan.cells] == ["none", *(f"fog:{n}" for n in SEVERITIES), "contrast:3"]
    assert len({training_folder(Path("r"), cell) for cell in plan.cells}) == 1
    clean, foggy = plan.cells[:2]
    assert "none" not in clean.id  # ids of earlier runs do not change
    assert foggy.id != clean.id
    for corrupt, message in ((["fog:1..3", "fog:2"], "occurs twice"), (["fog:9"], "severities are 1 to 5"), ([3], "3")):
        with pytest.raises(SuiteError, match=message):
            parse_suite({**BODY, "corrupt": corrupt}, source="s.toml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--corrupt", "fog:6"), "--corrupt: corruption 'fog:6': severities are 1 to 5"),
        (("--corrupt", "fg:1"), "unknown corruption 'fg'; did you mean 'fog'?"),
        (("--corrupt", "fog:1", "--data", "x,corrupt=fog:1"), "pass --corrupt"),
        (("--corrupt", "fog:1", "--probes", "params"), "only probe accuracy uses data, protocol, corrupt"),
    ],
)
def test_a_command_refuses_in_one_line(tmp_path, given, message):
    default = ("--models", "sema_micro", "--res", "64", "--device", "cpu", "--out", str(tmp_path), "--dry-run")
    code, _, err = invoke("scale", *default, *(() if "--probes" in given else ("--probes", "accuracy")), *given)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
