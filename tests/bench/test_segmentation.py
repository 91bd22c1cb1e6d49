"""Test scenes whose pixels have classes: masks, intersection over union, training and evaluation."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from command_support import invoke
from PIL import Image
from torch import nn

from sema_bench.data.datasets import TestImages
from sema_bench.data.loader import normalised
from sema_bench.data.scenes import BASE, GLYPH, DigitScenes, glyphs
from sema_bench.errors import ProbeError
from sema_bench.report.progress import TrainingDisplay
from sema_bench.report.training_plot import write_training_plot
from sema_bench.spec.cell import Cell
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.model_source import parse_source
from sema_bench.spec.sampling import EvaluationSettings
from sema_bench.worker.build_model import build_with_weights, read_weights
from sema_bench.worker.cell_evaluation import evaluation_of
from sema_bench.worker.evaluation import Evaluation, InputFormat, accuracy_measurements, match_classes, shares
from sema_bench.worker.overlap import areas_of, ious
from sema_bench.worker.protocol import Tally, from_json
from sema_bench.worker.workload import Workload

MODEL = "sema_micro[linear,head=fpn]"


def run(*arguments: str, exit_code: int = 0) -> str:
    """Run a command that must exit with ``exit_code``; return its output without line breaks."""
    code, out, err = invoke(*arguments)
    assert code == exit_code, err
    return " ".join((out + err).split())


def test_a_mask_has_the_ink_of_each_digit_and_nothing_else():
    known = glyphs("test")
    pixels, mask = DigitScenes("segment", "test", images=1).scene(0, (96, 128))
    shapes = {(int(label), (image >= 128).tobytes()) for image, label in zip(known.images, known.labels, strict=True)}
    left, digits = mask.copy(), 0
    while left.any():  # the first row with ink belongs to a digit whose square begins at or above it
        row, column = np.argwhere(left)[0]
        squares = ((t, c) for t in range(row, row - GLYPH, -1) for c in range(column, column - GLYPH, -1))
        for top, start in squares:
            window = mask[max(0, top) : top + GLYPH, max(0, start) : start + GLYPH]
            if window.shape == (GLYPH, GLYPH) and (mask[row, column] - 1, (window > 0).tobytes()) in shapes:
                assert (window[window > 0] == mask[row, column]).all()
                left[top : top + GLYPH, start : start + GLYPH] = 0
                digits += 1
                break
        else:
            pytest.fail(f"no digit explains the ink at {row}, {column}")
    assert digits == round(2 * 96 * 128 / BASE**2)
    assert (pixels[mask > 0] >= 128).all()


def test_the_zoomed_scene_and_its_mask_are_resampled_alike():
    scenes = DigitScenes("segment-zoom", "test", images=1)
    (small, small_mask), (large, large_mask) = (scenes.scene(0, (side, side)) for side in (64, 192))
    assert np.array_equal(np.asarray(Image.fromarray(small).resize((192, 192), Image.Resampling.BICUBIC)), large)
    assert set(np.unique(large_mask)) == set(np.unique(small_mask))
    assert np.mean(small_mask.repeat(3, 0).repeat(3, 1) == large_mask) > 0.98
    for label in np.unique(small_mask)[1:]:
        assert (large_mask == label).sum() == pytest.approx(9 * (small_mask == label).sum(), rel=0.15)


def test_a_training_scene_that_zooms_shows_a_whole_digit():
    known = glyphs("train")
    for index in range(5):
        _, mask = DigitScenes("segment-zoom", "train", images=9).training_scene(index, (64, 64))
        least = min((image >= 128).sum() for image in known.images)
        assert (mask > 0).sum() >= 0.9 * least


def naive_ious(predicted, masks, classes):
    """Count pixel by pixel."""
    values = []
    for k in range(classes):
        both = either = 0
        for given, mask in zip(predicted, masks, strict=True):
            for a, b in zip(given.ravel(), mask.ravel(), strict=True):
                both += a == k and b == k
                either += a == k or b == k
        values.append(both / either if either else None)
    return values


def test_ious_are_those_of_their_definition_in_any_order():
    generator = np.random.default_rng(0)
    predicted, masks = generator.integers(0, 3, (2, 6, 5, 4))
    areas = areas_of(predicted, masks, range(6), 4)
    (mean, low, high), each = ious(areas, 6)
    expected = naive_ious(predicted, masks, 4)
    assert [one and one[0] for one in each] == pytest.approx(expected)  # nothing has the fourth class
    assert expected[3] is None
    assert mean == pytest.approx(np.mean(expected[:3]))
    assert low < mean < high
    parts = areas_of(predicted[3:], masks[3:], range(3, 6), 4) + areas_of(predicted[:3], masks[:3], range(3), 4)
    assert np.array_equal(parts, areas)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        share = generator.beta(8, 4, 60)  # the correct share differs between images
        masks = generator.integers(0, 2, (60, 8, 8))
        wrong = generator.random(masks.shape) > share[:, None, None]
        areas = areas_of(np.where(wrong, 1 - masks, masks), masks, range(trial * 60, trial * 60 + 60), 2)
        (_, low, high), _ = ious(areas, 60)
        truth = (2 / 3) / (2 - 2 / 3)  # both classes alike: right / (right + 2 · half of the wrong)
        held += low <= truth <= high
    assert held >= 180  # 95 % of 200, less four deviations


def test_few_images_have_no_interval(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    predicted, masks = generator.integers(0, 2, (2, 8, 5, 4))
    masks[0, 0] = 2  # a class of one image
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, each = ious(areas_of(predicted, masks, range(8), 4), 8)
        alone, _ = ious(areas_of(predicted[:1], masks[:1], range(1), 4), 1)
    assert each[0] is not None
    assert None not in (*mean, *each[0])
    assert (each[2], each[3]) == ((0.0, None, None), None)
    assert alone[1:] == (None, None)
    tested = dict(zip(("miou", "miou_low", "miou_high"), alone, strict=True))
    write_training_plot([{"epoch": 1, "loss": 1.0}, {"epoch": 1, **tested}], tmp_path, title="few")
    assert (tmp_path / "training.png").exists()


def test_a_test_of_one_image_says_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    few = evaluation(images=1)
    few.advance(math.inf)
    (found,) = (each for each in accuracy_measurements(few.tally) if each.metric == "miou")
    assert (found.ci_low, found.ci_high) == (None, None)
    with TrainingDisplay(quiet=False) as display:
        display.start(steps=1, done=0, steps_per_epoch=1)
        display.evaluated(1, {**shares(few.tally), "evaluated_images": 1})
    assert f"mIoU {found.value:.1%} of 1 test images" in capsys.readouterr().err


def test_a_process_without_images_adds_as_many_counts_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="training stands on timm")
    from sema_bench.training.devices import Distributed
    from sema_bench.training.evaluate import accuracy_of
    from sema_bench.training.job import TrainingError

    counts = {}
    monkeypatch.setattr(Distributed, "take_from_leader", lambda self, tensors: None)
    monkeypatch.setattr(Distributed, "sum", lambda self, values: counts.update({self.rank: len(values)}) or values)
    one, form = TestImages(parse_data("digits:segment,images=1")), InputFormat((64, 64), 1, torch.device("cpu"))
    for rank in range(2):
        with contextlib.nullcontext() if rank == 0 else pytest.raises(TrainingError, match="none of the 0"):
            accuracy_of(ByBrightness(), one, form, workers=0, distributed=Distributed(rank, 2, form.device),
                        stop_asked=lambda: False)  # fmt: skip
    assert counts[0] == counts[1] > 11


class ByBrightness(nn.Module):
    """Predicts class 3 for bright pixels and class 0 for others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = (x.mean(dim=1) > 0).long()
        return nn.functional.one_hot(bright * 3, 11).permute(0, 3, 1, 2).float()


