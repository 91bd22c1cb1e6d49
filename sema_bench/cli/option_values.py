"""What the values of options mean: lists, batches, checkpoints, where cells run."""

from __future__ import annotations

import re
from typing import Any

from sema_bench.errors import UsageError, unknown_name
from sema_bench.spec.cell import ALLOCATORS, DTYPES, LAYOUTS, MODES, SDPA_BACKENDS, STEPS
from sema_bench.spec.model_source import split_models
from sema_bench.spec.suite import MAX_CELLS, check_model
from sema_bench.spec.target import EXECUTORS, RunTarget


def where_from(
    executor: str | None,
    devices: str | None = None,
    ray_address: str | None = None,
    slurm: list[str] | None = None,
    jobs: int | None = None,
) -> RunTarget | None:
    """Return what the options say of where cells run; None where none was given."""
    if (executor, devices, ray_address, slurm, jobs) == (None,) * 5:
        return None
    if executor is not None and executor not in EXECUTORS:
        raise unknown_name("executor", executor, EXECUTORS)
    pairs = [text.lstrip("-").partition("=") for text in slurm or []]
    if odd := [text for text in slurm or [] if not text.isprintable()]:  # a line of its own in the job's script
        raise UsageError(f"--slurm takes one option of sbatch in one line; got {odd[0]!r}")
    if odd := [key for key, _, _ in pairs if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", key)]:
        raise UsageError(f"--slurm takes an option of sbatch such as partition=gpu or exclusive; got {odd[0]!r}")
    return RunTarget(
        executor=executor or ("ray" if ray_address else "slurm" if slurm or jobs else "local"),
        devices=tuple(integers("--devices", devices) or ()),
        ray_address=ray_address,
        slurm={key: value for key, _, value in pairs},
        jobs=jobs,
    )


def items(text: str) -> list[str]:
    """Return the comma-separated parts of an option.

    Raises:
        UsageError: there are none, or one is empty.
    """
    found = [piece.strip() for piece in text.split(",")]
    if not all(found):
        raise UsageError(f"an item of the list {text!r} is empty; write A,B,C")
    return found


def choices(kind: str, text: str | None, known: tuple[str, ...]) -> list[str] | None:
    """Return the comma-separated words of an option, each of them known; None where it was not given."""
    if text is None:
        return None
    for item in items(text):
        if item not in known:
            raise unknown_name(kind, item, known)
    return items(text)


def common_axes(
    res: str | None,
    models: str | None,
    device: str | None,
    batch: str | None,
    dtype: str | None,
    tf32: bool | None,
    layout: str | None,
    mode: str | None,
    checkpointing: bool | None,
    sdpa: str | None,
    allocator: str | None,
    threads: str | None,
) -> dict[str, Any]:
    """Return what the options that several commands share change in a suite; None where one was not given."""
    return {
        "res": res,
        "models": None if models is None else model_names(models),
        "device": device,
        "batch": batches(batch),
        "dtype": choices("dtype", dtype, DTYPES),
        "tf32": None if tf32 is None else [tf32],
        "layout": choices("layout", layout, LAYOUTS),
        **modes(mode),
        "checkpointing": None if checkpointing is None else [checkpointing],
        "sdpa": choices("sdpa backend", sdpa, SDPA_BACKENDS),
        "allocator": choices("allocator", allocator, ALLOCATORS),
        "threads": integers("--threads", threads),
    }


def model_names(text: str) -> list[str]:
    """Return the models of ``--models``, each in its canonical form.

    Raises:
        UsageError: one is unknown, or there are more than a run takes.
    """
    names = split_models(text)
    if len(names) > MAX_CELLS:
        raise UsageError(f"--models: {len(names):,} are too many for one run; it takes {MAX_CELLS:,} cells")
    return [check_model(name) for name in names]


def modes(text: str | None) -> dict[str, list[str] | None]:
    """Return what ``--mode`` says of two axes: how a cell is run, and whether it is a training step.

    Raises:
        UsageError: an unknown word, or one that is given twice.
    """
    words = choices("mode", text, (*MODES, *STEPS)) or []
    if repeated := next((word for word in words if words.count(word) > 1), None):
        raise UsageError(f"--mode: {repeated!r} occurs twice")
    return {"mode": [w for w in words if w in MODES] or None, "step": [w for w in words if w in STEPS] or None}


def checkpoints(given: list[str] | None) -> dict[str, str] | None:
    """Return model → file of ``--checkpoint``; the first ``=`` outside brackets parts them."""
    if given is None:
        return None
    found = {}
    for text in given:
        match = re.fullmatch(r"((?:[^\[=]|\[[^\]]*\])+)=(.+)", text)
        if match is None:
            raise UsageError(f"--checkpoint takes MODEL=FILE; got {text!r}")
        name = check_model(match[1])
        if name in found:
            raise UsageError(f"--checkpoint gives weights of {name} twice; drop one")
        found[name] = match[2]
    return found


def batches(text: str | None) -> list[int | str] | None:
    """Return the batches of ``--batch``: whole numbers, and ``max``."""
    if text is None:
        return None
    return [
        number for item in items(text) for number in (["max"] if item == "max" else integers("--batch", item) or [])
    ]


def integers(option: str, text: str | None) -> list[int] | None:
    """Return the comma-separated whole numbers of an option; None where it was not given."""
    if text is None:
        return None
    try:
        return [int(item) for item in items(text)]
    except ValueError:
        raise UsageError(f"{option} takes whole numbers such as 1 or 1,32; got {text!r}") from None
