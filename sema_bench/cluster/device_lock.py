"""Let one agent at a time measure on a device of a machine.

Two nodes of a cluster may be one machine, and two jobs may share one; they would disturb each other. The kernel
releases the lock when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pynvml

from sema_bench.errors import WorkerError
from sema_bench.machine.devices import nvml_handle
from sema_bench.store.files import lock_file
from sema_bench.text.console import tell


def _identity(device: str) -> str:
    """Name a device alike in all processes of this machine: by its UUID, or by the CPUs that this one may use."""
    if not device.startswith("cuda"):
        return f"{device} {sorted(os.sched_getaffinity(0))}"
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlDeviceGetUUID(nvml_handle(device)))
    except pynvml.NVMLError:
        return f"{device} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}"


@contextlib.contextmanager
def device_lock(device: str) -> Iterator[None]:
    """Wait until no other agent of this machine uses ``device``, and hold it."""
    key = hashlib.sha256(_identity(device).encode()).hexdigest()[:12]
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
