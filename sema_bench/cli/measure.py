"""``sema-bench scale`` and ``sema-bench run``: options in, a run out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sema_bench.cli.option_values import checkpoints, common_axes, integers, items, where_from
from sema_bench.cli.output import put_line, put_out
from sema_bench.cli.results import Out, remote_results
from sema_bench.errors import EXIT_FAILED, EXIT_INCOMPLETE, EXIT_OK, UsageError
from sema_bench.machine.interrupts import stop_on_signals
from sema_bench.spec.cell import DTYPES, LAYOUTS, MODES, SDPA_BACKENDS, STEPS
from sema_bench.spec.record import Record
from sema_bench.spec.suite import Suite, check_probe, load_suite, override
from sema_bench.spec.target import RunTarget

Res = Annotated[
    str | None,
    typer.Option(
        "--res",
        metavar="SIZES",
        help="Resolutions: A..B (both, and the papers' ladder between), A..B:STEP, a list, HxW.",
    ),
]
Models = Annotated[
    str | None,
    typer.Option(
        "--models", metavar="LIST", help="Models, e.g. sema_tiny,sema_tiny[linear],timm:resnet18,file.py:build."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:<index>, or meta: count and predict, run nothing."
    ),
]
Batch = Annotated[
    str | None,
    typer.Option(
        "--batch",
        metavar="LIST",
        help="Images per forward pass, e.g. 1 or 1,32; max: the largest power of two that fits.",
    ),
]
DType = Annotated[str | None, typer.Option("--dtype", metavar="LIST", help=f"{', '.join(DTYPES)}.")]
Tf32 = Annotated[bool | None, typer.Option("--tf32/--no-tf32", help="TF32 products in float32 cells (CUDA).")]
Layout = Annotated[str | None, typer.Option("--layout", metavar="LIST", help=f"{', '.join(LAYOUTS)}.")]
Mode = Annotated[
    str | None,
    typer.Option("--mode", metavar="LIST", help=f"How it is run: {', '.join(MODES)}; and what: {', '.join(STEPS)}."),
]
Checkpointing = Annotated[
    bool | None,
    typer.Option(
        "--checkpointing/--no-checkpointing", help="Training computes its blocks again instead of keeping them."
    ),
]
Sdpa = Annotated[
    str | None, typer.Option("--sdpa", metavar="LIST", help=f"Backend of fused attention: {', '.join(SDPA_BACKENDS)}.")
]
Allocator = Annotated[
    str | None,
    typer.Option("--allocator", metavar="LIST", help="C allocator on CPU: retain (keep freed memory) or default."),
]
_Probes = Annotated[
    str | None, typer.Option("--probes", metavar="LIST", help="What to measure; see `sema-bench list probes`.")
]
_Precision = Annotated[
    float | None,
    typer.Option(
        "--precision", metavar="X", help="Sample until the 95 % interval of the median is within ±X (relative)."
    ),
]
_TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        metavar="SECONDS",
        help="Sampling time of one cell at most; 10 times that (30 s at least) with building and warm-up.",
    ),
]
Threads = Annotated[
    str | None,
    typer.Option(
        "--threads", metavar="LIST", help="Intra-op threads of a worker; default: the CPUs this process may use."
    ),
]
_Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Seed of weights, inputs and the order of interleaving.")
]
_Data = Annotated[
    str | None, typer.Option("--data", metavar="DATA", help="Images for the probe accuracy; see sema-bench evaluate.")
]
_Checkpoint = Annotated[
    list[str] | None,
    typer.Option("--checkpoint", metavar="MODEL=FILE", help="Weights of a model; may be repeated."),
]
_Run = Annotated[
    str | None, typer.Option("--run", metavar="NAME", help="Name of the run's folder; default: <UTC time>-<suite>.")
]
_Resume = Annotated[
    str | None, typer.Option("--resume", metavar="RUN", help="Finish what this run still lacks; its plan stands.")
]
_RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="With --resume: also measure again what is not ok.")]
_NoSkip = Annotated[bool, typer.Option("--no-skip", help="Try sizes that are expected to run out of time or memory.")]
Executor = Annotated[
    str | None,
    typer.Option(
        "--executor", metavar="NAME", help="Where cells run: local (this machine), ray or slurm; docs/scaling-out.md."
    ),
]
Devices = Annotated[
    str | None, typer.Option("--devices", metavar="LIST", help="GPUs of this machine to use at once, e.g. 0,1,2.")
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="HOST:PORT", help="A running Ray cluster; without it one is started here."),
]
_Slurm = Annotated[
    list[str] | None,
    typer.Option("--slurm", metavar="KEY[=VALUE]", help="Option of sbatch, e.g. partition=gpu; may be repeated."),
]
_Jobs = Annotated[int | None, typer.Option("--jobs", metavar="N", help="Slurm tasks at once.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]


def scale(
    res: Res = None,
    models: Models = None,
    device: Device = None,
    batch: Batch = None,
    dtype: DType = None,
    tf32: Tf32 = None,
    layout: Layout = None,
    mode: Mode = None,
    checkpointing: Checkpointing = None,
    sdpa: Sdpa = None,
    allocator: Allocator = None,
    probes: _Probes = None,
    precision: _Precision = None,
    time_limit: _TimeLimit = None,
    threads: Threads = None,
    seed: _Seed = None,
    data: _Data = None,
    checkpoint: _Checkpoint = None,
    out: Out = "results",
    run: _Run = None,
    resume: _Resume = None,
    retry_failed: _RetryFailed = False,
    no_skip: _NoSkip = False,
    executor: Executor = None,
    devices: Devices = None,
    ray_address: RayAddress = None,
    slurm: _Slurm = None,
    jobs: _Jobs = None,
    dry_run: _DryRun = False,
) -> None:
    """Sweep models over resolutions; write table, plots and scaling exponents.

    What is not given comes from suites/scaling.toml.
    """
    changes = {
        **common_axes(res, models, device, batch, dtype, tf32, layout, mode, checkpointing, sdpa, allocator, threads),
        "probes": [check_probe(name) for name in items(probes)] if probes is not None else None,
        "precision": precision,
        "time_limit_s": time_limit,
        "seed": seed,
        "data": [data] if data is not None else None,
        "checkpoints": checkpoints(checkpoint),
    }
    given = {key: value for key, value in changes.items() if value is not None}
    target = where_from(executor, devices, ray_address, slurm, jobs)
    if resume is not None:
        _refuse_with_resume(given, run, dry_run)
        _resume(out, resume, retry_failed=retry_failed, skip=not no_skip, target=target)
    chosen = suite_with("scaling", given)
    _start(chosen, out, run, retry_failed=retry_failed, skip=not no_skip, dry_run=dry_run, target=target)


def run(
    suite: Annotated[
        str | None, typer.Argument(help="A suite file, e.g. suites/quick.toml, or the name of one.")
    ] = None,
    device: Device = None,
    threads: Threads = None,
    out: Out = "results",
    run: _Run = None,
    resume: _Resume = None,
    retry_failed: _RetryFailed = False,
    no_skip: _NoSkip = False,
    executor: Executor = None,
    devices: Devices = None,
    ray_address: RayAddress = None,
    slurm: _Slurm = None,
    jobs: _Jobs = None,
    dry_run: _DryRun = False,
) -> None:
    """Run a suite: a TOML file that declares models, resolutions, axes and probes."""
    given = {
        key: value
        for key, value in {"device": device, "threads": integers("--threads", threads)}.items()
        if value is not None
    }
    target = where_from(executor, devices, ray_address, slurm, jobs)
    if resume is not None:
        _refuse_with_resume({**given, **({"suite": suite} if suite else {})}, run, dry_run)
        _resume(out, resume, retry_failed=retry_failed, skip=not no_skip, target=target)
    if suite is None:
        raise UsageError("name a suite to run (see `sema-bench list suites`), or a run with --resume")
    chosen = suite_with(suite, given)
    _start(chosen, out, run, retry_failed=retry_failed, skip=not no_skip, dry_run=dry_run, target=target)


def suite_with(name: str, given: dict[str, Any]) -> Suite:
    """Return the suite ``name`` with ``given`` in place of what it declares."""
    suite = load_suite(name)
    return override(suite, given) if given else suite


def _start(
    suite: Suite,
    out: str,
    run: str | None,
    *,
    retry_failed: bool,
    skip: bool,
    dry_run: bool,
    target: RunTarget | None,
) -> None:
    if retry_failed:
        raise UsageError("--retry-failed belongs to --resume RUN")
    if dry_run:
        if run is not None:
            raise UsageError("--run names a folder, and --dry-run makes none; drop one of them")
        if target is not None or not skip:
            option = "--executor" if target is not None else "--no-skip"
            raise UsageError(
                f"--dry-run prints the cells and runs none; drop {option} (sema-bench plan --executor places them)"
            )
        from sema_bench import run as experiment

        _print_plan(experiment.checked_plan(suite))
        return
    start_run(suite, out, run, skip=skip, target=target)


def start_run(suite: Suite, out: str, run: str | None, *, skip: bool = True, target: RunTarget | None = None) -> None:
    """Run ``suite`` into a new folder, print its tables and exit."""
    from sema_bench import run as experiment

    with stop_on_signals():
        records = experiment.start(
            suite, Path(out), name=run, skip=skip, target=target or RunTarget(), remote=remote_results(out)
        )
    _finish(records)


def _resume(out: str, name: str, *, retry_failed: bool, skip: bool, target: RunTarget | None) -> None:
    from sema_bench import run as experiment

    with stop_on_signals():
        records = experiment.resume(
            Path(out), name, skip=skip, retry_failed=retry_failed, target=target, remote=remote_results(out)
        )
    _finish(records)


def _finish(records: list[Record]) -> None:
    from sema_bench.report.table import render

    put_out(lambda console: render(records, console))
    failed = any(record.status in ("error", "crashed") for record in records)
    raise typer.Exit(EXIT_FAILED if failed else EXIT_OK if records else EXIT_INCOMPLETE)


def _print_plan(plan: Any) -> None:
    from sema_bench.spec import units as fmt

    for cell in plan.cells:
        put_line(cell.id)
    sampling = plan.sampling
    cells, groups = fmt.counted(len(plan.cells), "cell"), fmt.counted(len(plan.groups), "group")
    typer.echo(
        f"{cells} in {groups}; probes: {', '.join(plan.probes)}; at most "
        f"{sampling.time_limit_s:g} s of sampling per cell",
        err=True,
    )


def _refuse_with_resume(given: dict[str, Any], run: str | None, dry_run: bool) -> None:
    """An option that a resumed run would ignore is an error."""
    ignored = [*given, *(["run"] if run else []), *(["dry_run"] if dry_run else [])]
    if ignored:
        name = {"step": "mode"}.get(ignored[0], ignored[0]).removesuffix("_s").replace("_", "-")
        option = name if name == "suite" else f"--{name}"
        raise UsageError(f"--resume continues a run with the plan it was started with; drop {option}")
