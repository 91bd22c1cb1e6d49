"""The training loop: from a recipe to weights, step by step, on one process or several.

Everything that chance decides depends on the seed and the place in the training alone: the order of an epoch, what
happens to an image, which blocks are dropped, how images are mixed. A run that was stopped at any moment goes on from
its last checkpoint with the numbers that it would have had, and parts of a batch are the same parts however many
processes share them.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema_bench.data.loader import Batches, normalised
from sema_bench.data.opened import TestImages
from sema_bench.data.spec import DataSpec
from sema_bench.errors import EXIT_FAILED, SemaBenchError, StoreError, UsageError
from sema_bench.evaluation import Evaluation, Tally, match_classes, shares
from sema_bench.trained_model import build_model
from sema_bench.training.average import MovingAverage
from sema_bench.training.checkpoint import read_checkpoint, write_checkpoint
from sema_bench.training.devices import Place
from sema_bench.training.images import TrainingImages
from sema_bench.training.journal import Journal
from sema_bench.training.mixing import mixed, soft_targets
from sema_bench.training.recipe import Recipe
from sema_bench.training.state import State, decay_groups
from sema_bench.training_step import checkpoint_blocks
from sema_bench.weights_source import WEIGHTS_FILE

STATE, JOURNAL = "state.safetensors", "metrics.jsonl"
#: Shorter trainings log every step.
_LINES = 2000
_NAMED = 20


class DivergedError(SemaBenchError):
    """The loss or a gradient is no longer a number."""

    exit_code = EXIT_FAILED


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        model: as in ``--models``.
        data: what it is trained on, and tested on.
        recipe: how.
        seed: of weights, order and augmentation.
        workers: processes that prepare images.
    """

    model: str
    data: DataSpec
    recipe: Recipe
    seed: int
    workers: int

    def identity(self) -> dict[str, Any]:
        """Return what must be the same when a training is gone on with."""
        return {"model": self.model, "data": str(self.data), "seed": self.seed, "recipe": self.recipe.digest}


class Watcher(Protocol):
    """What the trainer tells while it works."""

    def start(self, *, steps: int, done: int, steps_per_epoch: int) -> None: ...

    def step(self, done: int, loss: float, lr: float) -> None: ...

    def evaluated(self, done: int, top1: float) -> None: ...

    def stop_asked(self) -> bool:
        """Tell whether someone asked to stop; the step at hand is finished and saved."""


