"""Parse the model names of command lines and suites without running any model code.

- ``sema_tiny``, ``sema_tiny[linear]``: our registry;
- ``path/to/file.py:build``: the function ``build`` of that file, which returns an ``nn.Module``;
- ``name``: an entry point of the group ``sema_bench.models`` that an installed package declares;
- ``timm:NAME``, ``timm:NAME[option=value]``, ``timm:hf_hub:ORG/NAME``: a model of timm;
- ``torchvision:NAME``: a classifier of torchvision, with options in the same way.

Only worker processes execute a file. The digest of its code, with the neighbours that it imports, becomes a part of
the model's name (``file.py:build@1a2b3c4d``), so that two versions of a file are never taken for one model.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import re
import symtable
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sema.model_name import OptionValue, parse_model_name
from sema.models import MODELS
from sema.registry import UnknownNameError
from sema_bench.errors import UsageError, unknown_name
from sema_bench.spec.files import check_regular_file, expand_user, similar_file
from sema_bench.spec.model_code import code_of_file, code_of_module
from sema_bench.text.escape import printable

ENTRY_POINTS = "sema_bench.models"
#: Key of run.json: model → the packages that its code comes from.
PACKAGES = "model_packages"
#: Our own fixed network, see ``sema_bench.worker.yardstick_network``; another network would get another name.
YARDSTICK = "yardstick-1"
_FILE = re.compile(r"(?P<path>[^@]+\.py):(?P<function>[^:@]*)(?:@(?P<digest>[0-9a-f]{8}))?")
_LIBRARY = re.compile(r"(?P<library>timm|torchvision):(?P<name>[^\[\]]*)(?:\[(?P<options>[^\[\]]*)\])?")
_LIBRARY_NAME = re.compile(r"[A-Za-z0-9_.-]+|hf[_-]hub:[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+(@[A-Za-z0-9_.-]+)?")
#: Settings of a library's model that a benchmark fixes, or that would load weights from elsewhere.
_SET_BY_THE_SUITE = re.compile(
    r"pretrained\w*|weights|progress|checkpoint_path|cache_dir|num_classes|in_chans|features_only|scriptable|exportable"
)
_LONGEST = 300
_MOST_COMMAS_IN_A_PATH = 8


class ModelGoneError(UsageError):
    """The code behind a model's name is missing, or has changed since the name was made."""


@dataclass(frozen=True)
class ModelSource:
    """A model, and where it comes from."""

    kind: Literal["registry", "file", "entry point", "library", "yardstick"]
    name: str  # identifies it in records
    target: str  # path of the file, name of the entry point or of the library's model; else the name itself
    function: str = ""  # of a file; for a library's model, the library
    options: Mapping[str, OptionValue] = field(default_factory=dict, hash=False)  # of a library's model

    @property
    def network(self) -> str:
        """A key that all names of one network share."""
        if self.kind == "registry":
            return str(parse_model_name(self.name).network)
        if self.kind == "file":
            return f"{Path(self.target).resolve()}:{self.function}"
        return self.name

    @property
    def needs_trial(self) -> bool:
        """True if it must be built to check its options, or its tag in timm."""
        in_library = self.kind == "library" and ":" not in self.target  # a hub's model is not fetched just for that
        return "=" in self.name if self.kind == "registry" else in_library and bool(self.options or "." in self.target)

    @property
    def packages(self) -> str:
        """The installed packages that the model's code comes from, with their versions; "" for our own code."""
        if self.kind == "library":
            return f"{self.function} {importlib.metadata.version(self.function)}"
        if self.kind == "entry point":
            point = next(iter(importlib.metadata.entry_points(group=ENTRY_POINTS, name=self.target)))
            code = code_of_module(point.module, point.dist)
            return f"{code.versions} ({code.digest})"
        return code_of_file(Path(self.target)).versions if self.kind == "file" else ""


def parse_source(text: str) -> ModelSource:
    """Read a model name without running the model; raise UsageError if it is unknown, or its file has changed."""
    text = text.strip()
    if not text.isprintable() or len(text) > _LONGEST:
        raise UsageError(f"bad model name {printable(text[:_LONGEST])!r}")
    if text == YARDSTICK:
        return ModelSource("yardstick", text, text)
    if match := _LIBRARY.fullmatch(text):
        return _library(text, match)
    if match := _FILE.fullmatch(text):
        return _file(text, match)
    if ":" in text or "/" in text or text.endswith(".py"):
        raise UsageError(
            f"bad model name {text!r}; write NAME, NAME[ATTENTION], path/to/file.py:function, timm:NAME or "
            "torchvision:NAME"
        )
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


def split_models(text: str) -> list[str]:
    """Split a list of model names at its commas, except in brackets and in the path of an existing file.

    ``all`` stands for every model of the registry.
    """
    pieces = split_outside_brackets(text)
    names: list[str] = []
    while pieces:
        for count in range(1, min(len(pieces), _MOST_COMMAS_IN_A_PATH + 1) + 1):
            match = _FILE.fullmatch(",".join(pieces[:count]).strip())
            if match and Path(expand_user(match["path"])).is_file():
                break
        else:
            count = 1
        name = ",".join(pieces[:count]).strip()
        names += MODELS if name == "all" else [name]
        del pieces[:count]
    return list(filter(None, names))


def split_outside_brackets(text: str) -> list[str]:
    """Split ``text`` at the commas that stand outside of brackets."""
    pieces, inside = [""], False
    for part in re.split(r"([,\[\]])", text):
        inside = part == "[" or (inside and part != "]")
        if part == "," and not inside:
            pieces.append("")
        else:
            pieces[-1] += part
    return pieces


