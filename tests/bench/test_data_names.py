"""Names of data: one form each, a bad one is explained, and two places are known to be one."""

from __future__ import annotations

import pytest

from sema_bench.data.opened import common_origin
from sema_bench.data.spec import parse_data
from sema_bench.errors import UsageError


def test_names_of_data_have_one_form():
    assert str(parse_data(" digits:field,images=2000,seed=3 ")) == "digits:field,seed=3"
    assert str(parse_data("some/folder,crop_pct=0.9,limit=50")) == "folder:some/folder,crop_pct=0.9,limit=50"
    assert parse_data("val-{000..009}.tar").kind == "tar"
    assert parse_data("flat:val,labels=val.txt").option("labels") == "val.txt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digit:field", "did you mean 'digits'"),
        ("digits:feild", "did you mean 'field'"),
        ("digits:field,sead=1", "did you mean 'seed'"),
        ("digits:field,images=0", "takes a number of images; got '0'"),
        ("digits:field,images=3,images=4", "given twice"),
        ("folder:x,crop_pct=2", "takes a share from 0.1 to 1"),
        ("folder:", "stands a location"),
        ("flat:x", "labels=FILE"),
        ("", "bad data"),
        ("folder:a\nb", "bad data"),
        ("folder:x,y", "not option=value"),
    ],
)
def test_a_bad_name_of_data_is_explained(text, message):
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        parse_data(text)


def test_images_of_one_place_are_the_same_wherever_the_place_is_named():
    assert common_origin(("/a/train",), ("/a/val",)) is None
    assert common_origin(("/a/s0.tar", "/a/s1.tar"), ("/a/s1.tar",)) == "/a/s1.tar"
    assert common_origin(("/a",), ("/a/val",)) == "/a/val"
    assert common_origin(("/a/val",), ("/a/valid",)) is None
