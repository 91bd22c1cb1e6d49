"""Start a worker with this harness and an arm's models: ``python arm_worker.py --allocator …``.

``sema_bench`` is loaded from the folder of this file, even if the arm has its own; everything else comes from the
arm's paths.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if path != str(here)]  # Python put it first
    spec = importlib.util.spec_from_file_location(
        "sema_bench", here.parent / "__init__.py", submodule_search_locations=[str(here.parent)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sema_bench"] = module
    spec.loader.exec_module(module)
    from sema_bench.worker.server import main

    main()
