"""Training: the recipe, what chance decides, exact resume, several processes, and what must not be lost."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from sema_bench.cli import app
from sema_bench.data.spec import parse_data
from sema_bench.errors import StoreError, UsageError
from sema_bench.report.training_plot import write_training_plot
from sema_bench.store import RunFolder
from sema_bench.training import trainer as trainer_module
from sema_bench.training.average import MovingAverage
from sema_bench.training.checkpoint import read_about, read_checkpoint, write_checkpoint
from sema_bench.training.devices import Place
from sema_bench.training.images import TrainingImages, random_crop
from sema_bench.training.journal import Journal, read_journal
from sema_bench.training.mixing import mixed, soft_targets
from sema_bench.training.recipe import Recipe, parse_recipe
from sema_bench.training.trainer import JOURNAL, STATE, DivergedError, Job, Trainer
from sema_bench.weights_source import WEIGHTS_FILE

ALONE = Place(0, 1, torch.device("cpu"))
DATA = parse_data("digits:field,images=32")
SMALL = {"res": 64, "epochs": 2, "epoch_images": 32, "batch": 8, "lr": 2e-3, "warmup_epochs": 0.5}
MODEL = "sema_micro[linear,head=max]"


def recipe(**changes: object) -> Recipe:
    return parse_recipe({**SMALL, **changes}, source="test")


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


class Quiet:
    """Watches without a word; asks to stop after ``last`` steps."""

    def __init__(self, last: int | None = None) -> None:
        self.losses: list[float] = []
        self.done = 0
        self._last = last

    def start(self, *, steps: int, done: int, steps_per_epoch: int) -> None:
        self.done = done

    def step(self, done: int, loss: float, lr: float) -> None:
        self.done = done
        self.losses.append(loss)

    def evaluated(self, done: int, top1: float) -> None: ...

    def stop_asked(self) -> bool:
        return self._last is not None and self.done >= self._last


def train(folder: Path, *, last: int | None = None, **changes: object) -> list[float]:
    watcher = Quiet(last)
    Trainer(Job(MODEL, DATA, recipe(**changes), 0, 0), folder, ALONE, watcher).run()
    return watcher.losses


# The recipe


def test_the_rate_rises_linearly_and_falls_along_a_cosine() -> None:
    rates = [recipe(epochs=10, min_lr=1e-4, warmup_epochs=2.0).learning_rate(step, 4) for step in range(40)]
    assert rates[:8] == pytest.approx([2e-3 * (k + 1) / 8 for k in range(8)])
    assert rates[8] == pytest.approx(2e-3)
    assert rates[24] == pytest.approx((2e-3 + 1e-4) / 2)
    assert all(a > b for a, b in itertools.pairwise(rates[8:]))
    assert rates[-1] > 1e-4


def test_the_rate_can_stay_before_it_falls() -> None:
    kept = recipe(epochs=10, min_lr=1e-4, warmup_epochs=2.0, decay_share=0.25)
    rates = [kept.learning_rate(step, 4) for step in range(40)]
    assert rates[8:33] == pytest.approx([2e-3] * 25)
    assert rates[36] == pytest.approx((2e-3 + 1e-4) / 2)
    assert all(a > b for a, b in itertools.pairwise(rates[32:]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": 0}, "epochs: Input should be greater than or equal to 1"),
        ({"lr": "fast"}, "lr: "),
        ({"warmup_epochs": 5}, "leaves nothing of 2 epochs"),
        ({"min_lr": 1.0}, "above lr"),
        ({"accumulate": 3}, "does not divide into 3 parts"),
        ({"scale": [1.0, 0.5]}, "scale goes from a smaller share"),
        ({"amp": "fp8"}, "amp: "),
    ],
)
def test_a_wrong_recipe_is_told_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(**changes)


def test_the_digest_knows_what_decides_the_weights() -> None:
    assert recipe().digest == recipe(save_s=1.0, seeds=[3, 4]).digest
    assert recipe().digest != recipe(lr=1e-3).digest


def test_an_epoch_must_hold_a_batch() -> None:
    with pytest.raises(UsageError, match="an epoch of 32 images holds no batch of 64"):
        recipe(batch=64).steps_per_epoch(1000)


# What is mixed, averaged and cropped


def test_soft_targets_share_what_smoothing_takes() -> None:
    targets = soft_targets(torch.tensor([1, 0]), 4, 0.2)
    torch.testing.assert_close(targets, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]]))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_targets_say_how_much_of_each_image_is_there(mixup: float, cutmix: float) -> None:
    images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    targets = torch.eye(2)
    for seed in range(20):
        found, shared = mixed(
            images, targets, mixup=mixup, cutmix=cutmix, generator=torch.Generator().manual_seed(seed)
        )
        # Image 0 is black and image 1 white, so brightness is the share of class 1.
        torch.testing.assert_close(found.mean(dim=(1, 2, 3)), shared[:, 1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(shared.sum(dim=1), torch.ones(2))


def test_one_image_alone_is_not_mixed() -> None:
    image, target = torch.rand(1, 3, 4, 4), torch.eye(2)[:1]
    found, shared = mixed(image, target, mixup=0.8, cutmix=1.0, generator=torch.Generator())
    assert found is image
    assert shared is target


def test_the_average_follows_parameters_and_copies_statistics() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = MovingAverage(model, 0.9)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model[1].running_mean.fill_(5.0)
    average.update(model, step=1000)
    torch.testing.assert_close(average.state["0.weight"], start + 0.1)
    torch.testing.assert_close(average.state["1.running_mean"], torch.full((2,), 5.0))


def test_random_crops_have_the_area_and_shape_that_are_asked_for() -> None:
    rows, columns = np.mgrid[0:200, 0:300]
    image = Image.fromarray(np.stack([rows, columns % 256, columns // 256], axis=-1).astype(np.uint8))
    areas = []
    for seed in range(50):
        crop = np.asarray(random_crop(image, (32, 48), (0.1, 0.5), np.random.default_rng(seed))).astype(float)
        assert crop.shape == (32, 48, 3)
        height = crop[-1, 0, 0] - crop[0, 0, 0]
        areas.append(height)
    assert 30 < min(areas) < max(areas) < 200
    thin = Image.new("RGB", (1, 400))
    assert random_crop(thin, (8, 8), (0.9, 1.0), np.random.default_rng(0)).size == (8, 8)


def write_photographs(root: Path, count: int = 6) -> Path:
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for index in range(count):
            noise = np.random.default_rng(index).integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / label / f"{index}.png")
    return root


def test_a_photograph_is_augmented_by_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    spec = parse_data(f"folder:{write_photographs(tmp_path)}")
    chosen = recipe(res=32, scale=[0.2, 1.0], flip=0.5)
    one, other = (TrainingImages(spec, chosen, seed=1) for _ in range(2))
    other.sample(0, 5)
    assert np.array_equal(one.sample(2, 3)[0], other.sample(2, 3)[0])
    assert not np.array_equal(one.sample(2, 3)[0], one.sample(3, 3)[0])
    assert not np.array_equal(one.sample(2, 3)[0], TrainingImages(spec, chosen, seed=2).sample(2, 3)[0])
    assert sorted(one.order(0)) == list(range(12))
    assert list(one.order(0)) != list(one.order(1))


def test_randaugment_draws_from_the_same_chance(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    spec = parse_data(f"folder:{write_photographs(tmp_path)}")
    images = TrainingImages(spec, recipe(res=32, randaugment="rand-m9-mstd0.5-inc1"), seed=1)
    assert np.array_equal(images.sample(0, 3)[0], images.sample(0, 3)[0])
    assert any(not np.array_equal(images.sample(0, i)[0], images.sample(1, i)[0]) for i in range(6))
    with pytest.raises(UsageError, match="no policy of timm"):
        TrainingImages(spec, recipe(randaugment="nonsense"), seed=1)


def test_what_is_for_photographs_is_refused_for_scenes() -> None:
    with pytest.raises(UsageError, match="flip is for photographs"):
        TrainingImages(DATA, recipe(flip=0.5), seed=0)


# The loop


def test_a_training_lowers_the_loss_and_leaves_weights_that_load(tmp_path: Path) -> None:
    losses = train(tmp_path, epochs=4, ema=0.9, label_smoothing=0.1)
    assert len(losses) == 16
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    about = read_about(tmp_path / WEIGHTS_FILE)
    assert about["classes"] == [str(digit) for digit in range(10)]
    assert about["average"] is True
    entries = read_journal(tmp_path / JOURNAL)
    assert [entry["step"] for entry in entries if "loss" in entry] == list(range(1, 17))
    (tested,) = [entry for entry in entries if "top1" in entry]
    assert tested["top1_low"] <= tested["top1"] <= tested["top1_high"]
    write_training_plot(entries, tmp_path / "plots", title="a [model]")
    assert (tmp_path / "plots" / "training.png").stat().st_size > 5000


@pytest.mark.parametrize("changes", [{"ema": 0.9, "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.3}, {"accumulate": 2}])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, changes: dict[str, object]) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = train(tmp_path / "whole", **changes)
    parts = train(tmp_path / "parts", last=3, **changes)
    parts += train(tmp_path / "parts", last=6, **changes)
    parts += train(tmp_path / "parts", **changes)
    assert parts == whole
    one, other = (read_checkpoint(tmp_path / name / WEIGHTS_FILE)[0] for name in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    journals = [read_journal(tmp_path / name / JOURNAL) for name in ("whole", "parts")]
    kept = [[(e["step"], e.get("loss"), e.get("top1")) for e in journal] for journal in journals]
    assert kept[0] == kept[1]


def test_parts_of_a_batch_give_the_step_of_the_whole(tmp_path: Path) -> None:
    """Without batch norm (its statistics are those of a part) the parts add up."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    model = "deit_tiny"
    small = {"epoch_images": 8, "epochs": 1, "warmup_epochs": 0.5, "batch": 4, "drop_path": 0.0}
    losses = []
    for name, accumulate in (("whole", 1), ("parts", 2)):
        watcher = Quiet()
        job = Job(model, parse_data("digits:field,images=4"), recipe(**small, accumulate=accumulate), 0, 0)
        Trainer(job, tmp_path / name, ALONE, watcher).run()
        losses.append(watcher.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, last=3)
    before = (tmp_path / STATE).read_bytes()
    original = trainer_module.Trainer._loss

    def poisoned(self: Trainer, batch: object, step: int, micro: int) -> torch.Tensor:
        loss = original(self, batch, step, micro)
        return loss * float("nan") if step == 5 else loss

    monkeypatch.setattr(trainer_module.Trainer, "_loss", poisoned)
    with pytest.raises(DivergedError, match=r"the loss of step 6 is nan; the last good checkpoint is .* after step 3"):
        train(tmp_path)
    assert (tmp_path / STATE).read_bytes() == before


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, last=3)
    before = (tmp_path / STATE).read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*: No space left on device"):
        write_checkpoint(tmp_path / STATE, {"x": torch.zeros(1)}, {})
    assert (tmp_path / STATE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    train(tmp_path, last=2)
    with pytest.raises(UsageError, match=r"holds another training \(recipe: "):
        train(tmp_path, lr=1e-3)
    (tmp_path / STATE).write_bytes(b"torn")
    with pytest.raises(StoreError, match="cannot be read"):
        train(tmp_path)


def test_unreadable_images_are_named_and_trained_around(tmp_path: Path) -> None:
    root = write_photographs(tmp_path / "images", 4)
    (root / "a" / "torn.png").write_bytes(b"torn")
    (tmp_path / "run").mkdir()
    job = Job(MODEL, parse_data(f"folder:{root}"), recipe(res=32, epochs=1, epoch_images=0, batch=3), 0, 0)
    Trainer(job, tmp_path / "run", ALONE, Quiet()).run()
    entries = read_journal(tmp_path / "run" / JOURNAL)
    assert [entry["unreadable"] for entry in entries if "unreadable" in entry] == ["a/torn.png"]


def test_a_journal_forgets_what_will_be_written_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        journal.write(step=step, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    journal.forget_after(3)
    assert [entry["step"] for entry in read_journal(tmp_path / "metrics.jsonl")] == [1, 2, 3]


# Processes


def start(folder: Path, *arguments: str, processes: int = 1) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sema_bench"]
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command += ["--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "sema_bench"]
    return subprocess.Popen(
        [*command, "train", *arguments, "--out", str(folder), "--threads", "1", "--device", "cpu"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def losses_of(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_journal(folder / JOURNAL) if "loss" in entry]


OPTIONS = (
    *("--model", MODEL, "--data", "digits:field,images=32", "--res", "64", "--epochs", "2", "--batch", "8"),
    *("--set", "epoch_images=48", "--set", "warmup_epochs=0.5", "--set", "save_s=0.05"),
)


def test_a_killed_training_resumes_to_the_same_losses(tmp_path: Path) -> None:
    whole = start(tmp_path, *OPTIONS, "--run", "whole")
    _, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    killed = start(tmp_path, *OPTIONS, "--run", "killed")
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / STATE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / WEIGHTS_FILE).exists()
    code, _, err = invoke("train", "--resume", "killed", "--out", str(tmp_path), "--threads", "1", "--device", "cpu")
    assert code == 0, err
    assert "of them done already" in err
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole")
    assert (tmp_path / "killed" / "plots" / "training.svg").exists()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    both = start(tmp_path, *OPTIONS, "--name", "both", processes=2)
    _, err = both.communicate(timeout=180)
    assert both.returncode == 0, err
    code, _, err = invoke(
        "train",
        *OPTIONS,
        "--set",
        "accumulate=2",
        "--run",
        "one",
        "--out",
        str(tmp_path),
        "--threads",
        "1",
        "--device",
        "cpu",
    )
    assert code == 0, err
    # Sums of gradients are taken in another order: rounding grows over twelve steps.
    assert losses_of(tmp_path / "both") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-3)
    one, two = (read_checkpoint(tmp_path / name / WEIGHTS_FILE)[0] for name in ("one", "both"))
    parameters = [key for key in one if "running" not in key and "num_batches" not in key]
    assert max(float((one[key] - two[key]).abs().max()) for key in parameters) < 1e-3


# From the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --model"),
        (("--model", MODEL), "give --data"),
        (("--model", "sema_mikro", "--data", "digits:cue"), "did you mean"),
        (("--model", MODEL, "--data", "digits:cue", "--set", "epochs"), "--set takes KEY=VALUE"),
        (("--model", MODEL, "--data", "digits:cue", "--set", "epoch=3"), "did you mean 'epochs'"),
        (("--model", MODEL, "--data", "digits:cue", "--res", "64,96"), "a training is at one size"),
        (("suites/quick.toml",), "has no [training]"),
        (("--resume", "gone"), "no run 'gone'"),
        (("--resume", "gone", "--epochs", "3"), "drop --epochs"),
    ],
)
def test_a_wrong_request_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = invoke("train", *arguments, "--out", str(tmp_path))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_suite_trains_its_models_and_tests_them_at_every_size(tmp_path: Path) -> None:
    suite = tmp_path / "tiny.toml"
    suite.write_text(
        'claim = "c"\ncost = "c"\nmodels = ["sema_micro[linear,head=max]"]\n'
        'data = ["digits:field,images=40", "digits:zoom,images=40"]\nres = "64,96"\nprobes = ["params", "accuracy"]\n'
        "threads = [2]\n"
        "[training]\nres = 64\nepochs = 1\nepoch_images = 16\nbatch = 8\nwarmup_epochs = 0.5\nseeds = [0, 1]\n"
        '[training_for."digits:zoom,images=40"]\nbatch = 16\n'
    )
    code, shown, err = invoke("run", str(suite), "--out", str(tmp_path), "--run", "r")
    assert code == 0, err
    assert "mean of 2 seeds" in shown
    assert err.count("trained [") == 4
    assert err.count(": 2 steps in") == err.count(": 1 steps in") == 2
    records = RunFolder.open(tmp_path, "r").records()
    assert len(records) == 8
    assert {record.value("evaluated_images") for record in records} == {40}
    code, again, err = invoke("run", "--resume", "r", "--out", str(tmp_path))
    assert (code, again) == (0, shown)
    assert "trained [" not in err
    recipes = json.loads((tmp_path / "r" / "run.json").read_text())["plan"]["recipes"]
    assert [recipe["batch"] for recipe in recipes.values()] == [8, 16]
    assert math.isclose(recipes["digits:zoom,images=40"]["lr"], 1e-3)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('"digits:zoom"', "training_for changes the training on 'digits:zoom', and there is none"),
        ('"digits:field"', "training_for: unknown key of a recipe 'epoch'"),
        ('"nothing:here"', "key 'training_for.nothing:here"),
    ],
)
def test_a_recipe_for_other_data_is_refused(tmp_path: Path, table: str, message: str) -> None:
    suite = tmp_path / "tiny.toml"
    suite.write_text(
        'claim = "c"\ncost = "c"\nmodels = ["deit_small"]\ndata = ["digits:field"]\nres = "64"\nprobes = ["accuracy"]\n'
        f"[training]\nres = 64\n[training_for.{table}]\nepoch = 1\n"
    )
    code, _, err = invoke("run", str(suite), "--out", str(tmp_path))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_training_that_fails_is_the_error_of_its_cells(tmp_path: Path) -> None:
    suite = tmp_path / "tiny.toml"
    suite.write_text(
        'claim = "c"\ncost = "c"\nmodels = ["sema_micro[linear]"]\ndata = ["digits:field,images=40"]\nres = "64"\n'
        'probes = ["accuracy"]\nthreads = [1]\n'
        "[training]\nres = 64\nepochs = 1\nepoch_images = 16\nbatch = 8\nwarmup_epochs = 0.5\nflip = 0.5\n"
    )
    code, shown, err = invoke("run", str(suite), "--out", str(tmp_path), "--run", "r")
    assert code == 1
    assert "failed: flip is for photographs" in err
    assert "its training failed: flip is for photographs" in " ".join(shown.split())
