"""Imports of model files in a worker: each file sees its own neighbours, and what was loaded can be listed.

Two model files may each lie beside a ``layers.py`` of their own. Python keeps one module of that name, so the second
file would silently be built from the layers of the first.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from sema_bench.model_code import code_of_file, file_digest, is_third_party

#: Modules of model files themselves are named with this prefix.
MODULE_PREFIX = "sema_bench_model_"
_OURS = ("sema", "sema_bench")


class _Neighbourhood:
    """The folder that imports of model files are served from, at the moment."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.search_path: list[str] = []
        self.modules_before: frozenset[str] = frozenset()
        self.imported: dict[Path, set[Path]] = {}


_neighbourhood = _Neighbourhood()


def serve_neighbours(folder: Path) -> None:
    """Let the next imports find what lies in ``folder``, and nothing that another folder's model has brought.

    No bytecode is written: Python takes it for up to date if a file was changed within a second and kept its size.
    """
    sys.dont_write_bytecode = True
    if _neighbourhood.folder == folder:
        return
    if _neighbourhood.folder is None:
        _neighbourhood.search_path = list(sys.path)
        _neighbourhood.modules_before = frozenset(sys.modules)
    for name in _users_modules():
        if not name.startswith(MODULE_PREFIX):
            del sys.modules[name]
    importlib.invalidate_caches()
    _neighbourhood.folder = folder
    sys.path[:] = [str(folder), *_neighbourhood.search_path]


def note_imports(model_file: Path) -> None:
    """Remember what is imported now as what ``model_file`` has brought."""
    others = {path for path in _neighbourhood.imported if path != model_file}
    loaded = {Path(str(module.__file__)).resolve() for module in _users_modules().values()}
    _neighbourhood.imported.setdefault(model_file, set()).update(loaded - others)


def uncovered_files(model_file: Path) -> dict[str, str]:
    """Return path → digest of every file that ``model_file`` has brought and the digest in its name does not cover."""
    covered = {path.resolve() for path in code_of_file(model_file).files.values()}
    brought = _neighbourhood.imported.get(model_file, set())
    return {str(path): file_digest(path) for path in sorted(brought - covered) if path.is_file()}


def _users_modules() -> dict[str, ModuleType]:
    return {
        name: module
        for name, module in list(sys.modules.items())
        if name not in _neighbourhood.modules_before
        and name.partition(".")[0] not in _OURS
        and (file := getattr(module, "__file__", None))
        and not is_third_party(Path(file))
    }
