"""Test line styles: lines of one mechanism look alike, and lines of one figure differ."""

import pytest

from sema.models import MODELS
from sema_bench.report.line_styles import (
    COLOURS,
    head_of,
    line_styles,
    looks_of,
    mechanism_of,
    shared_backbone,
    short_name,
    without_head,
)

ATTENTIONS = [f"sema_micro[{name},head=max]" for name in COLOURS if name != "vit"]


@pytest.mark.parametrize("model", list(MODELS))
def test_every_model_of_the_library_has_a_mechanism(model: str) -> None:
    assert mechanism_of(model) in COLOURS


@pytest.mark.parametrize(
    ("model", "mechanism"),
    [
        ("sema_tiny", "sema"),
        ("mila_tiny", "mila"),
        ("mila_tiny[sema,window_size=3]", "sema"),
        ("sima_deit_tiny", "sima"),
        ("sima_cvt_13", "sima"),
        ("flatten_swin_tiny", "focused"),
        ("mine.py:build", ""),
        ("timm:resnet18", ""),
    ],
)
def test_what_a_name_stands_for(model: str, mechanism: str) -> None:
    assert mechanism_of(model) == mechanism


def test_a_mechanism_keeps_its_colour_from_run_to_run() -> None:
    alone, among = (
        line_styles(["sema_tiny[linear]"]),
        line_styles(["deit_tiny", "mila_tiny", "sema_micro[linear,head=max]"]),
    )
    for part in ("color", "marker"):
        assert alone["sema_tiny[linear]"][part] == among["sema_micro[linear,head=max]"][part]


def test_attentions_differ_in_colour_and_variants_of_one_in_dashes() -> None:
    assert len({style["color"] for style in line_styles(ATTENTIONS).values()}) == len(ATTENTIONS)
    variants = [f"sema_micro[sema,window_size={size}]" for size in (3, 7, 14)]
    looks = looks_of(variants).values()
    assert len({look.colour for look in looks}) == 1
    assert len({look.dashes for look in looks}) == len({look.marker for look in looks}) == 3


def test_softmax_in_another_backbone_is_told_apart_from_a_whole_transformer() -> None:
    looks = looks_of(["deit_small", "sema_tiny[softmax]"])
    assert looks["deit_small"].colour != looks["sema_tiny[softmax]"].colour
    assert looks_of(["sema_tiny[softmax]"])["sema_tiny[softmax]"] == looks["sema_tiny[softmax]"]


def test_a_model_looks_the_same_under_every_head() -> None:
    looks = looks_of(["sema_micro[sema,head=max]", "sema_micro[window,head=max]", "sema_micro[sema,head=mean]"])
    assert looks["sema_micro[sema,head=max]"] == looks["sema_micro[sema,head=mean]"]


def test_models_of_ones_own_take_the_colours_that_are_left() -> None:
    looks = looks_of(["a.py:build", "sema_tiny", "b.py:build"])
    assert len({look.colour for look in looks.values()}) == 3
    assert len(looks_of([*ATTENTIONS, "a.py:build", "b.py:build"])) == len(ATTENTIONS) + 2


def test_a_new_attention_takes_a_colour_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(COLOURS, "xca")
    looks = looks_of(["sema_tiny", "sema_tiny[xca]"])
    assert looks["sema_tiny"].colour != looks["sema_tiny[xca]"].colour


def test_short_names_leave_out_what_the_title_says() -> None:
    assert shared_backbone(ATTENTIONS) == "sema_micro"
    assert short_name("sema_micro[sema,head=max,window_size=3]", "sema_micro") == "sema,window_size=3"
    assert shared_backbone(["sema_micro[linear]", "sema_tiny[linear]"]) == ""
    assert shared_backbone(["sema_tiny", "mine.py:build"]) == ""
    assert short_name("mine.py:build", "") == without_head("mine.py:build") == "mine.py:build"
    assert (head_of("sema_micro[sema,head=max]"), head_of("sema_tiny"), head_of("[")) == ("max", "", "")
