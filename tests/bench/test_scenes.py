"""Test scenes: they are the same wherever and whenever they are drawn, and what each protocol asks."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from sema_bench.data.scenes import BASE, PROTOCOLS, DigitScenes, glyphs


def digest(pixels):
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_scene_is_the_same_whenever_it_is_drawn(protocol):
    first, second = (DigitScenes(protocol, "test", images=50) for _ in range(2))
    second.scene(7, (96, 96))
    for index in (3, 49):
        pixels, label = first.scene(index, (96, 128))
        again, same = second.scene(index, (96, 128))
        assert np.array_equal(label, same)
        assert np.array_equal(pixels, again)
        assert pixels.shape == (96, 128, 3)
    assert not np.array_equal(first.scene(0, (96, 96))[0], first.scene(1, (96, 96))[0])


def test_scenes_are_the_ones_that_results_were_taken_on():
    drawn = {p: digest(DigitScenes(p, "test", images=1).scene(0, (128, 128))[0]) for p in ("field", "cue")}
    assert drawn == {"field": "23e986f1e853029e", "cue": "97215f36780dd6fc"}
    shown = {p: digest(DigitScenes(p, "train", images=9).training_scene(8, (64, 64))[0]) for p in ("field", "cue")}
    assert shown == {"field": "e80bd5ceae9130f6", "cue": "457ad76024876530"}


def test_training_and_test_digits_are_disjoint():
    train, test = (glyphs(split) for split in ("train", "test"))
    assert len(train.images) + len(test.images) == 1797
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}
    assert np.bincount(test.labels).min() >= 55


def test_another_seed_and_another_part_give_other_scenes():
    one, other = (DigitScenes("field", "test", images=1, seed=seed).scene(0, (64, 64))[0] for seed in (0, 1))
    train = DigitScenes("field", "train", images=1).scene(0, (64, 64))[0]
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, train)


def test_zoom_shows_the_same_scene_larger():
    scenes = DigitScenes("zoom", "test", images=1)
    small = Image.fromarray(scenes.scene(0, (BASE, BASE))[0])
    large = np.asarray(small.resize((160, 160), Image.Resampling.BICUBIC))
    assert np.array_equal(scenes.scene(0, (160, 160))[0], large)


def test_field_keeps_the_digit_and_the_clutter_per_area():
    scenes = DigitScenes("field", "test", images=30)
    bright = {
        side: np.mean([(scenes.scene(i, (side, side))[0][..., 0] > 100).mean() for i in range(30)])
        for side in (64, 256)
    }
    digit = (glyphs("test").images > 100).mean() * 16**2
    expected = bright[64] - digit * (1 / 64**2 - 1 / 256**2)
    assert bright[256] == pytest.approx(expected, rel=0.1)


def test_the_answer_to_a_cue_is_the_digit_of_the_marks_colour():
    colours = np.array([[255, 80, 80], [80, 255, 80], [90, 90, 255], [255, 255, 70]])
    scenes, known = DigitScenes("cue", "test", images=3), glyphs("test")
    windows = np.lib.stride_tricks.sliding_window_view
    for index in range(3):
        pixels, label = scenes.scene(index, (96, 96))
        # The mark is the 32×32 square in which most pixels have one colour at half its brightness or more.
        likeness = []
        for colour in colours:
            strong = colour > 200
            like = (pixels[..., strong] >= 127).all(axis=-1) & (pixels[..., ~strong] < 100).all(axis=-1)
            likeness.append(windows(like, (32, 32)).mean(axis=(2, 3)).max())
        assert sorted(likeness)[-1] > 0.8 > 2 * sorted(likeness)[-2], likeness
        colour = colours[int(np.argmax(likeness))]
        patches = windows(pixels, (16, 16, 3))[:, :, 0]
        digits = known.images[known.labels == label][..., None] * colour // 255
        assert any(
            (patches[..., strong, :] >= digit[strong]).all(axis=(2, 3)).any()
            for digit in digits
            for strong in [digit.max(axis=-1) > 120]
        )


def test_a_canvas_smaller_than_a_scene_is_refused():
    with pytest.raises(ValueError, match="needs 64×64 pixels; got 32×64"):
        DigitScenes("field", "test", images=1).scene(0, (32, 64))


@pytest.mark.parametrize("protocol", ["zoom", "field", "cue"])
def test_training_scenes_carry_the_label_of_what_they_show(protocol):
    """``zoom`` and ``field`` show the scene of the same number. The marks of ``cue`` differ; see the digests."""
    scenes = DigitScenes(protocol, "train", images=5)
    for index in range(5):
        pixels, label = scenes.training_scene(index, (64, 64))
        assert pixels.shape == (64, 64, 3)
        assert protocol == "cue" or label == scenes.scene(index, (BASE, BASE))[1]
