"""Names of data, as a command line, a suite or a record writes them; read without torch.

- ``digits:zoom``, ``digits:field``, ``digits:cue``: scenes that come with this project, drawn from a seed;
- ``folder:PATH``: one folder per class; if it has ``train`` and ``val`` in it, the one that is wanted;
- ``flat:PATH,labels=FILE``: a folder of images and a file with the class of each;
- ``tar:PATTERN``: WebDataset shards, as in ``tar:val-{000000..000049}.tar``;
- ``hub:NAME``: a Hugging Face dataset, or one that was saved to disk.

Options follow as ``,key=value``; a bare path is a folder, or shards if it ends in ``.tar``. What a model is trained on
stands in ``train``, as in ``flat:val,labels=val.txt,train=folder:imagenet/train``, where it does not follow from the
name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sema_bench.axes import Resolution
from sema_bench.data.preprocess import CROP_PCT
from sema_bench.errors import UsageError, printable, unknown_name

#: Protocols of scenes and the smallest canvas that holds one; see ``data.scenes``.
PROTOCOLS = ("zoom", "field", "cue")
SMALLEST_SCENE = 64
_LONGEST = 500
_MOST_IMAGES = 10_000_000


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
    "flat": {"labels": (str, "", "a file"), **_PHOTOGRAPHS},
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
        return ",".join([f"{self.kind}:{self.location}", *(f"{key}={value}" for key, value in given)])

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
    if not text or not text.isprintable() or len(text) > _LONGEST:
        raise UsageError(f"bad data {printable(text[:_LONGEST])!r}; write e.g. digits:field or folder:PATH")
    kind, colon, rest = text.partition(":")
    if not colon or kind not in KINDS:
        if colon and "/" not in kind and kind.isidentifier():
            raise unknown_name("kind of data", kind, KINDS)
        kind, rest = ("tar" if text.partition(",")[0].endswith(".tar") else "folder"), text
    location, options = _split_options(kind, rest)
    if not location:
        raise UsageError(
            f"bad data {text!r}; after {kind}: stands {'a protocol' if kind == 'digits' else 'a location'}"
        )
    if kind == "digits" and location not in PROTOCOLS:
        raise unknown_name("protocol of digits", location, PROTOCOLS)
    if kind == "flat" and "labels" not in options:
        raise UsageError(f"data {text!r} needs the classes of its images; write flat:{location},labels=FILE")
    return DataSpec(kind, location, options)


def _split_options(kind: str, rest: str) -> tuple[str, dict[str, _Value]]:
    """Split ``location,key=value…``."""
    declared = KINDS[kind]
    pieces = rest.split(",")
    location, options = pieces[0], {}
    for piece in pieces[1:]:
        key, equals, value = piece.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"bad data {rest!r}: {piece!r} is not option=value")
        if key not in declared:
            raise unknown_name(f"option of {kind} data", key, declared)
        if key in options:
            raise UsageError(f"bad data {rest!r}: option {key!r} is given twice")
        read, _, expected = declared[key]
        try:
            if not value:
                raise ValueError
            options[key] = read(value)
        except ValueError:
            raise UsageError(f"data option {key} takes {expected}; got {value!r}") from None
    return location, options