class Trainer:
    """Trains one model into a folder.

    Args:
        job: what and how.
        folder: where metrics, state and weights go; it must exist.
        place: which process this is.
        watcher: told of every step.

    Raises:
        UsageError: model, data and recipe do not fit together.
        StoreError: the state in ``folder`` cannot be read.
    """

    def __init__(self, job: Job, folder: Path, place: Place, watcher: Watcher) -> None:
        self._job, self._folder, self._place, self._watcher = job, folder, place, watcher
        recipe = self._recipe = job.recipe
        self._images = TrainingImages(job.data, recipe, seed=job.seed)
        self._test = TestImages(job.data)
        if self._test.classes != self._images.classes:
            raise UsageError(f"{job.data}: the classes of its training part are not those of its test part")
        self._parts = recipe.accumulate * place.world
        if recipe.batch % self._parts:
            raise UsageError(f"batch {recipe.batch} does not divide into {self._parts} parts (accumulate × processes)")
        self._steps_per_epoch = recipe.steps_per_epoch(len(self._images))
        self._steps = recipe.epochs * self._steps_per_epoch
        torch.manual_seed(job.seed)
        model = build_model(job.model, recipe.size, classes=len(self._images.classes), drop_path=recipe.drop_path)
        self._model = model.to(place.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        if recipe.checkpointing:
            checkpoint_blocks(self._model)
        self._average = MovingAverage(self._model, recipe.ema) if recipe.ema else None
        self._optimiser = torch.optim.AdamW(
            decay_groups(self._model, recipe.weight_decay), lr=recipe.lr, betas=recipe.betas
        )
        self._scaler = torch.amp.GradScaler(place.device.type, enabled=recipe.amp == "float16")
        self._state = State(self._model, self._optimiser, self._scaler, self._average)
        self._parallel = place.wrapped(self._model)
        self._erase = _erasing(recipe.erasing)
        self._journal = Journal(folder / JOURNAL)
        self._log_every = max(1, self._steps // _LINES)
        self._done = 0
        self._unreadable = 0
        self._saved_at = time.monotonic()
        self._saved_step = -1
        if (folder / STATE).exists():
            self._restore()
        if place.leads:
            self._journal.forget_after(self._done)

    def run(self) -> bool:
        """Train to the end; tells whether it was reached (False: someone asked to stop, and the state is saved).

        Raises:
            DivergedError: loss or gradients are no longer numbers; the last checkpoint stands.
            StoreError: a checkpoint or a metric could not be written.
        """
        self._watcher.start(steps=self._steps, done=self._done, steps_per_epoch=self._steps_per_epoch)
        while self._done < self._steps:
            epoch, within = divmod(self._done, self._steps_per_epoch)
            batches = self._batches(epoch, within)
            waited, started = 0.0, time.perf_counter()
            for _ in range(within, self._steps_per_epoch):
                self._step(batches)
                if self._done % self._log_every == 0 or self._done == self._steps:
                    now = time.perf_counter()
                    share = (batches.waited_s - waited) / (now - started)
                    self._log(data_wait_share=round(min(1.0, share), 4))
                    waited, started = batches.waited_s, now
                if self._place.any(self._watcher.stop_asked()):
                    self._save()
                    return False
                if self._place.any(time.monotonic() - self._saved_at > self._recipe.save_s):
                    self._save()
            every = self._recipe.eval_epochs
            if self._done == self._steps or (every and (epoch + 1) % every == 0):
                self._evaluate(epoch + 1)
        self._save()
        if self._place.leads:
            self._write_weights()
        self._place.wait()
        return True

    def _batches(self, epoch: int, within: int) -> Batches:
        """Return what is left of an epoch for this process: its parts of each batch, one after the other."""
        recipe, place = self._recipe, self._place
        part = recipe.batch // self._parts
        order = self._images.order(epoch)[: self._steps_per_epoch * recipe.batch]
        parts = order.reshape(self._steps_per_epoch, recipe.accumulate, place.world, part)
        return Batches(
            functools.partial(self._images.sample, epoch),
            parts[within:, :, place.rank].reshape(-1).tolist(),
            batch=part,
            workers=self._job.workers,
            pin=place.device.type == "cuda",
        )

    def _step(self, batches: Batches) -> None:
        """Take one step of the optimiser."""
        recipe, step = self._recipe, self._done
        rate = recipe.learning_rate(step, self._steps_per_epoch)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self._place.device)
        for micro in range(recipe.accumulate):
            last = micro + 1 == recipe.accumulate
            with contextlib.nullcontext() if last or self._place.world == 1 else self._parallel.no_sync():  # type: ignore[operator]
                loss = self._loss(next(batches), step, micro) / recipe.accumulate
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self._loss_value = float(self._place.mean(total))
        self._scaler.unscale_(self._optimiser)
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), recipe.clip_grad or math.inf)
        self._norm = float(norm)
        scaled = self._scaler.is_enabled()  # it skips steps whose gradients overflow, and lowers its factor
        if not math.isfinite(self._loss_value) or not (scaled or math.isfinite(self._norm)):
            self._diverged(step)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._optimiser.zero_grad(set_to_none=True)
        if self._average:
            self._average.update(self._model, step)
        self._rate = rate
        self._done += 1
        self._watcher.step(self._done, self._loss_value, rate)

    def _loss(self, batch: Any, step: int, micro: int) -> Tensor:
        """Return the loss of one part of a batch; chance in it depends on the step and the part."""
        recipe, device = self._recipe, self._place.device
        self._count_unreadable(batch)
        seed = _seed(self._job.seed, step, micro * self._place.world + self._place.rank)
        torch.manual_seed(seed)
        if not len(batch.labels):
            return sum(p.sum() for p in self._parallel.parameters()) * 0.0  # type: ignore[return-value]
        images = normalised(batch.pixels, device=device, dtype=torch.float32, memory_format=torch.channels_last)
        targets = soft_targets(batch.labels.to(device), len(self._images.classes), recipe.label_smoothing)
        if self._erase:
            images = self._erase(images)
        generator = torch.Generator().manual_seed(seed)
        images, targets = mixed(images, targets, mixup=recipe.mixup, cutmix=recipe.cutmix, generator=generator)
        with self._autocast():
            logits = self._parallel(images)
        return F.cross_entropy(logits.float(), targets)

    def _autocast(self) -> Any:
        dtype = getattr(torch, self._recipe.amp, torch.float32)
        return torch.autocast(self._place.device.type, dtype, enabled=self._recipe.amp != "off")

    def _count_unreadable(self, batch: Any) -> None:
        for each in batch.unreadable:
            self._unreadable += 1
            if self._unreadable <= _NAMED:
                self._journal.write(step=self._done, unreadable=each.name, reason=each.reason)

    def _log(self, **more: Any) -> None:
        if self._place.leads:
            epoch = self._done / self._steps_per_epoch
            norm = self._norm if math.isfinite(self._norm) else None
            entry = {"epoch": round(epoch, 4), "loss": self._loss_value, "lr": self._rate, "grad_norm": norm}
            self._journal.write(step=self._done, **entry, **more)

    def _evaluate(self, epoch: int) -> None:
        """Test the weights that would be used, each process a part of the images."""
        model = self._model.eval()
        kept = {key: value.clone() for key, value in model.state_dict().items()} if self._average else {}
        if self._average:
            model.load_state_dict(self._average.state)
        match = match_classes(self._test.classes, self._images.classes, len(self._images.classes))
        evaluation = Evaluation(
            model,
            self._test,
            match,
            size=self._recipe.size,
            batch=min(self._recipe.batch // self._parts, 64),
            workers=self._job.workers,
            device=self._place.device,
            dtype=torch.float32,
            memory_format=torch.channels_last,
            tally=Tally(),
            indices=range(self._place.rank, len(self._test), self._place.world),
        )
        with self._autocast():
            evaluation.advance(math.inf)
        tally = evaluation.tally
        counts = torch.tensor([tally.correct, tally.correct_top5, tally.seen, tally.unreadable], dtype=torch.float64)
        summed = self._place.mean(counts.to(self._place.device, torch.float32)) * self._place.world
        correct, correct_top5, seen, unreadable = (round(value) for value in summed.tolist())
        if kept:
            model.load_state_dict(kept)
        model.train()
        found = shares(correct, correct_top5, seen)
        if self._place.leads:
            self._journal.write(
                step=self._done, epoch=epoch, **found, evaluated_images=seen, unreadable_images=unreadable
            )
        self._watcher.evaluated(self._done, found["top1"])

    def _diverged(self, step: int) -> None:
        where = f"the last good checkpoint is {self._folder / STATE}, after step {self._saved_step}"
        if self._saved_step < 0:
            where = "there is no checkpoint yet"
        what = "loss" if not math.isfinite(self._loss_value) else "gradient"
        raise DivergedError(
            f"the {what} of step {step + 1} is {self._loss_value if what == 'loss' else self._norm}; {where}; "
            "try a lower --lr, a longer warm-up or amp off"
        )

    def _save(self) -> None:
        """Write the state to go on from."""
        self._place.wait()
        self._saved_at = time.monotonic()
        self._saved_step = self._done
        if not self._place.leads:
            return
        about = {**self._job.identity(), "step": self._done, "scaler": self._state.scaler.state_dict()}
        self._journal.sync()
        write_checkpoint(self._folder / STATE, self._state.tensors(), about)

    def _restore(self) -> None:
        """Take up the state that an earlier process left.

        Raises:
            StoreError: it is damaged.
            UsageError: it is of another training.
        """
        tensors, about = read_checkpoint(self._folder / STATE)
        before = {key: about.get(key) for key in self._job.identity()}
        if before != self._job.identity():
            other = next(key for key, value in self._job.identity().items() if before[key] != value)
            raise UsageError(f"{self._folder} holds another training ({other}: {before[other]}); choose another --run")
        try:
            self._state.restore(tensors, about["scaler"])
            self._done = self._saved_step = int(about["step"])
        except (KeyError, RuntimeError, TypeError, ValueError) as problem:
            raise StoreError(f"{self._folder / STATE} does not fit this training: {str(problem)[:200]}") from None

    def _write_weights(self) -> None:
        state = self._average.state if self._average else self._model.state_dict()
        about = {**self._job.identity(), "steps": self._steps, "classes": list(self._images.classes)}
        write_checkpoint(self._folder / WEIGHTS_FILE, state, {**about, "average": bool(self._average)})


def _seed(*parts: int) -> int:
    """Return a seed for this very place of this very training."""
    import numpy as np

    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _erasing(probability: float) -> Any:
    if not probability:
        return None
    try:
        from timm.data.random_erasing import RandomErasing
    except ImportError:
        raise UsageError("erasing needs timm, which is not installed; pip install 'sema-bench[timm]'") from None
    return RandomErasing(probability, mode="pixel", device="cpu")
