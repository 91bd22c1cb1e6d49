"""C++ kernels, built once for the CPU that runs them and stored in the user's cache.

The build needs a C++ compiler and nothing from torch: kernels take pointers and sizes. They share torch's threads,
because OpenMP's symbols resolve to the library that torch has loaded.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

#: The dtypes that kernels take.
NATIVE_DTYPES = (torch.float32, torch.bfloat16)
#: The number of float32 in the widest register: some kernels take only multiples of so many channels.
REGISTER_CHANNELS = 16
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-fno-math-errno")
_TIME_LIMIT_S = 120


class NativeUnavailableError(RuntimeError):
    """No kernel can be built here; the message says why in one line."""


@functools.cache
def load_library(name: str) -> ctypes.CDLL:
    """Load the kernels of ``sema/kernels/<name>.cpp``; build them first if they are not in the cache.

    The cache is ``$XDG_CACHE_HOME/sema``, or ``~/.cache/sema``. If that belongs to another user or is not writable, the
    cache is a temporary folder, deleted when the process ends.

    Raises:
        NativeUnavailableError: there is no compiler (``$CXX``, or ``c++`` or ``g++``), or it fails.
    """
    source = Path(__file__).with_name(f"{name}.cpp")
    compiler = _compiler()
    text = b"\0".join(file.read_bytes() for file in (source, *sorted(source.parent.glob("*.h"))))
    path = cache_folder() / f"{name}-{_digest(text, compiler)}.so"
    try:
        if not path.exists():
            _build(source, compiler, path)
        return ctypes.CDLL(str(path))
    except OSError as problem:
        raise NativeUnavailableError(f"the kernel {name} cannot be built or loaded: {problem}") from problem


def long_array(*values: int) -> ctypes.Array[ctypes.c_long]:
    """Pack the fields of a kernel's struct ``Shape``, all longs, in order."""
    return (ctypes.c_long * len(values))(*values)


def pointer(x: Tensor | None) -> ctypes.c_void_p | None:
    """Point to the first element of ``x``."""
    return None if x is None else ctypes.c_void_p(x.data_ptr())


def even_strides(maps: Tensor) -> tuple[int, int] | None:
    """Return the steps from one image, and from one token, of maps (B, H, W, C) to the next.

    None if a token's channels do not lie one after another, the tokens of an image are not evenly spaced, or tokens or
    images overlap.
    """
    images, height, width, channels = maps.shape
    if maps.is_contiguous():
        return height * width * channels, channels
    image, row, token, channel = maps.stride()
    is_even = channel == 1 and row == width * token and token >= channels
    return (image, token) if is_even and (images == 1 or image >= height * row) else None


def all_even_strides(*maps: Tensor) -> list[tuple[int, int]]:
    """Return ``even_strides`` of each of several maps; nothing if one of them has none or is no map."""
    strides = [even_strides(x) if x.ndim == 4 else None for x in maps]
    return [even for even in strides if even] if None not in strides else []


def _compiler() -> list[str]:
    """Split ``CXX``, which may hold a launcher or options, or find a compiler."""
    named = os.environ.get("CXX", "").strip()
    for name, *options in [named.split()] if named else [["c++"], ["g++"]]:
        if path := shutil.which(name):
            return [path, *options]
    raise NativeUnavailableError(
        f"the C++ compiler {named!r} that CXX names is not found; unset CXX, or set it to a path"
        if named
        else "no C++ compiler is installed; install g++, or set CXX to one"
    )


def _digest(source: bytes, compiler: list[str]) -> str:
    """Hash what a built kernel depends on: source, compiler, flags, CPU."""
    version = _run([*compiler, "--version"]).stdout
    return _hashed(source, " ".join(compiler).encode(), version, *_cpu(), " ".join(_FLAGS).encode())


def kernels_digest() -> str:
    """Hash what the speed of kernels depends on here: the CPU, the compiler if there is one, flags and sources."""
    files = (path for kind in ("*.cpp", "*.h") for path in sorted(Path(__file__).parent.glob(kind)))
    try:
        return _digest(b"\0".join(path.read_bytes() for path in files), _compiler())
    except NativeUnavailableError:
        return _hashed(*_cpu())


def _cpu() -> tuple[bytes, bytes]:
    cpu = b""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        cpu = b"".join(sorted({line for line in lines if line.startswith((b"flags", b"model name", b"Features"))}))
    return cpu, platform.machine().encode()


def _hashed(*known: bytes) -> str:
    return hashlib.sha256(b"\0".join(known)).hexdigest()[:20]


def _build(source: Path, compiler: list[str], path: Path) -> None:
    """Compile, link without OpenMP's library, and rename the result into the cache in one step."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        compiled, linked = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        for command in (
            [*compiler, *_FLAGS, "-c", str(source), "-o", str(compiled)],
            [*compiler, "-shared", str(compiled), "-o", str(linked)],
        ):
            done = _run(command)
            if done.returncode:
                errors = [line for line in done.stderr.decode(errors="replace").splitlines() if "error" in line]
                raise NativeUnavailableError(
                    f"{compiler[0]} cannot build {source.name}: {(errors or ['?'])[0].strip()}"
                )
        linked.replace(path)


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=_TIME_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise NativeUnavailableError(f"{command[0]} does not run: {problem}") from problem


@functools.cache
def cache_folder() -> Path:
    """Return a folder that no other user can write to, because its files are executed."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "")
    with contextlib.suppress(OSError, RuntimeError):
        folder = (home if home.is_absolute() else Path("~/.cache").expanduser()) / "sema"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
        if state.st_uid == os.getuid() and not state.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    folder = Path(tempfile.mkdtemp(prefix="sema-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