def evaluation(tally: Tally | None = None, *, images: int = 7, model: nn.Module | None = None) -> Evaluation:
    scenes = TestImages(parse_data(f"digits:segment,images={images}"))
    form = InputFormat((64, 64), 3, torch.device("cpu"))
    names = getattr(model, "classes", scenes.classes)
    match = match_classes(scenes.classes, names, len(names))
    return Evaluation(model or ByBrightness(), scenes, match, form, workers=0, tally=tally or Tally())


class OtherOrder(ByBrightness):
    """The same model, but its checkpoint names one more class, and all in another order."""

    classes = ("extra", *reversed(TestImages(parse_data("digits:segment,images=1")).classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(super().forward(x).flip(1), (0, 0, 0, 0, 1, 0))


def test_the_iou_of_a_class_has_its_name_in_any_order_of_outputs() -> None:
    plain, other = evaluation(), evaluation(model=OtherOrder())
    for each in (plain, other):
        each.advance(math.inf)
    assert other.stated()["iou"] == plain.stated()["iou"]
    assert shares(other.tally)["miou"] == pytest.approx(shares(plain.tally)["miou"])


def test_an_evaluation_counts_pixels_and_resumes():
    whole, first = evaluation(), evaluation()
    whole.advance(math.inf)
    first._take_one()
    rest = evaluation(from_json(Tally, json.loads(json.dumps(first.tally.__dict__))))
    rest.advance(math.inf)
    assert rest.tally.areas == whole.tally.areas
    scenes = DigitScenes("segment", "test", images=7)
    pixels, masks = map(np.stack, zip(*(scenes.scene(i, (64, 64)) for i in range(7)), strict=True))
    inputs = normalised(torch.from_numpy(pixels), device=torch.device("cpu"), dtype=torch.float32,
                        memory_format=torch.channels_last)  # fmt: skip
    expected = naive_ious(ByBrightness()(inputs).argmax(1).numpy(), masks, 11)
    assert shares(whole.tally)["miou"] == pytest.approx(np.mean([one for one in expected if one is not None]))
    assert [one and one[0] for one in whole.stated()["iou"].values()] == pytest.approx(expected)


def test_logits_of_another_size_than_the_image_are_not_tested(tmp_path: Path) -> None:
    """Otherwise logits of one pixel would be compared with every pixel of the mask."""
    (tmp_path / "one.py").write_text("from torch import nn\ndef build(): return nn.Conv2d(3, 11, 64)\n")
    model = parse_source(f"{tmp_path}/one.py:build").name
    workload = Workload(Cell(model=model, height=64, width=64, data="digits:segment,images=7"))
    with pytest.raises(ProbeError, match=r"a tensor \(1, 11, 1, 1\); expected .* or \(1, classes, 64, 64\)"):
        evaluation_of(workload, Tally(), EvaluationSettings(workers=0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("timm", reason="training stands on timm")
    folder = tmp_path_factory.mktemp("segmenter")
    arguments = ["--epochs", "1", "--batch", "8", "--set", "epoch_images=16", "--threads", "1", "--device", "cpu"]
    run("train", "--model", MODEL, "--data", "digits:segment,images=8", "--res", "64", *arguments,
           "--out", str(folder), "--name", "t")  # fmt: skip
    return folder


def test_what_was_trained_is_tested_at_other_sizes(trained: Path) -> None:
    weights = trained / "t" / "weights.safetensors"
    shown = run("evaluate", "--model", MODEL, "--checkpoint", str(weights), "--data", "digits:segment,images=8",
                   "--res", "64,96", "--out", str(trained), "--run", "e")  # fmt: skip
    assert "mIoU" in shown
    records = [json.loads(line) for line in (trained / "e" / "records.jsonl").read_text().splitlines()]
    assert [record["cell"]["height"] for record in records] == [64, 96]
    model = build_with_weights(MODEL, (96, 96), read_weights(weights)).eval()
    scenes = DigitScenes("segment", "test", images=8)
    pixels, masks = map(np.stack, zip(*(scenes.scene(i, (96, 96)) for i in range(8)), strict=True))
    inputs = normalised(torch.from_numpy(pixels), device=torch.device("cpu"), dtype=torch.float32,
                        memory_format=torch.channels_last)  # fmt: skip
    with torch.inference_mode():
        predicted = model(inputs).argmax(1).numpy()
    expected = [one for one in naive_ious(predicted, masks, 11) if one is not None]
    miou = next(each for each in records[1]["measurements"] if each["metric"] == "miou")
    assert miou["value"] == pytest.approx(np.mean(expected), abs=2e-3)
    assert (trained / "t" / "plots" / "training.svg").exists()


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("sema_micro[head=max]", "digits:segment", "has a class for each pixel: use a model with head=fpn"),
        (MODEL, "digits:field", "needs data such as digits:segment"),
    ],
)
def test_a_model_for_the_other_task_is_not_trained(tmp_path: Path, model: str, data: str, message: str) -> None:
    pytest.importorskip("timm", reason="training stands on timm")
    small = ("--res", "64", "--epochs", "1", "--out", str(tmp_path), "--device", "cpu")
    assert message in run("train", "--model", model, "--data", data, *small, exit_code=2)


def test_a_segmenter_is_not_tested_on_classes_of_images(trained: Path) -> None:
    weights = str(trained / "t" / "weights.safetensors")
    data = ("--checkpoint", weights, "--data", "digits:field", "--res", "64", "--out", str(trained))
    assert "needs data such as digits:segment" in run("evaluate", "--model", MODEL, *data, exit_code=2)


def test_mixing_is_refused_where_pixels_have_classes(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="training stands on timm")
    shown = run("train", "--model", MODEL, "--data", "digits:segment", "--res", "64", "--epochs", "1",
                   "--set", "mixup=0.8", "--out", str(tmp_path), exit_code=2)  # fmt: skip
    assert "mixup is for images of one class" in shown
