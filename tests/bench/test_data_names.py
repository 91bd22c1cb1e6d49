"""Test names of data: one form each, bad names are explained, and two names of one place are recognized."""

from __future__ import annotations

import pytest
from data_support import gradient
from hypothesis import given
from hypothesis import strategies as st

from sema_bench.data.datasets import TestImages, common_origin
from sema_bench.errors import UsageError
from sema_bench.spec.data_source import DataSpec, parse_data


def test_names_of_data_have_one_form():
    assert str(parse_data(" digits:field,images=2000,seed=3 ")) == "digits:field,seed=3"
    assert str(parse_data("some/folder,crop_pct=0.9,limit=50")) == "folder:some/folder,crop_pct=0.9,limit=50"
    assert parse_data("val-{000..009}.tar").kind == "tar"
    assert [parse_data(text).kind for text in ("a.npz,limit=3", "npz", "tar")] == ["npz", "folder", "folder"]
    assert parse_data("flat:val,labels=val.txt").option("labels") == "val.txt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digit:field", "did you mean 'digits'"),
        ("digits:feild", "did you mean 'field'"),
        ("digits:field,sead=1", "did you mean 'seed'"),
        ("digits:field,images=0", "takes a number of images; got '0'"),
        ("digits:field,images=3,images=4", "given twice"),
        ("npz:x,split=tset", "takes the part to test on: train, val or test; got 'tset'"),
        ("folder:x,crop_pct=2", "takes a share from 0.1 to 1"),
        ("folder:", "write a location"),
        ("flat:x", "labels=FILE"),
        ("", "bad data"),
        ("folder:a\nb", "bad data"),
        ("digits:field,y", "not option=value"),
        ("folder:x,limt=3", "did you mean 'limit'"),
        ("folder:x, limit=3", "did you mean 'limit'.*in quotes"),
        ("folder:x,Limit=3", "did you mean 'limit'"),
        ('folder:"x', "quotes must be closed"),
        ('folder:"x"y', "quotes must be closed"),
        ('folder:"x",y', "only an option may follow them"),
        ("folder:" + "x" * 500, "longer than 500 characters"),
    ],
)
def test_a_bad_name_of_data_is_explained(text, message):
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        parse_data(text)


@pytest.mark.parametrize(
    ("text", "kind", "location", "options"),
    [
        ("folder:k=v, x", "folder", "k=v, x", {}),
        ("folder:a,b=c", "folder", "a,b=c", {}),
        ("folder:k=v, x,limit=5,crop_pct=0.9", "folder", "k=v, x", {"limit": 5, "crop_pct": 0.9}),
        ('folder:"a,limit=3",limit=5', "folder", "a,limit=3", {"limit": 5}),
        ('folder:"say ""a"""', "folder", 'say "a"', {}),
        ("my, data/x.tar", "tar", "my, data/x.tar", {}),
        ("tar:a, b/{00..01}.tar", "tar", "a, b/{00..01}.tar", {}),
        ("flat:a, b,labels=l, x.txt,limit=3", "flat", "a, b", {"labels": "l, x.txt", "limit": 3}),
        ("flat:a,labels=l,train=folder:k=v, x", "flat", "a", {"labels": "l", "train": "folder:k=v, x"}),
    ],
)
def test_a_comma_belongs_to_a_name_unless_an_option_follows(text, kind, location, options):
    assert parse_data(text) == DataSpec(kind, location, options)
    assert parse_data(str(parse_data(text))) == DataSpec(kind, location, options)


_NAMES = st.text('ab,= "limtse\\:', min_size=1, max_size=16) | st.sampled_from(["a,limit=3", "a, limit=3", '"', " a"])


@given(st.sampled_from(["folder", "flat", "tar", "hub"]), _NAMES, _NAMES, st.integers(0, 9))
def test_the_form_of_any_data_is_read_back(kind, location, value, limit):
    options = {"labels": value} if kind == "flat" else {"split": value} if kind == "hub" else {}
    spec = DataSpec(kind, location, options | ({"limit": limit} if limit else {}))
    assert parse_data(str(spec)) == spec
    trained = DataSpec("folder", "a", {"train": str(DataSpec("folder", location))})
    assert parse_data(str(trained)).training == DataSpec("folder", location)
    assert parse_data(str(DataSpec(kind, location)) + (",labels=x" if kind == "flat" else "")).location == location


def test_the_home_folder_is_known_in_locations_and_files(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(parse_data("~/a, b")) == "folder:/home/me/a, b"
    assert str(parse_data("tar:~/s-{0..3}.tar")) == "tar:/home/me/s-{0..3}.tar"
    flat = parse_data("flat:~/val,labels=~/val.txt,train=folder:~/train")
    assert str(flat) == "flat:/home/me/val,labels=/home/me/val.txt,train=folder:/home/me/train"
    assert parse_data("folder:a~b/~").location == "a~b/~"


def test_folders_with_commas_are_opened(tmp_path):
    for name in ("k=v, x", "a,limit=3"):
        (tmp_path / name / "cat").mkdir(parents=True)
        gradient().save(tmp_path / name / "cat" / "0.png")
    (tmp_path / "labels, all.csv").write_text("0.png,golden retriever\n")
    flat = f"flat:{tmp_path}/k=v, x/cat,labels={tmp_path}/labels, all.csv"
    for text in (f"folder:{tmp_path}/k=v, x", f"{tmp_path}/k=v, x,limit=1", f'folder:"{tmp_path}/a,limit=3"', flat):
        assert len(TestImages(parse_data(text))) == 1
    with pytest.raises(UsageError, match=r"no folder .*; the options of data are labels, crop_pct, limit, train"):
        TestImages(parse_data(f"folder:{tmp_path}/k=v, x,shuffle=1"))


def test_images_of_one_place_are_the_same_wherever_the_place_is_named():
    assert common_origin(("/a/train",), ("/a/val",)) is None
    assert common_origin(("/a/s0.tar", "/a/s1.tar"), ("/a/s1.tar",)) == "/a/s1.tar"
    assert common_origin(("/a",), ("/a/val",)) == "/a/val"
    assert common_origin(("/a/val",), ("/a/valid",)) is None
