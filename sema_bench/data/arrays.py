"""Images and labels in arrays: NumPy's ``.npz``, as MedMNIST is distributed, and MNIST's idx files.

Nothing is ever unpickled. An array that lies uncompressed in its file is mapped to memory; a compressed one is unpacked
whole when its first image is read.
"""

from __future__ import annotations

import functools
import gzip
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from sema_bench.data.base import Photographs, UnreadableImageError
from sema_bench.data.classes import name_list
from sema_bench.errors import UsageError, first_line
from sema_bench.spec.files import check_regular_file
from sema_bench.spec.units import counted

#: Keys of a part's images and labels: MedMNIST's, Keras's, and those of a file without parts.
_KEYS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("images", "labels"))
#: MNIST's names of the parts, and the first bytes of files that hold bytes: two zeros, the type, the dimensions.
_IDX_PARTS = {"train": "train", "test": "t10k"}
_IDX_MAGIC = b"\0\0\x08"
#: A smaller image is a mistake in the order of the axes.
_LEAST_SIDE = 4
_MOST_CLASSES = 1_000_000
_CHUNK = 1 << 20
_DAMAGED = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class _Array:
    """Location of an array in a file; ``modified`` is the time of the file."""

    path: Path
    member: str  # of a zip file; "": the file itself
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    start: int  # offset of its numbers in the file, or in the unpacked data
    packed: bool
    modified: int

    def read(self) -> NDArray[Any]:
        if not self.packed:
            return np.memmap(self.path, self.dtype, "r", self.start, self.shape, self.order)
        numbers = np.empty(math.prod(self.shape) * self.dtype.itemsize, dtype=np.uint8)
        with _unpacked(self.path, self.member) as file:
            file.read(self.start)
            done = 0
            while chunk := file.read(min(_CHUNK, len(numbers) - done)):
                numbers[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
                done += len(chunk)
        if done < len(numbers):
            raise EOFError("it is cut off")
        return numbers.view(self.dtype).reshape(self.shape, order=self.order)


@dataclass(kw_only=True)
class ArrayImages(Photographs):
    """Labelled images in an array (n, H, W), (n, H, W, 1) or (n, H, W, 3) of 8 bits."""

    array: _Array

    def name(self, index: int) -> str:
        return f"{self.array.member or self.array.path.name}[{index}]"

    def photograph(self, index: int) -> Image.Image:
        try:
            pixels = _numbers(self.array)[index]
        except _DAMAGED as problem:
            raise UnreadableImageError(first_line(problem)) from None
        return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).convert("RGB")


@functools.lru_cache(maxsize=2)  # all cells of a run read the same images
def _numbers(array: _Array) -> NDArray[Any]:
    return array.read()


def open_npz(path: Path, split: str) -> ArrayImages:
    """Open the part ``split`` (``train``, ``val``, ``test``) of a file, or all of a file without parts."""
    with _explained(path):
        arrays = _npz_arrays(path)
        pairs = [(images.format(split), labels.format(split)) for images, labels in _KEYS]
        both = next((pair for pair in pairs if arrays.keys() >= {*pair}), None)
        if both is None:
            wanted = " or ".join(" and ".join(pair) for pair in pairs)
            raise UsageError(f"{path} has no part {split!r}; expected {wanted}; it has {name_list(list(arrays))}")
        # A part may lack the last classes.
        others = [name for name in arrays if re.fullmatch(both[1].replace(split, "(train|val|test)"), name)]
        return _array_images(arrays[both[0]], *(_labels(arrays[name]) for name in dict.fromkeys([both[1], *others])))


