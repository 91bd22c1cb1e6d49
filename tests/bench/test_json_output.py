"""Test ``--json``: it prints the rows of the CSV as a JSON list, with null for missing values."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_support import invoke
from comparison_support import failed, record, write_run

from sema.models import MODELS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, factor in (("one", 1.0), ("two", 1.1)):
        measured = [record("sema_tiny", side, factor * side**2 / 1e6) for side in (224, 448)]
        write_run(tmp_path, name, [*measured, failed("c", 224)])
    return tmp_path


def rows_of(*arguments: str) -> list[dict[str, Any]]:
    code, shown, err = invoke(*arguments, "--json")
    assert code == 0, err
    rows: list[dict[str, Any]] = json.loads(shown)
    return rows


def same(value: object, text: str) -> bool:
    """Tell whether a JSON value equals ``text`` from a CSV."""
    if value is None:
        return text in ("", "n/a", "n/a here")
    if isinstance(value, float):
        return float(text) == pytest.approx(value, rel=1e-12)
    return str(value).lower() == text.lower()


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "one", "two"),
        ("history",),
        ("history", "--model", "sema_tiny"),
        ("plan", "--device", "meta"),
        ("verify", "--models", "deit_tiny,vim_tiny"),
    ],
    ids=" ".join,
)
def test_json_has_the_rows_of_the_csv(root: Path, arguments: tuple[str, ...]) -> None:
    if arguments[0] == "plan":
        suite = root / "s.toml"
        suite.write_text('models = ["sema_micro"]\nres = "64,96"\nprobes = ["params"]\n')
        arguments = ("plan", str(suite), *arguments[1:])
    elif arguments[0] != "verify":
        arguments = (*arguments, "--out", str(root))
    rows = rows_of(*arguments)
    table = pd.read_csv(io.StringIO(invoke(*arguments, "--csv", "-")[1]), keep_default_na=False, dtype=str)
    assert rows
    assert len(rows) == len(table)
    assert list(rows[0]) == list(table)
    for name in table:
        for value, text in zip((row[name] for row in rows), table[name], strict=True):
            assert same(value, text), (name, value, text)


def test_show_prints_every_value_of_every_cell(root: Path) -> None:
    rows = rows_of("show", "one", "--out", str(root))
    assert [(row["model"], row["height"], row["status"]) for row in rows] == [
        ("sema_tiny", 224, "ok"), ("sema_tiny", 448, "ok"), ("c", 224, "crashed"),
    ]  # fmt: skip
    assert rows[0]["latency_s"] == pytest.approx(224**2 / 1e6)
    assert rows[2]["latency_s"] is None
    code, _, err = invoke("show", "one", "--json", "--details", "--out", str(root))
    assert (code, err.count("\n")) == (2, 1)


def test_counts_and_sizes_of_a_verification_are_numbers() -> None:
    rows = rows_of("verify", "--models", "deit_tiny,sema_micro")
    assert {row["model"] for row in rows if row["quantity"] == "params"} == {"deit_tiny", "sema_micro"}
    for row in rows:
        assert isinstance(row["resolution"], int)
        if row["ours"] is not None:
            assert isinstance(row["ours"], int if row["quantity"] == "params" else str), row


def test_list_marks_the_models_that_take_attentions() -> None:
    rows = {row["name"]: row for row in rows_of("list", "models")}
    assert set(MODELS) <= set(rows)
    assert rows["sema_tiny"]["takes_attentions"] is True
    assert rows["deit_tiny"]["takes_attentions"] is False
    assert {"name", "summary"} == set(rows_of("list", "probes")[0])


def test_two_outputs_do_not_share_stdout(root: Path) -> None:
    code, shown, err = invoke("history", "--json", "--csv", "-", "--out", str(root))
    assert (code, shown, err.count("\n")) == (2, "", 1)


def test_json_of_a_plan_needs_its_memory() -> None:
    code, shown, err = invoke("plan", "--no-memory", "--json")
    assert (code, shown) == (2, "")
    assert "--json" in err
