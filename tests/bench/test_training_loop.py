"""Test the training loop: exact resume, what must not be lost, and what stops it."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from training_support import ALONE, DATA, MODEL, Quiet, recipe, train, write_photographs

from sema_bench.data.datasets import TestImages
from sema_bench.errors import StoreError, UsageError
from sema_bench.report.training_plot import write_training_plot
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.weights_source import WEIGHTS_FILE
from sema_bench.training import trainer as trainer_module
from sema_bench.training.checkpoint import read_about, read_checkpoint, write_checkpoint
from sema_bench.training.job import Job, TrainingError
from sema_bench.training.metrics_log import MetricsLog, read_metrics
from sema_bench.training.trainer import METRICS_LOG, STATE, Trainer


def test_a_training_lowers_the_loss_and_leaves_weights_that_load(tmp_path: Path) -> None:
    losses = train(tmp_path, epochs=4, ema=0.9, label_smoothing=0.1)
    assert len(losses) == 16
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    about = read_about(tmp_path / WEIGHTS_FILE)
    assert about["classes"] == [str(digit) for digit in range(10)]
    assert about["average"] is True
    entries = read_metrics(tmp_path / METRICS_LOG)
    assert [entry["step"] for entry in entries if "loss" in entry] == list(range(1, 17))
    (tested,) = [entry for entry in entries if "top1" in entry]
    assert tested["top1_low"] <= tested["top1"] <= tested["top1_high"]
    write_training_plot(entries, tmp_path / "plots", title=r"a [model] d$\foo$x " * 5)
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
    logs = [read_metrics(tmp_path / name / METRICS_LOG) for name in ("whole", "parts")]
    kept = [[(e["step"], e.get("loss"), e.get("top1")) for e in log] for log in logs]
    assert kept[0] == kept[1]


def test_parts_of_a_batch_give_the_step_of_the_whole(tmp_path: Path) -> None:
    """Without batch norm, whose statistics cover only a part, the parts add up."""
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
    with pytest.raises(TrainingError, match=r"the loss of step 6 is nan; the last good checkpoint is .* after step 3"):
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


def test_unreadable_images_are_named_once_and_trained_around(tmp_path: Path) -> None:
    root = train_and_val(tmp_path / "images")
    (root / "train" / "a" / "torn.png").write_bytes(b"torn")
    (tmp_path / "run").mkdir()
    Trainer(photographs_job(root, epochs=3, save_s=1e-9), tmp_path / "run", ALONE, Quiet(last=5)).run()
    Trainer(photographs_job(root, epochs=3, save_s=1e-9), tmp_path / "run", ALONE, Quiet()).run()
    entries = read_metrics(tmp_path / "run" / METRICS_LOG)
    assert [entry["unreadable"] for entry in entries if "unreadable" in entry] == ["a/torn.png"]


def test_a_line_that_does_not_fit_on_the_disk_is_not_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(step=1, loss=1.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"cannot write .*metrics.jsonl: "):
            log.write(step=2, loss=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    log.write(step=2, loss=2.0)
    assert [entry["loss"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 2.0]


def test_a_journal_forgets_what_will_be_written_again(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        log.write(step=step, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    log.forget_after(3)
    assert [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


# What stops a training, and what it leaves


def photographs_job(root: Path, **changes: object) -> Job:
    given = {"res": 32, "epochs": 1, "epoch_images": 0, "batch": 3, **changes}
    return Job(MODEL, parse_data(f"folder:{root}"), recipe(**given), 0, 0)


def train_and_val(root: Path, count: int = 4) -> Path:
    for part in ("train", "val"):
        write_photographs(root / part, count)
    return root


def test_a_step_without_one_readable_image_stops_and_saves_nothing(tmp_path: Path) -> None:
    root = train_and_val(tmp_path / "images")
    (tmp_path / "run").mkdir()
    watcher = Quiet(last=1)
    Trainer(photographs_job(root), tmp_path / "run", ALONE, watcher).run()
    before = (tmp_path / "run" / STATE).read_bytes()
    for path in (root / "train").glob("*/*.png"):
        path.write_bytes(b"torn")
    with pytest.raises(TrainingError, match=r"none of the images of step 2 can be read; the last good .* after step 1"):
        Trainer(photographs_job(root), tmp_path / "run", ALONE, Quiet()).run()
    assert (tmp_path / "run" / STATE).read_bytes() == before


def test_a_part_without_images_gives_gradients_of_zero_and_leaves_statistics(tmp_path: Path) -> None:
    trainer = Trainer(Job(MODEL, DATA, recipe(), 0, 0), tmp_path, ALONE, Quiet())
    buffers = [buffer.clone() for buffer in trainer._model.buffers()]
    trainer._no_loss().backward()
    assert all(p.grad is not None and not p.grad.any() for p in trainer._model.parameters())
    assert all(torch.equal(one, other) for one, other in zip(buffers, trainer._model.buffers(), strict=True))
    assert trainer._model.training


def test_weights_are_kept_when_no_test_image_can_be_read(tmp_path: Path) -> None:
    root = train_and_val(tmp_path / "images")
    for path in (root / "val").glob("*/*.png"):
        path.write_bytes(b"torn")
    (tmp_path / "run").mkdir()
    with pytest.raises(TrainingError, match=r"none of the 8 test images can be read, a/0.png first"):
        Trainer(photographs_job(root), tmp_path / "run", ALONE, Quiet()).run()
    assert read_about(tmp_path / "run" / WEIGHTS_FILE)["steps"] == 2


def test_a_test_that_a_stop_left_out_is_made_up_for(tmp_path: Path) -> None:
    train(tmp_path, last=4, eval_epochs=1)
    train(tmp_path, eval_epochs=1)
    train(tmp_path, eval_epochs=1)
    assert [entry["step"] for entry in read_metrics(tmp_path / METRICS_LOG) if "top1" in entry] == [4, 8]


def test_a_stop_is_heeded_while_a_test_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Impatient(Quiet):
        def stop_asked(self) -> bool:
            asked.append(self.done)
            return self.done == 8 and asked.count(8) > 1  # during the test after the last step

    with monkeypatch.context() as patched:
        patched.setattr("sema_bench.training.evaluate._LOOK_S", 0.0)
        assert Trainer(Job(MODEL, DATA, recipe(), 0, 0), tmp_path, ALONE, Impatient()).run() is False
    assert not any("top1" in entry for entry in read_metrics(tmp_path / METRICS_LOG))
    assert Trainer(Job(MODEL, DATA, recipe(), 0, 0), tmp_path, ALONE, Quiet()).run() is True
    assert [entry["step"] for entry in read_metrics(tmp_path / METRICS_LOG) if "top1" in entry] == [8]


def test_float16_gradients_that_stay_no_numbers_stop_the_training(tmp_path: Path) -> None:
    changes = {"amp": "float16", "epochs": 6, "batch": 2, "epoch_images": 8}  # CPUs are slow in float16
    trainer = Trainer(Job(MODEL, DATA, recipe(**changes), 0, 0), tmp_path, ALONE, Quiet())
    next(iter(trainer._model.parameters())).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"the gradient of step 18 is nan; there is no checkpoint yet"):
        trainer.run()


def test_memory_that_runs_out_is_told_with_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> torch.Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(trainer_module.Trainer, "_loss", full)
    with pytest.raises(TrainingError, match="step 1: memory ran out; try a smaller --batch"):
        train(tmp_path)


def test_images_that_came_later_are_another_training(tmp_path: Path) -> None:
    root = train_and_val(tmp_path / "images")
    (tmp_path / "run").mkdir()
    Trainer(photographs_job(root), tmp_path / "run", ALONE, Quiet(last=1)).run()
    (root / "train" / "a" / "new.png").write_bytes((root / "train" / "a" / "0.png").read_bytes())
    with pytest.raises(UsageError, match=r"holds another training \(images: 8, not 9\)"):
        Trainer(photographs_job(root), tmp_path / "run", ALONE, Quiet())


def test_training_on_the_test_images_is_refused(tmp_path: Path) -> None:
    write_photographs(tmp_path / "one")
    write_photographs(tmp_path / "other")
    with pytest.raises(UsageError, match="trained and tested on the same images"):
        Trainer(photographs_job(tmp_path / "one"), tmp_path, ALONE, Quiet())
    apart = parse_data(f"folder:{tmp_path / 'one'},train=folder:{tmp_path / 'other'}")
    job = Job(MODEL, apart, recipe(res=32, epochs=1, epoch_images=0, batch=3), 0, 0)
    assert Trainer(job, tmp_path, ALONE, Quiet()).run()


# What a recipe's keys do


def test_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, *arguments: object) -> object:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    train(tmp_path, last=2, clip_grad=0.01)
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


def test_smoothing_reaches_the_loss(tmp_path: Path) -> None:
    for name in ("plain", "smooth"):
        (tmp_path / name).mkdir()
    plain, smooth = (
        train(tmp_path / name, last=1, label_smoothing=share) for name, share in (("plain", 0.0), ("smooth", 0.5))
    )
    assert abs(plain[0] - smooth[0]) > 1e-3


@pytest.mark.parametrize(("workers", "checkpointing"), [(2, False), (0, True)])
def test_workers_and_checkpointing_change_nothing(tmp_path: Path, workers: int, checkpointing: bool) -> None:
    losses = []
    for name, count, recompute in (("plain", 0, False), ("other", workers, checkpointing)):
        (tmp_path / name).mkdir()
        watcher = Quiet(last=3)
        job = Job(MODEL, DATA, recipe(checkpointing=recompute), 0, count)
        Trainer(job, tmp_path / name, ALONE, watcher).run()
        losses.append(watcher.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_erasing_draws_from_the_same_chance(tmp_path: Path) -> None:
    root = train_and_val(tmp_path / "images")
    losses = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        watcher = Quiet()
        Trainer(photographs_job(root, erasing=1.0), tmp_path / name, ALONE, watcher).run()
        losses.append(watcher.losses)
    assert losses[0] == losses[1]


def test_the_average_is_what_is_tested(tmp_path: Path) -> None:
    trainer = Trainer(Job(MODEL, DATA, recipe(ema=0.9), 0, 0), tmp_path, ALONE, Quiet())
    average = trainer._tested
    assert average is not trainer._model
    bias = next(value for key, value in average.named_parameters() if key.endswith("bias") and value.shape == (10,))
    with torch.no_grad():
        bias[3] = 1e3
    trainer._done = trainer._steps
    assert trainer._evaluate_if_due()
    images = TestImages(DATA)
    threes = sum(images.sample(index, (64, 64))[1] == 3 for index in range(len(images)))
    (tested,) = [entry for entry in read_metrics(tmp_path / METRICS_LOG) if "top1" in entry]
    assert tested["top1"] == threes / len(images) != 0
