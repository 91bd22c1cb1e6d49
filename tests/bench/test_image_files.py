"""Test which files are images and which folders are classes: by content, without what a system left behind."""

from __future__ import annotations

import io
import os
import tarfile

import numpy as np
import pytest
from data_support import gradient
from PIL import Image, features

from sema_bench.data.base import Unreadable
from sema_bench.data.classes import class_difference, count_advice, odd_classes
from sema_bench.data.datasets import TestImages
from sema_bench.data.folder import open_flat, open_folder
from sema_bench.data.image_files import image_format
from sema_bench.data.tars import open_shards
from sema_bench.errors import UsageError
from sema_bench.spec.data_source import parse_data

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
STRAY = ("__MACOSX", ".ipynb_checkpoints", "@eaDir", "$RECYCLE.BIN", "__pycache__", "lost+found", "#recycle", ".git")
#: Pillow's name of a format, and a suffix that people give it.
FORMATS = (
    *(("JPEG", suffix) for suffix in (".jpg", ".JPG", ".jfif", ".jpe", ".jpeg", "", ".jpg_large", ".0001", ".txt")),
    *(
        ("PNG", ".png"),
        ("PNG", ""),
        ("PNG", ".jpg"),
        ("TIFF", ".TIF"),
        ("GIF", ".gif"),
        ("BMP", ".dib"),
        ("PPM", ".pnm"),
    ),
    *(("WEBP", ".bin"), ("JPEG2000", ".jp2"), ("JPEG2000", ".j2k"), ("AVIF", ".avif"), ("AVIF", "")),
)


def encoded(kind="PNG", image=None):
    library = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}.get(kind)
    if library and not features.check(library):
        pytest.skip(f"this Pillow has no {kind}")
    out = io.BytesIO()
    (image or gradient()).save(out, kind)
    return out.getvalue()


def readable(images):
    """Map the name of every image of a set to whether it can be decoded."""
    samples = {images._images.name(i): images.sample(i, (8, 8)) for i in range(len(images))}
    return {name: not isinstance(sample, Unreadable) for name, sample in samples.items()}


@pytest.mark.parametrize(("kind", "suffix"), FORMATS)
def test_an_image_is_known_by_what_it_holds(tmp_path, kind, suffix):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / f"photo{suffix}").write_bytes(encoded(kind))
    assert readable(TestImages(parse_data(f"folder:{tmp_path}"))) == {f"cat/photo{suffix}": True}
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        add(tar, f"photo{suffix}", encoded(kind))
        add(tar, "photo.cls", b"0")
    assert open_shards(str(tmp_path / "shard.tar")).photograph(0).size == (30, 20)


def test_what_looks_like_an_image_and_cannot_be_read_is_counted_with_the_reason(tmp_path):
    (tmp_path / "cat").mkdir()
    write = {
        "good.png": encoded(),
        "phone": HEIC,
        "phone.heic": HEIC,
        "raw.nef": b"raw",
        "drawing.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "cut.png": encoded()[:60],
        "empty.jpg": b"",
    }
    for name, content in write.items():
        (tmp_path / "cat" / name).write_bytes(content)
    (tmp_path / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "cat" / "loop.jpg").symlink_to("loop.jpg")
    images = TestImages(parse_data(f"folder:{tmp_path}"))
    assert {name for name, good in readable(images).items() if good} == {"cat/good.png"}
    reasons = {
        sample.name: sample.reason for i in range(9) if isinstance(sample := images.sample(i, (8, 8)), Unreadable)
    }
    assert len(reasons) == 8
    assert reasons["cat/phone"] == "HEIF images are not read here; convert it to PNG or JPEG"
    assert reasons["cat/gone.jpg"] == "No such file or directory"


def test_other_files_are_no_images(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "photo.png").write_bytes(encoded())
    others = {"notes.txt": b"BMW P6 players", "x.json": b"{}", "x.csv": b"a,b", "x.xml": b"<a/>", "x.npy": b"\x93NUMPY"}
    for name, content in {**others, "Thumbs.db": encoded(), "._photo.png": b"\0\x05\x16\x07", ".DS_Store": b""}.items():
        (tmp_path / "cat" / name).write_bytes(content)
    os.mkfifo(tmp_path / "cat" / "pipe")
    assert readable(TestImages(parse_data(f"folder:{tmp_path}"))) == {"cat/photo.png": True}
    assert not any(image_format(io.BytesIO(content)) for content in others.values())


