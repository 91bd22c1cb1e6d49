"""Group options: a command takes a group as one parameter, ``def scale(*, axes: SweepAxes, where: TargetOptions)``."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from sema_bench.cli.completion import completion_of


class OptionGroup:
    """Options that a command takes as one parameter; ``panel`` is their heading in ``--help``."""

    _panel: ClassVar[str | None] = None

    def __init_subclass__(cls, *, panel: str | None = None) -> None:
        cls._panel = panel

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Make a parameter for each option, annotated for typer."""
        hints = typing.get_type_hints(cls, include_extras=True)
        parameters = []
        for each in dataclasses.fields(cls):  # type: ignore[arg-type]
            kind, option = typing.get_args(hints[each.name])
            option = copy.copy(option)
            option.rich_help_panel = option.rich_help_panel or cls._panel
            parameters.append(parameter(each.name, each.default, Annotated[kind, option]))
        return parameters


def parameter(name: str, default: object, annotation: object) -> inspect.Parameter:
    """Make a keyword-only parameter."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def spread(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace the option groups of ``command`` by one parameter for each of their options."""
    groups: dict[str, type[OptionGroup]] = {}
    parameters: list[inspect.Parameter] = []
    for each in inspect.signature(command, eval_str=True).parameters.values():
        if isinstance(each.annotation, type) and issubclass(each.annotation, OptionGroup):
            groups[each.name] = each.annotation
            parameters += each.annotation.parameters()
        else:
            parameters.append(each.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    for each in parameters:
        *_, option = typing.get_args(each.annotation)
        option.autocompletion = completion_of(each.name, option.metavar)

    def called(**given: Any) -> Any:
        for name, group in groups.items():
            given[name] = group(**{each.name: given.pop(each.name) for each in group.parameters()})
        return command(**given)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called
