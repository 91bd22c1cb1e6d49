"""Parse the names of data in command lines, suites and records.

- ``digits:zoom``, ``digits:field``, ``digits:cue``, ``digits:segment``, ``digits:segment-zoom``: scenes that come with
  this project, drawn from a seed;
- ``folder:PATH``: one folder per class, or ``train`` and ``val`` with such folders;
- ``flat:PATH,labels=FILE``: a folder of images and a file with the class of each;
- ``tar:PATTERN``: WebDataset shards, as in ``tar:val-{000000..000049}.tar``;
- ``npz:FILE``: arrays of images and labels, as MedMNIST is distributed;
- ``idx:PATH``: a folder with MNIST's four idx files;
- ``hub:NAME``: a Hugging Face dataset, or one that was saved to disk.

Options follow as ``,key=value``; a bare path is a folder, or what its suffix says (``.tar``, ``.npz``). The option
``train`` names the images to train on, as in ``flat:val,labels=val.txt,train=folder:imagenet/train``.

A comma belongs to the location or the value before it unless an option of that kind of data follows:
``folder:k=v, x,limit=9`` is the folder ``k=v, x``. Quote a location or a value that looks like an option,
``folder:"a,limit=3"``, and double a quote in quotes. A path that begins with ``~`` is in the home folder.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from sema_bench.errors import UsageError, unknown_name
from sema_bench.spec.files import expand_user
from sema_bench.spec.resolution import Resolution
from sema_bench.text.escape import printable

#: Protocols of scenes and the smallest canvas that holds one; see ``data.scenes``.
PROTOCOLS = ("zoom", "field", "cue", "segment", "segment-zoom")
#: Protocols in which every pixel has a class.
SEGMENTED = ("segment", "segment-zoom")
SMALLEST_SCENE = 64
#: Share of the image that the test crop keeps.
CROP_PCT = 0.875
_LONGEST = 500
#: Similarity to an option at which a piece of a name counts as a misspelt option.
_NEAR = 0.6
_QUOTED = r'"(?:[^"]|"")*"'

_Value = int | float | str
_Option = tuple[Callable[[str], _Value], _Value, str]


def _number(read: Callable[[str], float], least: float, most: float, text: str) -> float:
    value = read(text)
    if not least <= value <= most:  # NaN, too
        raise ValueError
    return value


def _train(text: str) -> str:
    spec = parse_data(text)
    if spec.drawn or spec.options:
        raise ValueError
    return str(spec)


def _glyphs(text: str) -> str:
    spec = parse_data(text)
    if spec.kind not in ("npz", "idx") or spec.options:
        raise ValueError
    return str(spec)


def _part(text: str) -> str:
    if text not in ("train", "val", "test"):
        raise ValueError
    return text


_images = partial(_number, int, 1, 10_000_000)
_PHOTOGRAPHS: dict[str, _Option] = {
    "crop_pct": (partial(_number, float, 0.1, 1), CROP_PCT, "a share from 0.1 to 1"),
    "limit": (_images, 0, "a number of images"),
    "train": (_train, "", "photographs to train on, as train=folder:PATH"),
}
#: Kind → option → (reader, default, expected value).
KINDS: dict[str, dict[str, _Option]] = {
    "digits": {
        "images": (_images, 2000, "a number of images"),
        "seed": (partial(_number, int, 0, 2**63 - 1), 0, "a whole number"),
        "glyphs": (_glyphs, "", "other digits to test on, as glyphs=npz:FILE or glyphs=idx:PATH"),
    },
    "folder": _PHOTOGRAPHS,
    "flat": {"labels": (expand_user, "", "a file"), **_PHOTOGRAPHS},
    "tar": _PHOTOGRAPHS,
    "npz": {"split": (_part, "test", "the part to test on: train, val or test"), **_PHOTOGRAPHS},
    "idx": _PHOTOGRAPHS,
    "hub": {"split": (str, "", "a name"), "config": (str, "", "a name"), **_PHOTOGRAPHS},
}


@dataclass(frozen=True)
class DataSpec:
    """Data by kind (a key of ``KINDS``), location (protocol, path, pattern or name), and the options given."""

    kind: str
    location: str
    options: Mapping[str, _Value] = field(default_factory=dict)

    def __str__(self) -> str:
        given = sorted((key, value) for key, value in self.options.items() if value != KINDS[self.kind][key][1])
        values = [f"{key}={_quoted_if_unclear(str(value), self.kind)}" for key, value in given]
        return ",".join([f"{self.kind}:{_quoted_if_unclear(self.location, self.kind)}", *values])

    def option(self, name: str) -> _Value:
        """Return the value of an option, given or default."""
        return self.options.get(name, KINDS[self.kind][name][1])

    @property
    def drawn(self) -> bool:
        """True if images are drawn at the size of the cell instead of scaled to it."""
        return self.kind == "digits"

    @property
    def segmented(self) -> bool:
        """True if each pixel has a class, not each image."""
        return self.drawn and self.location in SEGMENTED

    @property
    def training(self) -> DataSpec:
        """The data to train on: this one, or the one that ``train`` names."""
        name = self.options.get("train")
        return parse_data(str(name)) if name else self

    def check_size(self, resolution: Resolution) -> None:
        """Raise UsageError for a size at which these images cannot be drawn."""
        if self.drawn and min(resolution.height, resolution.width) < SMALLEST_SCENE:
            raise UsageError(
                f"scenes of digits need {SMALLEST_SCENE}×{SMALLEST_SCENE} pixels, and --res asks for {resolution.label}"
            )


def unlike_data(*, of_pixels: bool, data: DataSpec) -> str:
    """Say why a model that classifies pixels, or images, does not suit ``data``; "" if it does."""
    if data.segmented and not of_pixels:
        return f"{data} has a class for each pixel: use a model with head=fpn, e.g. sema_micro[sema,head=fpn]"
    if of_pixels and not data.segmented:
        return (
            f"a model with a class for each pixel (head=fpn) needs data such as digits:segment, and {data} has one "
            "for each image"
        )
    return ""


def parse_data(text: str) -> DataSpec:
    """Read a name of data without opening files; raise UsageError for an unknown word or a bad value."""
    text = text.strip()
    if not text or not text.isprintable():
        raise UsageError(f"bad data {printable(text[:_LONGEST])!r}; write e.g. digits:field or folder:PATH")
    kind, colon, rest = text.partition(":")
    if not colon or kind not in KINDS:
        if colon and "/" not in kind and kind.isidentifier():
            raise unknown_name("kind of data", kind, KINDS)
        location = _split("folder", text)[0]
        kind, rest = next((suffix for suffix in ("tar", "npz") if location.endswith(f".{suffix}")), "folder"), text
    location, given = _split(kind, rest)
    options = {}
    for key, value in given.items():
        read, _, expected = KINDS[kind][key]
        try:
            if not value:
                raise ValueError
            options[key] = read(value)
        except ValueError:
            raise UsageError(f"data option {key} takes {expected}; got {value!r}") from None
    if not location:
        raise UsageError(f"bad data {text!r}; write {'a protocol' if kind == 'digits' else 'a location'} after {kind}:")
    if kind == "digits" and location not in PROTOCOLS:
        raise unknown_name("protocol of digits", location, PROTOCOLS)
    if kind == "flat" and "labels" not in options:
        raise UsageError(f"data {text!r} needs the classes of its images; write flat:{location},labels=FILE")
    spec = DataSpec(kind, location if kind == "digits" else expand_user(location), options)
    if len(str(spec)) > _LONGEST:
        raise UsageError(f"the name of the data is longer than {_LONGEST} characters: {text[:40]!r}…; use a link")
    return spec


def _split(kind: str, rest: str) -> tuple[str, dict[str, str]]:
    """Split ``location,key=value…`` and remove quotes; a piece without an option belongs to the one before it."""
    pieces = re.findall(rf"((?:^|(?<=,)(?:{'|'.join(KINDS[kind])})=)\s*{_QUOTED}\s*|[^,]*),", f"{rest},")
    values = {"": pieces[0]}
    for piece in pieces[1:]:
        if option := _option_name(kind, piece):
            if option in values:
                raise UsageError(f"bad data {rest!r}: option {option!r} is given twice")
            values[option] = piece.partition("=")[2]
        else:
            key, value = values.popitem()
            values[key] = f"{value},{piece}"
    for key, value in values.items():
        values[key] = value = value.strip()
        if value.startswith('"'):
            if not re.fullmatch(_QUOTED, value):
                raise UsageError(
                    f"bad data {rest!r}: quotes must be closed, and only an option may follow them; write a quote in "
                    "quotes twice"
                )
            values[key] = value[1:-1].replace('""', '"')
    return values.pop(""), values


def _option_name(kind: str, piece: str) -> str:
    """Return the option that ``piece`` sets, "" if it belongs to the piece before it; refuse a misspelt option."""
    key, equals, _ = piece.partition("=")
    declared = KINDS[kind]
    if equals and key in declared:
        return key
    if key == "corrupt" and equals:
        raise UsageError(f"corrupt is an axis, not a part of the data's name; pass --corrupt {piece[8:] or 'fog:3'}")
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


def _quoted_if_unclear(value: str, kind: str) -> str:
    """Quote ``value`` if it looks like options, so that ``parse_data`` reads it back."""
    try:
        unclear = value != value.strip() or '"' in value or any(_option_name(kind, p) for p in value.split(",")[1:])
    except UsageError:
        unclear = True
    return '"' + value.replace('"', '""') + '"' if unclear else value
