"""Import model files in a worker: each file sees its own neighbours, and everything that it loads is recorded.

Two model files may each import a ``layers.py`` from their folder. Python has one module of that name, so the second
file would silently be built from the layers of the first.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from sema_bench.machine.processes import COMPILER_CACHE
from sema_bench.spec.model_code import code_of_file, file_digest, is_third_party

#: Prefix of the names of modules that are model files.
MODULE_PREFIX = "sema_bench_model_"
_OURS = ("sema", "sema_bench")
_CODE = (".py", ".pyc", ".so")
_OF_THE_SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/", "/lib")


class _Neighbourhood:
    """Track which model file is importing, and what each has loaded."""

    def __init__(self) -> None:
        self.model_file: Path | None = None
        self.search_path: list[str] = []
        self.modules_before: frozenset[str] = frozenset()
        self.loaded: defaultdict[Path, set[Path]] = defaultdict(set)
        self.listens = False


_neighbourhood = _Neighbourhood()


def _serve_neighbours(model_file: Path) -> None:
    """Let the next imports find the neighbours of ``model_file``, and no module that another model file has loaded."""
    sys.dont_write_bytecode = True  # bytecode looks fresh if a file changes within a second and keeps its size
    if _neighbourhood.model_file == model_file:
        return
    if _neighbourhood.model_file is None:
        _neighbourhood.search_path = list(sys.path)
        _neighbourhood.modules_before = frozenset(sys.modules)
        sys.addaudithook(_note_opened)
    for name in _users_modules():
        if not name.startswith(MODULE_PREFIX):
            del sys.modules[name]
    importlib.invalidate_caches()
    _neighbourhood.model_file = model_file
    sys.path[:] = [str(model_file.parent), *_neighbourhood.search_path]


@contextmanager
def noting_files(model_file: Path) -> Iterator[None]:
    """Record the files that ``model_file`` imports or reads while the body runs: the model depends on them."""
    _serve_neighbours(model_file)
    _neighbourhood.listens = True
    try:
        yield
    finally:
        _neighbourhood.listens = False
        _note_imports(model_file)


def _note_imports(model_file: Path) -> None:
    if _neighbourhood.model_file == model_file:
        modules = _users_modules()
        loaded = {Path(str(modules[name].__file__)) for name in modules if not name.startswith(MODULE_PREFIX)}
        _neighbourhood.loaded[model_file] |= {path.resolve() for path in loaded}


def _note_opened(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not _neighbourhood.listens or _neighbourhood.model_file is None:
        return
    name, mode = arguments[0], arguments[1]
    if not isinstance(name, str) or (isinstance(mode, str) and not mode.startswith("r")) or name.endswith(_CODE):
        return
    path = Path(name).absolute()
    if not str(path).startswith(_OF_THE_SYSTEM) and not is_third_party(path):
        _neighbourhood.loaded[_neighbourhood.model_file].add(path)


def uncovered_files(model_file: Path) -> dict[str, str]:
    """Map each file that ``model_file`` has loaded, but its own digest does not cover, to the digest of that file."""
    covered = {path.resolve() for path in code_of_file(model_file).files.values()}
    _note_imports(model_file)  # a forward pass may have imported more
    loaded = sorted(_neighbourhood.loaded[model_file] - covered)
    return {str(path): file_digest(path) for path in loaded if path.is_file()}


def _is_cache(path: Path) -> bool:
    """Check whether one of torch's compilers wrote this file."""
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", COMPILER_CACHE)
    folders = [folder for name in names if (folder := os.environ.get(name))]
    made = any(part.startswith(("torchinductor_", "sema-bench-compiled-", ".triton")) for part in path.parts)
    return made or any(path.is_relative_to(Path(folder).absolute()) for folder in folders)


def _users_modules() -> dict[str, ModuleType]:
    return {
        name: module
        for name, module in list(sys.modules.items())
        if name not in _neighbourhood.modules_before
        and name.partition(".")[0] not in _OURS
        and (file := getattr(module, "__file__", None))
        and not is_third_party(Path(file))
        and not _is_cache(Path(file))
    }
