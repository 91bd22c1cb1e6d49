"""Test mean corruption errors: ImageNet-C's definition, intervals over seeds, and how a run shows them."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from command_support import invoke

from sema_bench.analysis.corruption import corruption_errors, uncorrupted
from sema_bench.analysis.scaling import SCALING_METRICS
from sema_bench.errors import UsageError
from sema_bench.report.folder import write_outputs
from sema_bench.report.html import page_data
from sema_bench.report.notebook import read_run
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.store.stored_run import StoredRun

MODELS = ("sema_micro[softmax]", "sema_micro[sema]")
#: Errors in percent: of the first model, and of the second model for each seed.
FIRST = {"none": 10, "fog:1": 20, "fog:2": 40, "contrast:1": 30, "contrast:2": 50, "pixelate:1": 10, "pixelate:2": 10}
SECOND = [
    {"none": 20, "fog:1": 10, "fog:2": 20, "contrast:1": 30, "contrast:2": 90, "pixelate:1": 30, "pixelate:2": 30},
    {"none": 10, "fog:1": 20, "fog:2": 40, "contrast:1": 30, "contrast:2": 50, "pixelate:1": 10, "pixelate:2": 10},
]


def record(
    model: str, corrupt: str, error: float, *, seed: int = 0, spread: float = 0.02, status: str = "ok"
) -> Record:
    cell = Cell(model=model, height=64, width=64, data="digits:field", corrupt=corrupt, weights=f"seed {seed}@00000000")
    top1 = 1 - error / 100
    measured = Measurement(metric="top1", value=top1, ci_low=top1 - spread, ci_high=top1 + spread)
    return Record(cell=cell, status=status, measurements={"top1": measured} if status == "ok" else {})


def records(*, seeds: int = 2) -> list[Record]:
    return [
        record(model, corrupt, errors[corrupt], seed=seed)
        for seed in range(seeds)
        for model, errors in zip(MODELS, (FIRST, SECOND[seed]), strict=True)
        for corrupt in errors
    ]


def test_errors_are_those_of_the_definition():
    reference, model = corruption_errors(records(seeds=1))
    assert (reference.model, reference.mce.value, reference.relative_mce.value) == (MODELS[0], 1, 1)
    assert {name: each.value for name, each in model.ce.items()} == pytest.approx(
        {"fog": 30 / 60, "contrast": 120 / 80, "pixelate": 3.0}
    )
    assert model.mce.value == pytest.approx((0.5 + 1.5 + 3) / 3)
    # fog (30 − 40) / (60 − 20), contrast (120 − 40) / (80 − 20); pixelate costs the reference nothing
    assert {name: each.value for name, each in model.relative_ce.items()} == pytest.approx(
        {"fog": -10 / 40, "contrast": 80 / 60}
    )
    assert model.relative_mce.value == pytest.approx((-0.25 + 80 / 60) / 2)
    assert model.clean.value == pytest.approx(0.2)
    assert model.errors["contrast"].value == pytest.approx(0.6)
    assert model.severities == {"fog": (1, 2), "contrast": (1, 2), "pixelate": (1, 2)}


def test_seeds_are_paired_and_their_spread_is_the_interval():
    reference, model = corruption_errors(records())
    assert (reference.mce.low, reference.mce.value, reference.mce.high) == (1, 1, 1)
    both = [(0.5 + 1.5 + 3) / 3, 1.0]
    half = 12.7062 * abs(both[0] - both[1]) / 2  # Student's t with one degree of freedom, deviation / √2
    assert (model.mce.value, model.mce.half_width) == pytest.approx((sum(both) / 2, half), rel=1e-4)
    assert model.weights == 2


def test_one_set_of_weights_has_the_interval_of_its_images():
    model = corruption_errors(records(seeds=1))[1]
    low, high = model.ce["fog"].low, model.ce["fog"].high
    # (0.15 ± 0.02) / (0.3 ± 0.02): errors of both severities move together
    assert 0.13 / 0.32 < low < 0.5 < high < 0.17 / 0.28
    assert high - low > 0.02 / 0.3
    assert model.mce.low == pytest.approx(sum(each.low for each in model.ce.values()) / 3)


def test_another_reference_turns_the_ratios_over():
    ours, other = corruption_errors(records(seeds=1), MODELS[1])
    assert ours.ce["fog"].value == pytest.approx(2)
    assert other.mce.value == 1
    with pytest.raises(UsageError, match=r"unknown reference 'sema_micro\[sem\]'; did you mean 'sema_micro\[sema\]'"):
        corruption_errors(records(), "sema_micro[sem]")
    with pytest.raises(UsageError, match="no cell was tested on corrupted images; test some with --corrupt"):
        corruption_errors([each for each in records() if each.cell.corrupt == "none"])


def test_a_corruption_counts_if_all_models_have_it():
    some = [each for each in records() if (each.cell.model, each.cell.corrupt) != (MODELS[1], "fog:2")]
    failed = [*some, record(MODELS[1], "fog:2", 0, status="oom"), record(MODELS[1], "fog:2", 0, seed=1, status="oom")]
    for given in (some, failed):
        assert {tuple(each.ce) for each in corruption_errors(given)} == {("contrast", "pixelate")}
    bare = corruption_errors([each for each in records() if each.cell.corrupt != "none"])
    assert all(each.mce and not each.clean and not each.relative_mce for each in bare)


def test_a_run_shows_clean_images_as_ever_and_one_table_of_the_others(tmp_path):
    given = records()
    assert {each.cell.corrupt for each in uncorrupted(given)} == {"none"}
    write_outputs(tmp_path, given)
    text = (tmp_path / "report.txt").read_text()
    assert text.count("top-1 accuracy") + text.count("top-1, %") == 1
    assert text.count("corrupted images at 64 ·") == 1
    assert re.search(r"error, % +clean +fog +contrast +pixelate\b", text)
    assert re.search(r"CE, % +mCE +mCE +fog", text)
    assert "not in relative mCE, as they cost sema_micro[softmax] nothing: pixelate" in text
    assert len(list((tmp_path / "plots").glob("accuracy*.svg"))) == 1
    table = pd.read_csv(tmp_path / "corruption.csv", keep_default_na=False)
    mce = table[(table.metric == "mce") & (table.model == MODELS[1])]
    assert float(mce.value.iloc[0]) == pytest.approx(4 / 3)
    assert set(table.corruption) == {"none", "", "fog", "contrast", "pixelate"}
    assert len(pd.read_csv(tmp_path / "table.csv")) == len(given)
    alone = [each for each in given if each.cell.model == MODELS[0]]
    write_outputs(tmp_path, alone)  # as ``evaluate`` does: errors, and nothing to compare them with
    assert "CE" not in (tmp_path / "report.txt").read_text()
    write_outputs(tmp_path, given[:3])  # a run that has just begun
    assert len(pd.read_csv(tmp_path / "corruption.csv")) > 0


def test_the_page_has_the_figures_of_corrupted_images_in_its_summary():
    given = records()
    run = StoredRun("r", tuple(given), {}, {}, {})
    (_, clean), (heading, lines) = page_data([run])["runs"][0]["summary"]
    assert not any("exponent" in sentence for sentence in clean), "one size has no growth"
    assert heading.startswith("corrupted images at 64 ·")
    assert lines[0].startswith("sema_micro[softmax]: mCE 100.0 ±0.0 %; relative mCE 100.0 ±0.0 %; error in %: clean ")
    assert all(f"{name} " in lines[1] for name in ("mCE", "fog", "contrast", "pixelate"))
    alone = StoredRun("r", tuple(each for each in given if each.cell.model == MODELS[0]), {}, {}, {})
    assert "CE" not in str(page_data([alone])["runs"][0]["summary"])


def test_the_command_prints_what_the_run_wrote(tmp_path):
    code, _, err = invoke("corruption", "gone", "--out", str(tmp_path))
    assert (code, err.count("\n")) == (2, 1)
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "records.jsonl").write_text("".join(f"{each.to_json()}\n" for each in records()))
    assert len(read_run(folder).corruption()) == len(read_run(folder).corruption(MODELS[1])) + 2
    assert len(read_run(folder).scaling()) == len(MODELS) * len(SCALING_METRICS)  # clean images only
    code, shown, _ = invoke("corruption", "r", "--out", str(tmp_path), "--csv", "-", "--reference", MODELS[1])
    assert code == 0
    assert f"{MODELS[1]},{MODELS[1]},64,64" in shown