def open_idx(folder: Path, split: str) -> ArrayImages:
    """Open ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-…`` in a folder, plain or ``.gz``."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; idx: takes the folder that holds train-images-idx3-ubyte")
    arrays = []
    for what, dimensions in (("images", 3), ("labels", 1)):
        pattern = f"*{_IDX_PARTS[split]}-{what}?idx{dimensions}-ubyte*"
        paths = sorted(folder.glob(pattern))
        if not paths:
            raise UsageError(f"no file {pattern} in {folder}; expected MNIST's names of files")
        if len({path.name.removesuffix(".gz") for path in paths}) > 1:
            raise UsageError(f"several files {pattern} in {folder}; give each dataset a folder")
        with _explained(paths[0]):
            arrays.append(_idx_array(paths[0], dimensions))
    with _explained(arrays[1].path):
        return _array_images(arrays[0], _labels(arrays[1]))


def _array_images(images: _Array, labels: NDArray[Any], *others: NDArray[Any]) -> ArrayImages:
    """Check that images and labels fit together; ``others`` are the labels of other parts."""
    whole = f"{images.path}{f': {images.member}' if images.member else ''}"
    grey, channels = images.shape[:3], images.shape[3:]
    if images.dtype != np.uint8 or len(grey) != 3 or channels not in ((), (1,), (3,)) or min(grey[1:]) < _LEAST_SIDE:
        raise UsageError(
            f"{whole} is {images.dtype} of shape {images.shape}; expected uint8 (n, H, W) or (n, H, W, 3), with sides "
            f"of {_LEAST_SIDE} pixels or more"
        )
    if len(labels) != grey[0] or not grey[0]:
        raise UsageError(f"{whole} has {grey[0]:,} images, and there are {len(labels):,} labels; expected as many")
    return ArrayImages(
        array=images,
        labels=labels.tolist(),
        classes=tuple(map(str, range(1 + max(int(each.max(initial=0)) for each in (labels, *others))))),
        origins=(f"{images.path.resolve()} ({images.member or images.path.name})",),
        numbered=True,
    )


def _labels(array: _Array) -> NDArray[Any]:
    name = f"{array.path}{f': {array.member}' if array.member else ''}"
    if len(array.shape) == 2 and array.shape[1] > 1:
        raise UsageError(
            f"{name} has {array.shape[1]} labels for each image, and accuracy takes one class; use data with one label"
        )
    if len(array.shape) not in (1, 2) or array.dtype.kind not in "iu":
        raise UsageError(f"{name} is {array.dtype} of shape {array.shape}; expected whole numbers, one for each image")
    labels = array.read().reshape(-1)
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < _MOST_CLASSES:
        raise UsageError(f"{name} has labels from {labels.min()} to {labels.max()}; expected class numbers from 0 up")
    return labels


def _npz_arrays(path: Path) -> dict[str, _Array]:
    """Read the headers of all arrays in a file."""
    arrays = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                continue
            with archive.open(info) as member:
                version = npy.read_magic(member)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, fortran, dtype = read(member)
                start = member.tell()
            if dtype.hasobject:
                raise UsageError(f"{path}: {name} holds Python objects, which are never unpickled; save numbers")
            if start + math.prod(shape) * dtype.itemsize != info.file_size:
                raise ValueError(f"{name} is cut off")
            packed = info.compress_type != zipfile.ZIP_STORED
            if not packed:  # behind a header, the name and the extra field
                file.seek(info.header_offset + 26)
                start += info.header_offset + 30 + sum(np.frombuffer(file.read(4), "<u2").tolist())
            order: Literal["C", "F"] = "F" if fortran else "C"
            arrays[name] = _Array(path, info.filename, dtype, shape, order, start, packed, path.stat().st_mtime_ns)
    return arrays


def _idx_array(path: Path, dimensions: int) -> _Array:
    packed = path.suffix == ".gz"
    with _unpacked(path, "") if packed else path.open("rb") as file:
        magic = file.read(4)
        shape = tuple(np.frombuffer(file.read(4 * dimensions), ">u4").tolist())
    if magic != _IDX_MAGIC + bytes([dimensions]) or len(shape) != dimensions:
        raise ValueError(
            f"it begins with {magic.hex(' ')}; an idx file of {counted(dimensions, 'dimension')} of bytes begins with "
            f"00 00 08 0{dimensions}"
        )
    start = 4 + 4 * dimensions
    if not packed and path.stat().st_size != start + math.prod(shape):
        raise ValueError(f"its size does not fit its shape {shape}; it is cut off or damaged")
    return _Array(path, "", np.dtype(np.uint8), shape, "C", start, packed, path.stat().st_mtime_ns)


@contextmanager
def _unpacked(path: Path, member: str) -> Iterator[IO[bytes] | gzip.GzipFile]:
    if not member:
        with gzip.open(path) as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        yield file


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the errors of a missing or damaged file into one line."""
    try:
        check_regular_file(path, "file")
        yield
    except FileNotFoundError:
        raise UsageError(f"no file {path.absolute()}") from None
    except _DAMAGED as problem:
        raise UsageError(f"{path} cannot be read: {first_line(problem)}") from None
