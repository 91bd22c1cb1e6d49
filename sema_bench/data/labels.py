"""Read a file of labels: which class each image of a folder has.

The forms that people have, with a heading or without:

- ``<image>,<class>``, with a comma, a semicolon or a tab between: the second field is the class, whole;
- ``<image> <class>``: the line begins with the name of an image that exists, the rest is the class;
- a table of more columns, whose heading names those of the image and the class;
- ILSVRC's ``<image>,<class> x y w h …``: a synset and its boxes;
- one class per line, for the images in the order of their names.

What stands between the fields is decided once, for the whole file, by which reading names images that exist. Where two
readings are possible the file is refused: a wrong class is not seen in a result.
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
_BYTE_ORDER_MARKS = (
    *((mark, "utf-32") for mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    *((mark, "utf-16") for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)
#: Headings, in lower case and without spaces, hyphens and underscores.
_IMAGE_HEADINGS = frozenset(
    f"{image}{what}" for image in ("image", "img", "file") for what in ("", "s", "name", "id", "path", "file")
) | {"path", "name", "id"}
_BOXES_HEADING = "predictionstring"
_CLASS_HEADINGS = frozenset(
    f"{label}{what}" for label in ("label", "class", "category", "target") for what in ("", "s", "name", "id")
) | {"classes", "categories", "synset", "wnid", _BOXES_HEADING}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBERS = re.compile(rf"(?:{_NUMBER} )*{_NUMBER}")
_BOX = re.compile(rf"(\S+)(?: {_NUMBER}){{4}}(?: |$)")
_BOXES = re.compile(rf"(?:{_BOX.pattern})+")
#: A line with one of these is more than the name of a class.
_NO_CLASS = re.compile(rf"[\s,;|:=>]|{'|'.join(map(re.escape, COMMON_SUFFIXES))}", re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]+"')
_SYNSET = re.compile(r"n\d+")
_ADVICE = "write lines of <image>,<class>"


class Labels(NamedTuple):
    """What a label file says of the images of a folder.

    Attributes:
        classes: the class of each image, in their order.
        unused: names in the file that are of none of them.
    """

    classes: list[str]
    unused: list[str]


class _Row(NamedTuple):
    number: int
    fields: list[str]

    def field(self, column: int) -> str:
        return self.fields[column] if column < len(self.fields) else ""


class _Line(NamedTuple):
    number: int
    image: str
    label: str


class _Reading(NamedTuple):
    """A file, read in one way.

    Attributes:
        matched: how many lines name images that exist.
        lines: those with an image and its class.
        problem: why these are not certain.
        spaced: only spaces separate the image from the class.
        boxed: the class stands before the boxes of objects.
    """

    matched: int
    lines: list[_Line]
    problem: str = ""
    spaced: bool = False
    boxed: bool = False


class _UnclearError(Exception):
    """A file cannot be read with certainty; the message goes on after the name of the file."""


def read_labels(file: Path, root: Path, names: Sequence[str]) -> Labels:
    """Return the class of each of the images ``names`` below ``root``.

    Raises:
        UsageError: the file cannot be read, an image has no class, or a class could mean two things.
    """
    text = _text(file)
    images = ImageNames(root, names)
    try:
        reading = _best_reading(text, images)
        return _assigned(reading, images, names) if reading.matched else _one_per_line(text, images, names)
    except _UnclearError as problem:
        raise UsageError(printable(f"{file} {problem}")) from None
    except csv.Error as problem:
        raise UsageError(f"label file {file} cannot be read: {problem}") from None


def _text(file: Path) -> str:
    try:
        check_regular_file(file, "label file")
        content = file.read_bytes()
        encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8-sig")
        text = content.decode(encoding)
    except OSError as problem:
        raise UsageError(f"label file {file.absolute()} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UsageError(f"label file {file.absolute()} cannot be read: it is not text; save it as CSV in UTF-8")
    return text


def _best_reading(text: str, images: ImageNames) -> _Reading:
    """Return the reading by which most lines name images; between equal ones, that with a delimiter.

    Raises:
        csv.Error: there is none, and the file is no good as CSV.
    """
    readings, broken = [], None
    for delimiter in _DELIMITERS:
        try:
            readings += [_as_table(text, delimiter, images)] if delimiter in text else []
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
    keys = [_heading_key(field) for field in first]
    named = [column for column, key in enumerate(keys) if key in _IMAGE_HEADINGS]
    classes = [column for column, key in enumerate(keys) if key in _CLASS_HEADINGS]
    headed = bool(named and classes) or (bool(named or classes) and not images.find(first[0]))
    if not headed:
        named, classes = [0], [1]
    body = rows[headed:]
    others = [column for column in range(len(first)) if headed and column not in (*named, *classes)]
    evidence = {column: _evidence(body, column, images) for column in (*named, *others)}
    image = max(evidence, key=evidence.__getitem__, default=0)
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
            f"has the columns {', '.join(first)}, and which of them is the class is not certain; "
            f"call one of them label, or {_ADVICE}"
        )
    if not headed and len(first) > 1 and not images.find(first[0]) and not has_image_suffix(first[0]):  # a heading
        body = rows[1:]
    label = (classes or [0])[0]
    lines = [_Line(row.number, row.field(image), row.field(label)) for row in body]
    matched = evidence.get(image, (0, 0))[1]
    return _Reading(matched, lines, problem, boxed=headed and keys[label] == _BOXES_HEADING)


def _rows(text: str, delimiter: str, images: ImageNames) -> list[_Row]:
    """Return the rows with their line numbers, without empty ones, empty last fields and comments."""
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


def _evidence(rows: Sequence[_Row], column: int, images: ImageNames) -> tuple[int, int]:
    """Return how many fields of a column are whole paths of images, and how many name images at all."""
    names = [name for row in rows if images.find(name := row.field(column))]
    return sum(map(images.is_path, names)), len(names)


def _as_spaced(text: str, images: ImageNames) -> _Reading:
    lines: list[_Line] = []
    matched, problem = 0, ""
    for number, line in _lines(text, images):
        quoted = re.fullmatch(r'"([^"]*)"\s+(.+)', line)
        cuts = [(quoted[1], quoted[2])] if quoted else []
        cuts = cuts or [(line[: gap.start()], line[gap.end() :]) for gap in re.finditer(r"\s+", line)]
        hits = [cut for cut in cuts if images.find(cut[0])]
        if len(hits) > 1 and not images.is_path(hits[-1][0]):
            problem = problem or f"line {number} may be of {hits[0][0]} or of {hits[-1][0]}; {_ADVICE}"
        if hits or lines or has_image_suffix(line.split()[0]):  # a first line of no image is a heading
            lines.append(_Line(number, *(hits or cuts[:1] or [(line, "")])[-1]))
        matched += bool(hits)
    return _Reading(matched, lines, problem, spaced=True)


def _one_per_line(text: str, images: ImageNames, names: Sequence[str]) -> Labels:
    lines = _lines(text, images)
    for number, line in lines:
        if (_NO_CLASS.search(line) and not _QUOTED.fullmatch(line)) or has_image_suffix(line.strip('"')):
            raise _UnclearError(
                f"line {number} is {line[:80]!r}; expected an image of the folder, such as {names[0]!r}, with its "
                f"class; {_ADVICE}"
            )
    classes = [line.strip('"') for _, line in lines]
    if len(classes) == len(names) + 1 and _heading_key(classes[0]) in _CLASS_HEADINGS:
        del classes[0]
    if len(classes) != len(names):
        raise _UnclearError(f"has {len(classes)} lines for {len(names)} images; {_ADVICE}")
    if all(index in images.find(name) and not _NUMBERS.fullmatch(name) for index, name in enumerate(classes)):
        raise _UnclearError(f"names the images alone, without their classes; {_ADVICE}")
    return Labels(classes, [])


def _assigned(reading: _Reading, images: ImageNames, names: Sequence[str]) -> Labels:
    if reading.problem:
        raise _UnclearError(reading.problem)
    classes: dict[int, str] = {}
    unused = []
    for line in reading.lines:
        hits = images.find(line.image)
        if not hits:
            unused.append(line.image)
        elif len(hits) > 1:
            raise _UnclearError(
                f"line {line.number}: {line.image} may be {names[hits[0]]} or {names[hits[1]]}; write the whole path"
            )
        elif line.label:
            label = _certain_class(line, reading)
            if classes.setdefault(hits[0], label) != label:
                raise _UnclearError(f"gives {line.image} two classes, {classes[hits[0]]} and {label}")
    missing = next((name for index, name in enumerate(names) if index not in classes), None)
    if missing is not None:
        raise _UnclearError(f"names no class for {missing}; {_ADVICE}")
    return Labels([classes[index] for index in range(len(names))], unused)


def _certain_class(line: _Line, reading: _Reading) -> str:
    if "\n" in line.label or "\r" in line.label:
        raise _UnclearError(f"line {line.number}: a class goes on in the next line; close its quotes")
    if reading.spaced and _QUOTED.fullmatch(line.label):
        return line.label.strip('"')
    words = line.label.split()
    text = " ".join(words)
    boxed = set(_BOX.findall(text)) if _BOXES.fullmatch(text) and not _NUMBERS.fullmatch(text) else set()
    if len(boxed) == 1 and (reading.boxed or _SYNSET.fullmatch(min(boxed))):
        return str(min(boxed))
    numbers = [word for word in words if _NUMBERS.fullmatch(word)]
    if boxed or (len(words) > 1 and (len(numbers) == len(words) or (reading.spaced and numbers))):
        raise _UnclearError(f"line {line.number}: which part of {text[:80]!r} is the class is not certain; {_ADVICE}")
    return text


def _lines(text: str, images: ImageNames) -> list[tuple[int, str]]:
    """Return the lines with their numbers, without empty ones and comments."""
    lines = enumerate((line.strip() for line in re.split(r"\r\n|\r|\n", text)), 1)
    return [(number, line) for number, line in lines if line and not _is_comment(line, images)]


def _is_comment(text: str, images: ImageNames) -> bool:
    return text.startswith("#") and not any(map(images.find, (text, text.split()[0])))


def _heading_key(text: str) -> str:
    return re.sub(r"[\s_-]", "", text.casefold())
