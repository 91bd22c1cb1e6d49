"""Test label files: one reading of the whole file gives each image its whole class, or the file is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from data_support import gradient
from hypothesis import given
from hypothesis import strategies as st

from sema_bench.data.folder import open_flat
from sema_bench.data.labels import read_labels
from sema_bench.errors import UsageError

AB = ("a.png", "b.png")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The path of a label file that a test may write."""
    return tmp_path_factory.mktemp("labels") / "labels.txt"


def classes_of(file, text, names=AB, root="/data/val"):
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(file, Path(root), names)[0]


@pytest.mark.parametrize("heading", ["", "image{}class\n", "Image ID{}Target\n", "what{}kind\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", " , ", "; "])
def test_the_field_after_the_delimiter_is_the_class_whole(file, delimiter, heading):
    lines = f"a.png{delimiter}golden retriever\nb.png{delimiter}Audi A4 2012\n"
    assert classes_of(file, heading.format(delimiter) + lines) == ["golden retriever", "Audi A4 2012"]


@pytest.mark.parametrize(
    "text",
    [
        "a.png cat\nb.png dog\n",
        "  a   cat\n\tb\tdog  ",
        "# image class\n\na.png cat\n\n#b.png cat\nb.png dog",
        "a.png,cat\r\nb.png,dog\r\n",
        "a.png,cat\rb.png,dog\r",
        "\ufeffa.png,cat\nb.png,dog",
        "image,class\na.png,cat\nb.png,dog\n".encode("utf-16"),
        b"\xfe\xff" + "a.png;cat\nb.png;dog\n".encode("utf-16-be"),
        '"a.png" , "cat"\n"b.png","dog"',
        "a.png\tcat\nb.png dog",
        "a.png,cat,\nb.png,dog,",
        "./a.png,cat\n.\\b.png,dog",
        "a,cat\nb,dog",
        "val/a.png,cat\n/data/val/b.png,dog",
        "a.png,cat\n./a.png,cat\nb.png,dog\nc.png,cow",
        "class,file\ncat,a.png\ndog,b.png",
        "breed;id\ncat;a\ndog;b",
        ",filename,width,label\n0,a.png,9,cat\n1,b.png,8,dog",
        "id,x,y,class\na,0.1,0.2,cat\nb,0.3,0.4,dog",
        "cat\ndog",
        "label\ncat\ndog",
    ],
)
def test_forms_that_people_have_give_the_same_classes(file, text):
    assert classes_of(file, text) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a.png,"tench, Tinca tinca"\nb.png,"so ""called"""', ["tench, Tinca tinca", 'so "called"']),
        ("a.png tench, Tinca tinca\nb.png cat;dog", ["tench, Tinca tinca", "cat;dog"]),
        ("a.png\tcat, tabby\nb.png\tdog; big, black", ["cat, tabby", "dog; big, black"]),
        ("a.png;cat, tabby\nb.png;dog, black", ["cat, tabby", "dog, black"]),
        ("ImageId,PredictionString\na,n01 1 2 3 4 \nb,n02 1 2 3 4 n02 5 6 7 8 ", ["n01", "n02"]),
        ("a n01 1 2 3 4\nb n02", ["n01", "n02"]),
    ],
)
def test_a_class_keeps_what_belongs_to_it(file, text, expected):
    assert classes_of(file, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,0.1,0.2,cat\nb,0.1,0.2,dog", "line 1 has 4 fields; write"),
        ("a.png,cat\nb.png,tench, Tinca tinca", "line 2 has 3 fields.*quotes around a class that has a comma"),
        ("image,label\na.png,cat\nb.png,dog, black", "line 3 has 3 fields"),
        ("id,x,y,species\na,1,2,cat\nb,1,2,dog", "the columns id, x, y, species, and it is not clear which"),
        (
            "file,class_id,class\na.png,1,cat\nb.png,2,dog",
            "the columns file, class_id, class, and it is not clear which",
        ),
        ("a,n01 1 2 3 4 n02 5 6 7 8\nb,n02", "line 1: it is not clear which part of .* is the class"),
        ("a,cat 1 2 3 4\nb,dog 1 2 3 4", "line 1: it is not clear which part of 'cat 1 2 3 4' is the class"),
        ("a cat 0.97\nb dog 0.5", "line 1: it is not clear which part of 'cat 0.97' is the class"),
        ("a,3 10 20 30 40\nb,3 10 20 30 40", "line 1: it is not clear which part of '3 10 20 30 40'"),
        ("cat,a.png\ndog,b.png", "names no class for a.png"),
        ("z.png,cat\ny.png,dog", "expected an image of the folder"),
        ("train/a.png,cat\ntrain/b.png,dog", "expected an image of the folder"),
        ("a.png|cat\nb.png|dog", "expected an image of the folder"),
        ('"z.png":"cat"\n"y.png":"dog"', "expected an image of the folder"),
        ("golden retriever\ndog", "expected an image of the folder"),
        ("a.png\nb.png", "expected an image of the folder"),
        ('"a.png" cat\n"b.png" dog', "expected an image of the folder"),
        ("a.png\t\t\tcat\nb.png\tdog", "line 1 has 4 fields"),
        ("A.PNG,cat\nB.PNG,dog", "expected an image of the folder"),
        ("a\nb", "names the images alone, without their classes"),
        ("", "0 lines for 2 images"),
        ("a.png,\nb.png,dog", "names no class for a.png"),
        ("a.png,cat\nb.png;dog", "names no class for b.png"),
        ('a.png,"cat\nb.png,dog', "a class continues in the next line; close its quotes"),
        ("a.png,cat\na,dog\nb.png,dog", "gives a two classes, cat and dog"),
        ("a.png,cat\nb.png,dog\n".encode("utf-16-le"), "it is not text"),
        (b"\xff\xd8\xff\xe0", "it is not text"),
        (b"\xff\xfea", "it is not text"),
    ],
)
def test_what_is_not_certain_is_refused_in_words(file, text, message):
    with pytest.raises(UsageError, match=message) as refused:
        classes_of(file, text)
    assert "\n" not in str(refused.value)


