"""Images in folders: one folder per class, or a flat one with a file of labels."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL.Image import Image

from sema_bench.data.classes import name_list, odd_classes
from sema_bench.data.decode import begins_as_image, decode
from sema_bench.data.image_files import COMMON_SUFFIXES, HEAD_BYTES, has_image_suffix, image_format, is_stray
from sema_bench.data.labels import read_labels
from sema_bench.errors import UsageError
from sema_bench.spec.data_source import KINDS
from sema_bench.spec.files import name_text
from sema_bench.text.escape import printable

_SPLIT_FOLDERS = {"train": ("train", "training"), "test": ("val", "validation", "test")}
_ILSVRC_CLASSES = 1000
#: More digits name no class; ``1.0`` is what becomes of 1 in a table with gaps.
_CLASS_NUMBER = re.compile(r"([0-9]{1,6})(?:\.0+)?")
_KNOWN = f"known: {', '.join(COMMON_SUFFIXES)}, …"


class Files:
    """Labelled image files.

    Args:
        root: what names are relative to.
        files: path and label of each.
        classes: names of the labels.
        numbered: they are numbers alone, and there may be more.
        empty_classes: names of classes without an image that can be read.
        notes: what a person should know of these files.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[tuple[str, int]],
        classes: tuple[str, ...],
        *,
        numbered: bool = False,
        empty_classes: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        self._root = root
        self._files = files
        self.classes = classes
        self.origins: tuple[str, ...] = (str(root.resolve()),)
        self.numbered = numbered
        self.empty_classes = empty_classes
        self.notes = notes

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

    A class folder without images counts: it keeps the numbers of the classes behind it. Folders that an operating
    system or a tool left behind are no classes.

    Raises:
        UsageError: there are no class folders, or no images in them.
    """
    root = _of_split(root, split)
    entries = [entry for entry in _entries(root) if not is_stray(entry.name)]
    classes = sorted(entry.name for entry in entries if _is_folder(entry))
    if not classes:
        raise UsageError(
            f"no class folders in {root}; expected {root}/<class>/<image>, or a flat folder as flat:{root},labels=FILE"
        )
    images = [list(_images_below(root / name)) for name in classes]
    files = [(str(path.relative_to(root)), label) for label, paths in enumerate(images) for path in paths]
    if not files:
        raise UsageError(f"no images in the {len(classes)} class folders of {root}; {_KNOWN}")
    empty = tuple(name for name, paths in zip(classes, images, strict=True) if not any(map(begins_as_image, paths)))
    beside = sorted(entry.name for entry in entries if _is_image(entry))
    notes = []
    if empty:
        notes.append(
            f"no image can be read in these class folders of {root}, which count as classes all the same: "
            f"{name_list(empty)}; remove those that are no class"
        )
    if odd := [name for name in odd_classes(classes) if name not in empty]:
        notes.append(f"class folders of {root} whose names are unlike the others count as classes: {name_list(odd)}")
    if beside:
        notes.append(f"images beside the class folders of {root} are left out ({len(beside)}): {name_list(beside)}")
    shown, without = tuple(map(name_text, classes)), tuple(map(name_text, empty))
    return Files(root, files, shown, empty_classes=without, notes=tuple(notes))


def open_flat(root: Path, labels: Path) -> Files:
    """Open a folder of images whose classes stand in a file, as ImageNet's validation images come.

    See ``labels`` for the forms of the file.

    Raises:
        UsageError: an image without a class, or a class that could mean two things.
    """
    _check_folder(root)
    names = [str(path.relative_to(root)) for path in _images_below(root)]
    if not names:
        raise UsageError(f"no images in {root}; {_KNOWN}")
    words, unused = read_labels(labels, root, names)
    numbers = [int(match[1]) for word in words if (match := _CLASS_NUMBER.fullmatch(word))]
    numbered = len(numbers) == len(words)
    if numbered and min(numbers) == 1 and max(numbers) == _ILSVRC_CLASSES:
        raise UsageError(
            f"{labels} numbers its classes from 1 to 1000, as ILSVRC's ground truth does, and that is not the order of "
            "the class names that models are trained with; give a file of names (n01440764, …)"
        )
    classes = tuple(map(str, range(1 + max(numbers)))) if numbered else tuple(sorted(set(words)))
    index = {name: position for position, name in enumerate(classes)}
    values = numbers if numbered else [index[word] for word in words]
    notes = (f"lines of {labels} name no image in {root} ({len(unused)}): {name_list(unused)}",) if unused else ()
    return Files(root, list(zip(names, values, strict=True)), classes, numbered=numbered, notes=notes)


def _check_folder(root: Path) -> None:
    if not os.path.isdir(root):  # noqa: PTH112 - a Path raises for a name that is too long
        options = f"; the options of data are {', '.join(KINDS['flat'])}" if re.search(r",\w+=", str(root)) else ""
        raise UsageError(f"no folder {root.absolute()}{options}")


def _of_split(root: Path, split: str) -> Path:
    _check_folder(root)
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
        if is_stray(entry.name):
            continue
        if _is_folder(entry):
            yield from _images_below(Path(entry.path), above)
        elif _is_image(entry):
            yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is an image: by its suffix, by how it begins, or as a link to an image that is gone."""
    path = Path(entry.path)
    try:
        if not entry.is_file():  # a pipe is not opened: that would wait for ever
            return has_image_suffix(entry.name) and entry.is_symlink() and not path.exists()
        if has_image_suffix(entry.name):
            return True
        with path.open("rb") as file:
            return bool(image_format(file.read(HEAD_BYTES)))
    except OSError:
        return has_image_suffix(entry.name)
