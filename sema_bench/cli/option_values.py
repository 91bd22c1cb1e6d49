"""Parse the values of options: lists, batches, checkpoints, where cells run."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from sema_bench.errors import UsageError, unknown_name
from sema_bench.spec.axes import Axis
from sema_bench.spec.cell import check_model
from sema_bench.spec.model_source import split_models
from sema_bench.spec.resolution import Resolution, sizes_of
from sema_bench.spec.suite import MAX_CELLS
from sema_bench.spec.target import EXECUTORS, RunTarget


def run_target(
    executor: str | None,
    devices: str | None = None,
    ray_address: str | None = None,
    slurm: list[str] | None = None,
    jobs: int | None = None,
) -> RunTarget | None:
    """Read where cells run from the options; None if none was given."""
    if (executor, devices, ray_address, slurm, jobs) == (None,) * 5:
        return None
    if executor is not None and executor not in EXECUTORS:
        raise unknown_name("executor", executor, EXECUTORS)
    pairs = [text.lstrip("-").partition("=") for text in slurm or []]
    if odd := [text for text in slurm or [] if not text.isprintable()]:  # each becomes one line of the job's script
        raise UsageError(f"--slurm takes one option of sbatch on one line; got {odd[0]!r}")
    if odd := [key for key, _, _ in pairs if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", key)]:
        raise UsageError(f"--slurm takes an option of sbatch such as partition=gpu or exclusive; got {odd[0]!r}")
    return RunTarget(
        executor=executor or ("ray" if ray_address else "slurm" if slurm or jobs else "local"),
        devices=() if devices is None else tuple(integers("--devices", devices)),
        ray_address=ray_address,
        slurm={key: value for key, _, value in pairs},
        jobs=jobs,
    )


def numbers(option: str, text: str, *, takes: str, check: Callable[[list[float]], bool]) -> list[float]:
    """Parse numbers that pass ``check``; the error says what the option ``takes``."""
    with contextlib.suppress(ValueError):
        values = [float(word) for word in text.split(",")]
        if check(values):
            return values
    raise UsageError(f"{option} takes {takes}; got {text!r}")


def items(text: str) -> list[str]:
    """Split the comma-separated parts of an option."""
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(pieces):
        raise UsageError(f"an item of the list {text!r} is empty; write A,B,C")
    return pieces


def given(**values: Any) -> dict[str, Any]:
    """Drop the values of options that were not given."""
    return {name: value for name, value in values.items() if value is not None}


def axis_changes(axes: Sequence[Axis], value: Any) -> dict[str, Any]:
    """Map keys of a suite to their new values, for one option.

    Args:
        axes: the axes that share the option; each takes the words that are among its choices.
        value: text; a list if the option may be repeated; a bool for a switch.
    """
    first = axes[0]
    if parse := _PARSERS.get(first.option):
        return {first.suite_key: parse(value)}
    if not first.crossed:
        return {first.suite_key: value}
    if first.type is int:
        return {first.suite_key: integers(first.option, value)}
    if not first.choices:
        return {first.suite_key: [value]}
    words, known = items(value), [word for axis in axes for word in axis.choices]
    for word in words:
        if word not in known:
            raise unknown_name(first.option.lstrip("-"), word, known)
        if words.count(word) > 1:
            raise UsageError(f"{first.option}: {word!r} occurs twice")
    chosen = {axis.suite_key: [word for word in words if word in axis.choices] for axis in axes}
    return {key: words for key, words in chosen.items() if words}


def model_names(text: str) -> list[str]:
    """Parse the models of ``--models`` into their canonical names."""
    names = split_models(text)
    if len(names) > MAX_CELLS:
        raise UsageError(f"--models: {len(names):,} are too many; a run takes {MAX_CELLS:,} cells")
    return [check_model(name) for name in names]


def checkpoints(options: list[str]) -> dict[str, str]:
    """Map each model of ``--checkpoint`` to its file; the first ``=`` outside brackets separates them."""
    files = {}
    for text in options:
        match = re.fullmatch(r"((?:[^\[=]|\[[^\]]*\])+)=(.+)", text)
        if match is None:
            raise UsageError(f"--checkpoint takes MODEL=FILE; got {text!r}")
        name = check_model(match[1])
        if name in files:
            raise UsageError(f"--checkpoint gives weights of {name} twice; drop one")
        files[name] = match[2]
    return files


def batches(text: str) -> list[int | str]:
    """Parse the batches of ``--batch``: whole numbers, and ``max``."""
    return [number for item in items(text) for number in (["max"] if item == "max" else integers("--batch", item))]


def one_size(text: str, claim: str, *, task: str = "classify") -> Resolution:
    """Parse ``--res`` of a command that takes one size; ``claim`` says so, as in "ledger takes one size"."""
    sizes = sizes_of(text, task)
    if len(sizes) != 1:
        raise UsageError(f"--res: {claim}; got {len(sizes)} ({text!r})")
    return sizes[0]


def integers(option: str, text: str) -> list[int]:
    """Parse the comma-separated whole numbers of an option."""
    try:
        return [int(item) for item in items(text)]
    except ValueError:
        raise UsageError(f"{option} takes whole numbers such as 1 or 1,32; got {text!r}") from None


#: Option → parser, for axes whose values have their own syntax.
_PARSERS: dict[str, Callable[[Any], Any]] = {
    "--models": model_names,
    "--batch": batches,
    "--corrupt": items,
    "--checkpoint": checkpoints,
}
