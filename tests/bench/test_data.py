"""Test labelled images: files of every kind, and what cannot be read."""

from __future__ import annotations

import io
import json
import os
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
from data_support import gradient

from sema_bench.data.base import Unreadable, UnreadableImageError
from sema_bench.data.datasets import TestImages
from sema_bench.data.folder import open_flat, open_folder
from sema_bench.data.hub import HubImages
from sema_bench.data.loader import Batches
from sema_bench.data.tars import open_shards
from sema_bench.errors import UsageError
from sema_bench.spec.data_source import parse_data


def write_folder(root, *, classes=("cat", "dog"), images=3):
    for number, name in enumerate(classes):
        (root / name / "more").mkdir(parents=True)
        for index in range(images):
            gradient(20 + number, 30).save(root / name / ("more" if index == 0 else ".") / f"{index}.png")
    return root


def test_a_folder_of_classes_is_read_in_the_order_of_names(tmp_path):
    (write_folder(tmp_path) / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    folder = open_folder(tmp_path, "test")
    assert folder.classes == ("cat", "dog")
    assert [folder.name(i) for i in range(len(folder))][:3] == ["cat/1.png", "cat/2.png", "cat/more/0.png"]
    assert list(folder.labels) == [0, 0, 0, 1, 1, 1]
    assert folder.photograph(5).size == (30, 21)


def test_a_folder_with_both_parts_gives_the_one_that_is_wanted(tmp_path):
    write_folder(tmp_path / "train", images=4)
    write_folder(tmp_path / "val", images=2)
    assert len(open_folder(tmp_path, "train")) == 8
    assert len(open_folder(tmp_path, "test")) == 4


def test_a_folder_without_images_says_what_was_expected(tmp_path):
    with pytest.raises(UsageError, match="no class folders"):
        open_folder(tmp_path, "test")
    (tmp_path / "cat").mkdir()
    with pytest.raises(UsageError, match=r"no images in the 1 class folders.*\.jpg"):
        open_folder(tmp_path, "test")
    with pytest.raises(UsageError, match="no folder"):
        open_folder(tmp_path / "gone", "test")


def test_a_link_into_itself_is_refused(tmp_path):
    write_folder(tmp_path, images=1)
    (tmp_path / "cat" / "more" / "loop").symlink_to(tmp_path / "cat")
    with pytest.raises(UsageError, match="loop is a link to a folder that it lies in"):
        open_folder(tmp_path, "test")


def test_a_name_that_is_no_text_can_be_printed_and_opened(tmp_path):
    write_folder(tmp_path, images=2)
    odd = os.fsencode(tmp_path / "cat") + b"/\xff.png"
    (tmp_path / "cat" / "1.png").rename(os.fsdecode(odd))
    images = TestImages(parse_data(f"folder:{tmp_path}"))
    samples = [images.sample(i, (8, 8)) for i in range(len(images))]
    assert not any(isinstance(each, Unreadable) for each in samples)
    assert len(images.mark) == 16
    Path(os.fsdecode(odd)).write_bytes(b"no image")
    names = [each.name for i in range(len(images)) if isinstance(each := images.sample(i, (8, 8)), Unreadable)]
    assert names == ["cat/\\udcff.png"]


@pytest.mark.parametrize(
    "lines",
    [
        "b.png n02\na.png n01\n",
        "b,n02\na,n01 12 34 56 78\n",
        "ImageId,PredictionString\na,n01 1 2 3 4\nb,n02 1 2 3 4 n02 5 6 7 8\n",
        "n01\nn02\n",
        "0\n1\n",
    ],
)
def test_a_flat_folder_takes_its_classes_from_a_file(tmp_path, lines):
    for name in ("a", "b"):
        gradient().save(tmp_path / f"{name}.png")
    (tmp_path / "labels.txt").write_text(lines)
    flat = open_flat(tmp_path, tmp_path / "labels.txt")
    assert flat.labels == [0, 1]
    assert flat.classes in (("n01", "n02"), ("0", "1"))


def test_labels_that_could_mean_two_things_are_refused(tmp_path):
    for index in range(3):
        gradient().save(tmp_path / f"{index}.png")
    (tmp_path / "labels.txt").write_text("1\n1000\n17\n")
    with pytest.raises(UsageError, match="ILSVRC's ground truth"):
        open_flat(tmp_path, tmp_path / "labels.txt")
    (tmp_path / "labels.txt").write_text("1\n2\n")
    with pytest.raises(UsageError, match="2 lines for 3 images"):
        open_flat(tmp_path, tmp_path / "labels.txt")
    (tmp_path / "labels.txt").write_text("0.png x\n1.png y\n")
    with pytest.raises(UsageError, match=r"no class for 2\.png"):
        open_flat(tmp_path, tmp_path / "labels.txt")


def write_shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_shards_are_read_by_their_basenames(tmp_path):
    write_shard(tmp_path / "s-00.tar", [("a.png", png(gradient())), ("a.cls", b"1"), ("b.cls", b"0"), ("b.x.png", b"")])
    write_shard(
        tmp_path / "s-01.tar", [("d/a.json", b'{"label": 2}'), ("d/a.png", png(gradient(9, 9))), ("c.txt", b"")]
    )
    shards = open_shards(str(tmp_path / "s-{00..01}.tar"))
    assert list(shards.labels) == [1, 0, 2]
    assert shards.classes == ("0", "1", "2")
    assert shards.photograph(2).size == (9, 9)
    with pytest.raises(UnreadableImageError):
        shards.photograph(1)
    assert len(open_shards(str(tmp_path / "*.tar"))) == 3


def test_shards_that_are_none_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no file"):
        open_shards(str(tmp_path / "gone.tar"))
    (tmp_path / "text.tar").write_text("no tar" * 200)
    with pytest.raises(UsageError, match="not a plain, complete tar"):
        open_shards(str(tmp_path / "text.tar"))
    write_shard(tmp_path / "bad.tar", [("a.png", png(gradient())), ("a.cls", b"cat")])
    with pytest.raises(UsageError, match=r"a\.cls holds no label"):
        open_shards(str(tmp_path / "bad.tar"))
    write_shard(tmp_path / "none.tar", [("a.png", png(gradient()))])
    with pytest.raises(UsageError, match="no labelled images"):
        open_shards(str(tmp_path / "none.tar"))


@pytest.mark.parametrize("damage", ["header", "half", "cut header", "negative size"])
def test_a_damaged_tar_is_never_taken_for_a_shorter_one(tmp_path, damage):
    members = [(f"{i}{end}", body) for i in range(8) for end, body in ((".png", png(gradient())), (".cls", b"1"))]
    write_shard(tmp_path / "whole.tar", members)
    content = bytearray((tmp_path / "whole.tar").read_bytes())
    with tarfile.open(tmp_path / "whole.tar") as tar:
        middle = tar.getmembers()[8].offset
    if damage == "header":
        content[middle + 150] ^= 0xFF
    elif damage == "half":
        del content[middle + 512 + 100 :]
    elif damage == "cut header":
        del content[middle + 100 :]
    else:
        content[middle + 124 : middle + 136] = b"\xff" * 10 + b"\xfc\x00"
        content[middle + 148 : middle + 156] = b" " * 8
        content[middle + 148 : middle + 156] = b"%06o\0 " % sum(content[middle : middle + 512])
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.tar is not a plain, complete tar file"):
        open_shards(str(tmp_path / "bad.tar"))


@pytest.mark.parametrize("order", [1, -1])
def test_a_class_stands_before_what_is_said_of_an_image(tmp_path, order):
    beside = [("a.cls", b"1"), ("a.json", b'{"label": 0, "width": 8}'), ("b.json", b'{"width": 8}'), ("b.cls", b"2")]
    more = [("a.png", png(gradient())), ("b.png", png(gradient())), ("c.png", png(gradient())), ("c.json", b'{"w": 1}')]
    write_shard(tmp_path / "one.tar", (beside + more)[::order])
    shards = open_shards(str(tmp_path / "one.tar"))
    assert {shards.name(i)[-5:]: shards.labels[i] for i in range(len(shards))} == {"a.png": 1, "b.png": 2}


def test_a_label_file_that_contradicts_itself_is_refused(tmp_path):
    for index in range(2):
        gradient().save(tmp_path / f"{index}.png")
    labels = tmp_path / "labels.txt"
    labels.write_text("0.png cat\n1.png dog\n0.png dog\n")
    with pytest.raises(UsageError, match=r"gives 0\.png two classes, cat and dog"):
        open_flat(tmp_path, labels)
    labels.write_text("0.png 3000000001\n1.png 3000000002\n")
    assert open_flat(tmp_path, labels).classes == ("3000000001", "3000000002")
    labels.write_text("0.png," + "x" * 200_000 + "\n")
    with pytest.raises(UsageError, match=r"label file .* cannot be read"):
        open_flat(tmp_path, labels)


def test_what_is_no_file_is_no_image(tmp_path):
    write_folder(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    assert len(open_folder(tmp_path, "test")) == 6


def test_rows_without_a_class_are_refused():
    with pytest.raises(UsageError, match=r"digits \(test\): row 1 has no class \(label -1\)"):
        HubImages(table={}, image="picture", labels=[0, -1], classes=("no", "yes"), origins=("digits (test)",))


def test_a_hub_dataset_is_named_by_what_it_lacks(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UsageError, match=r"sema-bench\[data\]"):
        TestImages(parse_data("hub:mnist"))


def test_a_hub_dataset_gives_encoded_images_and_class_names(monkeypatch):
    class Images:
        def __init__(self, decode=True):
            self.decode = decode

    class Labels:
        names = ("no", "yes")

    rows = [{"picture": {"bytes": png(gradient()), "path": None}, "answer": 1}, {"picture": {}, "answer": 0}]

    class Table:
        features = {"picture": Images(), "answer": Labels(), "text": object()}  # noqa: RUF012

        def cast_column(self, name, kind):
            assert (name, kind.decode) == ("picture", False)
            return self

        def __getitem__(self, key):
            return [row[key] for row in rows] if isinstance(key, str) else rows[key]

    asked = []
    fake = types.SimpleNamespace(
        Image=Images, ClassLabel=Labels, load_dataset=lambda *a, **k: asked.append((a, k)) or Table()
    )
    monkeypatch.setitem(__import__("sys").modules, "datasets", fake)
    images = TestImages(parse_data("hub:some/images,config=small,split=test"))
    assert asked == [(("some/images", "small"), {"split": "test"})]
    assert images.classes == ("no", "yes")
    assert images.sample(0, (8, 8))[1] == 1
    assert images.sample(1, (8, 8)) == Unreadable("row 1", "the row holds no image")


def test_a_saved_hub_dataset_is_opened(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_folder(tmp_path / "files")
    datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "files"), split="train").save_to_disk(
        str(tmp_path / "saved")
    )
    images = TestImages(parse_data(f"hub:{tmp_path / 'saved'}"))
    assert (len(images), images.classes) == (6, ("cat", "dog"))
    assert images.sample(0, (16, 16))[0].shape == (16, 16, 3)


# Batches


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_the_order_and_name_what_is_unreadable(workers):
    def sample(index):
        return Unreadable(f"{index}", "torn") if index % 4 == 3 else (np.full((2, 2, 3), index, np.uint8), index)

    batches = list(Batches(sample, range(10), batch=4, workers=workers, pin=False))
    assert [batch.labels.tolist() for batch in batches] == [[0, 1, 2], [4, 5, 6], [8, 9]]
    assert [batch.images for batch in batches] == [4, 4, 2]
    assert [name for batch in batches for name, _ in batch.unreadable] == ["3", "7"]
    assert batches[1].pixels[0, 0, 0].tolist() == [4, 4, 4]


def test_a_batch_of_unreadable_images_is_empty():
    (batch,) = Batches(lambda index: Unreadable("x", "y"), range(3), batch=4, workers=0, pin=False)
    assert (len(batch.labels), batch.images) == (0, 3)


def test_a_limit_takes_images_of_all_classes(tmp_path):
    write_folder(tmp_path, images=10)
    images = TestImages(parse_data(f"folder:{tmp_path},limit=4"))
    assert [images.sample(i, (8, 8))[1] for i in range(len(images))] == [0, 0, 1, 1]
    assert images.stated()["preparation"]["crop_pct"] == 0.875
    assert json.dumps(images.stated())