def check_networks_differ(names: Sequence[str]) -> None:
    """Raise UsageError for two names of one network, which would be measured twice and shown as two."""
    seen: dict[str, str] = {}
    for name in dict.fromkeys(names):
        source = parse_source(name)
        other = seen.setdefault(source.network, source.name)
        if other != source.name:
            raise UsageError(f"{other!r} and {source.name!r} are the same network; drop one of them")


def packages_of(names: Iterable[str]) -> dict[str, str]:
    """Map models to the packages that their code comes from, for the key ``PACKAGES`` of run.json."""
    return {name: packages for name in dict.fromkeys(names) if (packages := parse_source(name).packages)}


def check_packages(run: str, names: Iterable[str], metadata: Mapping[str, Any]) -> None:
    """Raise UsageError if the packages behind the models of a run have changed; older runs do not record them."""
    before = metadata.get(PACKAGES)
    if not isinstance(before, Mapping):
        return
    for name in dict.fromkeys(names):
        now, then = parse_source(name).packages, before.get(name, "")
        if now != then:
            raise UsageError(
                f"run {run} has {name} from {printable(str(then)) or 'no package'}, and here it is from "
                f"{now or 'no package'}; start a new run, and compare the two"
            )


def entry_points() -> dict[str, str]:
    """Map the models that installed packages declare to their targets, without importing them."""
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {point.name: point.value for point in sorted(points, key=lambda point: point.name)}


def _library(text: str, match: re.Match[str]) -> ModelSource:
    library, name = match["library"], match["name"]
    if not _LIBRARY_NAME.fullmatch(name) or (":" in name and library != "timm"):
        raise UsageError(
            f"bad model name {text!r}; write {library}:NAME, with a name from {library}'s list_models(), or "
            f"{library}:NAME[option=value]"
        )
    spec = importlib.util.find_spec(library)
    if spec is None:
        raise ModelGoneError(f"{text!r} needs {library}, which is not installed; pip install 'sema-bench[timm]'")
    known, base = _library_models(*(spec.submodule_search_locations or ())), name.partition(".")[0]
    if known and ":" not in name and base not in known:
        raise unknown_name(f"model of {library} {importlib.metadata.version(library)}", base, known)
    options = _library_options(text, match["options"])
    inner = ",".join(f"{key}={value}" for key, value in sorted(options.items()))
    canonical = f"{library}:{name}" + (f"[{inner}]" if inner else "")
    return ModelSource("library", canonical, name, library, options)


@functools.cache
def _library_models(*folders: str) -> frozenset[str]:
    """Read the names of a library's classifiers from its source: importing it would take seconds."""
    names: set[str] = set()
    for path in (file for folder in folders for file in Path(folder, "models").glob("*.py")):
        source = path.read_text(encoding="utf-8", errors="replace")
        names |= set(re.findall(r"^@register_model(?:\(\))?\s*\n(?:@.*\n)*def (\w+)\(", source, re.MULTILINE))
        for renamed in re.findall(r"register_model_deprecations\(__name__, \{(.*?)\}\)", source, re.DOTALL):
            names |= set(re.findall(r"""['"]([\w.]+)['"]\s*:""", renamed))
    return frozenset(names)


def _library_options(text: str, inner: str | None) -> dict[str, OptionValue]:
    options: dict[str, OptionValue] = {}
    for item in filter(None, map(str.strip, (inner or "").split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key.isidentifier() or not value:
            raise UsageError(f"bad model name {text!r}: {item!r} is not option=value")
        if key in options:
            raise UsageError(f"bad model name {text!r}: option {key!r} is given twice")
        if _SET_BY_THE_SUITE.fullmatch(key):
            raise UsageError(f"bad model name {text!r}: {key} is set by the benchmark; drop it")
        options[key] = {"true": True, "false": False, "none": None}.get(value.lower(), value)
        for number in (float, int):
            with contextlib.suppress(ValueError):
                options[key] = number(value)
    return options


def _file(text: str, match: re.Match[str]) -> ModelSource:
    path, function = Path(expand_user(match["path"])), match["function"]
    if not function.isidentifier():
        raise UsageError(f"bad model name {text!r}; write a function after the colon, as in {path}:build")
    try:
        check_regular_file(path, "model file")
        symbols = symtable.symtable(importlib.util.decode_source(path.read_bytes()), str(path), "exec").get_symbols()
        code = code_of_file(path)
    except OSError as problem:
        hint = ""
        if isinstance(problem, FileNotFoundError):
            hint = similar_file(path) or "; write a file with a function that returns the model"
        raise ModelGoneError(f"model file {str(path)!r} cannot be read: {problem.strerror}{hint}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        line = f" (line {problem.lineno})" if isinstance(problem, SyntaxError) and problem.lineno else ""
        raise UsageError(f"model file {str(path)!r} is not valid Python{line}") from None
    if match["digest"] not in (None, code.digest):
        others = [name for name in code.files if name != path.name]
        neighbours = f", or one of the files that it imports ({', '.join(others[:3])})," if others else ""
        raise ModelGoneError(
            f"{path}{neighbours} has changed since this run was planned; start a new run, or restore the file"
        )
    names = [symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()]
    if function not in names:
        defined = [symbol.get_name() for symbol in symbols if symbol.is_namespace()]
        raise unknown_name(f"function of {path}", function, defined or names)
    return ModelSource("file", f"{path}:{function}@{code.digest}", str(path), function)
