"""Read the class of each image of a folder from a label file.

Forms of such files, with or without a heading:

- ``<image>,<class>``, with a comma, a semicolon or a tab between: the second field is the class, whole;
- ``<image> <class>``: the line begins with the name of an existing image, the rest is the class;
- a table of more columns, with a heading that names those of the image and the class;
- ILSVRC's ``<image>,<class> x y w h …``: a synset and its boxes;
- one class per line, for the images in the order of their names.

The separator is chosen once for the whole file: the one with which most lines name existing images. A file with two
possible readings is refused: nobody notices a wrong class in a result.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sema_bench.data.image_files import COMMON_SUFFIXES, has_image_suffix
from sema_bench.data.image_names import ImageNames
from sema_bench.errors import UsageError
from sema_bench.spec.files import check_regular_file
from sema_bench.text.escape import printable

_DELIMITERS = {"\t": "tab", ",": "comma", ";": "semicolon"}
_BYTE_ORDER_MARKS = {
    **dict.fromkeys((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
    **dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
}
#: Headings, in lower case and without spaces, hyphens and underscores.
_IMAGE_HEADINGS = frozenset(
    f"{image}{part}" for image in ("image", "img", "file") for part in ("", "s", "name", "id", "path", "file")
) | {"path", "name", "id"}
_BOXES_HEADING = "predictionstring"
_CLASS_HEADINGS = frozenset(
    f"{label}{part}" for label in ("label", "class", "category", "target") for part in ("", "s", "name", "id")
) | {"classes", "categories", "synset", "wnid", _BOXES_HEADING}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBERS = re.compile(rf"(?:{_NUMBER} )*{_NUMBER}")
_BOX = re.compile(rf"(\S+)(?: {_NUMBER}){{4}}(?: |$)")
_BOXES = re.compile(rf"(?:{_BOX.pattern})+")
#: A line with one of these holds more than a class.
_NO_CLASS = re.compile(rf"[\s,;|:=>]|{'|'.join(map(re.escape, COMMON_SUFFIXES))}", re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]+"')
_SYNSET = re.compile(r"n\d+")
_ADVICE = "write lines of <image>,<class>"


class _Row(NamedTuple):
    number: int
    fields: list[str]

    def field(self, column: int) -> str:
        return self.fields[column] if column < len(self.fields) else ""


class _Reading(NamedTuple):
    """A file, read with one separator."""

    matched: int  # lines that name existing images
    lines: list[tuple[int, str, str]]  # number of the line, image and class
    problem: str = ""  # why the classes are not certain
    spaced: bool = False  # only spaces separate the image from the class
    boxed: bool = False  # boxes of objects follow the class


def read_labels(file: Path, root: Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Read the class of each of the images ``names`` below ``root``, and the names in the file that match no image."""
    text = _text(file)
    images = ImageNames(root, names)
    try:
        reading = _best_reading(text, images)
        return _assigned(reading, images) if reading.matched else (_one_per_line(text, images), [])
    except UsageError as problem:  # without the name of the file
        raise UsageError(printable(f"{file} {problem}")) from None
    except csv.Error as problem:
        raise UsageError(f"label file {file} cannot be read: {problem}") from None


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


def _best_reading(text: str, images: ImageNames) -> _Reading:
    """Choose the reading with which most lines name images; of equal ones, that with a delimiter."""
    readings, broken = [], None
    for delimiter in filter(text.__contains__, _DELIMITERS):
        try:
            readings.append(_as_table(text, delimiter, images))
        except csv.Error as problem:
            broken = problem
    if not any(reading.matched == len(reading.lines) > 0 for reading in readings):
        readings.append(_as_spaced(text, images))
    best = max(readings, key=lambda reading: reading.matched)
    if broken and not best.matched:
        raise broken
    return best


def _as_table(text: str, delimiter: str, images: ImageNames) -> _Reading:
    rows = _rows(text, delimiter, images)
    first = rows[0].fields if rows else [""]
    first_is_image = bool(images.find(first[0]))
    keys = [_heading_key(field) for field in first]
    named = [column for column, key in enumerate(keys) if key in _IMAGE_HEADINGS]
    classes = [column for column, key in enumerate(keys) if key in _CLASS_HEADINGS]
    headed = bool(named and classes) or (bool(named or classes) and not first_is_image)
    body = rows[headed:]
    if headed:
        columns = [*named, *(column for column in range(len(first)) if column not in (*named, *classes))]
    else:
        columns, classes = [0], [1]
    hits = {column: [name for row in body if images.find(name := row.field(column))] for column in columns}
    image = max(columns, key=lambda column: (sum(map(images.is_path, hits[column])), len(hits[column])), default=0)
    if headed and not classes and len(first) == 2:
        classes = [1 - image]
    width = len(first) if headed else 2
    longest = max(body, key=lambda row: len(row.fields), default=_Row(0, []))
    problem = ""
    if len(longest.fields) > width:
        problem = (
            f"line {longest.number} has {len(longest.fields)} fields, and "
            f"{f'the heading {width}' if headed else 'no heading says which is the class'}; {_ADVICE}, with quotes "
            f"around a field that has a {_DELIMITERS[delimiter]} in it, or a heading such as image,label"
        )
    elif len(classes) != 1:
        problem = (
            f"has the columns {', '.join(first)}, and it is not clear which of them is the class; "
            f"call one of them label, or {_ADVICE}"
        )
    if not headed and len(first) > 1 and not first_is_image and not has_image_suffix(first[0]):  # a heading
        body = rows[1:]
    label = (classes or [0])[0]
    lines = [(row.number, row.field(image), row.field(label)) for row in body]
    return _Reading(len(hits.get(image, ())), lines, problem, boxed=headed and keys[label] == _BOXES_HEADING)


