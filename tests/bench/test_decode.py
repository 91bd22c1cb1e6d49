"""Test decoding and preparing images of every kind, and what cannot be read."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib

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


def saved(image, kind="TIFF"):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def tiff(values, *, bits, white_is_zero=False, of=1):
    """Return a grey TIFF of one row; ``of`` is the sample type: 1 unsigned, 2 signed, 3 floating point."""
    width = len(values) * 8 // bits
    photometric = 0 if white_is_zero else 1
    numbers = {
        256: width,
        257: 1,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: 1,
        279: len(values),
        339: of,
    }
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in numbers.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(values)) + values + struct.pack("<H", len(numbers)) + tags + bytes(4)


def png_of_16_bits(colour, *values):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    row = zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", row) + chunk(b"IEND", b"")


def first_pixel(content):
    return decode(content).getpixel((0, 0))


DEEP = 200 * 256 + 77


@pytest.mark.parametrize("low", [0, 1, 77, 128, 255])
@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_the_upper_eight_of_sixteen_bits_are_kept(mode, low):
    assert first_pixel(saved(Image.new(mode, (2, 2), 200 * 256 + low))) == (200, 200, 200)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (lambda: png_of_16_bits(0, DEEP), (200, 200, 200)),
        (lambda: png_of_16_bits(0, 200), (0, 0, 0)),
        (lambda: png_of_16_bits(2, DEEP, 255, 65535), (200, 0, 255)),
        (lambda: png_of_16_bits(4, DEEP, 0), (200, 200, 200)),
        (lambda: png_of_16_bits(6, DEEP, 256, 511, 0), (200, 1, 1)),
        (lambda: saved(Image.new("I;16", (2, 2), DEEP), "PPM"), (200, 200, 200)),
        (lambda: tiff(struct.pack("<8H", *[DEEP] * 8), bits=16), (200, 200, 200)),
    ],
)
def test_every_file_of_wide_values_is_scaled_alike(content, expected):
    assert first_pixel(content()) == expected


@pytest.mark.parametrize(
    "content",
    [
        lambda: saved(Image.new("F", (2, 2), 0.5)),
        lambda: saved(Image.new("I", (2, 2), 200)),
        lambda: saved(Image.new("LAB", (2, 2), (200, 128, 128))),
        lambda: tiff(struct.pack("<8H", *[DEEP] * 8), bits=16, white_is_zero=True),
        lambda: tiff(b"\xc8\x4c\x84" * 4, bits=12),
        lambda: tiff(struct.pack("<8h", *[0x6477] * 8), bits=16, of=2),
        lambda: tiff(b"\xff" * 8, bits=8, of=2),
    ],
)
def test_values_without_a_certain_scale_are_unreadable(content):
    with pytest.raises(UnreadableImageError, match="not of 8 or 16 bits, from black to white; save it as PNG"):
        decode(content())


def test_colours_of_other_spaces_are_kept():
    colour = (200, 60, 30)
    image = Image.new("RGB", (2, 2), colour)
    spaces = [saved(image.convert(mode)) for mode in ("YCbCr", "CMYK", "RGBA", "RGBX")]
    spaces += [saved(image.convert("P", palette=Image.Palette.ADAPTIVE), kind) for kind in ("PNG", "GIF", "TIFF")]
    for content in spaces:
        assert np.abs(np.subtract(first_pixel(content), colour)).max() <= 2


def test_a_transparent_colour_shows_what_is_below(tmp_path):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "clear.png", transparency=bytes([255, 0]))
    assert decode(tmp_path / "clear.png").getpixel((0, 0)) == (10, 20, 30)
    assert first_pixel(saved(Image.new("LA", (2, 2), (9, 0)), "PNG")) == (9, 9, 9)
    assert first_pixel(saved(Image.new("RGBA", (2, 2), (9, 8, 7, 0)), "PNG")) == (9, 8, 7)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImageError, match="not a file"):
        decode(tmp_path / "pipe.png")


def test_what_is_no_image_gets_one_line(tmp_path):
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
    # Torchvision's Resize takes the shorter side. For a target that is not square, give it the tighter side.
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
        cropped = resized_and_cropped(image, (224, 112))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5e6
        assert (cropped.shape, cropped.min()) == ((224, 112, 3), 200)


def test_full_crop_of_an_image_of_the_right_size_changes_nothing():
    image = gradient(64, 64)
    assert np.array_equal(resized_and_cropped(image, (64, 64), crop_pct=1.0), np.asarray(image))
