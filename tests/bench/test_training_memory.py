"""Test that a training step that does not fit in memory is refused early, with advice on what fits."""

from __future__ import annotations

import re

import pytest
import torch
from training_support import ALONE, recipe

from sema_bench.driver.memory_fit import WORKER_BYTES
from sema_bench.errors import UsageError
from sema_bench.training import preflight
from sema_bench.training.preflight import check_step_fits
from sema_bench.worker.build_model import build_model

GIB = 2**30


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model("sema_micro[linear]", (64, 64), classes=10)


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(preflight, "capacity_bytes", lambda device: WORKER_BYTES + size)


def test_what_is_advised_fits_and_twice_as_much_does_not(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, GIB // 4)
    with pytest.raises(UsageError) as caught:
        check_step_fits(model, recipe(batch=512, epoch_images=512), ALONE)
    found = re.search(
        r"parts of (\d+) images fit: add --set accumulate=(\d+) .* or train with --batch (\d+)", str(caught.value)
    )
    assert found, caught.value
    part, parts, batch = map(int, found.groups())
    assert part * parts == 512
    assert part == batch
    check_step_fits(model, recipe(batch=batch, epoch_images=batch), ALONE)
    check_step_fits(model, recipe(batch=512, epoch_images=512, accumulate=parts), ALONE)
    with pytest.raises(UsageError, match="needs about"):
        check_step_fits(model, recipe(batch=512, epoch_images=512, accumulate=parts // 2), ALONE)


def test_a_model_of_which_no_image_fits_is_told_so(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 2**20)
    with pytest.raises(UsageError, match="not even one image fits"):
        check_step_fits(model, recipe(), ALONE)


def test_what_fits_with_room_to_spare_is_not_predicted(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "forecast", lambda *_, **__: pytest.fail("a second for nothing"))
    free(monkeypatch, 8 * GIB)
    check_step_fits(model, recipe(), ALONE)


def test_checkpointing_and_bfloat16_make_room(model: torch.nn.Module) -> None:
    plain, checkpointed, half = (
        preflight._needed_bytes(model, recipe(**changes), ALONE, 32)
        for changes in ({}, {"checkpointing": True}, {"amp": "bfloat16"})
    )
    assert plain is not None
    assert checkpointed is not None
    assert half is not None
    assert checkpointed < 0.8 * plain
    assert half < plain
    assert next(model.parameters()).device.type == "cpu", "the model is left as it is"