def _rows(text: str, delimiter: str, images: ImageNames) -> list[_Row]:
    """Split into rows with their line numbers, without empty ones, empty last fields and comments."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows = []
    for row in reader:
        fields = [field.strip() for field in row]
        while fields and not fields[-1]:
            fields.pop()
        if fields and not _is_comment(fields[0], images):
            rows.append(_Row(reader.line_num, fields))
    filled = [_Row(row.number, list(filter(None, row.fields))) for row in rows]
    aligned = delimiter == "\t" and all(len(row.fields) <= 2 for row in filled)  # by several tabs
    return filled if aligned else rows


def _as_spaced(text: str, images: ImageNames) -> _Reading:
    lines: list[tuple[int, str, str]] = []
    matched, problem = 0, ""
    for number, line in _lines(text, images):
        quoted = re.fullmatch(r'"([^"]*)"\s+(.+)', line)
        cuts = [(quoted[1], quoted[2])] if quoted else []
        cuts = cuts or [(line[: gap.start()], line[gap.end() :]) for gap in re.finditer(r"\s+", line)]
        hits = [cut for cut in cuts if images.find(cut[0])]
        if len(hits) > 1 and not images.is_path(hits[-1][0]):
            problem = problem or f"line {number} may be of {hits[0][0]} or of {hits[-1][0]}; {_ADVICE}"
        if hits or lines or has_image_suffix(line.split()[0]):  # a first line without an image is a heading
            lines.append((number, *(hits or cuts[:1] or [(line, "")])[-1]))
        matched += bool(hits)
    return _Reading(matched, lines, problem, spaced=True)


def _one_per_line(text: str, images: ImageNames) -> list[str]:
    lines, count = _lines(text, images), len(images.names)
    for number, line in lines:
        if (_NO_CLASS.search(line) and not _QUOTED.fullmatch(line)) or has_image_suffix(line.strip('"')):
            raise UsageError(
                f"line {number} is {line[:80]!r}; expected an image of the folder, such as {images.names[0]!r}, with "
                f"its class; {_ADVICE}"
            )
    classes = [line.strip('"') for _, line in lines]
    if len(classes) == count + 1 and _heading_key(classes[0]) in _CLASS_HEADINGS:
        del classes[0]
    if len(classes) != count:
        raise UsageError(f"has {len(classes)} lines for {count} images; {_ADVICE}")
    if all(index in images.find(name) and not _NUMBERS.fullmatch(name) for index, name in enumerate(classes)):
        raise UsageError(f"names the images alone, without their classes; {_ADVICE}")
    return classes


def _assigned(reading: _Reading, images: ImageNames) -> tuple[list[str], list[str]]:
    if reading.problem:
        raise UsageError(reading.problem)
    names = images.names
    classes: dict[int, str] = {}
    unused = []
    for number, image, label in reading.lines:
        hits = images.find(image)
        if not hits:
            unused.append(image)
        elif len(hits) > 1:
            one, other = (names[hit] for hit in hits[:2])
            raise UsageError(f"line {number}: {image} may be {one} or {other}; write the whole path")
        elif label:
            label = _certain_class(number, label, reading)
            if classes.setdefault(hits[0], label) != label:
                raise UsageError(f"gives {image} two classes, {classes[hits[0]]} and {label}")
    for index, name in enumerate(names):
        if index not in classes:
            raise UsageError(f"names no class for {name}; {_ADVICE}")
    return [classes[index] for index in range(len(names))], unused


def _certain_class(number: int, label: str, reading: _Reading) -> str:
    if "\n" in label or "\r" in label:
        raise UsageError(f"line {number}: a class continues in the next line; close its quotes")
    if reading.spaced and _QUOTED.fullmatch(label):
        return label.strip('"')
    words = label.split()
    text = " ".join(words)
    boxed = set(_BOX.findall(text)) if _BOXES.fullmatch(text) and not _NUMBERS.fullmatch(text) else set()
    if len(boxed) == 1 and (reading.boxed or _SYNSET.fullmatch(min(boxed))):
        return str(min(boxed))
    numbers = [word for word in words if _NUMBERS.fullmatch(word)]
    if boxed or (len(words) > 1 and (len(numbers) == len(words) or (reading.spaced and numbers))):
        raise UsageError(f"line {number}: it is not clear which part of {text[:80]!r} is the class; {_ADVICE}")
    return text


def _lines(text: str, images: ImageNames) -> list[tuple[int, str]]:
    """Split into lines with their numbers, without empty ones and comments."""
    lines = enumerate((line.strip() for line in re.split(r"\r\n|\r|\n", text)), 1)
    return [(number, line) for number, line in lines if line and not _is_comment(line, images)]


def _is_comment(text: str, images: ImageNames) -> bool:
    return text.startswith("#") and not any(map(images.find, (text, text.split()[0])))


def _heading_key(text: str) -> str:
    return re.sub(r"[\s_-]", "", text.casefold())
