"""WebDataset shards: tar files in which a sample is the files of one basename, read at random by their offsets."""

from __future__ import annotations

import glob
import itertools
import json
import math
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL.Image import Image

from sema_bench.data.base import UnreadableImageError
from sema_bench.data.classes import name_list
from sema_bench.data.decode import decode
from sema_bench.data.image_files import HEAD_BYTES, has_image_suffix, image_format, is_stray
from sema_bench.errors import UsageError
from sema_bench.spec.files import check_regular_file

_LONGEST_LABEL = 1 << 20
_MOST_SHARDS = 100_000
_MOST_CLASSES = 1_000_000


class _Sample(NamedTuple):
    shard: str
    name: str
    offset: int
    size: int
    label: int


class _Shard(NamedTuple):
    """One tar file: its samples, and images of it that have no label."""

    samples: list[_Sample]
    unlabelled: list[str]


class Shards:
    """Labelled images in tar files; a label is a number: ``.cls``, or ``label`` in ``.json`` where there is none."""

    numbered = True
    empty_classes: tuple[str, ...] = ()

    def __init__(self, samples: Sequence[_Sample], *, notes: tuple[str, ...] = ()) -> None:
        self._samples = samples
        self.origins = tuple(sorted({str(Path(sample.shard).resolve()) for sample in samples}))
        self.classes = tuple(str(number) for number in range(1 + max(sample.label for sample in samples)))
        self.notes = notes

    def __len__(self) -> int:
        return len(self._samples)

    def name(self, index: int) -> str:
        return f"{self._samples[index].shard}:{self._samples[index].name}"

    def label(self, index: int) -> int:
        return self._samples[index].label

    def photograph(self, index: int) -> Image:
        sample = self._samples[index]
        try:
            with Path(sample.shard).open("rb") as file:
                file.seek(sample.offset)
                return decode(file.read(sample.size))
        except OSError as problem:
            raise UnreadableImageError(problem.strerror or "cannot be read") from None


def open_shards(pattern: str) -> Shards:
    """Open the tar files that ``pattern`` names: a path, a glob, or a range as in ``val-{000000..000049}.tar``.

    Raises:
        UsageError: no such file, one that is not a tar, or no labelled images in them.
    """
    paths = [path for piece in _braces(pattern) for path in (sorted(glob.glob(piece)) or [piece])]  # noqa: PTH207
    shards = [_index(path) for path in paths]
    samples = [sample for shard in shards for sample in shard.samples]
    if not samples:
        raise UsageError(f"no labelled images in {pattern}; a sample is <name>.jpg and <name>.cls or <name>.json")
    alone = [name for shard in shards for name in shard.unlabelled]
    if not alone:
        return Shards(samples)
    note = f"images without a label in {pattern} are left out ({len(alone)}): {name_list(alone)}"
    return Shards(samples, notes=(note,))


def _braces(pattern: str) -> list[str]:
    """Return the names that ``pattern`` stands for, every range crossed with every other; counted before they are made.

    Raises:
        UsageError: a range runs backwards, or there are more than ``_MOST_SHARDS``.
    """
    texts = re.split(r"\{\d+\.\.\d+\}", pattern)
    bounds = re.findall(r"\{(\d{1,18})\.\.(\d{1,18})\}", pattern)
    if len(bounds) != len(texts) - 1 or any(int(low) > int(high) for low, high in bounds):
        raise UsageError(f"bad range in {pattern!r}; write {{000000..000049}}")
    count = math.prod(int(high) - int(low) + 1 for low, high in bounds)
    if count > _MOST_SHARDS:
        raise UsageError(f"{pattern!r} stands for {count:,} files, and {_MOST_SHARDS:,} are the most that are read")
    numbers = [[f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)] for low, high in bounds]
    return [
        "".join(itertools.chain(*zip(texts, chosen, strict=False), texts[-1:]))
        for chosen in itertools.product(*numbers)
    ]


def _index(path: str) -> _Shard:
    """Return the samples of one tar file, in its order."""
    images: dict[str, _Sample] = {}
    labels: dict[str, int] = {}
    try:
        check_regular_file(Path(path), "tar file")
        with tarfile.open(path, "r:") as tar:
            before = -1
            for member in tar:
                if member.offset <= before or member.size < 0:
                    raise tarfile.ReadError("a header is damaged")
                before = member.offset
                if not member.isfile() or any(is_stray(part) for part in _parts(member.name)):
                    continue
                folder, _, file_name = member.name.rpartition("/")
                stem, _, suffix = file_name.partition(".")
                key = f"{folder}/{stem}"
                if suffix in ("cls", "json"):
                    content = tar.extractfile(member) if member.size < _LONGEST_LABEL else None
                    label = _label(content.read() if content else b"")
                    if suffix == "cls" and label is None:
                        raise UsageError(f"{path}: {member.name} holds no label; expected a class number from 0 up")
                    if label is not None and (suffix == "cls" or key not in labels):
                        labels[key] = label
                elif _is_image(tar, member):
                    sample = _Sample(path, member.name, member.offset_data, member.size, label=-1)
                    if key not in images or (has_image_suffix(file_name) > has_image_suffix(images[key].name)):
                        images[key] = sample
            _check_end(Path(path), tar.offset)
    except FileNotFoundError:
        raise UsageError(f"no file {path}") from None
    except OSError as problem:
        raise UsageError(f"{path} cannot be read: {problem.strerror or problem}") from None
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as problem:
        raise UsageError(f"{path} is not a plain, complete tar file: {problem}") from None
    samples = [sample._replace(label=labels[key]) for key, sample in images.items() if key in labels]
    return _Shard(samples, [f"{path}:{sample.name}" for key, sample in images.items() if key not in labels])


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".", "..")]


def _is_image(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    if has_image_suffix(member.name):
        return True
    content = tar.extractfile(member)
    return bool(content and image_format(content.read(HEAD_BYTES)))


def _check_end(path: Path, end: int) -> None:
    """Refuse a file in which something other than the end mark comes after the last readable member.

    ``tarfile`` takes a damaged header, and a file that was cut off, for the end.

    Raises:
        tarfile.ReadError: see there.
    """
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(tarfile.BLOCKSIZE)
    if end > path.stat().st_size or rest.strip(b"\0") or 0 < len(rest) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is damaged or cut off after {end} bytes")


def _label(content: bytes) -> int | None:
    """Return the class number that a file holds, None if it holds something else."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    label = body.get("label") if isinstance(body, dict) else body
    return label if type(label) is int and 0 <= label < _MOST_CLASSES else None
