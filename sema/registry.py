"""Names to code, lazily: a registry maps a name to ``module:attribute`` and imports it only when it is asked for.

Nothing here imports torch, so that a command line can list and check names in milliseconds.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class UnknownNameError(KeyError):
    """A name that is not in a registry; the message lists the near ones."""

    def __str__(self) -> str:
        return str(self.args[0])


class Option(NamedTuple):
    """A keyword-only parameter as its source declares it: the types of its annotation, and a constant default."""

    types: tuple[str, ...]
    default: object


class Registry:
    """A fixed mapping of names to ``module:attribute`` targets.

    Args:
        kind: what the names stand for, in the singular; used in messages.
        entries: pairs of name and target, in the order in which they are listed.

    Raises:
        ValueError: a name occurs twice, or a target is not ``module:attribute``.
    """

    def __init__(self, kind: str, *entries: tuple[str, str]) -> None:
        self.kind = kind
        self._targets: dict[str, str] = {}
        for name, target in entries:
            if name in self._targets:
                raise ValueError(f"duplicate {kind} {name!r}")
            if target.count(":") != 1:
                raise ValueError(f"{kind} {name!r} has target {target!r}; expected 'module:attribute'")
            self._targets[name] = target

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __len__(self) -> int:
        return len(self._targets)

    def check(self, name: str) -> str:
        """Return ``name`` if it is registered.

        Raises:
            UnknownNameError: it is not; the message names the nearest ones, and all where they are few or none is near.
        """
        if name in self._targets:
            return name
        near = difflib.get_close_matches(name, self._targets, n=3, cutoff=0.5)
        hints = [f"did you mean {' or '.join(repr(n) for n in near)}?"] if near else []
        if not near or len(self._targets) <= 15:
            hints.append(f"known: {', '.join(self._targets)}")
        raise UnknownNameError(f"unknown {self.kind} {name!r}; {' '.join(hints)}")

    def load(self, name: str) -> Any:
        """Import and return what ``name`` stands for."""
        module, attribute = self._targets[self.check(name)].split(":")
        return getattr(importlib.import_module(module), attribute)

    def build(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call what ``name`` stands for; ``options`` are its keyword-only parameters.

        Raises:
            UnknownNameError: no such name.
            TypeError: an option that it does not declare.
        """
        target = self.load(name)
        parameters = inspect.signature(target).parameters.values()
        declared = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        if unknown := next((key for key in options if key not in declared), None):
            known = ", ".join(declared) or "none"
            raise TypeError(f"{self.kind} {name!r} has no option {unknown!r}; declared: {known}")
        return target(*arguments, **options)

    def summary(self, name: str) -> str:
        """Return the first line of the docstring of ``name``'s target, read from its source without importing it."""
        definition = _definition(self._targets[self.check(name)])
        return (ast.get_docstring(definition) or "").partition("\n")[0] if definition else ""

    def options(self, name: str) -> dict[str, Option]:
        """Return the keyword-only parameters of ``name``'s target, read from its source without importing it."""
        return dict(_declared_options(self._targets[self.check(name)]))


@dataclass(frozen=True)
class Preset:
    """The numbers that make one model of a class.

    Attributes:
        target: ``module:class``.
        summary: one sentence for lists of models, without the number of parameters.
        parameters: how many parameters the model has.
        arguments: of the class. One that the class declares keyword-only is a default which users may replace; any
            other is structure and stays as it is.
    """

    target: str
    summary: str
    parameters: int
    arguments: Mapping[str, Any]


class PresetRegistry(Registry):
    """A fixed mapping of names to presets; a preset's options are the keyword-only parameters of its class.

    Args:
        kind: what the names stand for, in the singular; used in messages.
        presets: by name, in the order in which they are listed.
    """

    def __init__(self, kind: str, presets: Mapping[str, Preset]) -> None:
        super().__init__(kind, *((name, preset.target) for name, preset in presets.items()))
        self._presets = dict(presets)

    def preset(self, name: str) -> Preset:
        """Return the preset of that name."""
        return self._presets[self.check(name)]

    def load(self, name: str) -> Callable[..., Any]:
        """Import the preset's class and return a function from options to a model."""
        build, arguments = super().load(name), self.preset(name).arguments
        signature = inspect.signature(build)
        options = [
            parameter.replace(default=arguments.get(parameter.name, parameter.default))
            for parameter in signature.parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        ]
        accepted = signature.replace(parameters=options)

        def model(**options: Any) -> Any:
            return build(**{**arguments, **accepted.bind(**options).kwargs})

        model.__name__ = model.__qualname__ = name
        model.__signature__ = accepted  # type: ignore[attr-defined]
        return model

    def summary(self, name: str) -> str:
        """Return one line: what the model is, and its number of parameters."""
        preset = self.preset(name)
        return f"{preset.summary}; {preset.parameters / 1e6:.1f} M parameters."

    def options(self, name: str) -> dict[str, Option]:
        """Return the options of the preset's class with the preset's defaults, read from the source of the class."""
        arguments = self.preset(name).arguments
        return {
            key: option._replace(default=arguments.get(key, option.default))
            for key, option in super().options(name).items()
        }


@functools.cache
def _declared_options(target: str) -> dict[str, Option]:
    definition = _definition(target)
    if isinstance(definition, ast.ClassDef):
        methods = (node for node in definition.body if isinstance(node, ast.FunctionDef))
        constructor = next((method for method in methods if method.name == "__init__"), None)
        if constructor is None and definition.bases:  # its base, in the same module, has the constructor
            return _declared_options(f"{target.partition(':')[0]}:{ast.unparse(definition.bases[0])}")
        definition = constructor
    if definition is None:
        return {}
    arguments = definition.args
    return {
        argument.arg: Option(
            types=tuple(kind.strip() for kind in ast.unparse(argument.annotation).split("|"))
            if argument.annotation
            else (),
            default=ast.literal_eval(default) if isinstance(default, ast.Constant) else None,
        )
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    }


def _definition(target: str) -> ast.ClassDef | ast.FunctionDef | None:
    module, _, attribute = target.partition(":")
    for node in _source(module):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
            return node
    return None


@functools.cache
def _source(module: str) -> list[ast.stmt]:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return []
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
