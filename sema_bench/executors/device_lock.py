"""One agent at a time times on a device of a machine, whoever placed it there.

Two nodes of a cluster may be one machine, and two jobs may share one; their figures would be about each other. The
kernel lets go of the lock when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sema_bench.errors import WorkerError
from sema_bench.progress import tell


@contextlib.contextmanager
def device_lock(device: str) -> Iterator[None]:
    """Wait until no other agent of this machine uses ``device`` (CUDA_VISIBLE_DEVICES allowed for), and hold it.

    Raises:
        WorkerError: the lock file cannot be made.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if device.startswith("cuda") else ""
    key = hashlib.sha256(f"{device} {visible}".encode()).hexdigest()[:12]
    path = Path(tempfile.gettempdir()) / f"sema-bench-{os.getuid()}-{key}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as problem:
        raise WorkerError(f"cannot lock {device} with {path}: {problem.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            tell(f"{device}: waiting for {holder}, which measures on it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
