"""Let one process at a time measure on a device of a machine.

Two runs of a user, two nodes of a cluster or two jobs may share a device, and would disturb each other. The kernel
releases the lock when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from sema_bench.errors import WorkerError
from sema_bench.machine.devices import gpu_identity
from sema_bench.store.files import lock_file
from sema_bench.text.console import tell


def _identity(device: str) -> str:
    """Give a device the same name in all processes of this machine: a card, or the CPUs that this process may use."""
    return gpu_identity(device) if device.startswith("cuda") else f"{device} {sorted(os.sched_getaffinity(0))}"


#: Environment variable of a child process: the device that its parent holds for it.
_HELD = "SEMA_BENCH_HELD_DEVICE"


def held_for_child(device: str) -> dict[str, str]:
    """Make the environment variables of a child process that measures on ``device``, which this process holds."""
    return {_HELD: _identity(device)}


def gpu_lock(device: str) -> AbstractContextManager[None]:
    """Hold a CUDA device as ``device_lock`` does; do nothing for other devices: runs may share the CPUs."""
    return device_lock(device) if device.startswith("cuda") else contextlib.nullcontext()


@contextlib.contextmanager
def device_lock(device: str) -> Iterator[None]:
    """Wait until no other process of this user measures on ``device``, then hold it, unless the parent does."""
    identity = _identity(device)
    if os.environ.get(_HELD) == identity:
        yield
        return
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    shared = Path("/dev/shm")  # jobs may each have a /tmp of their own
    folder = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    path = folder / f"sema-bench-{os.getuid()}-{key}.lock"
    try:
        descriptor = lock_file(
            path,
            note=f"process {os.getpid()}",
            mode=0o600,
            on_held=lambda holder: tell(f"{device}: waiting for {holder}, which measures on it"),
        )
    except OSError as problem:
        raise WorkerError(f"cannot lock {device} with {path}: {problem.strerror}") from None
    try:
        yield
    finally:
        os.close(descriptor)
