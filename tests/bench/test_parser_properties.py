"""What every parser and every writer of text keeps to, whatever it is given; hypothesis looks for what breaks it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from command_support import invoke
from hostile_support import NASTY
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sema.attention import ATTENTIONS
from sema.model_name import declared_options, parse_model_name
from sema.models import ATTENTION_SWAPPABLE, MODELS
from sema_bench.cli.dispersion import _keys
from sema_bench.cli.maps import _share_pair
from sema_bench.cli.option_values import batches, checkpoints, integers, items, where_from
from sema_bench.cli.train import _assignments
from sema_bench.errors import StoreError, SuiteError, UsageError
from sema_bench.report.export import to_csv_text, to_markdown
from sema_bench.report.latex import to_latex
from sema_bench.spec.cell import Cell
from sema_bench.spec.data_source import KINDS, PROTOCOLS, DataSpec, parse_data
from sema_bench.spec.model_source import parse_source, split_models
from sema_bench.spec.plan import Plan, build_plan
from sema_bench.spec.recipe import Recipe, parse_recipe
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.resolution import MAX_SIDE, MAX_SIZES, MIN_SIDE, Resolution, parse_resolutions
from sema_bench.spec.suite import Suite, load_suite, parse_suite
from sema_bench.store.run_folder import check_run_name
from sema_bench.store.table import records_frame
from sema_bench.text.escape import csv_text, for_csv, for_json, for_latex, for_markdown, printable, printable_lines

#: Any text, lone surrogates included, as bytes that are no UTF-8 come in.
ANY = st.text(st.characters(), max_size=60)
SIDES = st.integers(MIN_SIDE, MAX_SIDE)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ANY
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY, inner, max_size=3), max_leaves=8
)
Result = TypeVar("Result")
#: What a spreadsheet takes for a formula.
FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")


def near(alphabet: str, *words: str) -> st.SearchStrategy[str]:
    """Return text of the characters and words that a parser looks for, and of others."""
    pieces = st.sampled_from([*alphabet, *words]) | st.characters()
    return st.lists(pieces, max_size=14).map("".join) | ANY


def read_or_mistake(read: Callable[[], Result], *, begins: str = "") -> Result | None:
    """Return what ``read`` returns; None after a mistake, whose message begins with ``begins``."""
    try:
        return read()
    except UsageError as problem:
        message = str(problem)
    assert message.startswith(begins)
    assert message != begins
    return None


@pytest.fixture(scope="module", autouse=True)
def in_an_empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Names of files are looked for in the working folder."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("empty"))
    yield
    os.chdir(before)


# Resolutions


@given(st.lists(st.builds(Resolution, SIDES, SIDES), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_resolutions_read_back_as_written_once_each_and_smallest_first(sizes: list[Resolution]) -> None:
    found = parse_resolutions(",".join(map(str, sizes)))
    assert set(found) == set(sizes)
    assert list(found) == sorted(set(sizes), key=lambda size: (size.pixels, size.height))
    assert parse_resolutions(",".join(size.label for size in sizes)) == found


@given(SIDES, SIDES, st.none() | st.integers(1, MAX_SIDE))
@settings(max_examples=200, deadline=None)
def test_a_range_of_resolutions_holds_both_ends_and_nothing_beyond(low: int, high: int, step: int | None) -> None:
    assume(low <= high and (step is None or (high - low) // step < MAX_SIZES))
    found = parse_resolutions(f"{low}..{high}" + (f":{step}" if step else ""))
    sides = [size.height for size in found]
    assert (sides[0], sides[-1]) == (low, high)
    assert sides == sorted(set(sides))


@given(near("0123456789.,:xX×- ", "..", "32", "224", "65536", "99999999999999999999"))
@settings(max_examples=500, deadline=None)
@example("32..65536:1," * 50)
@example("9" * 100_000)
@example(",".join(["32..10031:1"] * 1000))
def test_any_text_is_resolutions_or_a_mistake_told_in_one_line(text: str) -> None:
    found = read_or_mistake(lambda: parse_resolutions(text))
    if found is not None:
        assert 0 < len(found) <= MAX_SIZES
        assert all(MIN_SIDE <= side <= MAX_SIDE for size in found for side in size)
        assert parse_resolutions(",".join(map(str, found))) == found


# Names of models


@st.composite
def registry_names(draw: st.DrawFn) -> str:
    """Return the name of a model that is registered, with an attention and options that it declares."""
    model = draw(st.sampled_from(sorted(MODELS)))
    attention = draw(st.none() | st.sampled_from(sorted(ATTENTIONS))) if model in ATTENTION_SWAPPABLE else None
    values = {"int": st.integers(-9, 99), "float": st.floats(-9, 9), "bool": st.booleans(), "None": st.none()}
    declared, _ = declared_options(model, attention)
    chosen = draw(st.lists(st.sampled_from(sorted(declared)), unique=True, max_size=3)) if declared else []
    inner = [attention] if attention else []
    for name in chosen:
        kinds = [kind for kind in declared[name].types if kind in values]
        inner += [f"{name}={draw(values[draw(st.sampled_from(kinds))])}"] if kinds else []
    return f"{model}[{','.join(inner)}]" if inner else model


@given(registry_names())
@settings(max_examples=300, deadline=None)
def test_the_canonical_name_of_a_model_is_its_own_canonical_name(text: str) -> None:
    name = parse_source(text).name
    assert parse_source(name).name == name
    assert str(parse_model_name(name)) == name
    network = parse_model_name(name).network
    assert network.network == network


@given(near("[]=,:@./~_- ", "sema_tiny", "linear", "window_size", ".py", ":build", "timm:", "torchvision:", "resnet18"))
@settings(max_examples=400, deadline=None)
@example("~nosuchuser/m.py:build")
@example("~\udcff/m.py:build")
@example("m\udcff.py:build")
@example("sema_tiny[" + "," * 180 + "]")
@example("x" * 100_000)
@example("sema_tiny[window_size=" + "9" * 150 + "]")
@example("a/" * 140 + "m.py:build")
@example("timm:hf_hub:a/b")
def test_any_text_names_a_model_or_is_a_mistake(text: str) -> None:
    source = read_or_mistake(lambda: parse_source(text))
    if source is not None:
        assert parse_source(source.name) == source


@given(near("[],=.:/ ", "sema_tiny", "[linear]", "m.py:build", "a, b"))
@settings(max_examples=300, deadline=None)
@example("," * 100_000)
@example("m.py:build," * 2000)
def test_a_list_of_models_is_split_into_names_and_loses_nothing(text: str) -> None:
    names = split_models(text)
    assert all(name and name == name.strip() for name in names)
    kept = "".join("".join(names).split())
    assert kept.replace(",", "") == "".join(text.split()).replace(",", "")


@given(st.lists(registry_names(), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_names_that_are_joined_by_commas_are_split_at_these_commas(names: list[str]) -> None:
    assert split_models(",".join(names)) == names
    assert split_models(" , ".join(names)) == names


# Names of data


@st.composite
def data_specs(draw: st.DrawFn) -> DataSpec:
    kind = draw(st.sampled_from(sorted(KINDS)))
    words = near(',="~:. ', "limit=3", "seed=1", "labels=x", "a,b=c", '""').filter(
        lambda text: text.isprintable() and text.strip() == text != "" and not text.startswith("~")
    )
    location = draw(st.sampled_from(PROTOCOLS) if kind == "digits" else words)
    values: dict[str, st.SearchStrategy[Any]] = {
        "images": st.integers(1, 10**7), "limit": st.integers(1, 10**7), "seed": st.integers(0, 2**63 - 1),
        "crop_pct": st.floats(0.1, 1), "labels": words, "split": words, "config": words,
        "train": words.map(lambda place: str(DataSpec("folder", place))),
    }  # fmt: skip
    names = draw(st.lists(st.sampled_from(sorted(KINDS[kind])), unique=True, max_size=3))
    if kind == "flat":
        names = [*{*names, "labels"}]
    return DataSpec(kind, location, {name: draw(values[name]) for name in names})


@given(data_specs())
@settings(max_examples=250, deadline=None)
def test_data_reads_back_as_written(spec: DataSpec) -> None:
    text = str(spec)
    assume(len(text) <= 500)
    found = parse_data(text)
    assert (found.kind, found.location, str(found)) == (spec.kind, spec.location, text)
    assert all(found.option(name) == spec.option(name) for name in KINDS[spec.kind])


@given(near(',="~:/.{} ', "digits:", "field", "folder:", "flat:", "tar:", "hub:", "limit=3", "labels=", "train="))
@settings(max_examples=500, deadline=None)
@example("~nosuchuser/x")
@example("flat:~\udcff,labels=~")
@example('folder:"' * 1000)
@example("folder:" + ",limit=1" * 20_000)
@example("folder:x,train=" * 200 + "folder:y")
@example('folder:x,train="' * 200)
def test_any_text_names_data_or_is_a_mistake(text: str) -> None:
    spec = read_or_mistake(lambda: parse_data(text))
    if spec is None:
        return
    assert str(spec).isprintable()
    assert parse_data(str(spec)) == parse_data(str(parse_data(str(spec))))


# Options


@given(near("0123456789.,-+=[] ", "max", "nan", "inf", "sema_tiny", "..", "1e999", "٣"))
@settings(max_examples=300, deadline=None)
@example("9" * 5000)
@example("4..9,16")
@example("4.." + "9" * 5000)
def test_any_value_of_an_option_is_read_or_is_a_mistake(text: str) -> None:
    readers = (items, batches, lambda value: integers("--threads", value), _keys, _share_pair)
    for read in (*readers, lambda value: checkpoints([value]), lambda value: where_from(None, slurm=[value])):
        read_or_mistake(lambda read=read: read(text))  # type: ignore[misc]


_OPTIONS = (
    *("--models", "--res", "--device", "--batch", "--dtype", "--layout", "--mode", "--sdpa", "--allocator"),
    *("--probes", "--precision", "--time-limit", "--threads", "--seed", "--data", "--checkpoint", "--executor"),
    *("--devices", "--jobs", "--slurm", "--ray-address"),
)


@given(st.dictionaries(st.sampled_from(_OPTIONS), near("0123456789,=[].", "nan", "max", "cpu"), min_size=1, max_size=2))
@settings(max_examples=70, deadline=None)
def test_any_value_of_any_option_ends_in_a_plan_or_in_one_line(given_options: dict[str, str]) -> None:
    given_options = {"--models": "sema_micro", "--res": "64", **given_options}
    arguments = [text for pair in given_options.items() for text in pair]
    code, out, err = invoke("scale", "--dry-run", *arguments)
    assert code in (0, 2), (code, err)
    assert err.count("\n") == 1
    assert printable_lines(out + err) == out + err


# Suites and recipes


_KEYS = st.sampled_from([*Suite.model_fields, *Recipe.model_fields]) | ANY
_VALUES = st.recursive(
    SCALARS | st.sampled_from(["sema_micro", "64", "digits:field", "accuracy", 64, 0.5]) | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=6,
)
_RIGHT = {"name": "s", "models": ["sema_micro"], "res": "64"}


@given(st.dictionaries(_KEYS, _VALUES, max_size=4), st.booleans())
@settings(max_examples=400, deadline=None)
@example({"models": ["sema_micro"] * 3, "gate": {"deltas": {"@": 0.1, "x@1..2": 0.5}}}, True)
@example({"training_for": {"digits:field": {"seeds": [1]}}, "training": {}}, True)
@example({"data": ["digits:field"], "training": {"res": 64}, "training_for": {"digits:field": {"lr": []}}}, True)
def test_any_table_is_a_suite_that_can_be_planned_or_a_mistake(body: dict[str, Any], filled: bool) -> None:
    whole = {**_RIGHT, **body} if filled else body
    suite = read_or_mistake(lambda: parse_suite(whole, source="s.toml"), begins="s.toml: ")
    plan = suite and read_or_mistake(lambda: build_plan(suite, device="cpu", threads=1))
    if plan is not None:
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")


@given(st.binary(max_size=40) | near('[]{}="\n#.,', "models", "res", "'64'", "[gate]").map(_encoded))
@settings(max_examples=300, deadline=None)
def test_any_file_is_a_suite_or_a_mistake_that_names_it(content: bytes) -> None:
    path = Path("any.toml")
    path.write_bytes(content)
    with pytest.raises(SuiteError, match=r"any\.toml"):  # no such short file has models and sizes
        load_suite(str(path))


@given(st.dictionaries(st.sampled_from([*Recipe.model_fields]) | ANY, _VALUES, max_size=4))
@settings(max_examples=400, deadline=None)
@example({"warmup_epochs": 1e308, "epochs": 100_000})
@example({"lr": 10**400})
@example({"res": [64, 64, 64]})
def test_any_table_is_a_recipe_or_a_mistake(body: dict[str, Any]) -> None:
    recipe = read_or_mistake(lambda: parse_recipe(body, source="recipe"), begins="recipe: ")
    if recipe is None:
        return
    again = parse_recipe(json.loads(json.dumps(recipe.model_dump(mode="json"))), source="run.json")
    assert (again, again.digest) == (recipe, recipe.digest)


@given(st.lists(near("=[]{}\"'\n.,", "lr", "epochs", "1", "1e999", "nan", "betas", "2026-01-01"), max_size=3))
@settings(max_examples=400, deadline=None)
@example(["lr=" + "[" * 100_000])
@example(["seeds=" + "9" * 5000])
@example(["lr=1\nepochs=2"])
def test_any_assignment_changes_a_recipe_or_is_a_mistake(settings_given: list[str]) -> None:
    read_or_mistake(lambda: Recipe().changed(_assignments(settings_given), source="recipe"))


# Text on its way out


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
    _, found = csv.reader(io.StringIO(text, newline=""))
    assert found == [for_csv(cell) for cell in row]
    assert not [cell for cell in found if FORMULA.match(cell)]
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
    assert shown.isprintable() or "\u200b" in shown  # the one that keeps a mention from being one
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


# Names of runs


@given(near("./\\-_+~ ", "..", "baselines", "history", "\n", "con") | st.sampled_from(["a" * 128, "a" * 129]))
@settings(max_examples=400, deadline=None)
@example("a\n")
@example("Baselines")
@example("é")
def test_a_run_name_is_one_plain_part_of_a_path_or_a_mistake(name: str) -> None:
    if read_or_mistake(lambda: check_run_name(name)) is None:
        return
    assert Path("results", name).parts == ("results", name)
    assert name.isascii()
    assert name not in (".", "..")
    assert not name.startswith(("-", "."))
    assert len(name.encode()) <= 128
