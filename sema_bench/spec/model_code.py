"""What a model's code consists of: its own files, followed through imports, and the packages they use. Runs none of it.

Two networks must never share a name. A model file is therefore identified by a digest over the file and everything of
the user's that it imports, and a run keeps the versions of the packages behind its models. Imports are read from the
source, so code that is found only at run time (``sys.path`` changed by the model itself) is missed here; the worker
reports such files, see ``sema_bench.worker.foreign_model``.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: Covered by the digest of our own code and by the fingerprint of the environment.
_COVERED = frozenset({"sema", "sema_bench", "torch"})


#: Key of a record's details: path → digest of files that a worker had imported and no digest in a name covers.
MODEL_FILES = "model_files"


@dataclass
class ModelCode:
    """The code of one model, as it was read.

    Attributes:
        files: name inside the digest → file, the model's own file first.
        hashes: name inside the digest → SHA-256 of the file.
        packages: third-party package → version, as far as it tells one.
    """

    files: dict[str, Path] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """8 hex digits over all files; of a file that imports no neighbour, over its bytes alone."""
        if len(self.hashes) == 1:
            return next(iter(self.hashes.values()))[:8]
        text = "".join(f"{name}\0{digest}\n" for name, digest in sorted(self.hashes.items()))
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]

    @property
    def versions(self) -> str:
        """Packages with their versions, for a person: ``einops 0.8.0, timm 1.0.31``."""
        return ", ".join(f"{name} {version}" for name, version in sorted(self.packages.items()))


def code_of_file(path: Path) -> ModelCode:
    """Return the code that a model file consists of.

    Raises:
        OSError: the file cannot be read.
        SyntaxError, ValueError, RecursionError, MemoryError: it is not Python.
    """
    path = path.resolve()  # neighbours are those of the file itself, not of a link to it
    return _followed(path, folder=path.parent, own=frozenset())


def code_of_module(module: str, distribution: importlib.metadata.Distribution | None) -> ModelCode:
    """Return the code behind a module of an installed package, all files of that package included that it imports.

    Args:
        module: dotted name.
        distribution: what was installed, if that is known.
    """
    top, *rest = module.split(".")
    code = ModelCode()
    if distribution is not None:
        code.packages[distribution.name] = distribution.version
    spec = _top_level(top, folder=None)
    if spec is None:
        return code
    for path in _files_along(spec, rest):
        part = _followed(path, folder=_root_of(spec), own=frozenset({top}))
        code.files |= part.files
        code.hashes |= part.hashes
        code.packages |= part.packages
    return code


def file_digest(path: Path) -> str:
    """Return 8 hex digits over a file, "" if it cannot be read or is a pipe or a device."""
    found = hashlib.sha256()
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    except (OSError, ValueError):  # ValueError: a null character in the path
        return ""
    return found.hexdigest()[:8]


def is_third_party(path: Path) -> bool:
    """Tell whether a file was installed, with Python or by pip, rather than written by the user."""
    return any(path.is_relative_to(folder) for folder in _installed_folders())


def _followed(start: Path, *, folder: Path, own: frozenset[str]) -> ModelCode:
    """Follow imports from ``start``.

    Args:
        start: the first file.
        folder: where it finds its neighbours, and what names in the digest are relative to.
        own: packages that belong to the model even if they are installed.
    """
    importlib.invalidate_caches()
    code = ModelCode()
    seen = set()
    waiting = [(start, folder)]  # each with the folder that its name in the digest is relative to
    while waiting:
        path, root = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        source = path.read_bytes()
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        while name in code.files:  # two folders that serve files of one name
            name += "'"
        code.files[name] = path
        code.hashes[name] = hashlib.sha256(source).hexdigest()
        if path.suffix != ".py":  # a compiled extension
            continue
        try:
            imports = _imports_of(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            if path == start:
                raise
            continue  # a neighbour that is not Python fails when it is imported, with its own message
        for level, parts in imports:
            if level:
                below = _files_below(path.parents[level - 1], parts) if level <= len(path.parents) else []
                waiting += [(file, root) for file in below]
                continue
            spec = _top_level(parts[0], folder=folder)
            if spec is None:
                continue
            origin = Path(spec.origin or next(iter(spec.submodule_search_locations or ()), ""))
            if parts[0] not in own and is_third_party(origin):
                code.packages[parts[0]] = _version(parts[0]) or f"of unknown version ({file_digest(origin)})"
            else:
                root_of_spec = folder if origin.is_relative_to(folder) else _root_of(spec)
                waiting += [(file, root_of_spec) for file in _files_along(spec, parts[1:])]
    return code


@functools.lru_cache(maxsize=4096)
def _imports_of(source: bytes) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Return (level, dotted parts) of each import in ``source``; what ``from a import b`` takes may be a module."""
    found: dict[tuple[int, tuple[str, ...]], None] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {(0, tuple(alias.name.split("."))): None for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            found |= {(node.level, (*base, alias.name)): None for alias in node.names}
        elif isinstance(node, ast.Call) and (name := _imported_by_call(node)):
            stripped = name.lstrip(".")
            found[len(name) - len(stripped), tuple(stripped.split("."))] = None
    return tuple(found)


def _imported_by_call(node: ast.Call) -> str:
    """Return the module of ``import_module("name")`` or ``__import__("name")``, else ""."""
    function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    first = node.args[0] if node.args else None
    if function not in ("import_module", "__import__") or not isinstance(first, ast.Constant):
        return ""
    return first.value if isinstance(first.value, str) and first.value.strip(".") else ""


def _top_level(name: str, *, folder: Path | None) -> importlib.machinery.ModuleSpec | None:
    """Find a top-level module as the worker will: neighbours first, then what is installed. None: nothing to follow."""
    if name in _COVERED or not name:
        return None
    if folder is not None and (near := _beside(folder, name)):
        return near
    if name in sys.stdlib_module_names:
        return None
    return _installed(name)


def _beside(folder: Path, name: str) -> importlib.machinery.ModuleSpec | None:
    spec = importlib.machinery.PathFinder.find_spec(name, [str(folder.absolute())])
    if spec is not None and spec.origin is None and _installed(name):
        return None  # a plain folder is a package only where nothing else has its name
    return spec


def _installed(name: str) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        where = _SEARCH_PATH if finder is importlib.machinery.PathFinder else None  # others know of editable packages
        find = getattr(finder, "find_spec", None)  # finders of the oldest kind have none
        if find is not None and (spec := find(name, where)):
            return spec  # type: ignore[no-any-return]
    return None


def _search_path() -> list[str]:
    """Return where modules are installed: the same for a driver and its workers, wherever they are started.

    Python puts the folder of the script, or the working folder, in front unless it is told not to.
    """
    if getattr(sys.flags, "safe_path", False) or not sys.path:
        return list(sys.path)
    implicit = {"", str(Path(sys.argv[0]).parent.absolute()), str(Path(sys.argv[0]).resolve().parent)}
    with contextlib.suppress(OSError):
        implicit.add(str(Path.cwd()))
    return sys.path[1:] if sys.path[0] in implicit else list(sys.path)


#: As it was before any model could change it.
_SEARCH_PATH = _search_path()


def _files_along(spec: importlib.machinery.ModuleSpec, parts: Iterable[str]) -> list[Path]:
    """Return the files that importing ``parts`` below a module runs: each package's ``__init__``, then the module."""
    found = [Path(spec.origin)] if spec.has_location and spec.origin else []
    for part in parts:
        locations = spec.submodule_search_locations
        if part == "*" or locations is None:
            break
        below = importlib.machinery.PathFinder.find_spec(part, list(locations))
        if below is None:
            break
        spec = below
        found += [Path(spec.origin)] if spec.has_location and spec.origin else []
    return found


def _files_below(package: Path, parts: tuple[str, ...]) -> list[Path]:
    """Return the files that a relative import of ``parts`` runs."""
    spec = importlib.machinery.ModuleSpec(package.name, None, is_package=True)
    spec.submodule_search_locations = [str(package.absolute())]
    initial = package / "__init__.py"
    return [*([initial] if initial.is_file() else []), *_files_along(spec, parts)]


def _root_of(spec: importlib.machinery.ModuleSpec) -> Path:
    """Return the folder that a top-level module lies in."""
    locations = list(spec.submodule_search_locations or ())
    return Path(locations[0]).parent if locations else Path(spec.origin or "").parent


@functools.cache
def _version(module: str) -> str:
    """Return the version of the package that a module came with, "" if it tells none."""
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(module, [])
        return importlib.metadata.version(names[0]) if names else ""


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    def folders() -> Iterator[str]:
        yield from (sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))
        yield from site.getsitepackages()
        yield site.getusersitepackages()
        yield from (entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages"))

    return tuple(dict.fromkeys(path for folder in folders() for path in (Path(folder), Path(folder).resolve())))
