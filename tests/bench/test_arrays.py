"""Test arrays of images: npz and idx files, read without unpickling, and refusals."""

from __future__ import annotations

import gzip
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command_support import invoke

from sema_bench.data.arrays import _numbers, open_idx, open_npz
from sema_bench.data.datasets import TestImages, common_origin, open_photographs
from sema_bench.data.scenes import glyphs_from
from sema_bench.errors import UsageError
from sema_bench.spec.data_source import parse_data

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 10, 3), dtype=np.uint8)


def medmnist(path: Path, save=np.savez, **changes) -> Path:
    """Write a file in MedMNIST's layout: labels in a column, and three parts."""
    arrays = {}
    for part, (start, end) in {"train": (0, 4), "val": (4, 6), "test": (6, 9)}.items():
        arrays |= {
            f"{part}_images": PIXELS[start:end],
            f"{part}_labels": np.arange(end - start, dtype=np.uint8)[:, None],
        }
    save(path, **arrays | changes)
    return path


def write_idx(
    folder: Path, *, packed: bool, images: np.ndarray = PIXELS[..., 0], magic: bytes = b"\0\0\x08\x03"
) -> Path:
    folder.mkdir(exist_ok=True)
    labels = bytes([0, 0, 8, 1]) + np.array([len(images)], dtype=">u4").tobytes() + bytes(range(len(images)))
    pixels = magic + np.array(images.shape, dtype=">u4").tobytes() + images.tobytes()
    for part in ("train", "t10k"):
        for name, content in ((f"{part}-images-idx3-ubyte", pixels), (f"{part}-labels-idx1-ubyte", labels)):
            path = folder / f"{name}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_each_part_of_a_file_is_read_as_it_was_written(tmp_path, save):
    path = medmnist(tmp_path / "m.npz", save)
    for split, (start, end) in {"train": (0, 4), "val": (4, 6), "test": (6, 9)}.items():
        images = open_npz(path, split)
        assert images.labels == list(range(end - start))
        assert images.classes == ("0", "1", "2", "3")  # classes of the whole file
        for index in range(end - start):
            assert np.array_equal(np.asarray(images.photograph(index)), PIXELS[start + index])
    # uncompressed arrays are mapped, not copied
    assert isinstance(_numbers(images.array), np.memmap) == (save is np.savez)


def test_the_parts_of_one_file_are_not_the_same_images(tmp_path):
    path = medmnist(tmp_path / "m.npz")
    spec = parse_data(str(path))
    assert (spec.kind, len(TestImages(spec))) == ("npz", 3)
    assert len(TestImages(parse_data(f"npz:{path},split=val"))) == 2
    train, test = (open_photographs(spec, split) for split in ("train", "test"))
    assert len(train) == 4
    assert common_origin(train.origins, test.origins) is None
    np.savez(tmp_path / "one.npz", images=PIXELS, labels=np.arange(9))
    train, test = (open_photographs(parse_data(f"npz:{tmp_path}/one.npz"), split) for split in ("train", "test"))
    assert common_origin(train.origins, test.origins)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(3, 6, 5), (3, 6, 5, 1)])
def test_grey_images_become_grey_in_any_order_of_memory(tmp_path, shape, order):
    pixels = np.asarray(PIXELS[:3, :6, :5, 0].reshape(shape), order=order)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "grey.npz", x_test=pixels, y_test=np.array([2, 0, 1], dtype=np.int64))
        images = open_npz(tmp_path / "grey.npz", "test")
        photograph = np.asarray(images.photograph(1))
        assert np.array_equal(photograph, np.repeat(PIXELS[1, :6, :5, :1], 3, axis=-1))
        assert images.labels == [2, 0, 1]


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_plain_and_packed(tmp_path, packed):
    images = open_idx(write_idx(tmp_path / "mnist", packed=packed), "test")
    assert images.labels == list(range(9))
    assert np.array_equal(np.asarray(images.photograph(7))[..., 1], PIXELS[7, ..., 0])
    assert images.name(7) == f"t10k-images-idx3-ubyte{'.gz' if packed else ''}[7]"
    size = (32, 32)
    assert TestImages(parse_data(f"idx:{tmp_path}/mnist,crop_pct=1")).sample(2, size)[0].shape == (*size, 3)


