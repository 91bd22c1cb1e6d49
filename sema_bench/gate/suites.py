"""Which cells a gate has, where base and head each bring a suite: none can be dropped without a word.

The head's suite says what is gated. A cell that only the base's has is a regression: it vanished. And where the base
has a cell, its δ counts: a change does not set its own bar.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sema_bench.errors import SuiteError, UsageError
from sema_bench.gate.run import GateSettings
from sema_bench.machine.cpus import default_threads
from sema_bench.machine.devices import resolve_device
from sema_bench.spec.cell import Cell
from sema_bench.spec.model_source import parse_source
from sema_bench.spec.plan import Plan, build_plan
from sema_bench.spec.suite import GateTable, Suite, check_model, parse_suite, read_toml

#: Makes a suite of what a file holds, with what the command line asks for in it.
Choose = Callable[[Suite], Suite]


@dataclass(frozen=True)
class Gated:
    """What is gated.

    Attributes:
        plan: the cells, of the head's suite.
        table: δ and budget.
        vanished: cells that only the base's suite has.
        notes: what people should know of the two.
    """

    plan: Plan
    table: GateTable
    vanished: tuple[Cell, ...] = ()
    notes: tuple[str, ...] = field(default=())


def gated(head: Suite, base: Path | None, choose: Choose, *, own_delta: bool) -> Gated:
    """Return what a gate of ``head`` has to look at.

    Args:
        head: the suite as the head has it.
        base: the same file in the base; None, or not there: the base has none.
        choose: applies the command line.
        own_delta: whether the command line sets δ.

    Raises:
        UsageError: see ``build_plan``.
    """
    plan, table = _planned(choose(head)), head.gate or GateTable()
    if base is None or not base.is_file():
        return Gated(plan, table)
    try:
        suite, unknown = _read_leniently(base)
    except (SuiteError, OSError, ValueError) as problem:
        return Gated(plan, table, notes=(f"the base's suite cannot be read, so no cell can be missed: {problem}",))
    before, old = _planned(choose(suite)), suite.gate or GateTable()
    cells = [*before.cells, *(_renamed(before.cells, unknown) if choose(suite).models == suite.models else ())]
    here = {_key(cell) for cell in plan.cells}
    vanished = tuple(cell for cell in cells if _key(cell) not in here)
    if own_delta:
        return Gated(plan, table, vanished)
    merged, notes = _with_deltas_of_the_base(table, old, plan.cells, {_key(cell) for cell in cells})
    return Gated(plan, merged, vanished, notes)


def check_files(plan: Plan, root: Path) -> None:
    """Refuse model files that both arms would share.

    Raises:
        UsageError: one is named by an absolute path, or lies outside the repository.
    """
    for cell in plan.cells:
        source = parse_source(cell.model)
        if source.kind != "file":
            continue
        path = Path(source.target)
        if path.is_absolute() or root.resolve() not in path.resolve().parents:
            raise UsageError(
                f"{source.target} is one file for base and head; name a file of the repository, by its relative path"
            )


def _planned(suite: Suite) -> Plan:
    return build_plan(suite, device=resolve_device(suite.device), threads=default_threads())


def _read_leniently(path: Path) -> tuple[Suite, list[str]]:
    """Return a suite with the models that are known here, and the names of the others."""
    body: dict[str, Any] = {"name": "base", **read_toml(path.read_text(encoding="utf-8-sig"))}
    known, unknown = [], []
    for name in body.get("models") or []:
        try:
            check_model(str(name))
        except UsageError:
            unknown.append(str(name))
        else:
            known.append(name)
    return parse_suite({**body, "models": known}, source=f"{path.name} of the base"), unknown


def _renamed(cells: Sequence[Cell], names: Sequence[str]) -> list[Cell]:
    """Return the cells of one model under other names."""
    like = [cell for cell in cells if cell.model == cells[0].model]
    return [dataclasses.replace(cell, model=name) for name in names for cell in like]


def _key(cell: Cell) -> tuple[str, Cell]:
    """What a cell is, whatever edits its model's file has seen."""
    return cell.model.partition("@")[0], dataclasses.replace(cell, model="")


def _with_deltas_of_the_base(
    table: GateTable, old: GateTable, cells: Sequence[Cell], shared: set[tuple[str, Cell]]
) -> tuple[GateTable, tuple[str, ...]]:
    deltas: dict[str, float] = dict(table.deltas)
    notes = []
    for cell in cells:
        name, resolution = cell.model.partition("@")[0], cell.resolution
        mine, before = (GateSettings(delta=each.delta, deltas=each.deltas).delta_of(cell) for each in (table, old))
        if _key(cell) in shared and mine != before:
            deltas[f"{name}@{resolution}"] = before
            notes.append(f"{name} {resolution.label}: δ is {before:.1%} in the base and {mine:.1%} in the head")
    told = (f"{'; '.join(notes)}; the base's counts (--delta sets another)",) if notes else ()
    return table.model_copy(update={"deltas": deltas}), told
