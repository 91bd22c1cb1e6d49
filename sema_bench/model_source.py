"""Where a model comes from: our registry, a Python file, an installed package, or timm. Nothing here runs model code.

Names, as a command line or a suite writes them:

- ``sema_tiny``, ``sema_tiny[linear]``: our registry;
- ``path/to/file.py:build``: the function ``build`` of that file, which returns an ``nn.Module``;
- ``name``: an entry point of the group ``sema_bench.models`` that an installed package declares;
- ``timm:NAME``: a model of timm.

A file is read to see that it defines the function, and is executed by worker processes alone. Its digest becomes a part
of the model's name (``file.py:build@1a2b3c4d``): records of two versions of a file are never taken for one model.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sema.model_name import parse_model_name
from sema.registry import UnknownNameError
from sema_bench.errors import UsageError, printable, unknown_name

ENTRY_POINTS = "sema_bench.models"
#: Our own fixed network, see ``sema_bench.yardstick_network``; another network would get another name.
YARDSTICK = "yardstick-1"
_FILE = re.compile(r"(?P<path>[^@]+\.py):(?P<function>[^:@]*)(?:@(?P<digest>[0-9a-f]{8}))?")
_TIMM_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_LONGEST = 300


@dataclass(frozen=True)
class ModelSource:
    """One model by where it comes from.

    Attributes:
        kind: ``registry``, ``file``, ``entry point``, ``timm`` or ``yardstick``.
        name: what identifies it in records.
        target: path of the file, name of the entry point or of timm's model; the name itself for our registry.
        function: function of a file.
    """

    kind: Literal["registry", "file", "entry point", "timm", "yardstick"]
    name: str
    target: str
    function: str = ""


def parse_source(text: str) -> ModelSource:
    """Return where a model comes from, checked as far as that is possible without running it.

    Raises:
        UsageError: an unknown name, a file that is not there or does not define the function, or one that has changed
            since its digest was taken.
    """
    text = text.strip()
    if not text.isprintable() or len(text) > _LONGEST:
        raise UsageError(f"bad model name {printable(text[:_LONGEST])!r}")
    if text == YARDSTICK:
        return ModelSource("yardstick", text, text)
    if text.startswith("timm:"):
        return _timm(text)
    if match := _FILE.fullmatch(text):
        return _file(text, match)
    if ":" in text or "/" in text or text.endswith(".py"):
        raise UsageError(f"bad model name {text!r}; write NAME, NAME[ATTENTION], path/to/file.py:function or timm:NAME")
    try:
        name = str(parse_model_name(text))
    except UnknownNameError as problem:
        known = entry_points()
        if text in known:
            return ModelSource("entry point", text, text)
        raise UsageError(f"{problem}{'; installed: ' + ', '.join(known) if known else ''}") from None
    except ValueError as problem:
        raise UsageError(str(problem)) from None
    return ModelSource("registry", name, name)


def entry_points() -> dict[str, str]:
    """Return name → target of the models that installed packages declare, without importing them."""
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {point.name: point.value for point in sorted(found, key=lambda point: point.name)}


def _timm(text: str) -> ModelSource:
    name = text.removeprefix("timm:")
    if not _TIMM_NAME.fullmatch(name):
        raise UsageError(f"bad model name {text!r}; write timm:NAME, a name that timm.list_models() gives")
    if importlib.util.find_spec("timm") is None:
        raise UsageError(f"{text!r} needs timm, which is not installed; pip install 'sema-bench[timm]'")
    return ModelSource("timm", text, name)


def _file(text: str, match: re.Match[str]) -> ModelSource:
    path, function = Path(match["path"]), match["function"]
    if not function.isidentifier():
        raise UsageError(f"bad model name {text!r}; after the colon stands a function, as in {path}:build")
    try:
        source = path.read_bytes()
        names = _top_level_names(ast.parse(source))
    except OSError as problem:
        raise UsageError(f"model file {str(path)!r} cannot be read: {problem.strerror}") from None
    except (SyntaxError, ValueError) as problem:
        line = f" (line {problem.lineno})" if isinstance(problem, SyntaxError) and problem.lineno else ""
        raise UsageError(f"model file {str(path)!r} is not valid Python{line}") from None
    if function not in names:
        raise unknown_name(f"function of {path}", function, sorted(names))
    digest = hashlib.sha256(source).hexdigest()[:8]
    if match["digest"] not in (None, digest):
        raise UsageError(f"{path} has changed since this run was planned; start a new run, or bring the old file back")
    return ModelSource("file", f"{path}:{function}@{digest}", str(path), function)


def _top_level_names(module: ast.Module) -> set[str]:
    """Return what a module defines at its top level, as far as it can be read."""
    names: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names
