"""Checks 8 and 10: energy and power are those of the card, and a neighbour on it is seen."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from typing import Any

import torch

from sema_bench.machine.gpu_telemetry import GpuWatch
from sema_bench.machine.processes import die_with_parent
from sema_bench.studies.gpu.check import Answers, Card, Finding, between, holds, not_reported, ratio, result, stated

#: Side of the products that keep a card at its power limit.
_SIDE = 8192
_START_LIMIT_S = 120.0


def measure_energy(card: Card) -> dict[str, Any]:
    """Read the counters while the card is idle, during products, and of one cell twice."""
    product = _product(card)
    idle, absent = _watched(card, lambda: time.sleep(card.seconds(10.0)))
    full, _ = _watched(card, lambda: _repeat(product, card, card.seconds(5.0)))
    cell = card.cell("sema_tiny", 224, batch=card.count(32))
    records = [card.run([[cell]], ("throughput", "telemetry"), time_limit_s=3.0)[0] for _ in range(2)]
    return {
        "idle": idle,
        "full": full,
        "absent": absent,
        "cells": [
            result(record, "energy_j_per_image", "power_w", "power_capped_share")
            | {"disturbances": dict(record.details.get("telemetry", {}).get("disturbances", {}))}
            for record in records
        ],
    }


def _product(card: Card) -> Callable[[], Any]:
    a = torch.randn(card.size(_SIDE), card.size(_SIDE), device=card.device, dtype=torch.bfloat16)
    return functools.partial(torch.mm, a, a)


def _repeat(work: Callable[[], Any], card: Card, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for _ in range(10):
            work()
        torch.cuda.synchronize(torch.device(card.device))


def _watched(card: Card, work: Callable[[], None]) -> tuple[dict[str, Any], dict[str, str]]:
    """Watch the card while ``work`` runs; return what it reported, with the seconds, and what it does not report."""
    watch, started = GpuWatch(card.device), time.monotonic()
    watch.start()
    work()
    window = dataclasses.asdict(watch.stop(os.getpid()))
    window |= {"seconds": time.monotonic() - started, "throttles": sorted(window["throttles"])}
    return window, dict(watch.absent)


def judge_energy(answers: Answers) -> Iterator[Finding]:
    """Compare the energy counter with power × time, idle with full power, and the cell with itself."""
    idle, full = answers["idle"], answers["full"]
    yield from not_reported(answers)
    power_w = ratio(full["energy_j"], full["seconds"])
    yield between("energy counter / (power × time)", ratio(power_w, full["power_w"]), 0.95, 1.05)
    yield between("idle / full power", ratio(idle["power_w"], full["power_w"]), None, 0.5)
    yield stated("throttled during products", full["throttles"])
    first, second = answers["cells"]
    for cell in (first, second):
        yield holds("sema_tiny 224 b32", cell["status"] == "ok", cell["status"], "ok")
        capped = [reason for reason in cell["disturbances"] if "power cap" in reason]
        yield holds("disturbances by the power cap", not capped, capped or 0, "0: it is a fact of the cell")
    energies = [cell["energy_j_per_image"] for cell in (first, second)]
    yield between("J per image, one run / the other", ratio(*energies), 1 / 1.05, 1.05)


def measure_neighbour(card: Card) -> dict[str, Any]:
    """Count the other processes at work while one computes, and while one only holds a context."""
    context = multiprocessing.get_context("spawn")
    ready, stop, idle = context.Event(), context.Event(), context.Event()
    neighbour = context.Process(target=_neighbour, args=(card, ready, stop, idle, os.getpid()))
    neighbour.start()
    try:
        if not ready.wait(_START_LIMIT_S):
            raise RuntimeError("the neighbour did not start")
        # a separate process watches: descendants of the watching process do not count as others
        with context.Pool(1) as pool:
            busy = pool.apply(_others, (card,))
            stop.set()
            if not idle.wait(_START_LIMIT_S):
                raise RuntimeError("the neighbour did not stop computing")
            time.sleep(card.seconds(3.0))  # NVML's samples of utilisation reach back a second
            holding = pool.apply(_others, (card,))
    finally:
        neighbour.kill()
        neighbour.join()
    return {"beside_work": busy[0], "beside_context": holding[0], "absent": holding[1]}


def _neighbour(card: Card, ready: Event, stop: Event, idle: Event, parent: int) -> None:
    """Compute until ``stop``, then hold the context until this process is killed."""
    die_with_parent(parent)
    product = _product(card)
    ready.set()
    while not stop.is_set():
        _repeat(product, card, 0.1)
    idle.set()
    time.sleep(3600)


def _others(card: Card) -> tuple[int | None, dict[str, str]]:
    """Compute for a while; return the number of other processes that NVML saw at work."""
    product = _product(card)
    product()
    window, absent = _watched(card, lambda: _repeat(product, card, card.seconds(4.0)))
    return window["other_processes"], absent


def judge_neighbour(answers: Answers) -> Iterator[Finding]:
    """Check that work is seen and a context is not."""
    busy, holding = answers["beside_work"], answers["beside_context"]
    yield from not_reported(answers)
    yield between("processes at work beside a busy one", busy, 1, None)
    yield between("beside one that holds a context", holding, 0, 0)
