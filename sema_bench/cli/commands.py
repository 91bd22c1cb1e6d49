"""List the commands. A command's module is imported when the command is called, so ``--help`` stays quick."""

from __future__ import annotations

import importlib
import shlex
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from sema_bench.cli.option_groups import spread
from sema_bench.errors import UsageError
from sema_bench.spec.axes import HOW, LIMITS, MEASURED, RESULTS, WHERE

#: Title → name and help of each line.
Panels = dict[str, list[tuple[str, str]]]

_PANELS = (MEASURED, HOW, LIMITS, RESULTS, WHERE)
#: Short lists of options need no panels.
_FEWEST_PANELS = 3
#: Longer names have their help on the next line.
_WIDEST = 30


class Entry(NamedTuple):
    """One command or group of commands.

    Attributes:
        target: file and function below ``sema_bench.cli``; "" for a group.
        help: its line in the list of commands.
        panel: heading in the list of commands.
    """

    target: str
    help: str
    panel: str = "Commands"


COMMANDS = {
    "scale": Entry("scale:scale", "Sweep models over resolutions: tables, plots, exponents.", "Measure"),
    "run": Entry("run:run", "Run a suite (a TOML file), or resume a run.", "Measure"),
    "plan": Entry("plan:plan", "Print the cells of a run, the memory each needs, and what fits.", "Measure"),
    "train": Entry("train:train", "Train a model.", "Measure"),
    "evaluate": Entry("evaluate:evaluate", "Test a checkpoint on labelled images at each resolution.", "Measure"),
    "compare": Entry("compare:compare", "Compare runs cell by cell, with 95 % intervals.", "Compare"),
    "gate": Entry("", "Fail if, and only if, a change made a model slower.", "Compare"),
    "gate run": Entry("gate_run:gate_run", "Measure two states of the code side by side."),
    "gate stored": Entry("gate_stored:gate_stored", "Compare a run with a stored one."),
    "gate selftest": Entry("gate_selftest:gate_selftest", "Measure how often the gate is right on this machine."),
    "baseline": Entry("", "Save runs to compare with later.", "Compare"),
    "baseline save": Entry("baseline:save", "Copy a run to the baselines, where no later run touches it."),
    "baseline list": Entry("baseline:list_baselines", "List the baselines: cells, date, machine."),
    "baseline show": Entry("baseline:show", "Print the tables of a baseline."),
    "history": Entry("history:history", "List all runs, or follow one cell through them.", "Compare"),
    "show": Entry("show:show", "Print the summary of a run again, or all of its tables.", "Publish"),
    "report": Entry("report:report", "Write one page that works offline: plots and tables.", "Publish"),
    "export": Entry("export:export", "Write runs as CSV, JSON, Markdown, LaTeX, Parquet, ….", "Publish"),
    "ledger": Entry("ledger:ledger", "Count the MACs of one image by module, from three sources.", "Study"),
    "corruption": Entry("corruption:corruption", "Compare errors on corrupted images: mCE and relative mCE.", "Study"),
    "verify": Entry("verify:verify", "Check parameters and MACs against published figures.", "Study"),
    "dispersion": Entry("dispersion:dispersion", "Measure how attention coefficients shrink in large images.", "Study"),
    "maps": Entry("maps:maps", "Draw what one token attends to, and its receptive field.", "Study"),
    "list": Entry("list_names:list_names", "List models, attentions, suites or probes.", "Look up"),
    "env": Entry("env:env", "Describe this machine and its software.", "Look up"),
    "selftest": Entry("selftest:selftest", "Measure how precise timings are on this machine.", "Look up"),
}


class LazyCommand(TyperCommand):
    """A name and a line of help; the command itself is loaded when it is called."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, help=entry.help, rich_markup_mode=None, rich_help_panel=entry.panel)
        self._target = entry.target

    def load(self) -> Any:
        """Import the command."""
        file, _, function = self._target.partition(":")
        command = getattr(importlib.import_module(f"sema_bench.cli.{file}"), function)
        single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        single.command(self.name, cls=PanelledCommand)(spread(command))
        return typer.main.get_command(single)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Load the command and parse its arguments."""
        return self.load().make_context(*args, **kwargs)


class PanelledCommand(TyperCommand):
    """A command whose ``--help`` groups its options in panels, if they fill three or more."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options."""
        panels: Panels = {"Arguments": [], **{panel: [] for panel in _PANELS}, "Options": []}
        for parameter in self.get_params(ctx):
            if line := parameter.get_help_record(ctx):
                is_argument = parameter.param_type_name == "argument"
                panel = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Options"
                panels[panel].append(line)
        if sum(bool(panels[panel]) for panel in _PANELS) < _FEWEST_PANELS:
            lines = [line for panel in _PANELS for line in panels.pop(panel)]
            panels["Options"] = [*panels["Options"][:-1], *lines, *panels["Options"][-1:]]  # --help is the last
        _write_panels(formatter, panels)


class LazyGroup(TyperGroup):
    """The commands of ``COMMANDS`` whose names begin with ``prefix``; each is loaded when it is called."""

    def __init__(self, *, prefix: str = "", **settings: Any) -> None:
        super().__init__(**settings)
        for name, entry in COMMANDS.items():
            before, _, last = name.rpartition(" ")
            if before == prefix:
                self.add_command(LazyCommand(last, entry) if entry.target else _group(name, entry), last)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before a command's name; without a name, raise an error that lists the commands."""
        if not args and not ctx.resilient_parsing:
            raise UsageError(f"{ctx.command_path} takes a command: {', '.join(self.commands)}")
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the names and help lines of the commands, panel by panel."""
        panels: Panels = {}
        for name, command in self.commands.items():
            panels.setdefault(getattr(command, "rich_help_panel", ""), []).append((name, command.help or ""))
        _write_panels(formatter, panels)


class GateGroup(LazyGroup):
    """``gate``, which had options before it had subcommands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the subcommand; for an option in its place, raise an error with the new spelling."""
        old = args and args[0].startswith("-") and args[0] not in ctx.help_option_names
        if old and not ctx.resilient_parsing:
            raise UsageError(f"gate has subcommands now; use: sema-bench gate {shlex.join(_new_spelling(args))}")
        return super().parse_args(ctx, args)


def _new_spelling(args: list[str]) -> list[str]:
    """Put the subcommand before old arguments of ``gate``."""
    words = [word for arg in args for word in (arg.split("=", 1) if arg.startswith("--") else [arg])]
    for option, subcommand in (("--self-test", ["selftest", "--repeats"]), ("--baseline", ["stored"])):
        if option in words[:-1]:
            at = words.index(option)
            return [*subcommand, words[at + 1], *words[:at], *words[at + 2 :]]
    return ["run", *args]


def _group(name: str, entry: Entry) -> TyperGroup:
    cls = GateGroup if name == "gate" else LazyGroup
    return cls(prefix=name, name=name, help=entry.help, rich_markup_mode=None, rich_help_panel=entry.panel)


def _write_panels(formatter: Any, panels: Panels) -> None:
    width = min(_WIDEST, max(len(name) for lines in panels.values() for name, _ in lines))
    for title, lines in panels.items():
        if lines:
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{width}}", text) for name, text in lines])
