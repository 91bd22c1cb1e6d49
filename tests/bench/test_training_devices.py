"""Test devices of trainings and evaluations: fake GPUs, and a real one if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sema_bench.data.loader import Batches
from sema_bench.errors import UsageError
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.recipe import parse_recipe
from sema_bench.training import devices, execute
from sema_bench.training.devices import Distributed, join_processes
from sema_bench.training.job import Order, Request
from sema_bench.training.metrics_log import read_metrics
from sema_bench.training.trainer import METRICS_LOG, Job, Trainer

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def four_cards(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Four cards and a fake process group; the list logs the calls to them."""
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(dist, "init_process_group", asked.append)
    for name, value in {"WORLD_SIZE": "8", "RANK": "6", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    return asked


def test_each_process_takes_the_card_of_its_local_rank(four_cards: list[object]) -> None:
    assert join_processes("cuda") == Distributed(6, 8, torch.device("cuda", 2))
    assert four_cards == [2, "nccl"]


def test_processes_on_the_cpu_meet_with_gloo(four_cards: list[object]) -> None:
    assert join_processes("cpu") == Distributed(6, 8, torch.device("cpu"))
    assert four_cards == ["gloo"]


def test_a_process_without_a_card_is_refused(four_cards: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(UsageError, match="process 4 of this machine has no card; there are 4"):
        join_processes("cuda")
    assert four_cards == []


def test_a_training_alone_makes_its_card_the_current_one(
    four_cards: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(self: torch.nn.Module, device: torch.device, **options: object) -> None:
        raise KeyError(device)

    monkeypatch.setattr(torch.nn.Module, "to", moved)
    recipe = parse_recipe({"res": 64, "epochs": 1, "epoch_images": 64, "batch": 8}, source="test")
    job = Job("sema_micro[head=max]", parse_data("digits:field,images=32"), recipe, 0, 0)
    card = torch.device("cuda:1")
    with pytest.raises(KeyError, match="cuda"):
        Trainer(job, tmp_path, Distributed(0, 1, card), Quiet())
    assert four_cards == [card]


@pytest.mark.parametrize(("local", "held"), [("0", ["cuda:0", "cuda:1"]), ("1", [])])
def test_the_first_process_of_a_machine_holds_all_its_cards(
    four_cards: list[object], monkeypatch: pytest.MonkeyPatch, local: str, held: list[str]
) -> None:
    """If each process held its own, two trainings on the same cards could wait for each other."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", local)
    assert join_processes("cuda").cards == held
    assert Distributed(0, 1, torch.device("cuda:3")).cards == ["cuda:3"]


def test_a_training_of_a_suite_and_one_alone_hold_their_card(monkeypatch: pytest.MonkeyPatch) -> None:
    class HeldError(Exception):
        pass

    def hold(device: str) -> None:
        raise HeldError(device)

    monkeypatch.setattr(execute, "gpu_lock", hold)
    monkeypatch.setattr(execute, "capture", lambda: None)
    monkeypatch.setattr(execute, "resolve_device", lambda device, environment: device)
    recipe = parse_recipe({"res": 64}, source="test")
    job = Job("sema_micro", parse_data("digits:field,images=32"), recipe, 0, 0)
    order = Order(job.to_json(), "folder", "cuda:1", 1, 0, 0)
    request = Request(job, Path("root"), None, None)
    options = {"device": "cuda:1", "needs_cuda": False, "threads": None, "workers": None}
    for train in (lambda: execute.train_order(order, Quiet()), lambda: execute.execute(request, **options)):
        with pytest.raises(HeldError, match="cuda:1"):
            train()


def test_a_card_wraps_the_model_with_its_own_index(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(devices.nn.parallel, "DistributedDataParallel", lambda model, **options: seen.update(options))
    for unused in (False, True):
        Distributed(6, 8, torch.device("cuda", 2)).wrapped(torch.nn.Identity(), some_unused=unused)
        assert seen == {"device_ids": [2], "find_unused_parameters": unused}


def test_batch_norms_of_several_cards_share_their_statistics() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    assert Distributed(0, 1, torch.device("cpu")).synchronised(model) is model
    shared = Distributed(0, 2, torch.device("cuda", 0)).synchronised(model)
    assert isinstance(shared[1], torch.nn.SyncBatchNorm)
    assert shared[1].weight is model[1].weight
    assert shared.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(UsageError, match="torch has no sync_batch_norm on a CPU; train in one process, or drop it"):
        Distributed(0, 2, torch.device("cpu")).synchronised(model)


@pytest.mark.parametrize("pin", [True, False])
def test_batches_for_a_card_are_pinned(monkeypatch: pytest.MonkeyPatch, pin: bool) -> None:
    options = {}
    monkeypatch.setattr("sema_bench.data.loader.DataLoader", lambda samples, **given: options.update(given))
    Batches(lambda index: ((), index), range(4), batch=2, workers=0, pin=pin)
    assert options["pin_memory"] is pin


class Quiet:
    """A watcher that shows nothing."""

    def start(self, *, steps: int, done: int, steps_per_epoch: int) -> None: ...

    def step(self, done: int, loss: float, lr: float) -> None: ...

    def evaluated(self, done: int, found: Mapping[str, float]) -> None: ...

    def stop_asked(self) -> bool:
        return False


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("amp", "tolerance"), [("off", 1e-3), ("bfloat16", 3e-2), ("float16", 3e-2)])
def test_a_training_on_a_card_has_the_losses_of_the_cpu(tmp_path: Path, amp: str, tolerance: float) -> None:
    body = {"res": 64, "epochs": 1, "epoch_images": 64, "batch": 8, "lr": 1e-3, "warmup_epochs": 0.5}
    losses = {}
    for device in ("cpu", "cuda:0"):
        folder = tmp_path / device
        folder.mkdir()
        recipe = parse_recipe({**body, "amp": "off" if device == "cpu" else amp}, source="test")
        job = Job("sema_micro[head=max]", parse_data("digits:field,images=32"), recipe, 0, 0)
        Trainer(job, folder, Distributed(0, 1, torch.device(device)), Quiet()).run()
        entries = read_metrics(folder / METRICS_LOG)
        losses[device] = [entry["loss"] for entry in entries if "loss" in entry]
        assert any(entry.get("evaluated_images") == 32 for entry in entries)
    assert losses["cuda:0"] == pytest.approx(losses["cpu"], rel=tolerance)
