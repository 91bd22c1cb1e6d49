"""WebDataset shards: tar files in which a sample is the files of one basename, read at random by their offsets."""

from __future__ import annotations

import glob
import itertools
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL.Image import Image

from sema_bench.data.base import UnreadableImageError
from sema_bench.data.decode import SUFFIXES, decode
from sema_bench.errors import UsageError

_LONGEST_LABEL = 1 << 20
_MOST_CLASSES = 1_000_000


class _Sample(NamedTuple):
    shard: str
    name: str
    offset: int
    size: int
    label: int


class Shards:
    """Labelled images in tar files; a label is a number: ``.cls``, or ``label`` in ``.json`` where there is none."""

    numbered = True

    def __init__(self, samples: Sequence[_Sample]) -> None:
        self._samples = samples
        self.origins = tuple(sorted({str(Path(sample.shard).resolve()) for sample in samples}))
        self.classes = tuple(str(number) for number in range(1 + max(sample.label for sample in samples)))

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
    samples = [sample for path in paths for sample in _index(path)]
    if not samples:
        raise UsageError(f"no labelled images in {pattern}; a sample is <name>.jpg and <name>.cls or <name>.json")
    return Shards(samples)


def _braces(pattern: str) -> list[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    low, high, digits = int(match[1]), int(match[2]), len(match[1])
    if not low <= high < low + 100_000:
        raise UsageError(f"bad range {match[0]} in {pattern!r}; write {{000000..000049}}")
    middle = (f"{number:0{digits}d}" for number in range(low, high + 1))
    return list(
        itertools.chain.from_iterable(_braces(pattern[: match.start()] + m + pattern[match.end() :]) for m in middle)
    )


def _index(path: str) -> list[_Sample]:
    """Return the samples of one tar file, in its order; what has no image or no label is no sample."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            before = -1
            for member in tar:
                if member.offset <= before or member.size < 0:
                    raise tarfile.ReadError("a header is damaged")
                before = member.offset
                if not member.isfile():
                    continue
                folder, _, file_name = member.name.rpartition("/")
                stem, _, suffix = file_name.partition(".")
                key = f"{folder}/{stem}"
                if f".{suffix.lower()}".endswith(SUFFIXES):
                    images.setdefault(key, (member.name, member.offset_data, member.size))
                elif suffix in ("cls", "json") and member.size < _LONGEST_LABEL:
                    content = tar.extractfile(member)
                    label = _label(content.read() if content else b"")
                    if suffix == "cls" and label is None:
                        raise UsageError(f"{path}: {member.name} holds no label; expected a class number from 0 up")
                    if label is not None and (suffix == "cls" or key not in labels):
                        labels[key] = label
            _check_end(Path(path), tar.offset)
    except FileNotFoundError:
        raise UsageError(f"no file {path}") from None
    except OSError as problem:
        raise UsageError(f"{path} cannot be read: {problem.strerror or problem}") from None
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as problem:
        raise UsageError(f"{path} is not a plain, complete tar file: {problem}") from None
    return [_Sample(path, *where, labels[key]) for key, where in images.items() if key in labels]


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
