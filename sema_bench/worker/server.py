"""The entry of a worker process: ``python -m sema_bench.worker.server --allocator retain --parent PID``.

It reads requests on stdin and answers on stdout, see ``protocol``; what the model or a library prints goes to
stderr. A worker dies with its parent, however the parent dies, and is the first that the kernel kills when memory runs
out. This file sets up the process before torch is imported; ``session`` does the work.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from sema_bench.machine.processes import die_with_parent, importing_torch, let_libraries_warn
from sema_bench.worker.allocator import set_allocator


def main() -> None:
    """Start a worker on this process's stdin and stdout."""
    parser = argparse.ArgumentParser(prog="sema_bench.worker.server")
    parser.add_argument("--allocator", required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    die_with_parent(options.parent)
    let_libraries_warn()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    set_allocator(options.allocator)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # a stray print must not corrupt the protocol
        with importing_torch():  # for seconds; meanwhile the driver starts the next worker
            from sema_bench.worker import protocol, session

        answers.write(protocol.READY + "\n")
        answers.flush()
        session.serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
