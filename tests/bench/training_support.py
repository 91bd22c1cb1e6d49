"""Small trainings for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("timm", reason="training stands on timm")

from sema_bench.spec.data_source import parse_data
from sema_bench.spec.recipe import Recipe, parse_recipe
from sema_bench.training.devices import Distributed
from sema_bench.training.job import Job
from sema_bench.training.trainer import Trainer

ALONE = Distributed(0, 1, torch.device("cpu"))
DATA = parse_data("digits:field,images=32")
SMALL = {"res": 64, "epochs": 2, "epoch_images": 32, "batch": 8, "lr": 2e-3, "warmup_epochs": 0.5}
MODEL = "sema_micro[linear,head=max]"


def recipe(**changes: object) -> Recipe:
    return parse_recipe({**SMALL, **changes}, source="test")


class Quiet:
    """A watcher that shows nothing and asks to stop after ``last`` steps."""

    def __init__(self, last: int | None = None) -> None:
        self.losses: list[float] = []
        self.done = 0
        self._last = last

    def start(self, *, steps: int, done: int, steps_per_epoch: int) -> None:
        self.done = done

    def step(self, done: int, loss: float, lr: float) -> None:
        self.done = done
        self.losses.append(loss)

    def evaluated(self, done: int, found: Mapping[str, float]) -> None: ...

    def stop_asked(self) -> bool:
        return self._last is not None and self.done >= self._last


def train(folder: Path, *, last: int | None = None, **changes: object) -> list[float]:
    watcher = Quiet(last)
    Trainer(Job(MODEL, DATA, recipe(**changes), 0, 0), folder, ALONE, watcher).run()
    return watcher.losses


def write_photographs(root: Path, count: int = 6) -> Path:
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for index in range(count):
            noise = np.random.default_rng(index).integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / label / f"{index}.png")
    return root


def start(folder: Path, *arguments: str, processes: int = 1) -> subprocess.Popen[str]:
    """Start a training in its own processes."""
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