# Folders


def write_classes(root, *names):
    for name in names:
        (root / name).mkdir()
        gradient().save(root / name / "0.png")
    return root


@pytest.mark.parametrize("stray", STRAY)
def test_a_stray_folder_is_never_a_class_and_holds_no_images(tmp_path, stray):
    write_classes(tmp_path, "a", "b", stray)
    write_classes(tmp_path / "a", stray)
    images = open_folder(tmp_path, "test")
    assert (images.classes, len(images), images.notes) == (("a", "b"), 2, ())
    (tmp_path / "labels.txt").write_text("a/0.png,x\nb/0.png,y\n")
    assert len(open_flat(tmp_path, tmp_path / "labels.txt")) == 2
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name in ("./0.png", f"{stray}/1.png", "./._2.png"):
            add(tar, name, encoded())
            add(tar, name.replace(".png", ".cls"), b"0")
    assert len(open_shards(str(tmp_path / "shard.tar"))) == 1


def test_a_class_folder_without_a_readable_image_counts_and_is_named(tmp_path):
    write_classes(tmp_path, "a", "b")
    for name in ("bare", "torn", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "torn" / "0.jpg").write_bytes(b"torn")
    (tmp_path / "notes" / "log.txt").write_text("no image")
    images = TestImages(parse_data(f"folder:{tmp_path}"))
    assert images.classes == ("a", "b", "bare", "notes", "torn")
    assert images.empty_classes == ("bare", "notes", "torn")
    (note,) = images.stated()["notes"]
    assert "no image can be read in these class folders" in note
    assert "'bare', 'notes', 'torn'" in note


def test_images_that_no_class_takes_are_noted(tmp_path):
    write_classes(tmp_path, "n01", "n02", "n03", "old")
    gradient().save(tmp_path / "lost.png")
    unlike, beside = open_folder(tmp_path, "test").notes
    assert "unlike the others count as classes: 'old'" in unlike
    assert "left out (1): 'lost.png'" in beside
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        add(tar, "a.png", encoded())
        add(tar, "a.cls", b"0")
        add(tar, "b.png", encoded())
    (note,) = open_shards(str(tmp_path / "shard.tar")).notes
    assert note.endswith("left out (1): '" + str(tmp_path / "shard.tar") + ":b.png'")


def test_a_tar_file_that_is_none_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(UsageError, match="is not a file"):
        open_shards(str(tmp_path / "pipe.tar"))


def test_an_image_by_suffix_goes_before_one_by_content(tmp_path):
    mask = Image.fromarray(np.zeros((5, 5), np.uint8))
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        add(tar, "a.mask", encoded("PNG", mask))
        add(tar, "a.jpg", encoded("JPEG"))
        add(tar, "a.cls", b"0")
    assert open_shards(str(tmp_path / "shard.tar")).name(0).endswith("a.jpg")


def test_odd_classes_are_named():
    assert odd_classes(("n01", "n02", "n03", "logs")) == ["logs"]
    assert odd_classes(("cat", "golden retriever", "logs")) == []
    assert odd_classes(("cat", "_old", "@x", "dog", "dog.bak"), ("dog",)) == ["_old", "@x", "dog", "dog.bak"]
    assert odd_classes(()) == []
    assert count_advice(("a", "logs"), 1, ("logs",)).startswith("remove what is not a class, perhaps 'logs' (no image")
    assert count_advice(("cat", "dog"), 1) == "remove what is not a class: 'cat', 'dog'"
    assert "(empty ones count)" in count_advice(("cat", "dog"), 3)


def test_classes_that_one_part_lacks_are_named():
    assert class_difference(("a", "b"), ("a", "b")) == ""
    assert (
        class_difference(("a", "b", "x"), ("a", "c"))
        == "only the training part has 'b', 'x'; only the test part has 'c'"
    )


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
