"""``sema-bench gate``: did a change of code make a model slower?"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from sema_bench.cli.gate_selftest import LEVELS, LOADS, run_self_test
from sema_bench.cli.output import check_distinct, put_out
from sema_bench.cli.results import LocalOut
from sema_bench.errors import EXIT_FAILED, EXIT_INCOMPLETE, EXIT_INCONCLUSIVE, EXIT_OK, StoreError, UsageError
from sema_bench.machine.interrupts import stop_on_signals
from sema_bench.spec.model_source import split_models
from sema_bench.spec.suite import GateTable, Suite, load_suite, override, parse_suite

if TYPE_CHECKING:
    from sema_bench.gate.arms import Arm
    from sema_bench.gate.run import GateResult, GateSettings
    from sema_bench.gate.suites import Gated
    from sema_bench.spec.plan import Plan
    from sema_bench.store.loaded_run import LoadedRun


class OnInconclusive(str, Enum):
    """What becomes of a gate that cannot tell."""

    fail = "fail"
    warn = "warn"


def gate(
    base: Annotated[str | None, typer.Option(metavar="REF", help="Git ref of the base, e.g. origin/main.")] = None,
    head: Annotated[
        str | None, typer.Option(metavar="REF", help="Git ref of the head; default: the working tree as it is.")
    ] = None,
    base_python: Annotated[
        str | None, typer.Option(metavar="PYTHON", help="Interpreter with the base installed, in place of --base.")
    ] = None,
    head_python: Annotated[str | None, typer.Option(metavar="PYTHON", help="The same of the head.")] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="RUN", help="Instead of a base: a stored run, or pytest-benchmark's JSON.")
    ] = None,
    head_run: Annotated[
        str | None, typer.Option(metavar="RUN", help="Run to hold against the baseline; default: measured now.")
    ] = None,
    suite: Annotated[str | None, typer.Option(metavar="SUITE", help="Which cells; default: suites/gate.toml.")] = None,
    models: Annotated[str | None, typer.Option(metavar="LIST", help="Only these models …")] = None,
    res: Annotated[str | None, typer.Option(metavar="SIZES", help="… at these sizes.")] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu or cuda:<index>.")] = None,
    delta: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Slowdown that is not accepted; 0.03 is 3 %.")
    ] = None,
    budget_s: Annotated[
        float | None, typer.Option("--budget-s", metavar="SECONDS", min=1, help="Begin no batch after that.")
    ] = None,
    on_inconclusive: Annotated[
        OnInconclusive, typer.Option(help="Exit code of a gate that cannot tell: 3, or 0 with a warning.")
    ] = OnInconclusive.fail,
    json_path: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Verdicts and evidence.")] = None,
    markdown: Annotated[str | None, typer.Option(metavar="FILE", help="A comment for the change.")] = None,
    junit: Annotated[str | None, typer.Option(metavar="FILE", help="JUnit XML.")] = None,
    self_test: Annotated[
        int, typer.Option("--self-test", metavar="N", min=0, max=1000, help="Instead: N gates of known truth a level.")
    ] = 0,
    levels: Annotated[
        str | None, typer.Option(metavar="LIST", help=f"Slowdowns of the self-test, as shares; default: {LEVELS}.")
    ] = None,
    loads: Annotated[str | None, typer.Option(metavar="LIST", help=f"Its loads; default: {LOADS}.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where its evidence goes, gate by gate; begun, it is gone on with."),
    ] = None,
    out: LocalOut = Path("results"),
) -> None:
    """Compare two states of the code side by side; fail when a model became slower, and only then.

    Exit codes: 0 PASS, 1 REGRESSION, 2 wrong usage, 3 INCONCLUSIVE, 4 INCOMPLETE.
    """
    from sema_bench.gate.arms import check_arms
    from sema_bench.gate.run import Gate
    from sema_bench.machine.cpus import check_threads, default_threads
    from sema_bench.machine.devices import resolve_device
    from sema_bench.spec.plan import build_plan

    outputs = {"json_path": json_path, "markdown": markdown, "junit": junit}
    paths = [path for path in outputs.values() if path]
    check_distinct(paths)
    if baseline is not None:
        given: dict[str, object] = {
            "--base": base,
            "--head": head,
            "--base-python": base_python,
            "--head-python": head_python,
        }
        given |= {"--suite": suite, "--models": models, "--res": res, "--device": device, "--budget-s": budget_s}
        given |= {"--self-test": self_test or None, "--levels": levels, "--loads": loads, "--trace": trace}
        if other := next((name for name, value in given.items() if value is not None), None):
            raise UsageError(f"the cells of --baseline are those that were stored; drop {other}")
        result = _against_stored(out, baseline, head_run, delta)
        _put_out(result, **outputs)
        raise typer.Exit(_exit_code(result.verdict, on_inconclusive))
    if head_run:
        raise UsageError("--head-run is held against a stored run; give --baseline, or drop it")
    path = suite or _suite_of_the_repository()

    def choose(found: Suite) -> Suite:
        return _changed(found, models=models, res=res, device=device)

    chosen = choose(load_suite(path))
    check_threads(chosen.threads or ())
    planned = build_plan(chosen, device=resolve_device(chosen.device), threads=default_threads())
    if any(cell.batch_policy == "max" for cell in planned.cells):
        raise UsageError("a gate compares the same work; give --batch a number in the suite, not max")
    if self_test:
        if base or head or base_python or head_python:
            raise UsageError("--self-test compares this code with itself; drop the refs")
        if paths:
            raise UsageError(f"a self-test writes no verdicts; drop {paths[0]}, and give --trace FILE for its evidence")
        settings = _settings(
            chosen.gate or GateTable(), planned, delta=delta, budget_s=budget_s, some=bool(models or res)
        )
        with stop_on_signals(), _told() as told:
            well = run_self_test(planned, settings, self_test, levels or LEVELS, loads or LOADS, trace, told)
        raise typer.Exit(EXIT_OK if well else EXIT_FAILED)
    if levels or loads or trace:
        raise UsageError("--levels, --loads and --trace are of --self-test; give that, or drop them")
    with stop_on_signals(), _arms(base, head, base_python, head_python) as arms, _told() as told:
        found = _gated(path, arms, choose, head=head, own_delta=delta is not None)
        settings = _settings(found.table, found.plan, delta=delta, budget_s=budget_s, some=bool(models or res))
        check_arms(arms, found.plan.cells[0], told)
        for note in found.notes:
            typer.echo(note, err=True)
        result = Gate(
            arms[0],
            arms[1],
            found.plan.cells,
            sampling=found.plan.sampling,
            settings=settings,
            told=told,
            vanished=found.vanished,
        ).run()
    _put_out(result, **outputs)
    raise typer.Exit(_exit_code(result.verdict, on_inconclusive))


def _suite_of_the_repository() -> str:
    """Return suites/gate.toml of the repository in which the gate runs, or the one that comes with the project."""
    from sema_bench.errors import WorkerError
    from sema_bench.gate.arms import root_of

    usual = "suites/gate.toml"
    with contextlib.suppress(UsageError, WorkerError):
        if (found := root_of(Path()) / usual).is_file():
            return str(found)
    return usual


def _gated(
    path: str, arms: Sequence[Arm], choose: Callable[[Suite], Suite], *, head: str | None, own_delta: bool
) -> Gated:
    """Return what is gated: what the suites of both arms have, where they are refs that have one."""
    from sema_bench.gate.arms import root_of
    from sema_bench.gate.suites import check_files, gated

    if arms[0].folder is None or arms[1].folder is None:
        return gated(load_suite(path), None, choose, own_delta=own_delta)
    root = root_of(Path()).resolve()
    file = Path(path).resolve()
    inside = file.relative_to(root) if root in file.parents else None
    in_base, in_head = (None if inside is None else (arm.folder or root) / inside for arm in arms)
    of_head = load_suite(str(in_head)) if head and in_head and in_head.is_file() else load_suite(path)
    found = gated(of_head, in_base, choose, own_delta=own_delta)
    check_files(found.plan, root)
    return found


def _changed(suite: Suite, **changes: Any) -> Suite:
    given = {key: value for key, value in changes.items() if value is not None}
    if "models" in given:
        given["models"] = split_models(given["models"])
    return override(suite, given)


def _against_stored(out: Path, baseline: str, head_run: str | None, delta: float | None) -> GateResult:
    """Hold a run, measured now if none is named, against a stored one."""
    from sema_bench import run as experiment
    from sema_bench.gate.run import GateSettings
    from sema_bench.gate.stored import judge_stored, machine_difference
    from sema_bench.machine.environment import capture
    from sema_bench.store.baselines import load_baseline
    from sema_bench.store.files import utc_now
    from sema_bench.store.load import load_run, with_records
    from sema_bench.store.loaded_run import LoadedRun

    stored = load_baseline(out, baseline)
    _refuse_damaged(stored)
    body = stored.metadata.get("suite")
    try:
        table = GateTable.model_validate((body.get("gate") if isinstance(body, dict) else None) or {})
    except ValidationError as problem:
        raise StoreError(
            f"run.json of {stored.name} has no [gate] that can be read: {problem.errors()[0]['msg']}"
        ) from None
    settings = GateSettings(delta=_checked_delta(delta) or table.delta, deltas=table.deltas)
    if head_run is not None:
        head = with_records(load_run(out, head_run), head_run)
        _refuse_damaged(head)
    else:
        if not isinstance(body, dict):
            raise UsageError(f"{stored.name} does not say how it was measured; give --head-run")
        suite = parse_suite(body, source=stored.name)
        here = capture()
        now = LoadedRun("now", stored.records, here.hardware, here.software)
        if machine_difference(stored, now):
            typer.echo(f"nothing is measured: this is another machine than that of {stored.name}", err=True)
            return judge_stored(stored, now, settings)
        name = f"{re.sub('[-:]', '', utc_now())}-gate"
        with stop_on_signals():
            experiment.start(suite, out, name=name, skip=True)
        head = load_run(out, name)
    return judge_stored(stored, head, settings)


def _refuse_damaged(run: LoadedRun) -> None:
    """Refuse a run of which something is missing that was measured.

    Raises:
        StoreError: lines of it are no records.
    """
    if run.unreadable:
        raise StoreError(
            f"{run.unreadable} lines of {run.name} are no records, so cells are missing that were measured"
        )


def _settings(
    table: GateTable, planned: Plan, *, delta: float | None, budget_s: float | None, some: bool
) -> GateSettings:
    """Return how a gate decides; ``some``: the command line may have chosen some of the suite's cells."""
    import math

    from sema_bench.gate.run import GateSettings

    names = {cell: cell.model.partition("@")[0] for cell in planned.cells}
    known = {name for cell in planned.cells for name in (names[cell], f"{names[cell]}@{cell.resolution}")}
    if not some and (other := sorted(set(table.deltas) - known)):
        raise UsageError(f"[gate] deltas: {other[0]!r} is no cell of this suite; write model or model@224x224")
    budget = budget_s or table.budget_s or math.inf
    return GateSettings(delta=_checked_delta(delta) or table.delta, deltas=table.deltas, budget_s=budget)


