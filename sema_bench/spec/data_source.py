"""Names of data, as a command line, a suite or a record writes them; read without torch.

- ``digits:zoom``, ``digits:field``, ``digits:cue``: scenes that come with this project, drawn from a seed;
- ``folder:PATH``: one folder per class; if it has ``train`` and ``val`` in it, the one that is wanted;
- ``flat:PATH,labels=FILE``: a folder of images and a file with the class of each;
- ``tar:PATTERN``: WebDataset shards, as in ``tar:val-{000000..000049}.tar``;
- ``hub:NAME``: a Hugging Face dataset, or one that was saved to disk.

Options follow as ``,key=value``; a bare path is a folder, or shards if it ends in ``.tar``. What a model is trained on
stands in ``train``, as in ``flat:val,labels=val.txt,train=folder:imagenet/train``, where it does not follow from the
name.

A comma belongs to the location or the value before it unless an option of that kind of data follows:
``folder:k=v, x,limit=9`` is the folder ``k=v, x``. A location or a value that would be read as an option stands in
quotes, ``folder:"a,limit=3"``, and a quote in quotes is doubled. A location or a file that begins with ``~`` is in the
home folder.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sema_bench.errors import UsageError, unknown_name
from sema_bench.spec.resolution import Resolution
from sema_bench.text.escape import printable

#: Protocols of scenes and the smallest canvas that holds one; see ``data.scenes``.
PROTOCOLS = ("zoom", "field", "cue")
SMALLEST_SCENE = 64
#: Share of the image that the test crop keeps.
CROP_PCT = 0.875
_LONGEST = 500
_MOST_IMAGES = 10_000_000
#: How much alike an option and a piece of a name are before the piece is taken for a misspelt option.
_NEAR = 0.6
_PLAIN = re.compile(r"[^,]*")
_QUOTED = re.compile(r'\s*"(?:[^"]|"")*"\s*(?=,|$)')
_QUOTES = "bad data {!r}: quotes must be closed, and only an option may follow them; a quote in quotes is doubled"


def _path(text: str) -> str:
    return os.path.expanduser(text)  # noqa: PTH111 - a Path would change the rest of it


def _whole(text: str) -> int:
    number = int(text)
    if not 1 <= number <= _MOST_IMAGES:
        raise ValueError
    return number


def _seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**63:
        raise ValueError
    return number


def _share(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and 0.1 <= number <= 1):
        raise ValueError
    return number


_Value = int | float | str
_Option = tuple[Callable[[str], _Value], _Value, str]


def _train(text: str) -> str:
    named = parse_data(text)
    if named.drawn or named.options:
        raise ValueError
    return str(named)


_PHOTOGRAPHS: dict[str, _Option] = {
    "crop_pct": (_share, CROP_PCT, "a share from 0.1 to 1"),
    "limit": (_whole, 0, "a number of images"),
    "train": (_train, "", "a place of photographs to train on, as train=folder:PATH"),
}
#: Kind → option → (reader, default, what it takes).
KINDS: dict[str, dict[str, _Option]] = {
    "digits": {"images": (_whole, 2000, "a number of images"), "seed": (_seed, 0, "a whole number")},
    "folder": _PHOTOGRAPHS,
    "flat": {"labels": (_path, "", "a file"), **_PHOTOGRAPHS},
    "tar": _PHOTOGRAPHS,
    "hub": {"split": (str, "", "a name"), "config": (str, "", "a name"), **_PHOTOGRAPHS},
}


@dataclass(frozen=True)
class DataSpec:
    """Which data, read from its name.

    Attributes:
        kind: a key of ``KINDS``.
        location: protocol, path, pattern or name.
        options: those that were given; ``option`` knows the defaults.
    """

    kind: str
    location: str
    options: Mapping[str, _Value] = field(default_factory=dict)

    def __str__(self) -> str:
        given = sorted((key, value) for key, value in self.options.items() if value != KINDS[self.kind][key][1])
        values = [f"{key}={_quoted_if_unclear(str(value), self.kind)}" for key, value in given]
        return ",".join([f"{self.kind}:{_quoted_if_unclear(self.location, self.kind)}", *values])

    @property
    def without_options(self) -> DataSpec:
        """The same data, without options."""
        return DataSpec(self.kind, self.location)

    def option(self, name: str) -> _Value:
        """Return the value of an option, given or default."""
        return self.options.get(name, KINDS[self.kind][name][1])

    @property
    def drawn(self) -> bool:
        """Whether images are drawn at the size that is asked for."""
        return self.kind == "digits"

    @property
    def training(self) -> DataSpec:
        """What is trained on: this very data, or what ``train`` names."""
        named = "" if self.drawn else str(self.option("train"))
        return parse_data(named) if named else self

    def check_size(self, resolution: Resolution) -> None:
        """Refuse a size at which these images do not exist.

        Raises:
            UsageError: see there.
        """
        if self.drawn and min(resolution.height, resolution.width) < SMALLEST_SCENE:
            raise UsageError(
                f"scenes of digits need {SMALLEST_SCENE}×{SMALLEST_SCENE} pixels, and --res asks for {resolution.label}"
            )


def parse_data(text: str) -> DataSpec:
    """Return what ``text`` names; that it is there is seen when it is opened.

    Raises:
        UsageError: an unknown kind, protocol or option, or a bad value.
    """
    text = text.strip()
    if not text or not text.isprintable():
        raise UsageError(f"bad data {printable(text[:_LONGEST])!r}; write e.g. digits:field or folder:PATH")
    kind, colon, rest = text.partition(":")
    if not colon or kind not in KINDS:
        if colon and "/" not in kind and kind.isidentifier():
            raise unknown_name("kind of data", kind, KINDS)
        kind, rest = "folder", text
        if _split(kind, text)[0].endswith(".tar"):
            kind = "tar"
    location, given = _split(kind, rest)
    options = {key: _read_option(kind, key, value) for key, value in given.items()}
    if not location:
        raise UsageError(
            f"bad data {text!r}; after {kind}: stands {'a protocol' if kind == 'digits' else 'a location'}"
        )
    if kind == "digits" and location not in PROTOCOLS:
        raise unknown_name("protocol of digits", location, PROTOCOLS)
    if kind == "flat" and "labels" not in options:
        raise UsageError(f"data {text!r} needs the classes of its images; write flat:{location},labels=FILE")
    spec = DataSpec(kind, location if kind == "digits" else _path(location), options)
    if len(str(spec)) > _LONGEST:
        raise UsageError(f"the name of the data is longer than {_LONGEST} characters: {text[:40]!r}…; use a link")
    return spec


def _read_option(kind: str, key: str, text: str) -> _Value:
    read, _, expected = KINDS[kind][key]
    try:
        if not text:
            raise ValueError
        return read(text)
    except ValueError:
        raise UsageError(f"data option {key} takes {expected}; got {text!r}") from None


def _split(kind: str, rest: str) -> tuple[str, dict[str, str]]:
    """Split ``location,key=value…`` and remove quotes; a piece that is no option belongs to the one before it."""
    values: dict[str, str] = {}
    key, position = "", 0
    while position <= len(rest):
        plain = _PLAIN.match(rest, position)
        assert plain is not None  # it matches everywhere
        option = _option_name(kind, plain[0]) if values else ""
        begins = bool(option) or not values
        if option and option in values:
            raise UsageError(f"bad data {rest!r}: option {option!r} is given twice")
        if option:
            key, position = option, position + len(option) + 1
        piece = (_QUOTED.match(rest, position) if begins else None) or _PLAIN.match(rest, position)
        assert piece is not None
        if not begins and values[key].lstrip().startswith('"'):
            raise UsageError(_QUOTES.format(rest))
        values[key] = piece[0] if begins else f"{values[key]},{piece[0]}"
        position = piece.end() + 1
    unquoted = {key: _unquoted(value.strip(), rest) for key, value in values.items()}
    return unquoted.pop(""), unquoted


def _option_name(kind: str, piece: str) -> str:
    """Return the option that ``piece`` sets, "" if it is a part of what stands before it.

    Raises:
        UsageError: it is neither for certain, as a misspelt option.
    """
    key, equals, _ = piece.partition("=")
    declared = KINDS[kind]
    if equals and key in declared:
        return key
    if kind == "digits":
        if not equals or not key.isidentifier():
            raise UsageError(f"bad data: {piece!r} is not option=value")
        raise unknown_name(f"option of {kind} data", key, declared)
    near = difflib.get_close_matches(key.strip().lower(), declared, n=1, cutoff=_NEAR) if equals else []
    if near:
        raise UsageError(
            f"unknown option of {kind} data {key!r}; did you mean {near[0]!r}? If {piece!r} is a part of a name, "
            'write the name in quotes: folder:"a,b=c"'
        )
    return ""


def _unquoted(value: str, rest: str) -> str:
    if not value.startswith('"'):
        return value
    if not _QUOTED.fullmatch(value):
        raise UsageError(_QUOTES.format(rest))
    return value[1:-1].replace('""', '"')


def _quoted_if_unclear(value: str, kind: str) -> str:
    """Return ``value`` as ``parse_data`` reads it back: in quotes if it would be taken for something else."""
    try:
        unclear = value != value.strip() or '"' in value or any(_option_name(kind, p) for p in value.split(",")[1:])
    except UsageError:
        unclear = True
    return '"' + value.replace('"', '""') + '"' if unclear else value
