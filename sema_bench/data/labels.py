"""Read the class of each image of a folder from a label file.

Forms of such files, with or without a heading:

- ``<image>,<class>``, with a comma, a semicolon or a tab between: the second field is the class, whole;
- ``<image> <class>``: what follows the first space is the class;
- a table of more columns, with a heading that names those of the image and the class;
- ILSVRC's ``<image>,<class> x y w h …``: a synset and its boxes;
- one class per line, for the images in the order of their names.

The separator is the one with which most lines name existing images. A file whose form is not certain is refused:
nobody notices a wrong class in a result.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from sema_bench.data.image_files import COMMON_SUFFIXES, has_image_suffix
from sema_bench.errors import UsageError
from sema_bench.spec.files import check_regular_file
from sema_bench.text.escape import printable

_BYTE_ORDER_MARKS = {
    **dict.fromkeys((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
    **dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
}
#: Headings, without spaces, hyphens and underscores.
_IMAGE_HEADING = re.compile(r"((image|img|file)(s|name|id|path|file)?|path|name|id)", re.IGNORECASE)
_CLASS_HEADING = re.compile(
    r"((label|class|category|target)(s|name|id)?|classes|categories|synset|wnid|predictionstring)", re.IGNORECASE
)
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_UNSURE = re.compile(rf"(?:.* )?{_NUMBER}(?: {_NUMBER}){{3}}")
_BOXES = re.compile(rf"(n\d+)(?: {_NUMBER}){{4}}(?: \1(?: {_NUMBER}){{4}})*")
#: A line with one of these holds more than a class.
_NO_CLASS = re.compile(rf"[\s,;|:=>]|{'|'.join(map(re.escape, COMMON_SUFFIXES))}", re.IGNORECASE)
_ADVICE = "write lines of <image>,<class>, with quotes around a class that has a comma in it"

_Row = tuple[int, list[str]]  # number of the line, fields


def read_labels(file: Path, root: Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Read the class of each of the images ``names`` below ``root``, and the names in the file that match no image."""
    text, images = _text(file), _Images(root, names)
    try:
        tables = [_rows(text, delimiter, images) for delimiter in (" ", "\t", ";", ",")]
        hits = [sum(len(fields) > 1 and any(map(images.find, fields)) for _, fields in rows) for rows in tables]
        best = max(range(len(tables)), key=lambda index: (hits[index], index))
        if hits[best]:
            return _assigned(tables[best], images, spaced=best == 0)
        return _one_per_line(text, images), []
    except UsageError as problem:  # without the name of the file
        raise UsageError(printable(f"{file} {problem}")) from None
    except csv.Error as problem:
        raise UsageError(f"label file {file} cannot be read: {problem}") from None