class Nasty:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": np.array([Nasty()] * 3, dtype=object)}, "holds Python objects, which are never unpickled"),
        ({"train_images": np.array([Nasty()], dtype=object)}, "holds Python objects, which are never unpickled"),
        ({"test_labels": np.arange(4)}, "has 3 images, and there are 4 labels"),
        ({"test_labels": np.zeros((3, 14), dtype=np.uint8)}, "has 14 labels for each image, and accuracy takes one"),
        ({"test_labels": np.zeros(3)}, "float64 of shape .3,.; expected whole numbers"),
        ({"test_labels": np.array([0, -1, 2])}, "labels from -1 to 2"),
        ({"test_images": np.zeros((3, 3, 1), dtype=np.uint8)}, "shape .3, 3, 1.; expected .*sides of 4 pixels or more"),
        ({"test_images": np.zeros((3, 28, 28, 28), dtype=np.uint8)}, r"expected uint8 \(n, H, W\) or \(n, H, W, 3\)"),
        ({"test_images": np.zeros((3, 12, 10, 3), dtype=np.float32)}, "is float32 of shape"),
        ({"test_images": np.zeros((0, 12, 10), dtype=np.uint8), "test_labels": np.zeros(0, int)}, "has 0 images"),
    ],
)
def test_arrays_that_are_not_labelled_images_are_refused(tmp_path, capsys, changes, message):
    medmnist(tmp_path / "bad.npz", **changes)
    with pytest.raises(UsageError, match=message) as refusal:
        open_npz(tmp_path / "bad.npz", "test")
    assert "\n" not in str(refusal.value)
    assert "unpickled\n" not in capsys.readouterr().out


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no file .*gone.npz"):
        open_npz(tmp_path / "gone.npz", "test")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Nasty()))
    with pytest.raises(UsageError, match=r"pickle.npz cannot be read: File is not a zip file"):
        open_npz(tmp_path / "pickle.npz", "test")
    np.savez(tmp_path / "other.npz", a=PIXELS, b=PIXELS)
    with pytest.raises(UsageError, match=r"has no part 'val'; expected val_images and val_labels or .*'a', 'b'"):
        open_npz(tmp_path / "other.npz", "val")
    whole = medmnist(tmp_path / "whole.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "whole.npz") as archive, zipfile.ZipFile(tmp_path / "cut.npz", "w") as cut:
        for info in archive.infolist():
            cut.writestr(info.filename, archive.read(info)[:-1])
    with pytest.raises(UsageError, match=r"cut.npz cannot be read: train_images is cut off"):
        open_npz(tmp_path / "cut.npz", "test")
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"half.npz cannot be read"):
        open_npz(tmp_path / "half.npz", "test")


def test_idx_files_that_do_not_fit_are_refused(tmp_path):
    for packed in (False, True):
        write_idx(tmp_path / "magic", packed=packed, magic=b"\0\0\x0d\x03")
        with pytest.raises(UsageError, match=r"it begins with 00 00 0d 03; an idx file of 3 dimensions .* 00 00 08 03"):
            open_idx(tmp_path / "magic", "test")
        for path in (tmp_path / "magic").iterdir():
            path.unlink()
    with pytest.raises(UsageError, match="not a folder; idx: takes the folder"):
        open_idx(tmp_path / "gone", "test")
    with pytest.raises(UsageError, match=r"no file \*t10k-images\?idx3-ubyte\* in"):
        open_idx(tmp_path, "test")
    (write_idx(tmp_path / "two", packed=True) / "emnist-t10k-images-idx3-ubyte.gz").write_bytes(b"")
    with pytest.raises(UsageError, match=r"several files .* give each dataset a folder"):
        open_idx(tmp_path / "two", "test")
    cut = write_idx(tmp_path / "cut", packed=False) / "t10k-images-idx3-ubyte"
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(UsageError, match="its size does not fit its shape"):
        open_idx(tmp_path / "cut", "test")
    with pytest.raises(UsageError, match=r"shape \(9, 3, 1\)"):
        open_idx(write_idx(tmp_path / "thin", packed=False, images=PIXELS[:, :3, :1, 0]), "test")


