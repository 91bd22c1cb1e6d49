"""Find the cells of a gate if base and head each bring a suite: none can be dropped silently.

The head's suite says what is gated. A cell that only the base's has is a regression: it vanished. If the base has a
cell, its δ counts: a change does not set its own bar.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sema_bench.errors import SuiteError, UsageError, WorkerError
from sema_bench.gate.arms import Arm, root_of
from sema_bench.machine.cpus import default_threads
from sema_bench.machine.devices import card_of, resolve_device
from sema_bench.spec.cell import Cell, check_model
from sema_bench.spec.model_source import parse_source
from sema_bench.spec.plan import Plan, build_plan
from sema_bench.spec.suite import GateTable, Suite, load_suite, parse_suite, read_toml

#: Applies the command line to a suite.
Choose = Callable[[Suite], Suite]


@dataclass(frozen=True)
class Gated:
    """The cells of the head's suite, their δ and budget, those that only the base's suite has, and notes."""

    plan: Plan
    table: GateTable
    vanished: tuple[Cell, ...] = ()
    notes: tuple[str, ...] = ()


def gated(head: Suite, base: Path | None, choose: Choose, *, own_delta: bool) -> Gated:
    """Plan a gate of the suite ``head``; ``base`` is the same file in the base, None or missing if it has none.

    ``own_delta``: the command line sets δ, so the base's does not count.
    """
    plan, table = planned(choose(head)), head.gate or GateTable()
    if base is None or not base.is_file():
        return Gated(plan, table)
    try:
        suite, unknown = _read_leniently(base)
    except (SuiteError, OSError, ValueError) as problem:
        return Gated(
            plan, table, notes=(f"the base's suite cannot be read, so vanished cells go unnoticed: {problem}",)
        )
    chosen = choose(suite)
    cells = planned(chosen).cells
    if chosen.models == suite.models:  # models that are unknown here get the cells of a known one
        like = [cell for cell in cells if cell.model == cells[0].model]
        cells += tuple(dataclasses.replace(cell, model=name) for name in unknown for cell in like)
    in_head, in_base = ({_key(cell) for cell in each} for each in (plan.cells, cells))
    vanished = tuple(cell for cell in cells if _key(cell) not in in_head)
    if own_delta:
        return Gated(plan, table, vanished)
    shared = [cell for cell in plan.cells if _key(cell) in in_base]
    table, notes = _with_deltas_of_base(table, suite.gate or GateTable(), shared)
    return Gated(plan, table, vanished, notes)


def check_files(plan: Plan, root: Path) -> None:
    """Refuse model files that both arms would share: with an absolute path, or outside the repository."""
    for cell in plan.cells:
        source = parse_source(cell.model)
        path = Path(source.target)
        if source.kind == "file" and (path.is_absolute() or root.resolve() not in path.resolve().parents):
            raise UsageError(f"base and head share {source.target}; name a file of the repository by its relative path")


def gated_by_arms(path: str, arms: tuple[Arm, Arm], choose: Choose, *, ref: str | None, own_delta: bool) -> Gated:
    """Plan a gate of two arms as ``gated`` does, from the suites of both at ``path`` if both are refs that have one.

    ``ref`` is that of the head; None is the working tree.
    """
    base, head = (arm.folder for arm in arms)
    if base is None or head is None:
        return gated(load_suite(path), None, choose, own_delta=own_delta)
    root, file = root_of(Path()).resolve(), Path(path).resolve()
    inside = file.relative_to(root) if root in file.parents else None
    in_head = head / inside if ref and inside else None
    suite = load_suite(str(in_head if in_head and in_head.is_file() else path))
    both = gated(suite, base / inside if inside else None, choose, own_delta=own_delta)
    check_files(both.plan, root)
    return both


def suite_of_the_repository() -> str:
    """Return suites/gate.toml of the repository in which the gate runs, or the one that comes with the project."""
    usual = "suites/gate.toml"
    with contextlib.suppress(UsageError, WorkerError):
        if (file := root_of(Path()) / usual).is_file():
            return str(file)
    return usual


def settings_of(table: GateTable, plan: Plan, *, delta: float | None, budget_s: float | None, some: bool) -> GateTable:
    """Combine [gate] of a suite with ``delta`` and ``budget_s`` of the command line, which take precedence.

    Unless ``plan`` has only ``some`` cells of the suite, a δ for another cell raises UsageError.
    """
    known = {name for cell in plan.cells for name in (_name(cell), f"{_name(cell)}@{cell.resolution}")}
    if not some and (other := sorted(set(table.deltas) - known)):
        raise UsageError(f"[gate] deltas: {other[0]!r} is not a cell of this suite; write model or model@224x224")
    return table.model_copy(update={"delta": delta or table.delta, "budget_s": budget_s or table.budget_s})


def planned(suite: Suite) -> Plan:
    """Plan ``suite`` for this machine."""
    device = resolve_device(suite.device)
    return build_plan(suite, device=device, threads=default_threads(), card=card_of(device))


def _read_leniently(path: Path) -> tuple[Suite, list[str]]:
    """Read a suite; return it with only the models that are known here, and the names of the others."""
    body: dict[str, Any] = {"name": "base", **read_toml(path.read_text(encoding="utf-8-sig"))}
    known, unknown = [], []
    for name in body.get("models") or []:
        try:
            check_model(str(name))
            known.append(name)
        except UsageError:
            unknown.append(str(name))
    return parse_suite({**body, "models": known}, source=f"{path.name} of the base"), unknown


def _name(cell: Cell) -> str:
    """Return the model without the digest of its file: an edited file is the same model."""
    return cell.model.partition("@")[0]


def _key(cell: Cell) -> Cell:
    return dataclasses.replace(cell, model=_name(cell))


def _with_deltas_of_base(table: GateTable, old: GateTable, shared: Iterable[Cell]) -> tuple[GateTable, tuple[str, ...]]:
    """Put the base's δ of each shared cell into the head's table, and note where they differ."""
    deltas = dict(table.deltas)
    notes = []
    for cell in shared:
        name, size = _name(cell), cell.resolution
        mine, before = table.delta_of(cell), old.delta_of(cell)
        if mine != before:
            deltas[f"{name}@{size}"] = before
            notes.append(f"{name} {size.label}: δ is {before:.1%} in the base and {mine:.1%} in the head")
    text = (f"{'; '.join(notes)}; the base's counts (--delta sets another)",) if notes else ()
    return table.model_copy(update={"deltas": deltas}), text
