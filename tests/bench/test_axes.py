"""Test parsing of resolutions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sema_bench.errors import UsageError
from sema_bench.spec.resolution import LADDER, MAX_SIDE, MIN_SIDE, Resolution, parse_resolutions


def labels(text: str) -> list[str]:
    return [resolution.label for resolution in parse_resolutions(text)]


def test_a_range_is_the_papers_ladder_with_both_ends() -> None:
    assert labels("224..1024") == ["224", "288", "384", "512", "640", "768", "896", "1024"]
    assert labels("200..400") == ["200", "224", "288", "384", "400"]
    assert labels("224..224") == ["224"]


def test_a_stepped_range_ends_at_its_end() -> None:
    assert labels("224..512:96") == ["224", "320", "416", "512"]
    assert labels("224..500:96") == ["224", "320", "416", "500"]


def test_lists_mix_every_form_and_come_sorted_and_once() -> None:
    assert labels("512x768, 384,224,384") == ["224", "384", "512x768"]
    assert parse_resolutions("512x768")[0] == Resolution(512, 768)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1024..224", "write 224..1024"),
        ("0", "at least 32"),
        ("31", "at least 32"),
        ("abc", "use A..B"),
        ("", "use A..B"),
        ("224,", "use A..B"),
        ("224..", "use A..B"),
        ("-224", "use A..B"),
        ("224.5", "use A..B"),
        ("224..512:0", "positive step"),
        ("999999", "too large"),
        ("224x31", "at least 32"),
        ("٢٢٤", "use A..B"),
        ("1" * 5000, "use A..B"),
    ],
)
def test_impossible_text_is_refused_with_the_way_out(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_resolutions(text)


@given(st.integers(MIN_SIDE, MAX_SIDE), st.integers(MIN_SIDE, MAX_SIDE))
def test_every_range_starts_and_ends_where_it_says(a: int, b: int) -> None:
    low, high = min(a, b), max(a, b)
    sides = [resolution.height for resolution in parse_resolutions(f"{low}..{high}")]
    assert (sides[0], sides[-1]) == (low, high)
    assert sides == sorted(set(sides))
    assert {side for side in LADDER if low <= side <= high} <= set(sides)
