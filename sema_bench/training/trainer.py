"""The training loop: from a recipe to weights, step by step, in one process or several.

timm provides the parts (see ``state`` and ``loss``): optimizer, schedule, scaler, moving average, augmentation, mixing.
All random choices (order of an epoch, augmentation, dropped blocks, mixing) depend only on the seed and the step. So a
resumed run has the same numbers as one that was never stopped, and the parts of a batch are the same for any number of
processes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import random_seed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sema_bench.data.datasets import TestImages, check_parts
from sema_bench.data.loader import Batch, Batches, normalised
from sema_bench.errors import StoreError, UsageError, is_out_of_memory
from sema_bench.spec.resolution import Resolution
from sema_bench.spec.weights_source import WEIGHTS_FILE
from sema_bench.training.checkpoint import read_checkpoint, write_checkpoint
from sema_bench.training.devices import Distributed
from sema_bench.training.evaluate import accuracy_of
from sema_bench.training.finetune import freeze_backbone, load_initial
from sema_bench.training.images import TrainingImages
from sema_bench.training.job import Job, TrainingError, Watcher
from sema_bench.training.loss import TrainingLoss
from sema_bench.training.metrics_log import MetricsLog, read_metrics
from sema_bench.training.preflight import check_outputs, check_step_fits, every_parameter_learns
from sema_bench.training.state import Schedule, new_state, trainable
from sema_bench.worker.build_model import build_model
from sema_bench.worker.evaluation import InputFormat
from sema_bench.worker.training_step import checkpoint_blocks

STATE, METRICS_LOG = "state.safetensors", "metrics.jsonl"
#: Shorter trainings log every step.
_LINES = 2000
#: Unreadable images that the log names, each once.
_NAMED = 20
#: Largest batch of a test.
_MOST_TESTED = 64


class Trainer:
    """Train one model; write metrics, state and weights into an existing folder. ``notes`` are warnings to show."""

    def __init__(self, job: Job, folder: Path, distributed: Distributed, watcher: Watcher) -> None:
        self._job, self._folder, self._distributed, self._watcher = job, folder, distributed, watcher
        recipe = self._recipe = job.recipe
        job.data.check_size(Resolution(*recipe.size))
        self._images = TrainingImages(job.data, recipe, seed=job.seed)
        test, classes = TestImages(job.data), self._images.classes
        check_parts(job.data, self._images, test)
        notes = dict.fromkeys((*self._images.notes, *test.notes))
        parts = recipe.accumulate * distributed.world
        if recipe.batch % parts:
            raise UsageError(f"batch {recipe.batch} does not divide into {parts} parts (accumulate × processes)")
        self._part = recipe.batch // parts
        if (recipe.mixup or recipe.cutmix) and self._part % 2:
            raise UsageError(f"mixup and cutmix mix pairs, and parts of {self._part} images are odd; change the batch")
        self._test_images = test
        self._steps_per_epoch = recipe.steps_per_epoch(len(self._images))
        self._steps = recipe.epochs * self._steps_per_epoch
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        if distributed.device.type == "cuda":
            torch.cuda.set_device(distributed.device)  # Triton launches kernels there, wherever their tensors are
        torch.manual_seed(job.seed)
        model = build_model(job.model, recipe.size, classes=len(classes), drop_path=recipe.drop_path)
        resumes = (folder / STATE).exists()
        if job.init and not resumes:
            notes[load_initial(model, job, classes)] = None
        self.notes = tuple(filter(None, notes))
        if recipe.freeze_backbone:
            freeze_backbone(model, job, len(classes))
        move: Any = model.to  # its stub lacks the memory format
        self._model: nn.Module = move(distributed.device, memory_format=torch.channels_last).train()
        every_used = every_parameter_learns(
            job.model, self._model, recipe.size, classes=len(classes), device=distributed.device
        )
        check_outputs(self._model, recipe.size, job.data, distributed.device)
        check_step_fits(self._model, recipe, distributed)
        if recipe.sync_batch_norm:
            self._model = distributed.synchronised(self._model)
        self._state = new_state(self._model, recipe, distributed.device)
        self._schedule = Schedule(self._state.optimizer, recipe, steps_per_epoch=self._steps_per_epoch)
        if recipe.checkpointing:
            checkpoint_blocks(self._model)
        self._parallel = distributed.wrapped(self._model, some_unused=not every_used)
        self._loss_of = TrainingLoss(recipe, len(classes), distributed.device)
        self._log_file = MetricsLog(folder / METRICS_LOG)
        self._log_every = max(1, self._steps // _LINES)
        self._done = 0
        self._saved_at = time.monotonic()
        self._saved_step = -1
        if resumes:
            self._restore()
        if distributed.leads:
            self._log_file.forget_after(self._done)
        distributed.wait()
        entries = read_metrics(folder / METRICS_LOG)
        self._named = {entry["unreadable"] for entry in entries if "unreadable" in entry}
        self._evaluated = {entry["step"] for entry in entries if "evaluated_images" in entry}

    def run(self) -> bool:
        """Train; return False if someone asked to stop before the end, with the state saved.

        Raise TrainingError if loss or gradients are no longer numbers, memory ran out, or no image can be read.
        """
        try:
            return self._run()
        except (MemoryError, RuntimeError) as problem:
            if is_out_of_memory(problem):
                advice = "memory ran out; try a smaller --batch, more parts (accumulate) or checkpointing"
            elif "DataLoader worker" in str(problem):
                advice = "a process that prepares images died, perhaps because memory ran out; try fewer --workers"
            else:
                raise
            raise TrainingError(f"step {self._done + 1}: {advice}; {self._last_checkpoint()}") from problem

    def _run(self) -> bool:
        self._watcher.start(steps=self._steps, done=self._done, steps_per_epoch=self._steps_per_epoch)
        if self._done < self._steps and not self._evaluate_if_due():
            return False
        while self._done < self._steps:
            batches = self._batches(*divmod(self._done, self._steps_per_epoch))
            waited, started = 0.0, time.perf_counter()
            for _ in range(self._done % self._steps_per_epoch, self._steps_per_epoch):
                metrics = self._step(batches)
                if self._done % self._log_every == 0 or self._done == self._steps:
                    now = time.perf_counter()
                    metrics["data_wait_share"] = round(min(1.0, (batches.waited_s - waited) / (now - started)), 4)
                    if self._distributed.leads:
                        epoch = round(self._done / self._steps_per_epoch, 4)
                        self._log_file.write(step=self._done, epoch=epoch, **metrics)
                    waited, started = batches.waited_s, now
                due = time.monotonic() - self._saved_at > self._recipe.save_s
                asked, due = map(bool, self._distributed.sum([self._watcher.stop_asked(), due]))
                if asked or due or self._done == self._steps:
                    self._save()
                if asked:
                    return False
            if self._done < self._steps and not self._evaluate_if_due():
                return False
        if self._distributed.leads:
            self._write_weights()
        finished = self._evaluate_if_due()
        self._distributed.wait()
        return finished

    def _batches(self, epoch: int, within: int) -> Batches:
        """Load this process's share of the rest of an epoch: its parts of each batch, in order."""
        recipe, distributed = self._recipe, self._distributed
        places = np.arange(self._steps_per_epoch * recipe.batch)
        # Neighbours, which may be copies of one photograph, go to different parts.
        parts = places.reshape(self._steps_per_epoch, self._part, recipe.accumulate, distributed.world)
        return Batches(
            functools.partial(self._images.sample, epoch, self._images.order(epoch)),
            parts[within:, ..., distributed.rank].transpose(0, 2, 1).reshape(-1).tolist(),
            batch=self._part,
            workers=self._job.workers,
            pin=distributed.device.type == "cuda",
        )

    def _step(self, batches: Batches) -> dict[str, Any]:
        """Take one step of the optimizer; return its metrics."""
        recipe, step, optimizer, scaler = self._recipe, self._done, self._state.optimizer, self._state.scaler
        rate = self._schedule.set(step)
        learning = [parameter for _, parameter in trainable(self._model)]
        before = scaler.scale
        self._model.train(not recipe.freeze_backbone)
        total = torch.zeros((), device=self._distributed.device)
        seen = 0
        for micro in range(recipe.accumulate):
            last = micro + 1 == recipe.accumulate
            gradients: AbstractContextManager[None] = contextlib.nullcontext()
            if not last and isinstance(self._parallel, DistributedDataParallel):
                gradients = self._parallel.no_sync()
            with gradients:
                batch = next(batches)
                loss = self._loss(batch, step, micro) / recipe.accumulate
                scaler(loss, optimizer, recipe.clip_grad or None, parameters=learning, need_update=last)
            total += loss.detach()
            seen += self._loss_of.usable(len(batch.labels))
        norm = float(nn.utils.clip_grad_norm_(learning, math.inf))  # after clipping; this clips nothing
        optimizer.zero_grad(set_to_none=True)
        all_seen, loss_sum = self._distributed.sum([seen, float(total)])
        if not all_seen:
            raise TrainingError(f"none of the images of step {step + 1} can be read; {self._last_checkpoint()}")
        loss_value = loss_sum / self._distributed.world
        # In float16 the scaler skips steps whose gradients overflow and lowers its factor, down to one at most.
        hopeless = not math.isfinite(norm) and (recipe.amp != "float16" or before < 1)
        if hopeless or not math.isfinite(loss_value):
            name, value = ("gradient", norm) if math.isfinite(loss_value) else ("loss", loss_value)
            advice = "try a lower --lr, a longer warm-up or amp off"
            raise TrainingError(f"the {name} of step {step + 1} is {value}; {self._last_checkpoint()}; {advice}")
        if self._state.average and scaler.scale >= before:
            self._state.average.update(self._model)
        self._done += 1
        self._watcher.step(self._done, loss_value, rate)
        return {"loss": loss_value, "lr": rate, "grad_norm": norm if math.isfinite(norm) else None}

    def _loss(self, batch: Batch, step: int, micro: int) -> Tensor:
        """Compute the loss of one part of a batch; its random choices depend on the step and the part."""
        recipe, device = self._recipe, self._distributed.device
        for each in batch.unreadable:
            if each.name not in self._named and len(self._named) < _NAMED:
                self._named.add(each.name)
                self._log_file.write(step=self._done + 1, unreadable=each.name, reason=each.reason)
        part = micro * self._distributed.world + self._distributed.rank
        random_seed(int(np.random.SeedSequence((self._job.seed, step, part)).generate_state(1)[0]))
        count = self._loss_of.usable(len(batch.labels))
        if not count:
            return self._no_loss()
        images = normalised(batch.pixels[:count], device=device, dtype=torch.float32, memory_format=torch.channels_last)
        has_begun = step >= int(recipe.mesa_start * recipe.epochs) * self._steps_per_epoch
        average = self._state.average.module if self._state.average and recipe.mesa and has_begun else None
        with self._distributed.autocast(recipe.amp):
            return self._loss_of(self._parallel, images, batch.labels[:count].to(device), average)

    def _no_loss(self) -> Tensor:
        """Return 0 with gradients of 0 for every parameter: other processes wait for this one."""
        was_training = self._model.training
        # Keep the statistics of batch norm, unless the other processes wait for our share of them.
        self._model.train(was_training and self._recipe.sync_batch_norm)
        try:
            nothing: Tensor = self._parallel(torch.zeros(1, 3, *self._recipe.size, device=self._distributed.device))
        finally:
            self._model.train(was_training)
        return nothing.float().sum() * 0.0

    def _evaluate_if_due(self) -> bool:
        """Test the weights at the end, and between epochs if the recipe says so; False if someone asked to stop."""
        epoch, within = divmod(self._done, self._steps_per_epoch)
        every = self._recipe.eval_epochs
        between = within == 0 and epoch > 0 and every and epoch % every == 0
        if self._done in self._evaluated or not (between or self._done == self._steps):
            return True
        if self._saved_step != self._done:  # a test takes time and may be interrupted
            self._save()
        with self._distributed.autocast(self._recipe.amp):
            accuracy = accuracy_of(
                self._tested,
                self._test_images,
                InputFormat(self._recipe.size, min(self._part, _MOST_TESTED), self._distributed.device),
                workers=self._job.workers,
                distributed=self._distributed,
                stop_asked=self._watcher.stop_asked,
            )
        if accuracy is None:
            return False
        if self._distributed.leads:
            self._log_file.write(step=self._done, epoch=epoch, **accuracy)
        self._watcher.evaluated(self._done, accuracy)
        return True

    @property
    def _tested(self) -> nn.Module:
        """The network to test and to save: the moving average, if there is one."""
        return self._state.average.module if self._state.average else self._model

    def _last_checkpoint(self) -> str:
        if self._saved_step < 0:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self._folder / STATE}, after step {self._saved_step}"

    def _save(self) -> None:
        self._distributed.wait()
        self._saved_at = time.monotonic()
        self._saved_step = self._done
        if not self._distributed.leads:
            return
        about = {**self._identity(), "step": self._done, "scaler": self._state.scaler.state_dict()}
        self._log_file.sync()
        write_checkpoint(self._folder / STATE, self._state.tensors(), about)

    def _identity(self) -> dict[str, Any]:
        """Identify this training: a run resumes only if all of it is the same."""
        classes = hashlib.sha256(json.dumps(self._images.classes).encode()).hexdigest()[:8]
        here = {"images": len(self._images), "classes": classes, "processes": self._distributed.world}
        return {**self._job.identity(), **here}

    def _restore(self) -> None:
        """Load the state that an earlier process saved; refuse that of another training."""
        tensors, about = read_checkpoint(self._folder / STATE)
        for key, value in self._identity().items():
            if about.get(key) != value:
                raise UsageError(
                    f"{self._folder} holds another training ({key}: {about.get(key)}, not {value}); "
                    "resume it with what it was started with, or choose another --run"
                )
        try:
            self._state.restore(tensors, about["scaler"])
            self._done = self._saved_step = int(about["step"])
        except (KeyError, RuntimeError, TypeError, ValueError) as problem:
            raise StoreError(f"{self._folder / STATE} does not fit this training: {str(problem)[:200]}") from None

    def _write_weights(self) -> None:
        about = {"steps": self._steps, "classes": list(self._images.classes), "average": bool(self._state.average)}
        write_checkpoint(self._folder / WEIGHTS_FILE, self._tested.state_dict(), {**self._job.identity(), **about})