def test_a_command_refuses_bad_arrays_in_one_line(tmp_path):
    medmnist(tmp_path / "bad.npz", test_labels=np.array([Nasty()] * 3, dtype=object))
    given = ("train", "--model", "sema_micro", "--epochs", "1", "--batch", "2", "--res", "32", "--out", str(tmp_path))
    code, _, err = invoke(*given, "--data", f"npz:{tmp_path}/bad.npz")
    assert code == 2
    assert "never unpickled" in err
    assert err.count("\n") == 1


def test_other_glyphs_take_the_place_of_the_digits_in_a_scene(tmp_path):
    # a bright bar on black, at a different place in each image: all become the same glyph
    images = np.zeros((20, 28, 28), dtype=np.uint8)
    for index, image in enumerate(images):
        image[4 + index % 5 :, 8 + index % 5 : 12 + index % 5][:16] = 255
    np.savez(tmp_path / "bars.npz", images=images, labels=np.arange(20) % 10)
    glyphs = glyphs_from(open_npz(tmp_path / "bars.npz", "test"))
    assert glyphs.images.shape == (20, 16, 16)
    assert (glyphs.images == glyphs.images[0]).all()
    assert [int(n) for n in np.flatnonzero(glyphs.images[0].mean(axis=0) > 127)] == [6, 7, 8, 9]  # centred
    assert glyphs.images[0][:, 7].min() > 127  # full height
    scenes = TestImages(parse_data(f"digits:field,images=5,glyphs=npz:{tmp_path}/bars.npz"))
    usual = TestImages(parse_data("digits:field,images=5"))
    assert scenes.mark != usual.mark
    for index in range(5):
        pixels, label = scenes.sample(index, (64, 64))
        assert 0 <= label <= 9
        assert not np.array_equal(pixels, usual.sample(index, (64, 64))[0])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.full((2, 28, 28), 255), [0, 1], r"images.npy\[0\] of .* is not a bright digit on a dark ground"),
        (np.zeros((2, 28, 28)), [0, 1], "is not a bright digit on a dark ground"),
        (np.full((2, 28, 28), 99), [0, 46], "has 47 classes, and digits are 0 to 9"),
    ],
)
def test_glyphs_that_are_no_digits_are_refused(tmp_path, images, labels, message):
    np.savez(tmp_path / "other.npz", images=images.astype(np.uint8), labels=labels)
    with pytest.raises(UsageError, match=message):
        TestImages(parse_data(f"digits:field,glyphs=npz:{tmp_path}/other.npz"))
    with pytest.raises(UsageError, match="glyphs takes other digits to test on, as glyphs=npz:FILE"):
        parse_data("digits:field,glyphs=folder:x")


def test_a_damaged_file_of_glyphs_is_explained(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (50, 40, 40), dtype=np.uint8)
    np.savez_compressed(tmp_path / "damaged.npz", images=noise, labels=np.arange(50) % 10)
    whole = (tmp_path / "damaged.npz").read_bytes()
    (tmp_path / "damaged.npz").write_bytes(whole[:50_000] + bytes(99) + whole[50_099:])
    with pytest.raises(UsageError, match=r"images.npy\[0\] of .* cannot be read"):
        TestImages(parse_data(f"digits:field,glyphs=npz:{tmp_path}/damaged.npz"))
