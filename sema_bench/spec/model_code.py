"""Follow the code of a model through its imports, without running it: its own files, and the packages they use.

Two networks must never share a name. A model file therefore has a digest over itself and the user's files that it
imports, and a run stores the versions of the packages behind its models. A file that a model finds only at run time
(by changing ``sys.path``) is missed here; the worker reports it, see ``sema_bench.worker.model_imports``.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import site
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sema_bench.spec.files import sha256_of

#: Covered by the digest of our own code and by the fingerprint of the environment.
_COVERED = frozenset({"sema", "sema_bench", "torch"})
#: Key of a record's details: path → digest of each file that a worker imported and no name's digest covers.
MODEL_FILES = "model_files"


@dataclass
class ModelCode:
    """The code of one model; a file's name inside the digest is relative to the folder of the model."""

    files: dict[str, Path] = field(default_factory=dict)  # name inside the digest → file, the model's own first
    hashes: dict[str, str] = field(default_factory=dict)  # name inside the digest → SHA-256
    packages: dict[str, str] = field(default_factory=dict)  # third-party package → version

    @property
    def digest(self) -> str:
        """8 hex digits over all files; for a file that imports no neighbour, over its bytes alone."""
        if len(self.hashes) == 1:
            return next(iter(self.hashes.values()))[:8]
        text = "".join(f"{name}\0{digest}\n" for name, digest in sorted(self.hashes.items()))
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]

    @property
    def versions(self) -> str:
        """List the packages with their versions, for a person to read: ``einops 0.8.0, timm 1.0.31``."""
        return ", ".join(f"{name} {version}" for name, version in sorted(self.packages.items()))


def code_of_file(path: Path) -> ModelCode:
    """Read a model file and the code that it imports; raise OSError if it cannot be read, or as ``ast.parse`` does."""
    path = path.resolve()  # neighbours are those of the file itself, not of a link to it
    return _follow([path], folder=path.parent)


def code_of_module(module: str, distribution: importlib.metadata.Distribution | None) -> ModelCode:
    """Read the code behind a dotted module of an installed package, with the files of that package that it imports."""
    top, *rest = module.split(".")
    spec = _top_level(top, folder=None)
    code = ModelCode() if spec is None else _follow(_files_along(spec, rest), folder=_root_of(spec), own=top)
    if distribution is not None:
        code.packages[distribution.name] = distribution.version
    return code


def file_digest(path: Path) -> str:
    """Return 8 hex digits over a file, "" if it cannot be read or is a pipe or a device."""
    try:
        return sha256_of(path) if path.is_file() else ""
    except (OSError, ValueError):  # ValueError: a null character in the path
        return ""


def is_third_party(path: Path) -> bool:
    """Check whether a file was installed, with Python or by pip, rather than written by the user."""
    return any(path.is_relative_to(folder) for folder in _installed_folders())


def _follow(starts: list[Path], *, folder: Path, own: str = "") -> ModelCode:
    """Follow imports from ``starts``, whose neighbours are in ``folder``; ``own`` is an installed package to follow."""
    importlib.invalidate_caches()
    code = ModelCode()
    seen = set()
    waiting = [(start, folder) for start in starts]  # each with the folder that its name in the digest is relative to
    while waiting:
        path, root = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        source = path.read_bytes()
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        while name in code.files:  # two folders have a file of that name
            name += "'"
        code.files[name] = path
        code.hashes[name] = hashlib.sha256(source).hexdigest()
        if path.suffix != ".py":  # a compiled extension
            continue
        try:
            imports = _imports_of(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            if path in starts:
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
            if parts[0] != own and is_third_party(origin):
                code.packages[parts[0]] = _version(parts[0]) or f"of unknown version ({file_digest(origin)})"
            else:
                root_of_spec = folder if origin.is_relative_to(folder) else _root_of(spec)
                waiting += [(file, root_of_spec) for file in _files_along(spec, parts[1:])]
    return code


@functools.lru_cache(maxsize=4096)
def _imports_of(source: bytes) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """List (level, dotted parts) of each import in ``source``; the ``b`` of ``from a import b`` may be a module."""
    imports: list[tuple[int, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports += [(0, tuple(alias.name.split("."))) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            imports += [(node.level, (*base, alias.name)) for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(first := node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = first.value if function in ("import_module", "__import__") else None
            if isinstance(name, str) and (stripped := name.lstrip(".")):
                imports.append((len(name) - len(stripped), tuple(stripped.split("."))))
    return tuple(dict.fromkeys(imports))


def _top_level(name: str, *, folder: Path | None) -> importlib.machinery.ModuleSpec | None:
    """Find a top-level module as the worker will: neighbours first, then what is installed. None: nothing to follow."""
    if name in _COVERED or not name:
        return None
    if folder is not None:
        near = importlib.machinery.PathFinder.find_spec(name, [str(folder.absolute())])
        if near and (near.origin or not _installed(name)):  # a plain folder is a package only if no other has its name
            return near
    return None if name in sys.stdlib_module_names else _installed(name)


def _installed(name: str) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        where = _SEARCH_PATH if finder is importlib.machinery.PathFinder else None  # others know of editable packages
        if spec := finder.find_spec(name, where):
            return spec
    return None


def _search_path() -> list[str]:
    """List the folders of installed modules, without the folder of the script or the working folder in front."""
    if getattr(sys.flags, "safe_path", False) or not sys.path:
        return list(sys.path)
    implicit = {"", str(Path(sys.argv[0]).parent.absolute()), str(Path(sys.argv[0]).resolve().parent)}
    with contextlib.suppress(OSError):
        implicit.add(str(Path.cwd()))
    return sys.path[1:] if sys.path[0] in implicit else list(sys.path)


#: The search path before any model could change it.
_SEARCH_PATH = _search_path()


def _files_along(spec: importlib.machinery.ModuleSpec | None, parts: Sequence[str]) -> list[Path]:
    """List the files that importing ``parts`` below a module runs: each package's ``__init__``, then the module."""
    if spec is None:
        return []
    files = [Path(spec.origin)] if spec.has_location and spec.origin else []
    if not parts or spec.submodule_search_locations is None:
        return files
    below = importlib.machinery.PathFinder.find_spec(parts[0], list(spec.submodule_search_locations))
    return files + _files_along(below, parts[1:])


def _files_below(package: Path, parts: tuple[str, ...]) -> list[Path]:
    """List the files that a relative import of ``parts`` runs."""
    initial = package / "__init__.py"
    spec = importlib.machinery.ModuleSpec(package.name, None, origin=str(initial), is_package=True)
    spec.submodule_search_locations = [str(package.absolute())]
    spec.has_location = initial.is_file()
    return _files_along(spec, parts)


def _root_of(spec: importlib.machinery.ModuleSpec) -> Path:
    locations = list(spec.submodule_search_locations or ())
    return Path(locations[0]).parent if locations else Path(spec.origin or "").parent


@functools.cache
def _version(module: str) -> str:
    """Return the version of the package that a module came with, "" if it has none."""
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(module, [])
        return importlib.metadata.version(names[0]) if names else ""


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    folders = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    folders += [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    return tuple({path for folder in folders for path in (Path(folder), Path(folder).resolve())})
