"""Images of every kind, decoded and prepared, and what cannot be read."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from data_support import gradient
from PIL import Image

from sema_bench.data.base import UnreadableImageError
from sema_bench.data.decode import decode
from sema_bench.data.preprocess import resized_and_cropped

# Files


def test_images_of_every_mode_become_rgb(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.stack([grey] * 4, axis=-1), mode="CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.stack([grey] * 4, axis=-1), mode="RGBA").save(tmp_path / "alpha.png")
    gradient().convert("P").save(tmp_path / "palette.gif")
    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "dot.png")
    for path in tmp_path.iterdir():
        assert decode(path).mode == "RGB"
    deep = np.asarray(decode(tmp_path / "deep.png"))
    assert np.array_equal(deep, np.stack([grey] * 3, axis=-1))
    assert resized_and_cropped(decode(tmp_path / "dot.png"), (5, 7)).shape == (5, 7, 3)


def test_what_is_no_image_is_told_in_one_line(tmp_path):
    gradient(200, 200).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("no image\nat all")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, why in (("cut.jpg", "truncated"), ("text.png", "not an image"), ("empty.png", "not an image")):
        with pytest.raises(UnreadableImageError, match=why):
            decode(tmp_path / name)
    with pytest.raises(UnreadableImageError, match="No such file"):
        decode(tmp_path / "gone.png")


def test_an_image_bomb_is_not_unpacked(tmp_path, monkeypatch):
    gradient(100, 100).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(UnreadableImageError, match="more than 4000 pixels"):
        decode(tmp_path / "large.png")


@pytest.mark.parametrize("size", [(224, 224), (97, 161)])
@pytest.mark.parametrize("shape", [(300, 500), (500, 300), (256, 256), (40, 33)])
def test_preparation_is_that_of_torchvision(size, shape):
    transforms = pytest.importorskip("torchvision.transforms")
    image = gradient(*shape)
    covering = [int(side / 0.875) for side in size]
    # Torchvision's Resize takes the shorter side; for a target that is no square, the side that is the tighter one.
    if size[0] == size[1]:
        side: int | tuple[int, int] = min(covering)
    elif covering[0] / shape[0] >= covering[1] / shape[1]:
        side = (covering[0], int(covering[0] * shape[1] / shape[0]))
    else:
        side = (int(covering[1] * shape[0] / shape[1]), covering[1])
    resize = transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC)
    expected = np.asarray(transforms.CenterCrop(size)(resize(image)))
    assert np.array_equal(resized_and_cropped(image, size), expected)


def test_very_long_images_are_prepared_within_little_memory():
    long = np.zeros((1, 60_000, 3), dtype=np.uint8)
    long[:, 29_000:31_000] = 200
    for image in (Image.fromarray(long), Image.fromarray(long.swapaxes(0, 1).copy())):
        tracemalloc.start()
        found = resized_and_cropped(image, (224, 112))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5e6
        assert (found.shape, found.min()) == ((224, 112, 3), 200)


def test_full_crop_of_an_image_of_the_right_size_changes_nothing():
    image = gradient(64, 64)
    assert np.array_equal(resized_and_cropped(image, (64, 64), crop_pct=1.0), np.asarray(image))
