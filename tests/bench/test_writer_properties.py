"""Test properties of every writer of text and records, for any input; hypothesis looks for what breaks them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hostile_support import NASTY
from hypothesis import example, given, settings
from hypothesis import strategies as st
from property_support import ANY, JSON, near

from sema_bench.errors import StoreError
from sema_bench.report.export import to_csv_text, to_latex, to_markdown
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.store.table import records_frame
from sema_bench.text.escape import csv_text, for_csv, for_json, for_latex, for_markdown, printable, printable_lines

#: Text that a spreadsheet takes for a formula.
FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")


# Output text


@given(ANY)
@settings(max_examples=300, deadline=None)
@example(NASTY)
@example("\ud800\udfff")
def test_printable_text_holds_nothing_that_acts_on_a_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert printable_lines(text).split("\n") == [printable(line) for line in text.split("\n")]
    shown.encode()


@given(st.lists(near("=+-@\t\n\r\"', ", "\r\n", "\u202e"), min_size=1, max_size=3))
@settings(max_examples=400, deadline=None)
@example([NASTY])
@example(["\r=1"])
@example(["\u00a0=1"])
@example(["\u200b=1"])
@example(["\ufeff=1"])
@example(["\x00=1"])
@example(["a\r=1\r\n=2"])
def test_a_csv_reads_back_cell_by_cell_and_starts_no_formula(row: list[str]) -> None:
    text = csv_text([f"c{number}" for number in range(len(row))], [row])
    _, cells = csv.reader(io.StringIO(text, newline=""))
    assert cells == [for_csv(cell) for cell in row]
    assert not [cell for cell in cells if FORMULA.match(cell)]
    assert all(character.isprintable() or character in "\n\t" for character in text)
    text.encode()


@given(ANY | near("|<>[]()`*_~$&#@:/\\! ", "javascript:", "www.", "https://x.y", "<!--", "\n", "@octocat", "#1"))
@settings(max_examples=400, deadline=None)
@example(NASTY)
@example("https://example.org")
@example("0https://example.org")
@example("_https://example.org")
@example("_www.example.org")
def test_text_in_a_markdown_table_stays_in_its_cell_and_is_no_markup(text: str) -> None:
    shown = for_markdown(text)
    assert shown.isprintable() or "\u200b" in shown  # which keeps a mention from acting as one
    assert "\n" not in shown
    assert not re.search(r"[<>]", shown)
    assert not re.search(r"(?<!\\)(\\\\)*[|\[\]`*]", shown)
    assert not re.search(r"(?<![a-z])((https?|ftp)://|(www\.|javascript:)\S)", shown, re.IGNORECASE)


@given(ANY | near("\\{}$%&#_^~<>|\"'[]* ", "\\input{x}", "\\\\", "–×"))
@settings(max_examples=400, deadline=None)
@example(NASTY)
def test_text_in_latex_runs_no_command_but_our_own(text: str) -> None:
    ours = r"\\text(backslash|asciitilde|asciicircum|less|greater|bar)\{\}|\\[{}#$%&_]|\$\\(times|pm|cdot)\$|^\{\}"
    rest = re.sub(ours, "", for_latex(text))
    assert not re.search(r"[\\{}$%&#_^~\n]", rest)


@given(JSON)
@settings(max_examples=200, deadline=None)
@example({NASTY: NASTY})
def test_json_for_a_terminal_means_the_same(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1)
    shown = for_json(text)
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert json.dumps(json.loads(shown)) == json.dumps(json.loads(text))


# Records


def _valid_record() -> dict[str, Any]:
    latency = Measurement(metric="latency_s", value=0.5, ci_low=0.4, ci_high=0.6, samples=(0.5, 0.4, 0.6))
    measurements = {"latency_s": latency, "params": Measurement(metric="params", value=3)}
    details = {
        "telemetry": {"disturbances": {"load": 2}},
        "warmups": 3,
        "uncovered_operators": ["x"],
        "stop_reason": "y",
    }
    record = Record(cell=Cell(model="m", height=64, width=64), status="ok", measurements=measurements, details=details)
    body: dict[str, Any] = json.loads(record.to_json())
    return body


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*path, key))


PLACES = [path for path in _places(_valid_record()) if path]


def _changed(places: dict[tuple[Any, ...], Any]) -> dict[str, Any]:
    body = _valid_record()
    for path, value in places.items():
        inner: Any = body
        for key in path[:-1]:
            inner = inner[key] if isinstance(inner, dict) and key in inner else None
            if inner is None:
                break
        if isinstance(inner, dict):
            inner[path[-1]] = value
    return body


@given(st.dictionaries(st.sampled_from(PLACES), JSON, min_size=1, max_size=2).map(_changed) | JSON)
@settings(max_examples=250, deadline=None)
@example(_changed({("details",): {"telemetry": {"disturbances": {"x": 10**400}}}}))
@example(_changed({("details", "warmups"): 2**70}))
@example(_changed({("details", "warmups"): True}))
@example(_changed({("duration_s",): 10**400}))
@example(_changed({("duration_s",): 1e300}))
@example(_changed({("cell", "batch"): 2**31 - 1}))
@example(_changed({("cell", "model"): ""}))
@example(_changed({("cell", "model"): NASTY}))
@example(_changed({("measurements",): [{"metric": "latency_s", "value": 0.5, "samples": "0.5"}]}))
@example(_changed({("measurements",): [{"metric": "latency_s", "value": 0.5, "samples": [10**400]}]}))
@example(_changed({("measurements",): [{"metric": "params", "value": -3}, {"metric": "params", "value": 1.5}]}))
@example(_changed({("details", "uncovered_operators"): {"a": [1]}}))
@example(_changed({("details",): {"stop_reason": ["x"], "interleaved_with": 3, "telemetry": 7, "warm": "yes"}}))
def test_any_json_is_a_record_that_can_be_shown_or_none(body: Any) -> None:
    try:
        record = Record.from_json(json.dumps(body))
    except (ValueError, StoreError):
        return
    assert Record.from_json(record.to_json()) == record
    frame = records_frame([record])
    for write in (to_csv_text, to_markdown, to_latex):
        assert write(frame)


@given(st.binary(max_size=60) | ANY)
@settings(max_examples=300, deadline=None)
@example(b'{"schema_version": ' + b"1" * 5000 + b"}")
@example("[" * 100_000)
@example('{"schema_version": 1e999}')
@example("\ufeff{}")
def test_any_line_is_a_record_or_none(line: str | bytes) -> None:
    with pytest.raises(ValueError):
        Record.from_json(line)
