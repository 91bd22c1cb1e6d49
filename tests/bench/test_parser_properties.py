"""Test properties of every parser with hypothesis; test_writer_properties.py tests the writers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_support import invoke
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from property_support import ANY, SCALARS, near, read_or_mistake

from sema.attention import ATTENTIONS
from sema.model_name import declared_options, parse_model_name
from sema.models import ATTENTION_SWAPPABLE, MODELS
from sema_bench.cli.dispersion import _keys
from sema_bench.cli.maps import _share_pair
from sema_bench.cli.option_values import batches, checkpoints, integers, items, run_target
from sema_bench.cli.train import _assignments
from sema_bench.errors import SuiteError
from sema_bench.spec.data_source import KINDS, PROTOCOLS, DataSpec, parse_data
from sema_bench.spec.model_source import parse_source, split_models
from sema_bench.spec.plan import Plan, build_plan
from sema_bench.spec.recipe import Recipe, parse_recipe
from sema_bench.spec.resolution import MAX_SIDE, MAX_SIZES, MIN_SIDE, Resolution, parse_resolutions
from sema_bench.spec.suite import Suite, load_suite, parse_suite
from sema_bench.store.run_folder import check_run_name
from sema_bench.text.escape import printable_lines

SIDES = st.integers(MIN_SIDE, MAX_SIDE)


@pytest.fixture(scope="module", autouse=True)
def in_an_empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Parsers look for file names in the working folder."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("empty"))
    yield
    os.chdir(before)


# Resolutions


@given(st.lists(st.builds(Resolution, SIDES, SIDES), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_resolutions_read_back_as_written_once_each_and_smallest_first(sizes: list[Resolution]) -> None:
    parsed = parse_resolutions(",".join(map(str, sizes)))
    assert set(parsed) == set(sizes)
    assert list(parsed) == sorted(set(sizes), key=lambda size: (size.pixels, size.height))
    assert parse_resolutions(",".join(size.label for size in sizes)) == parsed


@given(SIDES, SIDES, st.none() | st.integers(1, MAX_SIDE))
@settings(max_examples=200, deadline=None)
def test_a_range_of_resolutions_holds_both_ends_and_nothing_beyond(low: int, high: int, step: int | None) -> None:
    assume(low <= high and (step is None or (high - low) // step < MAX_SIZES))
    parsed = parse_resolutions(f"{low}..{high}" + (f":{step}" if step else ""))
    sides = [size.height for size in parsed]
    assert (sides[0], sides[-1]) == (low, high)
    assert sides == sorted(set(sides))


@given(near("0123456789.,:xX×- ", "..", "32", "224", "65536", "99999999999999999999"))
@settings(max_examples=500, deadline=None)
@example("32..65536:1," * 50)
@example("9" * 100_000)
@example(",".join(["32..10031:1"] * 1000))
def test_any_text_is_resolutions_or_a_mistake_reported_in_one_line(text: str) -> None:
    parsed = read_or_mistake(lambda: parse_resolutions(text))
    if parsed is not None:
        assert 0 < len(parsed) <= MAX_SIZES
        assert all(MIN_SIDE <= side <= MAX_SIDE for size in parsed for side in size)
        assert parse_resolutions(",".join(map(str, parsed))) == parsed


# Names of models


@st.composite
def registry_names(draw: st.DrawFn) -> str:
    """Return the name of a registered model, with an attention and options that it declares."""
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
        "crop_pct": st.floats(0.1, 1), "labels": words, "config": words,
        "split": st.sampled_from(["train", "val", "test"]) if kind == "npz" else words,
        "glyphs": words.map(lambda place: str(DataSpec("npz", place))),
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
    parsed = parse_data(text)
    assert (parsed.kind, parsed.location, str(parsed)) == (spec.kind, spec.location, text)
    assert all(parsed.option(name) == spec.option(name) for name in KINDS[spec.kind])


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
    for read in (*readers, lambda value: checkpoints([value]), lambda value: run_target(None, slurm=[value])):
        read_or_mistake(lambda read=read: read(text))


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
