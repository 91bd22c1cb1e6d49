"""Declare the options that several commands share, with their panels in ``--help``."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from sema_bench.cli.option_groups import OptionGroup, parameter
from sema_bench.cli.option_values import axis_changes, given, run_target
from sema_bench.errors import UsageError
from sema_bench.spec.axes import LIMITS, RESULTS, WHERE, Axis
from sema_bench.spec.cell import AXES
from sema_bench.spec.target import RunTarget


def _local_folder(out: str | Path) -> Path:
    if "://" in str(out):
        raise UsageError(f"this command cannot write to a URL; give --out a folder, not {out}")
    return Path(out)


Out = Annotated[
    str,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Results folder, or the URL of one, e.g. s3://bucket/results.",
        rich_help_panel=RESULTS,
    ),
]
#: For commands that write on this machine alone.
LocalOut = Annotated[
    Path, typer.Option("--out", metavar="FOLDER", parser=_local_folder, help="Results folder.", rich_help_panel=RESULTS)
]
RunName = Annotated[
    str | None,
    typer.Option("--run", metavar="NAME", help="Name of the run; default: <time>-<suite>.", rich_help_panel=RESULTS),
]
Csv = Annotated[
    str | None, typer.Option("--csv", metavar="FILE", help="Write CSV to FILE; - prints CSV instead of the table.")
]
Json = Annotated[bool, typer.Option("--json", help="Print all rows as a JSON list instead of the table.")]
Details = Annotated[
    bool,
    typer.Option(
        "--details", help="Also print memory, MACs, roofline, exponents, crossovers.", rich_help_panel=RESULTS
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=0, max=256, help="Processes that prepare images; default: spare CPUs."),
]


class AxisOptions(OptionGroup):
    """Options made from the axes of a cell; a subclass names those to include, or to leave out.

    Attributes:
        changes: key of a suite → its value, for the options that were given.
    """

    _axes: ClassVar[dict[str, list[Axis]]]

    def __init_subclass__(cls, *, only: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> None:
        cls._axes = {}
        for axis in AXES.values():
            if axis.option not in without and (not only or axis.option in only):
                cls._axes.setdefault(axis.option.lstrip("-").replace("-", "_"), []).append(axis)

    def __init__(self, **values: Any) -> None:
        self.changes: dict[str, Any] = {}
        for name, axes in self._axes.items():
            if values[name] is not None:
                self.changes |= axis_changes(axes, values[name])

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        return [parameter(name, None, _annotation(axes[0])) for name, axes in cls._axes.items()]


def _annotation(axis: Axis) -> Any:
    """Declare the option of an axis to typer."""
    if axis.type is bool:
        names = f"{axis.option}/--no-{axis.option[2:]}"
        return Annotated[bool | None, typer.Option(names, help=axis.help, rich_help_panel=axis.panel)]
    kind: Any = list[str] if axis.option == "--checkpoint" else str
    option = typer.Option(axis.option, metavar=axis.metavar, help=axis.help, rich_help_panel=axis.panel)
    return Annotated[kind | None, option]


class SweepAxes(AxisOptions):
    """Every axis."""


class PlanAxes(AxisOptions, without=("--data", "--protocol", "--readout", "--corrupt", "--checkpoint")):
    """The axes that decide how much memory a cell needs."""


class EvaluateAxes(AxisOptions, only=("--protocol", "--corrupt", "--device", "--dtype", "--layout", "--threads")):
    """Options of an evaluation."""


class MachineAxes(AxisOptions, only=("--device", "--threads")):
    """The parts of this machine that a suite uses."""


@dataclass(frozen=True, kw_only=True)
class LimitOptions(OptionGroup, panel=LIMITS):
    """Options of precision and time."""

    precision: Annotated[
        float | None,
        typer.Option(metavar="X", help="Sample until the ratio to the first model (its 95 % interval) is within ±X."),
    ] = None
    time_limit: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Sample for SECONDS a cell; what one leaves over goes to others. Building and warm-up may take "
            "10 times that (at least 30 s).",
        ),
    ] = None
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of weights, inputs and the order of cells.")] = (
        None
    )

    @property
    def changes(self) -> dict[str, Any]:
        """Key of a suite → its value, for the options that were given."""
        return given(precision=self.precision, time_limit_s=self.time_limit, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class RunOptions(OptionGroup, panel=RESULTS):
    """Options of the results folder."""

    no_skip: Annotated[
        bool,
        typer.Option(
            "--no-skip", help="Try sizes that are expected to run out of time or memory.", rich_help_panel=LIMITS
        ),
    ] = False
    out: Out = "results"
    run: RunName = None
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Measure the cells that RUN still lacks, with its own plan.")
    ] = None
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: measure again every cell that is not ok.")
    ] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False
    details: Details = False


@dataclass(frozen=True, kw_only=True)
class PlaceOptions(OptionGroup, panel=WHERE):
    """Options that choose the machines that would measure the cells."""

    executor: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Where cells run: local (this machine), ray or slurm; see docs/guide/scaling-out.md."
        ),
    ] = None
    devices: Annotated[
        str | None, typer.Option(metavar="LIST", help="GPUs of this machine to use at once, e.g. 0,1,2.")
    ] = None
    ray_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address of a running Ray cluster; default: start one here.")
    ] = None

    @property
    def target(self) -> RunTarget | None:
        """The target of the run; None if no option was given."""
        return run_target(**dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class TargetOptions(PlaceOptions, panel=WHERE):
    """Options that choose the machines that measure the cells."""

    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY[=VALUE]", help="Option of sbatch, e.g. partition=gpu; may be repeated."),
    ] = None
    jobs: Annotated[int | None, typer.Option(metavar="N", help="Slurm tasks to run at once.")] = None
