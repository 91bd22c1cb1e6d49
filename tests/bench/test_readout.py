"""Test probes of frozen features: against scikit-learn, and through the command, a suite and a resumed run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from command_support import invoke
from PIL import Image
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from torch import nn

import sema
import sema_bench
from sema_bench.data.datasets import TestImages
from sema_bench.errors import ProbeError
from sema_bench.spec.cell import Cell
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.sampling import EvaluationSettings
from sema_bench.training.checkpoint import write_checkpoint
from sema_bench.worker.cell_evaluation import evaluation_of
from sema_bench.worker.protocol import Tally
from sema_bench.worker.readout import find_classifier, linear_scores, neighbour_scores
from sema_bench.worker.workload import Workload

MODEL = "sema_micro[linear,head=max]"
DATA = "digits:field,images=60"


def blobs(centers: int = 5):
    """Return features and labels of overlapping classes: 150 to fit, 100 to test."""
    x, y = make_blobs(250, 6, centers=centers, cluster_std=4.0, random_state=1)
    x = x.astype(np.float32)
    return x[:150], y[:150], x[150:], y[150:]


@pytest.mark.parametrize("centers", [2, 5])
def test_the_linear_probe_is_that_of_scikit_learn(centers):
    x, y, test, _ = blobs(centers)
    scores, facts = linear_scores(torch.from_numpy(x), torch.from_numpy(y), centers + 1)  # a class without images
    expected = make_pipeline(StandardScaler(), LogisticRegression(C=facts["c"], max_iter=1000)).fit(x.astype(float), y)
    got = scores(torch.from_numpy(test))
    assert got.shape == (100, centers + 1)
    shares = got[:, :centers].softmax(dim=1) if centers > 2 else got[:, 1:2].sigmoid()
    torch.testing.assert_close(
        shares[:, -1], torch.from_numpy(expected.predict_proba(test.astype(float))[:, -1]), rtol=1e-5, atol=1e-5
    )
    assert (got.argmax(dim=1).numpy() == expected.predict(test)).all()
    assert torch.isfinite(got.float()).all()
    held = np.isin(np.arange(150), np.argsort(y, kind="stable")[4::5])
    right = {
        c: make_pipeline(StandardScaler(), LogisticRegression(C=c))
        .fit(x[~held].astype(float), y[~held])
        .score(x[held], y[held])
        for c in (0.001, 0.01, 0.1, 1.0, 10.0)
    }
    assert (facts["c"], facts["accuracy_held_out"]) == (max(right, key=lambda c: right[c]), max(right.values()))


def test_the_neighbours_are_those_of_scikit_learn_and_ties_rank_by_distance():
    x, y, test, _ = blobs()
    scores, _ = neighbour_scores(torch.from_numpy(x), torch.from_numpy(y), 6)
    votes = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07), algorithm="brute")
    votes.fit(normalize(x), y)
    got = scores(torch.from_numpy(test))
    assert (got.argmax(dim=1).numpy() == votes.predict(normalize(test))).all()
    positive = got[:, :5].clamp(min=0)
    expected = torch.from_numpy(votes.predict_proba(normalize(test)))
    torch.testing.assert_close((positive / positive.sum(dim=1, keepdim=True)).double(), expected, rtol=1e-3, atol=1e-4)
    nearest = torch.from_numpy(normalize(test) @ normalize(x).T)
    for row, cosines in zip(got, nearest, strict=True):
        without = [label for label in range(5) if row[label] <= 0]
        ranked = sorted(without, key=lambda label: -max(cosines[y == label]))
        assert sorted(without, key=lambda label: -row[label]) == ranked
    assert (got[:, 5] <= got.min(dim=1).values).all()


def test_too_few_training_images_are_an_error():
    with pytest.raises(ProbeError, match="takes 20 neighbours, and there are 19 training images"):
        neighbour_scores(torch.randn(19, 4), torch.arange(19) % 3, 3)
    with pytest.raises(ProbeError, match=r"at least two classes, 5 images or more .*; got 8 of 1"):
        linear_scores(torch.randn(8, 4), torch.zeros(8, dtype=torch.long), 3)
    with pytest.raises(ProbeError, match="the only one of their class; got 9 of 9"):
        linear_scores(torch.randn(9, 4), torch.arange(9), 9)


def test_the_order_of_the_training_images_does_not_choose_c():
    """If every fifth of the labels 0, 1, 2, 3, 4, 0, … were a part, each part would be one class."""
    x, y, _, _ = map(torch.from_numpy, blobs())
    by_class = torch.cat([torch.nonzero(y == label)[:20, 0] for label in range(5)])
    cycled = by_class.reshape(5, 20).T.flatten()
    first, second = (linear_scores(x[order], y[order], 5)[1] for order in (by_class, cycled))
    assert (first["c"], first["accuracy_held_out"]) == (second["c"], second["accuracy_held_out"])
    assert second["accuracy_held_out"] > 0.5


@pytest.mark.parametrize("name", ["sema_micro", "deit_tiny", "vim_tiny"])
def test_the_classifier_is_the_layer_that_makes_the_output(name):
    model = sema.create_model(name).eval()
    assert find_classifier(model, torch.randn(1, 3, 32, 32)) is model.head
    assert find_classifier(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(1, 4)) is None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    write_checkpoint(path, sema.create_model(MODEL, num_classes=7).state_dict(), {"model": MODEL})
    return path


@pytest.mark.parametrize("readout", ["linear", "knn"])
def test_an_evaluation_probes_the_features_of_the_checkpoint_and_resumes(checkpoint, readout):
    cell = Cell(model=MODEL, height=64, width=64, data=DATA, readout=readout, weights=f"{checkpoint}@0")
    settings = EvaluationSettings(batch=16, workers=0)
    workload = Workload(cell, weights=checkpoint)
    whole = evaluation_of(workload, Tally(), settings)
    while not whole.advance(math.inf):
        pass
    features, labels = {}, {}
    head = nn.Sequential()
    network = sema.create_model(MODEL, num_classes=7).eval()
    sema.load_checkpoint(network, checkpoint)
    network.head = head
    for split in ("train", "test"):
        samples = [TestImages(parse_data(DATA), split=split).sample(index, (64, 64)) for index in range(60)]
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        pixels = torch.stack([(torch.from_numpy(each[0]) / 255 - mean) / std for each in samples]).permute(0, 3, 1, 2)
        with torch.inference_mode():
            features[split] = network(pixels)
        labels[split] = torch.tensor([each[1] for each in samples])
    fit = {"linear": linear_scores, "knn": neighbour_scores}[readout]
    expected = fit(features["train"], labels["train"], 10)[0](features["test"]).argmax(dim=1) == labels["test"]
    assert (whole.tally.correct, whole.tally.seen) == (int(expected.sum()), 60)
    facts = whole.stated()["readout"]
    assert (facts["weights"], facts["features"], facts["training_images"]) == ("loaded", "input of head", 60)

    first = evaluation_of(workload, Tally(), settings)
    assert not first.advance(math.inf)  # the probe is fitted
    with torch.inference_mode():
        first._take_one()
    rest = evaluation_of(workload, first.tally, settings)
    assert rest.tally.position == 16
    while not rest.advance(math.inf):
        pass
    assert (rest.tally.correct, rest.tally.correct_top5) == (whole.tally.correct, whole.tally.correct_top5)
    other = Workload(Cell(model=MODEL, height=64, width=64, data=DATA), weights=None)
    assert first.tally.mark != TestImages(parse_data(other.cell.data)).mark  # the head's evaluation starts anew


def test_a_suite_probes_random_weights_and_says_so(tmp_path):
    body = {"models": [MODEL], "res": "64", "probes": ["accuracy"], "data": [DATA], "readout": ["linear", "knn"]}
    run = sema_bench.run_suite({**body, "workers": 0, "threads": [1]}, name="r", root=tmp_path, quiet=True)
    shown = run.read().table()
    assert shown["readout"].tolist() == ["linear", "knn"]
    assert shown["top1_ci_low"].notna().all()
    records = run.read().records
    assert [record.details["accuracy"]["readout"]["weights"] for record in records] == ["random", "random"]
    code, out, _ = invoke("show", "r", "--out", str(tmp_path))
    assert code == 0
    assert "linear probe on input of head (32 values), fitted to 60 training images" in out
    assert "warning: the weights are random in 1 tested cell" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", DATA, "--probe", "lineer"), "unknown probe 'lineer'; did you mean 'linear'"),
        (("--data", DATA, "--probe", "knn,head"), "needs trained weights"),
    ],
)
def test_a_wrong_request_gets_one_line(arguments, message):
    code, _, err = invoke("evaluate", "--model", MODEL, "--res", "64", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_a_folder_without_training_images_is_refused(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / label / "0.png")
    cell = Cell(model=MODEL, height=64, width=64, data=f"folder:{tmp_path}", readout="knn")
    with pytest.raises(sema_bench.errors.UsageError, match="would be trained and tested on the same images"):
        evaluation_of(Workload(cell), Tally(), EvaluationSettings(workers=0))
