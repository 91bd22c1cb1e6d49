"""Check that ``import sema`` loads this project's package: another distribution on the package index uses that name."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from pathlib import Path

from sema_bench.errors import UsageError

#: A word that our ``sema/__init__.py`` has in every release.
_MARKER = "create_model"
_REINSTALL = "reinstall sema-bench with pip's --force-reinstall --no-deps"


class WrongPackageError(UsageError, ImportError):
    """``import sema`` would not load this project's package."""


def check_sema_package() -> None:
    """Raise WrongPackageError unless ``import sema`` would load this project's package; import nothing."""
    spec = importlib.util.find_spec("sema")
    if spec is None or spec.origin is None:  # a folder without __init__.py has no origin
        raise WrongPackageError(f"the package 'sema', a part of sema-bench, is missing or incomplete; {_REINSTALL}")
    file = Path(spec.origin)
    if file.suffix != ".py" or not file.is_file() or _MARKER in file.read_text(encoding="utf-8", errors="replace"):
        return
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        other = importlib.metadata.distribution("sema")
        if Path(str(other.locate_file("sema/__init__.py"))).resolve() == file.resolve():
            raise WrongPackageError(
                f"{file} belongs to another distribution, sema {other.version}, and hides the package 'sema' of "
                f"sema-bench; run `pip uninstall sema`, then {_REINSTALL}"
            )
    raise WrongPackageError(
        f"{file} hides the package 'sema' of sema-bench; rename it, run from another folder, "
        "or take its folder off PYTHONPATH"
    )
