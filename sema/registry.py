"""Names to code, lazily: a registry maps a name to ``module:attribute`` and imports it only when it is asked for.

Nothing here imports torch, so that a command line can list and check names in milliseconds.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
from collections.abc import Iterator
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
        self._options: dict[str, dict[str, Option]] = {}
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

    def summary(self, name: str) -> str:
        """Return the first line of the docstring of ``name``'s target, read from its source without importing it."""
        definition = self._definition(name)
        return (ast.get_docstring(definition) or "").partition("\n")[0] if definition else ""

    def options(self, name: str) -> dict[str, Option]:
        """Return the keyword-only parameters of ``name``'s target, read from its source without importing it."""
        if name not in self._options:
            self._options[name] = self._declared(name)
        return self._options[name]

    def _declared(self, name: str) -> dict[str, Option]:
        definition = self._definition(name)
        if isinstance(definition, ast.ClassDef):
            methods = (node for node in definition.body if isinstance(node, ast.FunctionDef))
            definition = next((method for method in methods if method.name == "__init__"), None)
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

    def _definition(self, name: str) -> ast.ClassDef | ast.FunctionDef | None:
        module, attribute = self._targets[self.check(name)].split(":")
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return None
        for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
                return node
        return None