class _Images:
    """Images by their names in label files: their paths or the ends of them, with or without a suffix."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.names = names
        self.exact = {name: [index] for index, name in enumerate(names)}
        self._ends: defaultdict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(names):
            path = _plain((root.absolute() / name).as_posix())
            stem = os.path.splitext(path)[0] if has_image_suffix(name) else path  # noqa: PTH122 - of another system
            for parts in {path, stem}:
                folders = parts.split("/")
                for start in range(len(folders)):
                    self._ends["/".join(folders[start:])].append(index)

    def find(self, text: str) -> list[int]:
        """List the indices of all images that match ``text``."""
        return self.exact.get(text) or self._ends.get(_plain(text)) or []


def _plain(name: str) -> str:
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))


def _text(file: Path) -> str:
    try:
        check_regular_file(file, "label file")
        content = file.read_bytes()
        encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8-sig")
        text = content.decode(encoding)
    except OSError as problem:
        raise UsageError(f"label file {file.absolute()} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UsageError(f"label file {file.absolute()} cannot be read: it is not text; save it as CSV in UTF-8")
    return text


def _rows(text: str, delimiter: str, images: _Images) -> list[_Row]:
    """Split into rows, without empty rows, empty last fields and comments; a space splits only once."""
    if delimiter == " ":
        rows = [(number, line.split(None, 1)) for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1)]
    else:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        rows = [(reader.line_num, row) for row in reader]
    kept = []
    for number, row in rows:
        fields = [field.strip() for field in row]
        while fields and not fields[-1]:
            fields.pop()
        if fields and (not fields[0].startswith("#") or images.find(fields[0])):
            kept.append((number, fields))
    return kept


def _assigned(rows: list[_Row], images: _Images, *, spaced: bool) -> tuple[list[str], list[str]]:
    heading = [] if any(map(images.find, rows[0][1])) else rows[0][1]
    image, label = _columns(heading, rows[bool(heading) :], images)
    classes: dict[int, str] = {}
    unused = []
    for number, fields in rows[bool(heading) :]:
        if len(fields) > max(2, len(heading)):
            raise UsageError(f"line {number} has {len(fields)} fields; {_ADVICE}, or a heading such as image,label")
        name, text = (fields[column] if column < len(fields) else "" for column in (image, label))
        hits = images.find(name)
        if not hits:
            unused.append(name)
        elif len(hits) > 1:
            one, other = (images.names[hit] for hit in hits[:2])
            raise UsageError(f"line {number}: {name} is ambiguous: {one} or {other}; write the whole path")
        elif text:
            text = _class(number, text, spaced=spaced)
            if classes.setdefault(hits[0], text) != text:
                raise UsageError(f"gives {name} two classes, {classes[hits[0]]} and {text}")
    for index, name in enumerate(images.names):
        if index not in classes:
            raise UsageError(f"names no class for {name}; {_ADVICE}")
    return [classes[index] for index in range(len(images.names))], unused


def _columns(heading: list[str], body: list[_Row], images: _Images) -> tuple[int, int]:
    """Find the column that names most images, where full paths count double, and the column of the class."""
    keys = [re.sub(r"[\s_-]", "", field) for field in heading]
    labels = [column for column, key in enumerate(keys) if _CLASS_HEADING.fullmatch(key)]
    names = [column for column, key in enumerate(keys) if _IMAGE_HEADING.fullmatch(key)]
    names = names or [column for column in range(len(heading) or 1) if column not in labels]
    known = {column: [row[column] for _, row in body if len(row) > column] for column in names}
    image = max(
        names, key=lambda column: sum((name in images.exact) + bool(images.find(name)) for name in known[column])
    )
    if not labels and len(heading) <= 2:
        labels = [1 - image]
    if len(labels) != 1:
        raise UsageError(
            f"has the columns {', '.join(heading)}, and it is not clear which of them is the class; call one of them "
            f"label, or {_ADVICE}"
        )
    return image, labels[0]


def _class(number: int, text: str, *, spaced: bool) -> str:
    """Return the class in a field, without ILSVRC's boxes."""
    if "\n" in text or "\r" in text:
        raise UsageError(f"line {number}: a class continues in the next line; close its quotes")
    text = " ".join(text.split())
    if boxes := _BOXES.fullmatch(text):
        return boxes[1]
    numbers = [word for word in text.split() if re.fullmatch(_NUMBER, word)]
    if _UNSURE.fullmatch(text) or (spaced and numbers and " " in text):
        raise UsageError(f"line {number}: it is not clear which part of {text[:80]!r} is the class; {_ADVICE}")
    return text


def _one_per_line(text: str, images: _Images) -> list[str]:
    names = images.names
    lines = [line.strip() for line in text.splitlines()]
    classes = [line for line in lines if line and not line.startswith("#")]
    if odd := next((line for line in classes if _NO_CLASS.search(line)), None):
        raise UsageError(f"{odd[:80]!r} is no class; expected an image of the folder, such as {names[0]!r}; {_ADVICE}")
    if len(classes) == len(names) + 1 and _CLASS_HEADING.fullmatch(re.sub(r"[_-]", "", classes[0])):
        del classes[0]
    if len(classes) != len(names):
        raise UsageError(f"has {len(classes)} lines for {len(names)} images; {_ADVICE}")
    if all(index in images.find(name) and not re.fullmatch(_NUMBER, name) for index, name in enumerate(classes)):
        raise UsageError(f"names the images alone, without their classes; {_ADVICE}")
    return classes