def test_a_name_with_spaces_needs_a_delimiter(file):
    names = ("my cat.png", "his.png")
    assert classes_of(file, "my cat.png,dog\nhis.png,golden retriever\n", names) == ["dog", "golden retriever"]
    with pytest.raises(UsageError, match=r"names no class for my cat.png"):
        classes_of(file, "my cat.png dog\nhis.png x\n", names)


def test_names_that_several_images_share_need_their_folder(file):
    names = ("x/a.png", "y/a.png")
    assert classes_of(file, "x/a.png cat\ny\\a dog\n", names) == ["cat", "dog"]
    with pytest.raises(UsageError, match=r"line 1: a\.png is ambiguous: x/a\.png or y/a\.png"):
        classes_of(file, "a.png cat\n", names)
    with pytest.raises(UsageError, match=r"a is ambiguous: a\.jpg or a\.png"):
        classes_of(file, "a cat\n", ("a.jpg", "a.png"))


def test_the_column_of_names_is_the_one_whose_names_exist(file):
    text = "id,filename,label\n1,2.png,cat\n2,1.png,dog\n"
    assert classes_of(file, text, ("1.png", "2.png")) == ["dog", "cat"]
    assert classes_of(file, "image.png,label\nb.png,cat\n", ("image.png", "b.png")) == ["label", "cat"]
    assert classes_of(file, "#1.png,cat\n2.png,dog\n", ("#1.png", "2.png")) == ["cat", "dog"]
    assert classes_of(file, "caf\u00e9.png,cat\n", ("cafe\u0301.png",)) == ["cat"]


_WORD = st.text(st.characters(categories=["L"]), min_size=1, max_size=6)


@given(st.lists(st.lists(_WORD, min_size=1, max_size=3).map(" ".join), min_size=2, max_size=5), st.sampled_from(",;\t"))
def test_written_classes_are_read_back(file, classes, delimiter):
    names = [f"{index}.png" for index in range(len(classes))]
    lines = [f"{name}{delimiter}{label}" for name, label in zip(names, classes, strict=True)]
    assert classes_of(file, "\n".join(reversed(lines)), names) == classes


def test_lines_of_no_image_are_noted_and_numbers_of_a_table_with_gaps_are_numbers(tmp_path):
    gradient().save(tmp_path / "a.png")
    gradient().save(tmp_path / "b.png")
    (tmp_path / "labels.csv").write_text("image,label\na.png,2.0\nb.png,10.0\nc.png,3.0\n")
    images = open_flat(tmp_path, tmp_path / "labels.csv")
    assert (images.labels[:2], images.numbered) == ([2, 10], True)
    assert images.classes[:3] == ("0", "1", "2")
    (note,) = images.notes
    assert note.endswith(f"name no image in {tmp_path} (1): 'c.png'")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_label_file_that_is_none_is_refused_at_once(tmp_path, kind):
    gradient().save(tmp_path / "a.png")
    labels = tmp_path / "labels"
    if kind == "pipe":
        os.mkfifo(labels)
    elif kind == "device":
        labels.symlink_to("/dev/zero")
    else:
        labels.mkdir()
    with pytest.raises(UsageError, match="is not a file"):
        open_flat(tmp_path, labels)
