"""Images in folders: one folder per class, or a flat one with a file of labels."""

from __future__ import annotations

import contextlib
import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL.Image import Image

from sema_bench.data.decode import SUFFIXES, decode
from sema_bench.errors import UsageError, printable

_SPLIT_FOLDERS = {"train": ("train", "training"), "test": ("val", "validation", "test")}
_ILSVRC_CLASSES = 1000
#: More digits name no class.
_LONGEST_NUMBER = 7


class Files:
    """Labelled image files.

    Args:
        root: what names are relative to.
        files: path and label of each.
        classes: names of the labels.
        numbered: they are numbers alone, and there may be more.
    """

    def __init__(
        self, root: Path, files: Sequence[tuple[str, int]], classes: tuple[str, ...], *, numbered: bool = False
    ) -> None:
        self._root = root
        self._files = files
        self.classes = classes
        self.origins: tuple[str, ...] = (str(root.resolve()),)
        self.numbered = numbered

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return printable(self._files[index][0])

    def label(self, index: int) -> int:
        return self._files[index][1]

    def photograph(self, index: int) -> Image:
        return decode(self._root / self._files[index][0])


def open_folder(root: Path, split: str) -> Files:
    """Open ``root/<class>/…/<image>``; of a folder with ``train`` and ``val`` in it, the one that ``split`` names.

    Raises:
        UsageError: there are no class folders, or no images in them.
    """
    root = _of_split(root, split)
    classes = sorted(entry.name for entry in _entries(root) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UsageError(
            f"no class folders in {root}; expected {root}/<class>/<image>, or a flat folder as flat:{root},labels=FILE"
        )
    files = [
        (str(path.relative_to(root)), label)
        for label, name in enumerate(classes)
        for path in _images_below(root / name)
    ]
    if not files:
        raise UsageError(f"no images in the {len(classes)} class folders of {root}; known: {', '.join(SUFFIXES)}")
    return Files(root, files, tuple(classes))


def open_flat(root: Path, labels: Path) -> Files:
    """Open a folder of images whose classes stand in a file, as ImageNet's validation images come.

    A line of the file is ``<image> <class>``, with spaces, tabs or commas between; the suffix of the image may be
    missing, what follows the first word of the class is ignored, and so is a heading. A file with one class per line
    holds for the images in the order of their names.

    Raises:
        UsageError: an image without a class, or a class that could mean two things.
    """
    images = list(_images_below(root))
    if not images:
        raise UsageError(f"no images in {root}; known: {', '.join(SUFFIXES)}")
    names = [str(path.relative_to(root)) for path in images]
    words = _label_words(labels, names)
    numbered = all(word.isdecimal() and word.isascii() and len(word) < _LONGEST_NUMBER for word in words)
    if numbered and min(map(int, words)) == 1 and max(map(int, words)) == _ILSVRC_CLASSES:
        raise UsageError(
            f"{labels} numbers its classes from 1 to 1000, as ILSVRC's ground truth does, and that is not the order of "
            "the class names that models are trained with; give a file of names (n01440764, …)"
        )
    if numbered:
        classes = tuple(str(number) for number in range(1 + max(map(int, words))))
    else:
        classes = tuple(sorted(set(words)))
    index = {name: position for position, name in enumerate(classes)}
    files = [(name, index[str(int(word)) if numbered else word]) for name, word in zip(names, words, strict=True)]
    return Files(root, files, classes, numbered=numbered)


def _of_split(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise UsageError(f"no folder {root.absolute()}")
    both = {
        name: next((root / folder for folder in folders if (root / folder).is_dir()), None)
        for name, folders in _SPLIT_FOLDERS.items()
    }
    train, test = both["train"], both["test"]
    return root if train is None or test is None else train if split == "train" else test


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as problem:
        raise UsageError(f"{folder.absolute()} cannot be read: {problem.strerror}") from None


def _images_below(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    with contextlib.suppress(OSError):  # what cannot be looked at is told of below
        here = folder.stat()
        if (here.st_dev, here.st_ino) in above:
            raise UsageError(f"{folder} is a link to a folder that it lies in; remove it")
        above = (*above, (here.st_dev, here.st_ino))
    for entry in sorted(_entries(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _images_below(Path(entry.path), above)
        elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
            yield Path(entry.path)


def _label_words(labels: Path, names: Sequence[str]) -> list[str]:
    """Return the class of each image, as the file writes it."""
    try:
        lines = [line for line in labels.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "not text"
        raise UsageError(f"label file {labels.absolute()} cannot be read: {why}") from None
    try:
        rows = [_words(line) for line in lines]
    except csv.Error as problem:
        raise UsageError(f"label file {labels} cannot be read: {problem}") from None
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(names):
            raise UsageError(f"{labels} has {len(rows)} lines for {len(names)} images; give lines of <image> <class>")
        return [row[0] for row in rows]
    known: dict[str, str] = {}
    for row in rows:
        if len(row) > 1 and known.setdefault(row[0], row[1]) != row[1]:
            raise UsageError(f"{labels} gives {row[0]} two classes, {known[row[0]]} and {row[1]}")
    found = []
    for name in names:
        word = known.get(name) or known.get(Path(name).name) or known.get(Path(name).stem)
        if word is None:
            raise UsageError(f"{labels} names no class for {name}; a line is <image> <class>")
        found.append(word)
    return found


def _words(line: str) -> list[str]:
    if "," in line:
        first, *rest = next(csv.reader([line]))
        return [first.strip(), *" ".join(rest).split()]
    return re.split(r"\s+", line.strip())
