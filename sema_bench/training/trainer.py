"""The training loop: from a recipe to weights, step by step, on one process or several.

Everything that chance decides depends on the seed and the place in the training alone: the order of an epoch, what
happens to an image, which blocks are dropped, how images are mixed. A run that was stopped at any moment goes on from
its last checkpoint with the numbers that it would have had, and parts of a batch are the same parts however many
processes share them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema_bench.data.classes import class_difference
from sema_bench.data.datasets import TestImages, Unreadable, common_origin
from sema_bench.data.loader import Batch, Batches, normalised
from sema_bench.errors import StoreError, UsageError
from sema_bench.spec.resolution import Resolution
from sema_bench.spec.weights_source import WEIGHTS_FILE
from sema_bench.training.average import MovingAverage
from sema_bench.training.check_trainable import every_parameter_learns
from sema_bench.training.checkpoint import read_checkpoint, write_checkpoint
from sema_bench.training.devices import Distributed
from sema_bench.training.evaluate import accuracy_of
from sema_bench.training.images import TrainingImages
from sema_bench.training.job import DivergedError, Job, TrainingError, Watcher
from sema_bench.training.memory import check_step_fits
from sema_bench.training.metrics_log import Journal, read_journal
from sema_bench.training.mixing import eraser, mixed, soft_targets
from sema_bench.training.state import State, decay_groups
from sema_bench.worker.trained_model import build_model
from sema_bench.worker.training_step import checkpoint_blocks
from sema_bench.worker.workload import is_out_of_memory

STATE, JOURNAL = "state.safetensors", "metrics.jsonl"
#: Shorter trainings log every step.
_LINES = 2000
_NAMED = 20


class Trainer:
    """Trains one model into a folder.

    Args:
        job: what and how.
        folder: where metrics, state and weights go; it must exist.
        place: which process this is.
        watcher: told of every step.

    Attributes:
        notes: what a person should know of the images, a sentence each.

    Raises:
        UsageError: model, data and recipe do not fit together.
        StoreError: the state in ``folder`` cannot be read.
    """

    def __init__(self, job: Job, folder: Path, place: Distributed, watcher: Watcher) -> None:
        self._job, self._folder, self._place, self._watcher = job, folder, place, watcher
        recipe = self._recipe = job.recipe
        job.data.check_size(Resolution(*recipe.size))
        self._images = TrainingImages(job.data, recipe, seed=job.seed)
        self._test = TestImages(job.data)
        if same := common_origin(self._test.origins, self._images.origins):
            raise UsageError(
                f"{job.data} would be trained and tested on the same images, those of {same}; "
                "give others to train on with the data option train=DATA"
            )
        if self._test.classes != self._images.classes:
            difference = class_difference(self._images.classes, self._test.classes) or "their order differs"
            raise UsageError(
                f"{job.data}: the classes of its training part are not those of its test part: {difference}"
            )
        self.notes = tuple(dict.fromkeys((*self._images.notes, *self._test.notes)))
        self._parts = recipe.accumulate * place.world
        if recipe.batch % self._parts:
            raise UsageError(f"batch {recipe.batch} does not divide into {self._parts} parts (accumulate × processes)")
        self._steps_per_epoch = recipe.steps_per_epoch(len(self._images))
        self._steps = recipe.epochs * self._steps_per_epoch
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.manual_seed(job.seed)
        model = build_model(job.model, recipe.size, classes=len(self._images.classes), drop_path=recipe.drop_path)
        self._model = model.to(place.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        every_used = every_parameter_learns(
            job.model, self._model, recipe.size, classes=len(self._images.classes), device=place.device
        )
        check_step_fits(self._model, recipe, place)
        if recipe.checkpointing:
            checkpoint_blocks(self._model)
        self._average = MovingAverage(self._model, recipe.ema) if recipe.ema else None
        self._optimiser = torch.optim.AdamW(
            decay_groups(self._model, recipe.weight_decay), lr=recipe.lr, betas=recipe.betas
        )
        self._scaler = torch.amp.GradScaler(place.device.type, enabled=recipe.amp == "float16")
        self._state = State(self._model, self._optimiser, self._scaler, self._average)
        self._parallel = place.wrapped(self._model, some_unused=not every_used)
        self._erase = eraser(recipe.erasing, place.device)
        self._journal = Journal(folder / JOURNAL)
        self._log_every = max(1, self._steps // _LINES)
        self._done = 0
        self._saved_at = time.monotonic()
        self._saved_step = -1
        if (folder / STATE).exists():
            self._restore()
        if place.leads:
            self._journal.forget_after(self._done)
        place.wait()
        entries = read_journal(folder / JOURNAL) if (folder / JOURNAL).exists() else []
        self._named = {entry["unreadable"] for entry in entries if "unreadable" in entry}
        self._tested = {entry["step"] for entry in entries if "top1" in entry}

    def run(self) -> bool:
        """Train to the end; tells whether it was reached (False: someone asked to stop, and the state is saved).

        Raises:
            TrainingError: loss or gradients are no longer numbers, memory ran out, or there is nothing to train or test
                on; the last checkpoint stands.
            StoreError: a checkpoint or a metric could not be written.
        """
        try:
            return self._run()
        except (MemoryError, RuntimeError) as problem:
            if is_out_of_memory(problem):
                advice = "memory ran out; try a smaller --batch, more parts (accumulate) or checkpointing"
            elif "DataLoader worker" in str(problem):
                advice = "a process that prepares images died, perhaps for want of memory; try fewer --workers"
            else:
                raise
            raise TrainingError(f"step {self._done + 1}: {advice}; {self._what_stands()}") from problem

    def _run(self) -> bool:
        self._watcher.start(steps=self._steps, done=self._done, steps_per_epoch=self._steps_per_epoch)
        if self._done < self._steps and not self._tested_if_due():
            return False
        while self._done < self._steps:
            batches = self._batches(*divmod(self._done, self._steps_per_epoch))
            waited, started = 0.0, time.perf_counter()
            for _ in range(self._done % self._steps_per_epoch, self._steps_per_epoch):
                self._step(batches)
                if self._done % self._log_every == 0 or self._done == self._steps:
                    now = time.perf_counter()
                    share = (batches.waited_s - waited) / (now - started)
                    self._log(data_wait_share=round(min(1.0, share), 4))
                    waited, started = batches.waited_s, now
                due = time.monotonic() - self._saved_at > self._recipe.save_s
                asked, due = map(bool, self._place.sum([self._watcher.stop_asked(), due]))
                if asked or due or self._done == self._steps:
                    self._save()
                if asked:
                    return False
            if self._done < self._steps and not self._tested_if_due():
                return False
        if self._place.leads:
            self._write_weights()
        finished = self._tested_if_due()
        self._place.wait()
        return finished

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
        recipe, step, scaler = self._recipe, self._done, self._scaler
        rate = recipe.learning_rate(step, self._steps_per_epoch)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self._place.device)
        seen = 0
        for micro in range(recipe.accumulate):
            last = micro + 1 == recipe.accumulate
            with contextlib.nullcontext() if last or self._place.world == 1 else self._parallel.no_sync():  # type: ignore[operator]
                batch = next(batches)
                loss = self._loss(batch, step, micro) / recipe.accumulate
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            seen += len(batch.labels)
        if not self._place.any(seen > 0):
            raise TrainingError(f"none of the images of step {step + 1} can be read; {self._what_stands()}")
        self._loss_value = float(self._place.mean(total))
        scaler.unscale_(self._optimiser)
        self._norm = float(nn.utils.clip_grad_norm_(self._model.parameters(), recipe.clip_grad or math.inf))
        before = scaler.get_scale()
        # In float16 the scaler skips steps whose gradients overflow and lowers its factor, down to one at most.
        hopeless = not math.isfinite(self._norm) and (not scaler.is_enabled() or before < 1)
        if hopeless or not math.isfinite(self._loss_value):
            self._diverged(step)
        scaler.step(self._optimiser)
        scaler.update()
        self._optimiser.zero_grad(set_to_none=True)
        if self._average and scaler.get_scale() >= before:
            self._average.update(self._model, step)
        self._rate = rate
        self._done += 1
        self._watcher.step(self._done, self._loss_value, rate)

    def _loss(self, batch: Batch, step: int, micro: int) -> Tensor:
        """Return the loss of one part of a batch; chance in it depends on the step and the part."""
        recipe, device = self._recipe, self._place.device
        self._name_unreadable(batch.unreadable)
        seed = _seed(self._job.seed, step, micro * self._place.world + self._place.rank)
        torch.manual_seed(seed)
        random.seed(seed)
        if not len(batch.labels):
            return self._no_loss()
        images = normalised(batch.pixels, device=device, dtype=torch.float32, memory_format=torch.channels_last)
        targets = soft_targets(batch.labels.to(device), len(self._images.classes), recipe.label_smoothing)
        if self._erase:
            images = self._erase(images)
        generator = torch.Generator().manual_seed(seed)
        images, targets = mixed(images, targets, mixup=recipe.mixup, cutmix=recipe.cutmix, generator=generator)
        with self._autocast():
            logits = self._parallel(images)
        return F.cross_entropy(logits.float(), targets)

    def _no_loss(self) -> Tensor:
        """Return 0 with gradients of 0 for every parameter: other processes wait for this one's share."""
        self._model.eval()  # statistics of batch norm stay as they are
        try:
            nothing: Tensor = self._parallel(torch.zeros(1, 3, *self._recipe.size, device=self._place.device))
        finally:
            self._model.train()
        return nothing.float().sum() * 0.0

    def _autocast(self) -> Any:
        dtype = getattr(torch, self._recipe.amp, torch.float32)
        return torch.autocast(self._place.device.type, dtype, enabled=self._recipe.amp != "off")

    def _name_unreadable(self, unreadable: list[Unreadable]) -> None:
        """Note images that cannot be read, each once."""
        for each in unreadable:
            if each.name not in self._named and len(self._named) < _NAMED:
                self._named.add(each.name)
                self._journal.write(step=self._done + 1, unreadable=each.name, reason=each.reason)

    def _log(self, **more: Any) -> None:
        if self._place.leads:
            epoch = self._done / self._steps_per_epoch
            norm = self._norm if math.isfinite(self._norm) else None
            entry = {"epoch": round(epoch, 4), "loss": self._loss_value, "lr": self._rate, "grad_norm": norm}
            self._journal.write(step=self._done, **entry, **more)

    def _tested_if_due(self) -> bool:
        """Test the weights that would be used, at the end and between epochs where that was asked for; never twice.

        Tells whether there is nothing left to test (False: someone asked to stop).
        """
        epoch, within = divmod(self._done, self._steps_per_epoch)
        every = self._recipe.eval_epochs
        between = within == 0 and epoch > 0 and every and epoch % every == 0
        if self._done in self._tested or not (between or self._done == self._steps):
            return True
        if self._saved_step != self._done:  # a test takes its time, and may be cut off
            self._save()
        with self._autocast():
            found = accuracy_of(
                self._model,
                self._average,
                self._test,
                self._images.classes,
                place=self._place,
                size=self._recipe.size,
                batch=self._recipe.batch // self._parts,
                workers=self._job.workers,
                stop_asked=self._watcher.stop_asked,
            )
        if found is None:
            return False
        if self._place.leads:
            self._journal.write(step=self._done, epoch=epoch, **found)
        self._watcher.evaluated(self._done, found)
        return True

    def _diverged(self, step: int) -> None:
        what = "loss" if not math.isfinite(self._loss_value) else "gradient"
        value = self._loss_value if what == "loss" else self._norm
        advice = "try a lower --lr, a longer warm-up or amp off"
        raise DivergedError(f"the {what} of step {step + 1} is {value}; {self._what_stands()}; {advice}")

    def _what_stands(self) -> str:
        if self._saved_step < 0:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self._folder / STATE}, after step {self._saved_step}"

    def _save(self) -> None:
        """Write the state to go on from."""
        self._place.wait()
        self._saved_at = time.monotonic()
        self._saved_step = self._done
        if not self._place.leads:
            return
        about = {**self._identity(), "step": self._done, "scaler": self._state.scaler.state_dict()}
        self._journal.sync()
        write_checkpoint(self._folder / STATE, self._state.tensors(), about)

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same when a training is gone on with."""
        classes = hashlib.sha256(json.dumps(self._images.classes).encode()).hexdigest()[:8]
        here = {"images": len(self._images), "classes": classes, "processes": self._place.world}
        return {**self._job.identity(), **here}

    def _restore(self) -> None:
        """Take up the state that an earlier process left.

        Raises:
            StoreError: it is damaged.
            UsageError: it is of another training.
        """
        tensors, about = read_checkpoint(self._folder / STATE)
        for key, value in self._identity().items():
            if about.get(key) != value:
                raise UsageError(
                    f"{self._folder} holds another training ({key}: {about.get(key)}, not {value}); "
                    "go on with what it was started with, or choose another --run"
                )
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
