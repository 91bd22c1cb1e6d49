"""WebDataset shards: tar files in which the files of one basename form a sample; offsets give random access."""

from __future__ import annotations

import glob
import itertools
import json
import math
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL.Image import Image

from sema_bench.data.base import Photographs, UnreadableImageError
from sema_bench.data.classes import name_list
from sema_bench.data.decode import decode
from sema_bench.data.image_files import has_image_suffix, image_format, is_stray
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

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"


@dataclass(kw_only=True)
class Shards(Photographs):
    """Labelled images in tar files; the label is a number in ``.cls``, or else ``label`` in ``.json``."""

    samples: Sequence[_Sample]

    def name(self, index: int) -> str:
        return str(self.samples[index])

    def photograph(self, index: int) -> Image:
        sample = self.samples[index]
        try:
            with Path(sample.shard).open("rb") as file:
                file.seek(sample.offset)
                return decode(file.read(sample.size))
        except OSError as problem:
            raise UnreadableImageError(problem.strerror or "cannot be read") from None


def open_shards(pattern: str) -> Shards:
    """Open the tar files of ``pattern``: a path, a glob, or a range as in ``val-{000000..000049}.tar``."""
    paths = [path for piece in _braces(pattern) for path in (sorted(glob.glob(piece)) or [piece])]  # noqa: PTH207
    images = [each for path in paths for each in _index(path)]
    labelled = [(sample, label) for sample, label in images if label is not None]
    if not labelled:
        raise UsageError(f"no labelled images in {pattern}; a sample is <name>.jpg and <name>.cls or <name>.json")
    samples, labels = zip(*labelled, strict=True)
    alone = [str(sample) for sample, label in images if label is None]
    note = f"images without a label in {pattern} are left out ({len(alone)}): {name_list(alone)}"
    return Shards(
        samples=samples,
        labels=labels,
        classes=tuple(map(str, range(1 + max(labels)))),
        origins=tuple(sorted({str(Path(sample.shard).resolve()) for sample in samples})),
        numbered=True,
        notes=(note,) if alone else (),
    )


def _braces(pattern: str) -> list[str]:
    """Expand all ranges of ``pattern``; raise UsageError for a backward range, or for too many names."""
    *pieces, end = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    bounds = list(zip(pieces[1::3], pieces[2::3], strict=True))
    if any(max(len(low), len(high)) > 18 or int(low) > int(high) for low, high in bounds):
        raise UsageError(f"bad range in {pattern!r}; write {{000000..000049}}")
    count = math.prod(int(high) - int(low) + 1 for low, high in bounds)
    if count > _MOST_SHARDS:
        raise UsageError(f"{pattern!r} stands for {count:,} files, and at most {_MOST_SHARDS:,} are read")
    numbers = [[f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)] for low, high in bounds]
    return [
        "".join(itertools.chain(*zip(pieces[::3], chosen, strict=True), [end]))
        for chosen in itertools.product(*numbers)
    ]


def _index(path: str) -> Iterator[tuple[_Sample, int | None]]:
    """Yield the images of one tar file in its order, each with its label if it has one."""
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
                if not member.isfile() or any(map(is_stray, member.name.split("/"))):
                    continue
                folder, _, file_name = member.name.rpartition("/")
                stem, _, suffix = file_name.partition(".")
                key = f"{folder}/{stem}"
                content = tar.extractfile(member)
                assert content is not None  # None is for folders and links
                if suffix in ("cls", "json"):
                    label = _label(content.read() if member.size < _LONGEST_LABEL else b"")
                    if suffix == "cls" and label is None:
                        raise UsageError(f"{path}: {member.name} holds no label; expected a class number from 0 up")
                    if label is not None and (suffix == "cls" or key not in labels):
                        labels[key] = label
                    continue
                named = has_image_suffix(file_name)
                first = key not in images or named > has_image_suffix(images[key].name)
                if first and (named or image_format(content)):
                    images[key] = _Sample(path, member.name, member.offset_data, member.size)
            _check_end(Path(path), tar.offset)
    except FileNotFoundError:
        raise UsageError(f"no file {path}") from None
    except OSError as problem:
        raise UsageError(f"{path} cannot be read: {problem.strerror or problem}") from None
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as problem:
        raise UsageError(f"{path} is not a plain, complete tar file: {problem}") from None
    for key, sample in images.items():
        yield sample, labels.get(key)


def _check_end(path: Path, end: int) -> None:
    """Raise ReadError unless the end mark follows the last member: ``tarfile`` also stops at a damaged header."""
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(tarfile.BLOCKSIZE)
    if end > path.stat().st_size or rest.strip(b"\0") or 0 < len(rest) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is damaged or cut off after {end} bytes")


def _label(content: bytes) -> int | None:
    """Read the class number in a file; None if it holds something else."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    label = body.get("label") if isinstance(body, dict) else body
    return label if type(label) is int and 0 <= label < _MOST_CLASSES else None