def _checked_delta(delta: float | None) -> float | None:
    if delta is not None and not 0.005 <= delta <= 1:
        raise UsageError(f"--delta is a share from 0.005 to 1, as 0.03 for 3 %; got {delta:g}")
    return delta


@contextlib.contextmanager
def _arms(base: str | None, head: str | None, base_python: str | None, head_python: str | None) -> Iterator[list[Arm]]:
    from sema_bench.gate.arms import arm_of_python, arms_of_refs, is_dirty, with_compiler_caches

    if base_python or head_python:
        if base or head or not (base_python and head_python):
            raise UsageError("give --base-python and --head-python, both and no refs, or --base REF")
        pair = [arm_of_python("base", base_python), arm_of_python("head", head_python)]
        with with_compiler_caches(pair) as arms:
            yield arms
        return
    if not base:
        raise UsageError("what is the base? give --base REF, e.g. --base origin/main, or --base-python")
    here = Path()
    if head and is_dirty(here):
        typer.echo(f"the working tree has changes that are not committed; the head is {head} without them", err=True)
    with arms_of_refs(here, base, head) as refs, with_compiler_caches(refs) as arms:
        yield arms


@contextlib.contextmanager
def _told() -> Iterator[Callable[[str], None]]:
    """Show what is going on: one line that changes in a terminal, a line for each batch elsewhere."""
    from rich.status import Status
    from rich.text import Text

    from sema_bench.text.console import StderrConsole

    console = StderrConsole(stderr=True)
    if console.is_terminal:
        with Status("", console=console) as status:
            yield lambda line: status.update(Text(line))
        return
    before = ""

    def tell(line: str) -> None:
        nonlocal before
        part = line.partition(": ")[0] if "batch" in line else line
        if part != before:
            typer.echo(part, err=True)
        before = part

    yield tell


