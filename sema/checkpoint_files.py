"""Recognize a checkpoint file by its content, because its name proves nothing.

People rename checkpoints, and a download may be a web page. The error says what the file is instead, and what to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal

_HEAD_BYTES = 512
#: The longest header that the safetensors format allows.
_MOST_HEADER_BYTES = 100_000_000
_MOST_JSON_BYTES = 50_000_000
#: torch.save does not compress; an archive that unpacks to more than this multiple of its size is a bomb.
_MOST_GROWTH = 20
_UNPACK = "unpack it and give the checkpoint in it"
_CONVERT = "convert its weights to a PyTorch state dict and give that"
DOWNLOAD_AGAIN = "download the file again"
SAVE_WEIGHTS = "and code in a checkpoint is never run; save its state dict as safetensors and load that"
#: First bytes of files that people mistake for checkpoints: pattern, kind of file, advice.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (rb"version https://git-lfs\.github\.com/spec/", "a git-LFS pointer, not the weights", "run git lfs pull"),
    (rb"(\xef\xbb\xbf)?\s*<", "a web page (HTML or XML)", DOWNLOAD_AGAIN),
    (rb"\x1f\x8b", "a gzip archive", _UNPACK),
    (rb"BZh", "a bzip2 archive", _UNPACK),
    (rb"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (rb"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (rb"Rar!\x1a", "a rar archive", _UNPACK),
    (rb"(?s).{257}ustar", "a tar archive", _UNPACK),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow)", _CONVERT),
    (rb"\x93NUMPY", "a NumPy array", _CONVERT),
    (rb"GGUF", "a GGUF file", _CONVERT),
    (rb"(?s).{4}TFL3", "a TensorFlow Lite model", _CONVERT),
    (rb"\x08\x01\x12", "a TensorFlow graph", _CONVERT),
    (rb"\x08[\x02-\x1f][\x12\x1a\x3a\x42]", "an ONNX model", _CONVERT),
)
#: First bytes of zip archives, with files in them or empty.
_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06")
#: The magic number in the files of torch.save before release 1.6.
_LEGACY = rb"\x80[\x02-\x05](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\."


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; ``classes`` is its number of classes, if only that differs."""

    def __init__(self, message: str, *, classes: int | None = None) -> None:
        super().__init__(message)
        self.classes = classes


def file_format(path: Path) -> Literal["safetensors", "torch"]:
    """Recognize the format of a checkpoint by its content, whatever its name.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a folder, a pipe or a device (which is not opened), or another kind of file.
    """
    name = repr(str(path))
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError("is a folder; give the checkpoint file in it")
        if not stat.S_ISREG(mode):
            raise CheckpointError("is not a file but a pipe, a socket or a device; give the path of a checkpoint file")
        with path.open("rb") as file:
            return _format_of(file, named_safetensors=path.suffix.lower() in (".safetensors", ".sft"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"no checkpoint at {name}") from None
    except CheckpointError as problem:
        raise CheckpointError(f"{name} {problem}") from None
    except (OSError, ValueError) as problem:  # ValueError: a path with a null character
        raise CheckpointError(f"{name} cannot be read: {getattr(problem, 'strerror', None) or problem}") from None


def first_line(problem: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    lines = str(problem).strip().splitlines() or [type(problem).__name__]
    return lines[0][:200]


def first_names(names: Sequence[str], count: int = 3) -> str:
    """List the first ``count`` names, with an ellipsis if there are more."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def _format_of(file: IO[bytes], *, named_safetensors: bool) -> Literal["safetensors", "torch"]:
    head, size = file.read(_HEAD_BYTES), os.fstat(file.fileno()).st_size
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MOST_HEADER_BYTES:
        return "safetensors"
    if head.startswith(_ARCHIVES):
        _check_archive(file, size)
        return "torch"
    if re.match(_LEGACY, head, re.DOTALL):
        return "torch"
    if re.match(rb"\x80[\x02-\x05]", head):
        raise CheckpointError(f"is a pickle that torch.save did not write, {SAVE_WEIGHTS}")
    for pattern, kind, advice in _SIGNATURES:
        if re.match(pattern, head):
            raise _unreadable(f"it is {kind}", advice)
    if shards := _shards(file, head, size):
        content = f"it is the index of weights in {_count_files(shards)}"
        raise _unreadable(content, "merge them into one safetensors file and give that")
    content = _content(head)
    if named_safetensors:
        raise CheckpointError(f"is not a complete safetensors file: {content}; {DOWNLOAD_AGAIN}")
    raise _unreadable(content, "give safetensors, or what torch.save writes")


def _unreadable(content: str, advice: str) -> CheckpointError:
    return CheckpointError(f"cannot be read as a checkpoint: {content}; {advice}")


def _shards(file: IO[bytes], head: bytes, size: int) -> list[str]:
    """List the files in an index of sharded weights; [] for other content."""
    if head.lstrip()[:1] == b"{" and size <= _MOST_JSON_BYTES:
        file.seek(0)
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(weight_map := json.load(file).get("weight_map"), dict):
                return sorted({str(shard) for shard in weight_map.values()})
    return []


def _content(head: bytes) -> str:
    """Describe unknown content by how it begins."""
    if not head:
        return "it is empty"
    text = head.decode("utf-8", "ignore").strip().splitlines()
    if text and text[0].isprintable() and text[0].encode() in head:
        return f"it is text that begins with {text[0][:40]!r}"
    return f"it begins with the bytes {head[:4].hex(' ')}, as no format of weights does"


def _count_files(names: list[str]) -> str:
    return f"{len(names)} file{'' if len(names) == 1 else 's'} ({first_names(names, 2)})"


def _check_archive(file: IO[bytes], size: int) -> None:
    """Refuse a zip archive that ``torch.save`` did not write."""
    try:
        archive = zipfile.ZipFile(file)
    except Exception as problem:  # zipfile raises errors of many types for a damaged file
        content = f"it is a zip archive, cut short or damaged ({first_line(problem)})"
        raise _unreadable(content, DOWNLOAD_AGAIN) from None
    names = archive.namelist()
    tops = {member_name(member) for member in names}
    if "constants.pkl" in tops:
        raise CheckpointError(f"is a program of TorchScript, {SAVE_WEIGHTS}")
    if tops & {"archive_format", "serialized_exported_program.json"}:
        raise CheckpointError(f"is a program of torch.export, {SAVE_WEIGHTS}")
    if "model.weights.h5" in tops:
        raise _unreadable("it is a Keras model", _CONVERT)
    if names and all(member.endswith(".npy") for member in names):
        raise _unreadable("it is arrays of NumPy (.npz)", _CONVERT)
    if "data.pkl" not in tops:
        raise _unreadable(f"it is a zip archive of {_count_files(names)}", _UNPACK)
    if (content_size := content_bytes(archive)) > _MOST_GROWTH * size:
        raise CheckpointError(f"has {size} bytes and claims to unpack to {content_size}; {DOWNLOAD_AGAIN}")


def open_archive(file: IO[bytes]) -> zipfile.ZipFile | None:
    """Open a checkpoint's zip archive; None for a file that torch.save wrote before release 1.6."""
    return zipfile.ZipFile(file) if file.read(4) in _ARCHIVES else None


def content_bytes(archive: zipfile.ZipFile) -> int:
    """Add up the unpacked bytes of all files in an archive."""
    return sum(member.file_size for member in archive.infolist())


def member_name(name: str) -> str:
    """Remove the archive's name from the name of a file in it."""
    return name.partition("/")[2] or name
