"""Test ``sema-bench verify``: what agrees, what is explained, what fails, and what goes into a CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from decimal import Decimal
from pathlib import Path

import pytest
from command_support import invoke
from comparison_support import failed, record, write_run
from rich.console import Console
from typer.testing import CliRunner

from sema.models import MODELS
from sema_bench.cli import app
from sema_bench.spec.cell import Cell
from sema_bench.spec.protocol import PROTOCOLS
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.resolution import Resolution
from sema_bench.studies.verification.report import COLUMNS, print_verdicts, verdicts_csv
from sema_bench.studies.verification.verification import (
    ADJUSTMENTS,
    CONDITIONS,
    MEASURED,
    TASKS,
    UNITS,
    UNPRINTED,
    WINDOWS,
    WITHIN,
    Figure,
    Verdict,
    agreement,
    published_figures,
    verify,
)

FIGURES = published_figures()
SIZE = Resolution(224, 224)
MILA = Figure("mila_tiny", "gmacs", "4.2", SIZE, "published", "", "", "a source", "")


def rendered(verdicts: list[Verdict], width: int = 140) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    print_verdicts(verdicts, console)
    return console.file.getvalue()


def test_every_figure_has_a_source_a_known_model_and_a_known_adjustment() -> None:
    assert FIGURES
    for figure in FIGURES:
        assert figure.model in MODELS
        assert re.search(r"arXiv \d{4}\.\d{5} \(|github\.com/[\w-]+/", figure.source)
        assert figure.quantity in {**UNITS, **MEASURED}
        assert set(figure.stated) <= set(CONDITIONS)
        assert figure.stated.get("protocol", "crop") in PROTOCOLS
        assert figure.kind in ("counted", "published")
        assert figure.adjustment in {"", "not reproduced", *ADJUSTMENTS, *WINDOWS}
        assert figure.value == UNPRINTED or Decimal(figure.value) > 0
        assert figure.stated.get("task", "upernet") in TASKS


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
    assert verdict.agreement(SIZE) == "MISMATCH"
    assert "mila_tiny at 224: printed 4.5 G, ours 4.131 G: MISMATCH (a source)" in rendered([verdict])


def test_an_explanation_that_does_not_give_the_figure_is_a_mismatch() -> None:
    figure = Figure("vmamba_tiny_s1l8", "gmacs", "4.9", SIZE, "published", "scan FLOPs", "", "a source", "")
    assert verify("vmamba_tiny_s1l8", [figure]).agreement(SIZE) == "rounds"
    assert verify("vmamba_tiny_s1l8", [dataclasses.replace(figure, value="5.1")]).agreement(SIZE) == "MISMATCH"


@pytest.mark.parametrize(
    ("model", "adjustment"),
    [
        ("vmamba_tiny_s1l8", "scan FLOPs"),
        ("vmamba_tiny_s1l8", "scan and norm FLOPs"),
        ("vim_tiny", "convolution tails"),
        ("vim_tiny", "Vim's own counter"),
        ("xcit_small_12_p16", "queries of all tokens"),
        ("swin_tiny", "padded windows"),
        ("swin_tiny", "scaled windows"),
    ],
)
def test_every_adjustment_changes_the_count(model: str, adjustment: str) -> None:
    plain, adjusted = (
        verify(model, [Figure(model, "gmacs", "1", Resolution(384, 384), "published", name, "", "a source", "")])
        .comparisons[0]
        .ours
        for name in ("", adjustment)
    )
    assert plain != adjusted


def test_a_model_that_cannot_be_counted_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import sema

    def broken(name: str) -> None:
        raise RuntimeError("no such layer")

    monkeypatch.setattr(sema, "create_model", broken)
    verdict = verify("mila_tiny", FIGURES)
    assert verdict.agreement(SIZE) == "MISMATCH"
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


def test_the_command_prints_all_models_and_exits_with_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [figure for figure in FIGURES if "task" not in figure.stated]  # the others are slow, and tested above
    monkeypatch.setattr("sema_bench.studies.verification.verification.published_figures", lambda: alone)
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
    for name in (*ADJUSTMENTS, *WINDOWS):
        assert name.split(" and ")[0] in text


def test_a_count_at_another_size_has_a_row_of_its_own() -> None:
    shown = rendered([verify("swin_base", FIGURES)])
    assert re.search(r"^swin_base +384 +45\.257 +47\.1 +rounds", shown, re.MULTILINE)
    assert "swin_base at 384: printed 47.1 G, ours 47.083 G with scaled windows: rounds to it" in shown


def test_the_totals_of_a_detector_are_computed_beside_the_printed_ones_and_its_accuracy_is_not() -> None:
    figures = [figure for figure in FIGURES if figure.stated.get("task") == "mask-rcnn-1x"]
    verdict = verify("swin_tiny", figures)
    row = next(line for line in rendered([verdict]).splitlines() if "task=mask-rcnn-1x" in line)
    assert "800x1280" in row
    assert "params 48 M, 267 G, box AP 42.7, mask AP 39.3" in row
    assert "params 47.8 M (rounds), 266.6 G (rounds)" in row
    rows = {row["quantity"]: row for row in csv.DictReader(verdicts_csv([verdict]).splitlines()) if row["conditions"]}
    assert {name: row["agreement"] for name, row in rows.items()} == {
        "mparams": "rounds",
        "gmacs": "rounds",
        "box_ap": "not compared",
        "mask_ap": "not compared",
    }
    assert rows["mask_ap"]["ours"] == "n/a here"


def test_a_total_of_a_segmenter_may_be_off_by_1_5_percent_and_no_more() -> None:
    figure = Figure(
        "sema_micro", "gmacs", "850", Resolution(512, 2048), "published", "", "task=upernet", "a source", ""
    )  # ours is 842.9
    verdicts = [verify("sema_micro", [dataclasses.replace(figure, value=value)]) for value in ("850", "860", UNPRINTED)]
    assert [verdict.comparisons[0].agreement for verdict in verdicts] == [WITHIN, "MISMATCH", UNPRINTED]
    assert [len(verdict.mismatches) for verdict in verdicts] == [0, 1, 0]
    assert "842.9 G (MISMATCH)" in rendered([verdicts[1]])


def test_forty_totals_of_detectors_and_segmenters_were_published() -> None:
    totals = [f for f in FIGURES if f.quantity in UNITS and "task" in f.stated and f.value != UNPRINTED]
    assert len(totals) >= 40
    assert all(f.note for f in totals if f.adjustment == "not reproduced")


def test_80_columns_show_the_published_figures() -> None:
    shown = rendered([verify("swin_tiny", FIGURES)], width=80)
    assert "params 48 M, 267 G, box AP 42.7, mask AP 39.3" in shown
    assert "mIoU 45.81 % at several scales" in shown


# Measurements of a run beside published ones


def evaluated(
    model: str, side: int, *, classes: int = 1000, images: int = 50_000, crop_pct: float = 0.875, **changes: str
):
    cell = Cell(model=model, height=side, width=side, data="folder:imagenet", **changes)
    values = {"top1": 0.81, "top5": 0.95, "evaluated_images": images}
    preparation = {"crop_pct": crop_pct}
    return Record(
        cell=cell,
        status="ok",
        measurements={name: Measurement(metric=name, value=value) for name, value in values.items()},
        details={"accuracy": {"classes": classes, "preparation": preparation}},
    )


def beside(tmp_path: Path, *records: Record, **machine: object) -> list[dict[str, str]]:
    write_run(tmp_path, "r", records, **machine)
    code, shown, err = invoke("verify", "--run", "r", "--out", str(tmp_path), "--csv", "-")
    assert code == 0, err
    return list(csv.DictReader(shown.splitlines()))


def test_measured_accuracy_stands_beside_every_published_one_of_the_size(tmp_path: Path) -> None:
    probed = evaluated("swin_tiny", 224, readout="knn")  # nobody published it
    rows = beside(tmp_path, evaluated("swin_tiny", 224), evaluated("sema_tiny", 640), probed)
    found = {(row["quantity"], row["printed"]): row for row in rows}
    assert set(found) == {("top1", "81.2"), ("top5", "95.5"), ("top1", "81.19")}
    assert len(rows) == len(found)
    assert {row["model"] for row in rows} == {"swin_tiny"}
    assert float(found["top1", "81.2"]["measured"]) == pytest.approx(81.0)
    assert found["top1", "81.2"]["differences"] == "precision float32 | not stated"
    assert found["top1", "81.19"]["differences"] == "precision float32 | AMP"


@pytest.mark.parametrize(
    ("record", "difference"),
    [
        (evaluated("xcit_small_12_p16", 224), "protocol crop | full-crop"),
        (evaluated("swin_tiny", 384), "protocol crop | scaled-windows"),
        (evaluated("deit_base", 224, crop_pct=0.9), "protocol crop 0.9 | crop"),
        (evaluated("deit_base", 224, images=1000), "images 1,000 | 50,000"),
        (evaluated("swin_tiny", 384, dtype="bfloat16"), "precision bfloat16 | AMP"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_difference_of_protocol_is_named(tmp_path: Path, record: Record, difference: str) -> None:
    assert difference in beside(tmp_path, record)[0]["differences"].split("; ")


@pytest.mark.parametrize("how", [{"protocol": "full-crop"}, {"crop_pct": 1.0}])
def test_the_protocol_of_the_authors_is_no_difference(tmp_path: Path, how: dict[str, object]) -> None:
    (row, *_) = beside(tmp_path, evaluated("xcit_small_12_p16", 224, **how))
    assert (row["printed"], row["differences"]) == ("82.0", "precision float32 | not stated")


def test_throughput_stands_beside_that_of_the_same_step_with_card_and_batch(tmp_path: Path) -> None:
    card = {"hardware": {"gpus": [{"name": "NVIDIA A100-SXM4-80GB"}]}}
    inference = record("vmamba_tiny_s1l8", 224, 0.1, batch=128, device="cuda:0", dtype="float16")
    training = record("vmamba_tiny_s1l8", 224, 0.1, batch=64, device="cuda:0", step="train", mode="compile")
    rows = {row["printed"]: row["differences"] for row in beside(tmp_path, inference, training, **card)}
    assert rows == {
        "1686": "precision float16 | not stated",
        "1490": "precision float16 | not stated; batch 128 | 32",
        "571": "mode compile | eager; precision float32 | not stated; batch 64 | 128",
    }
    write_run(tmp_path, "cpu", [record("swin_base", 224, 1.0)])
    shown = invoke("verify", "--run", "cpu", "--out", str(tmp_path))[1]
    assert "precision float32 | not stated; card x | V100" in shown


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([failed("swin_tiny", 224)], "has neither an accuracy on the 1,000 classes of ImageNet nor a throughput"),
        ([evaluated("swin_tiny", 224, classes=10)], "has neither an accuracy on the 1,000 classes of ImageNet"),
        ([evaluated("sema_tiny", 640)], "no published figure is of a model and a size of run 'r'; it has sema_tiny"),
    ],
)
def test_a_run_with_nothing_to_compare_is_refused_in_one_line(
    tmp_path: Path, records: list[Record], message: str
) -> None:
    write_run(tmp_path, "r", records)
    code, shown, err = invoke("verify", "--run", "r", "--out", str(tmp_path))
    assert (code, shown, err.count("\n")) == (2, "", 1)
    assert message in err
