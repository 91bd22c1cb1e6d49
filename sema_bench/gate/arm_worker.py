"""A worker with this harness and an arm's models, started by its path: ``python arm_worker.py --allocator …``.

The harness is loaded from where this file lies, whatever ``sema_bench`` the arm itself has; ``sema`` and all else come
from the arm's own paths.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_HARNESS = Path(__file__).resolve().parents[1]


def _load_harness() -> None:
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [path for path in sys.path if path != here]  # Python put it first
    spec = importlib.util.spec_from_file_location(
        "sema_bench", _HARNESS / "__init__.py", submodule_search_locations=[str(_HARNESS)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sema_bench"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    _load_harness()
    from sema_bench.worker.server import main

    main()