def _put_out(result: GateResult, *, json_path: str | None, markdown: str | None, junit: str | None) -> None:
    from sema_bench.gate.ci import gate_junit, github_annotations, write_step_summary
    from sema_bench.gate.report import gate_markdown, print_gate
    from sema_bench.gate.run import result_to_json

    texts: dict[str | None, Callable[[], str]] = {
        json_path: lambda: json.dumps(result_to_json(result), indent=1) + "\n",
        markdown: lambda: gate_markdown(result),
        junit: lambda: gate_junit(result),
    }
    if "-" in texts:
        put_out(lambda console: None, path="-", text=texts["-"])
    else:
        put_out(lambda console: print_gate(result, console))
    for path, text in texts.items():
        if path and path != "-":
            put_out(lambda console: None, path=path, text=text)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        stream = sys.stderr if "-" in texts else sys.stdout
        for line in github_annotations(result):
            print(line, file=stream)
        write_step_summary(result)


def _exit_code(verdict: str, on_inconclusive: OnInconclusive) -> int:
    from sema_bench.gate.rule import INCONCLUSIVE, PASS, REGRESSION

    if verdict == INCONCLUSIVE and on_inconclusive is OnInconclusive.warn:
        typer.echo("warning: the gate is INCONCLUSIVE, and passes because of --on-inconclusive warn", err=True)
        return EXIT_OK
    codes = {PASS: EXIT_OK, REGRESSION: EXIT_FAILED, INCONCLUSIVE: EXIT_INCONCLUSIVE}
    return codes.get(verdict, EXIT_INCOMPLETE)
