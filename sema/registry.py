"""Map names to code: a registry holds ``module:attribute`` for each name and imports it on first use.

Nothing here imports torch, so a command line can list and check names in milliseconds.
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
    """A name that is not in a registry; the message suggests similar names."""

    def __str__(self) -> str:
        return str(self.args[0])


class Option(NamedTuple):
    """A keyword-only parameter in source code: the types of its annotation, and its default if that is a constant."""

    types: tuple[str, ...]
    default: object


class Registry(Mapping[str, str]):
    """Names and their ``module:attribute`` targets, in listing order.

    ``kind`` is what messages call an entry, in the singular. Every method raises ``UnknownNameError`` for a name that
    is not registered.
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

    def __getitem__(self, name: str) -> str:
        return self._targets[self.check(name)]

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def check(self, name: str) -> str:
        """Return ``name``; for an unknown name, the error suggests similar ones and lists all if there are few."""
        if name in self:
            return name
        near = difflib.get_close_matches(name, self, n=3, cutoff=0.5)
        hints = [f"did you mean {' or '.join(repr(n) for n in near)}?"] if near else []
        if not near or len(self) <= 15:
            hints.append(f"known: {', '.join(self)}")
        raise UnknownNameError(f"unknown {self.kind} {name!r}; {' '.join(hints)}")

    def load(self, name: str) -> Any:
        """Import the target of ``name``."""
        module, attribute = self[name].split(":")
        return getattr(importlib.import_module(module), attribute)

    def build(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call the target of ``name``; TypeError for an option that is not one of its keyword-only parameters."""
        declared = self.options(name)
        if unknown := next((key for key in options if key not in declared), None):
            known = ", ".join(declared) or "none"
            raise TypeError(f"{self.kind} {name!r} has no option {unknown!r}; declared: {known}")
        return self.load(name)(*arguments, **options)

    def summary(self, name: str) -> str:
        """Read the first line of the docstring of ``name``'s target from its source, without importing it."""
        return (ast.get_docstring(_definition(self[name])) or "").partition("\n")[0]

    def options(self, name: str) -> dict[str, Option]:
        """Read the keyword-only parameters of ``name``'s target from its source, without importing it."""
        return dict(_declared_options(self[name]))


@dataclass(frozen=True)
class Preset:
    """The numbers that define one model of the class ``target``, ``module:class``.

    ``arguments`` are passed to the class. Keyword-only ones are defaults that users may override; the others are fixed
    structure. ``summary`` is one sentence, without the number of ``parameters``.
    """

    target: str
    summary: str
    parameters: int
    arguments: Mapping[str, Any]


class PresetRegistry(Registry):
    """Names and presets; a preset's options are the keyword-only parameters of its class."""

    def __init__(self, kind: str, presets: Mapping[str, Preset]) -> None:
        super().__init__(kind, *((name, preset.target) for name, preset in presets.items()))
        self._presets = presets

    def preset(self, name: str) -> Preset:
        """Look up the preset of that name."""
        return self._presets[self.check(name)]

    def load(self, name: str) -> Callable[..., Any]:
        """Import the preset's class and return a function that builds the model from options."""
        build, arguments = super().load(name), self.preset(name).arguments
        options = self.options(name).items()
        signature = inspect.Signature(
            [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=option.default) for key, option in options]
        )

        def model(**options: Any) -> Any:
            return build(**{**arguments, **signature.bind(**options).kwargs})

        model.__name__ = model.__qualname__ = name
        model.__signature__ = signature  # type: ignore[attr-defined]
        return model

    def summary(self, name: str) -> str:
        """Describe the model in one line, with its number of parameters."""
        preset = self.preset(name)
        return f"{preset.summary}; {preset.parameters / 1e6:.1f} M parameters."

    def options(self, name: str) -> dict[str, Option]:
        """Read the options of the preset's class, with the preset's defaults, from the source of the class."""
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
        if constructor is None:  # its base has the constructor
            return _declared_options(f"{target.partition(':')[0]}:{ast.unparse(definition.bases[0])}")
        definition = constructor
    options = {}
    for argument, default in zip(definition.args.kwonlyargs, definition.args.kw_defaults, strict=True):
        types = ast.unparse(argument.annotation).split(" | ") if argument.annotation else []
        options[argument.arg] = Option(tuple(types), default.value if isinstance(default, ast.Constant) else None)
    return options


@functools.cache
def _definition(target: str) -> ast.ClassDef | ast.FunctionDef:
    module, _, attribute = target.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
            return node
        if isinstance(node, ast.ImportFrom) and attribute in (alias.name for alias in node.names):
            return _definition(f"{node.module}:{attribute}")
    raise LookupError(f"{module} does not define {attribute}")
