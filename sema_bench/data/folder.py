"""Images in folders: one folder per class, or a flat one with a file of labels."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from sema_bench.data.base import Photographs
from sema_bench.data.classes import name_list, odd_classes
from sema_bench.data.decode import begins_as_image, decode
from sema_bench.data.image_files import COMMON_SUFFIXES, has_image_suffix, image_format, is_stray
from sema_bench.data.labels import read_labels
from sema_bench.errors import UsageError
from sema_bench.spec.data_source import KINDS
from sema_bench.spec.files import name_text
from sema_bench.text.escape import printable

_SPLIT_FOLDERS = {"train": ("train", "training"), "test": ("val", "validation", "test")}
_ILSVRC_CLASSES = 1000
#: A table with gaps turns 1 into ``1.0``.
_CLASS_NUMBER = re.compile(r"([0-9]{1,6})(?:\.0+)?")
_KNOWN = f"known: {', '.join(COMMON_SUFFIXES)}, …"


@dataclass(kw_only=True)
class Files(Photographs):
    """Labelled image files; ``files`` are their paths below ``root``."""

    root: Path
    files: Sequence[str]

    def name(self, index: int) -> str:
        return printable(self.files[index])

    def photograph(self, index: int) -> Image:
        return decode(self.root / self.files[index])


def open_folder(root: Path, split: str) -> Files:
    """Open ``root/<class>/…/<image>``; if ``root`` has train and val, open the one ``split`` names.

    A class folder without images counts, so that the classes after it keep their numbers. Raise UsageError if there are
    no class folders, or no images in them.
    """
    _check_folder(root)
    parts = {
        part: next((root / name for name in names if (root / name).is_dir()), None)
        for part, names in _SPLIT_FOLDERS.items()
    }
    if all(parts.values()):
        root = parts[split] or root
    entries = _entries(root)
    classes = [entry.name for entry in entries if _is_folder(entry)]
    if not classes:
        raise UsageError(
            f"no class folders in {root}; expected {root}/<class>/<image>, or a flat folder as flat:{root},labels=FILE"
        )
    images = [list(_images_below(root / name)) for name in classes]
    if not any(images):
        raise UsageError(f"no images in the {len(classes)} class folders of {root}; {_KNOWN}")
    empty = [name for name, paths in zip(classes, images, strict=True) if not any(map(begins_as_image, paths))]
    odd = [name for name in odd_classes(classes) if name not in empty]
    beside = [entry.name for entry in entries if _is_image(entry)]
    remarks = (
        (
            empty,
            f"no image can be read in these class folders of {root}, which count as classes all the same: "
            f"{name_list(empty)}; remove those that are not classes",
        ),
        (odd, f"class folders of {root} whose names are unlike the others count as classes: {name_list(odd)}"),
        (beside, f"images beside the class folders of {root} are left out ({len(beside)}): {name_list(beside)}"),
    )
    return Files(
        root=root,
        files=[str(path.relative_to(root)) for paths in images for path in paths],
        labels=[label for label, paths in enumerate(images) for _ in paths],
        classes=tuple(map(name_text, classes)),
        origins=(str(root.resolve()),),
        empty_classes=tuple(map(name_text, empty)),
        notes=tuple(note for names, note in remarks if names),
    )


def open_flat(root: Path, labels: Path) -> Files:
    """Open a folder of images with their classes in a file, see ``labels``."""
    _check_folder(root)
    names = [str(path.relative_to(root)) for path in _images_below(root)]
    if not names:
        raise UsageError(f"no images in {root}; {_KNOWN}")
    words, unused = read_labels(labels, root, names)
    numbers = [int(match[1]) for word in words if (match := _CLASS_NUMBER.fullmatch(word))]
    numbered = len(numbers) == len(words)
    if numbered and min(numbers) == 1 and max(numbers) == _ILSVRC_CLASSES:
        raise UsageError(
            f"{labels} numbers its classes from 1 to 1000, as ILSVRC's ground truth does, which is not the class order "
            "of trained models; give a file of names (n01440764, …)"
        )
    classes = tuple(map(str, range(1 + max(numbers)))) if numbered else tuple(sorted(set(words)))
    index = {name: position for position, name in enumerate(classes)}
    return Files(
        root=root,
        files=names,
        labels=numbers if numbered else [index[word] for word in words],
        classes=classes,
        origins=(str(root.resolve()),),
        numbered=numbered,
        notes=(f"lines of {labels} name no image in {root} ({len(unused)}): {name_list(unused)}",) if unused else (),
    )


def _check_folder(root: Path) -> None:
    if not os.path.isdir(root):  # noqa: PTH112 - a Path raises for a name that is too long
        options = f"; the options of data are {', '.join(KINDS['flat'])}" if re.search(r",\w+=", str(root)) else ""
        raise UsageError(f"no folder {root.absolute()}{options}")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """List the entries of a folder by name, without those that a system or a tool left behind."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not is_stray(entry.name)), key=lambda entry: entry.name)
    except OSError as problem:
        raise UsageError(f"{folder.absolute()} cannot be read: {problem.strerror}") from None


def _images_below(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    with contextlib.suppress(OSError):  # _entries reports it
        here = folder.stat()
        if (here.st_dev, here.st_ino) in above:
            raise UsageError(f"{folder} is a link to a folder that it lies in; remove it")
        above = (*above, (here.st_dev, here.st_ino))
    for entry in _entries(folder):
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
    """Check whether an entry is an image: by its suffix, by its first bytes, or as a dead link with such a suffix."""
    path, has_suffix = Path(entry.path), has_image_suffix(entry.name)
    with contextlib.suppress(OSError):
        if not entry.is_file():  # opening a pipe would block forever
            return has_suffix and entry.is_symlink() and not path.exists()
        if not has_suffix:
            with path.open("rb") as file:
                return bool(image_format(file))
    return has_suffix
