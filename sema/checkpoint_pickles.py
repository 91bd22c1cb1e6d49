"""Read pickles of weights without running the code that they refer to.

``torch.load`` reads with ``weights_only=True``, and gets stand-ins for everything but weights. Plain data, such as
settings, is read and discarded. An object of an unknown class becomes an empty mapping; its class is not imported. A
file that would *call* anything is refused, unless the call is known to make plain data.
"""

from __future__ import annotations

import _compat_pickle
import contextlib
import itertools
import os
import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from sema.checkpoint_files import (
    DOWNLOAD_AGAIN,
    SAVE_WEIGHTS,
    CheckpointError,
    content_bytes,
    first_line,
    member_name,
    open_archive,
)

#: Maximum depth of nested mappings; a checkpoint has two or three.
_MOST_NESTED = 8


def read_pickle(path: Path) -> Any:
    """Read a ``torch.save`` file onto the CPU; CheckpointError if it is damaged or would have to run code."""
    name = repr(str(path))
    unknown: list[str] = []
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols and storages, meant for the file's author
            archive = open_archive(file)
            unknown = _unknown_names(file, archive)
            file.seek(0)
            with _stand_ins(unknown):
                body = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
            size = content_bytes(archive) if archive else os.fstat(file.fileno()).st_size
    except pickle.UnpicklingError as problem:
        reason = "is not a plain pickle of weights (damaged, or of another pickle_protocol)"
        if match := re.search(r"GLOBAL ([\w.]+)", str(problem)):
            reason = f"refers to {match[1]}"
        raise CheckpointError(f"{name} {reason}, {SAVE_WEIGHTS}") from None
    except Exception as problem:  # torch, zipfile and pickle raise errors of many types for a damaged file
        if unknown and isinstance(problem, TypeError | ValueError):
            first = next((other for other in unknown if not other.startswith("torch.")), unknown[0])
            raise CheckpointError(f"{name} refers to {first}, {SAVE_WEIGHTS}") from None
        raise CheckpointError(
            f"{name} cannot be read as a checkpoint (truncated, or another kind of file): {first_line(problem)}"
        ) from None
    # Older releases of torch trust the pickle for the size of a tensor, and would read beyond its end.
    dense = (t for t in named_tensors(body).values() if t.layout == torch.strided and not t.is_meta)
    storages = (tensor.untyped_storage() for tensor in dense)
    claimed = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if claimed > size:
        raise CheckpointError(f"{name} claims {claimed} bytes of weights and holds {size}; {DOWNLOAD_AGAIN}")
    return body


def named_tensors(body: object) -> dict[str, Tensor]:
    """Map path → tensor in nested mappings with string keys; dots join the keys of a path."""
    tensors: dict[str, Tensor] = {}
    seen = set()
    waiting: list[tuple[str, str, int, object]] = [("", "", 0, body)]
    while waiting:
        path, name, depth, value = waiting.pop()
        if isinstance(value, Tensor):
            tensors.setdefault(path, value)
        elif isinstance(value, Mapping) and depth <= _MOST_NESTED and (id(value), name) not in seen:
            seen.add((id(value), name))  # a mapping may hold itself, or be shared
            children = [(key, child) for key, child in value.items() if isinstance(key, str)]
            waiting += [(f"{path}.{key}" if depth else key, key, depth + 1, child) for key, child in reversed(children)]
    return tensors


def stand_in_class(value: object) -> str | None:
    """Name the class that a stand-in of ``read_pickle`` stands for; None for plain data."""
    return vars(value).get(_CLASS) if type(value) is OrderedDict else None


#: Key of the class name in the ``__dict__`` of a stand-in.
_CLASS = "sema: stands for"


class _Forgotten:
    """Stand in for plain data: accept its contents and discard them."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Unknown(type):
    """Type of the stand-ins for unknown classes and functions. Calling one would run code, so it is refused."""

    def __call__(cls, *arguments: object) -> Any:
        raise pickle.UnpicklingError(f"GLOBAL {cls.__name__}")


def _unknown(name: str) -> _Unknown:
    """Make the stand-in for ``name``; its objects start empty and accept whatever the pickle puts into them."""

    def empty(*arguments: object) -> OrderedDict[str, Any]:
        body: OrderedDict[str, Any] = OrderedDict()  # torch's unpickler fills only standard mappings
        vars(body)[_CLASS] = name
        return body

    return _Unknown(name, (), {"__new__": empty})


#: Plain data of the standard library and of NumPy (whose scalars and arrays are in modules with two names).
_DATA = {
    "argparse": "Namespace",
    "builtins": "Ellipsis bool bytes dict float frozenset int list object range slice str tuple type",
    "collections": "UserDict",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "numpy": "dtype ndarray",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy.random._pickle": "__bit_generator_ctor __generator_ctor __randomstate_ctor",
    "numpy.random.bit_generator": "__pyx_unpickle_SeedSequence",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "types": "SimpleNamespace",
    "typing": "Any Dict List Optional Tuple Union",
    "uuid": "SafeUUID UUID",
}
_STAND_INS: list[Any] = [
    (lambda *_: {}, "collections.defaultdict"),
    (lambda *_: [], "collections.deque"),
    *((_Forgotten, f"{module}.{name}") for module, names in _DATA.items() for name in names.split()),
]


def _unknown_names(file: IO[bytes], archive: zipfile.ZipFile | None) -> list[str]:
    """List the names outside the standard library that a pickle refers to, in file order."""
    known = {name for _, name in _STAND_INS}
    standard = sys.stdlib_module_names | _compat_pickle.IMPORT_MAPPING.keys()  # pickles use Python 2 names, too
    unknown: dict[str, None] = {}
    with contextlib.suppress(Exception):  # a damaged file is reported when it is read
        if archive:
            streams = [archive.open(name) for name in archive.namelist() if member_name(name) == "data.pkl"]
        else:
            file.seek(0)
            streams = [file] * 4  # torch's magic number, its protocol, the machine, and the object
        for operation, argument, _ in itertools.chain.from_iterable(map(pickletools.genops, streams)):
            if operation.name == "GLOBAL":
                parts = str(argument).replace(" ", ".").split(".")
                if parts[0] not in standard and all(map(str.isidentifier, parts)):
                    unknown[".".join(parts)] = None
    return [name for name in unknown if name not in known]


@contextlib.contextmanager
def _stand_ins(unknown: Iterable[str]) -> Iterator[None]:
    """Let torch's unpickler use the stand-ins, and none of the globals that this process has allowed."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals([*_STAND_INS, *((_unknown(name), name) for name in unknown)]):
            yield
    finally:
        torch.serialization.add_safe_globals(allowed)
