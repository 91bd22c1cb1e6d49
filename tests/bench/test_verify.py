"""``sema-bench verify``: what agrees, what is explained, what fails, and what leaves in a CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sema.models import MODELS
from sema_bench.cli import app
from sema_bench.studies.verification.report import COLUMNS, print_verdicts, verdicts_csv
from sema_bench.studies.verification.verification import (
    ADJUSTMENTS,
    Figure,
    Verdict,
    agreement,
    published_figures,
    verify,
)

FIGURES = published_figures()
MILA = Figure("mila_tiny", "gmacs", "4.2", 224, "published", "", "a source", "")


def rendered(verdicts: list[Verdict]) -> str:
    console = Console(width=140, file=io.StringIO(), highlight=False)
    print_verdicts(verdicts, console)
    return console.file.getvalue()


def test_every_figure_has_a_source_a_known_model_and_a_known_adjustment() -> None:
    assert FIGURES
    for figure in FIGURES:
        assert figure.model in MODELS
        assert re.search(r"arXiv \d{4}\.\d{5}|github\.com/[\w-]+/", figure.source)
        assert figure.kind in ("counted", "published")
        assert figure.adjustment in {"", "not reproduced", *ADJUSTMENTS}
        assert Decimal(figure.value) > 0


@pytest.mark.parametrize("name", list(MODELS))
def test_every_figure_of_every_model_agrees(name: str) -> None:
    verdict = verify(name, FIGURES)
    assert verdict.problem == ""
    assert verdict.mismatches == ()
    counted = [c.agreement for c in verdict.comparisons if c.figure.kind == "counted" and c.figure.quantity == "params"]
    assert set(counted) <= {"exact"}


@pytest.mark.parametrize(
    ("ours", "printed", "lenient", "expected"),
    [
        ("4.131", "4.131", False, "exact"),
        ("4.1314", "4.131", False, "rounds"),
        ("4.1305", "4.131", False, "rounds"),
        ("4.1304", "4.131", False, "MISMATCH"),
        ("4.131", "4.2", True, "last digit"),
        ("4.131", "4.2", False, "MISMATCH"),
        ("4.09", "4.2", True, "MISMATCH"),
        ("5.717", "5", True, "last digit"),
        ("6.01", "5", True, "MISMATCH"),
    ],
)
def test_agreement_is_judged_in_the_printed_digits(ours: str, printed: str, lenient: bool, expected: str) -> None:
    assert agreement(Decimal(ours), printed, lenient=lenient) == expected


def test_a_wrong_figure_is_a_mismatch_with_both_numbers() -> None:
    verdict = verify("mila_tiny", [dataclasses.replace(MILA, value="4.5")])
    assert verdict.agreement == "MISMATCH"
    assert "mila_tiny at 224: printed 4.5 G, ours 4.131 G: MISMATCH (a source)" in rendered([verdict])


def test_an_explanation_that_does_not_give_the_figure_is_a_mismatch() -> None:
    figure = Figure("vmamba_tiny_s1l8", "gmacs", "4.9", 224, "published", "scan FLOPs", "a source", "")
    assert verify("vmamba_tiny_s1l8", [figure]).agreement == "rounds"
    assert verify("vmamba_tiny_s1l8", [dataclasses.replace(figure, value="5.1")]).agreement == "MISMATCH"


@pytest.mark.parametrize(
    ("model", "adjustment"),
    [
        ("vmamba_tiny_s1l8", "scan FLOPs"),
        ("vmamba_tiny_s1l8", "scan and norm FLOPs"),
        ("vim_tiny", "convolution tails"),
        ("vim_tiny", "Vim's own counter"),
        ("xcit_small_12_p16", "queries of all tokens"),
        ("swin_tiny", "padded windows"),
    ],
)
def test_every_adjustment_changes_the_count(model: str, adjustment: str) -> None:
    plain, adjusted = (
        verify(model, [Figure(model, "gmacs", "1", 384, "published", name, "a source", "")]).comparisons[0].ours
        for name in ("", adjustment)
    )
    assert plain != adjusted


def test_a_model_that_cannot_be_counted_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import sema

    def broken(name: str) -> None:
        raise RuntimeError("no such layer")

    monkeypatch.setattr(sema, "create_model", broken)
    verdict = verify("mila_tiny", FIGURES)
    assert verdict.agreement == "MISMATCH"
    assert "mila_tiny: MISMATCH: it could not be counted: RuntimeError: no such layer" in rendered([verdict])
    assert "no such layer" in verdicts_csv([verdict])


def test_the_csv_has_a_row_per_figure_and_says_where_none_is_known() -> None:
    verdicts = [verify(name, FIGURES) for name in ("sema_tiny", "vim_small")]
    rows = list(csv.DictReader(verdicts_csv(verdicts).splitlines()))
    assert tuple(rows[0]) == COLUMNS
    assert {row["model"] for row in rows} == {"sema_tiny", "vim_small"}
    params = next(row for row in rows if (row["model"], row["quantity"]) == ("sema_tiny", "params"))
    assert (params["ours"], params["printed"], params["agreement"]) == ("26043528", "n/a", "n/a")
    assert len([row for row in rows if row["model"] == "vim_small"]) == sum(f.model == "vim_small" for f in FIGURES)


def test_the_command_prints_all_models_and_exits_with_0(tmp_path: Path) -> None:
    target = tmp_path / "verify.csv"
    done = CliRunner().invoke(app, ["verify", "--csv", str(target)], standalone_mode=True)
    assert done.exit_code == 0
    for name in MODELS:
        assert re.search(rf"^{name} ", done.stdout, re.MULTILINE)
    assert "docs/method/macs.md" in done.stdout
    assert target.read_text().startswith(",".join(COLUMNS))


def test_the_command_exits_with_1_on_a_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    from sema_bench.studies.verification import verification

    monkeypatch.setattr(verification, "published_figures", lambda: [dataclasses.replace(MILA, value="9.9")])
    done = CliRunner().invoke(app, ["verify", "--models", "mila_tiny"])
    assert done.exit_code == 1
    assert "MISMATCH" in done.stdout


def test_a_typo_in_a_model_is_named() -> None:
    done = CliRunner().invoke(app, ["verify", "--models", "mila_tny"])
    assert done.exit_code == 2
    assert "did you mean 'mila_tiny'" in done.output


def test_the_explanations_are_where_the_table_says() -> None:
    text = (Path(__file__).parents[2] / "docs" / "results" / "published.md").read_text(encoding="utf-8")
    for name in ADJUSTMENTS:
        assert name.split(" and ")[0] in text
