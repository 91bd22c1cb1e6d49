"""Code that runs in Triton's interpreter, where no card is needed."""

from __future__ import annotations

import os
import subprocess
import sys


def in_triton_interpreter(code: str) -> str:
    """Run ``code`` in a process of its own; return what it printed, or the end of what went wrong."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout.strip() or done.stderr[-2000:]
