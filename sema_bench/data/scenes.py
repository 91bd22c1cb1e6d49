"""Scenes of handwritten digits that ask what grows with an image: three protocols, drawn from a seed at any size.

All are trained at ``BASE`` × ``BASE`` pixels and tested at any size. A scene is the same wherever and whenever it is
drawn; no digit of the test part is ever seen in training.

- ``zoom``: the scene of the base size, resampled to the size asked for: the object grows with the image, as where
  papers test models that were trained at 224 at 384 to 1024. Training shows crops of the scene, up to ``ZOOM_RANGE``
  times enlarged: without such scales the experiment would measure their absence.
- ``field``: the canvas grows, and the digit keeps its size; as many fragments of other digits per area lie around it.
  There are more tokens, and the evidence is the same.
- ``cue``: ``CUE_DIGITS`` digits of different colours, and a square mark of one of these colours elsewhere on the
  canvas; the answer is the digit of the mark's colour. Nothing near a digit tells whether it is the one. Distances grow
  with the canvas, and as many coloured fragments per area lie around. Who sees the digits and not the mark is right in
  (1 + (CUE_DIGITS − 1) / 10) / CUE_DIGITS = 55 % of the scenes. Marks of training scenes are up to as large as the
  canvas, so that a network learns what a mark means before it has to find one: with small ones alone none of those
  tried here ever left those 55 %.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sema_bench.data.base import Pixels
from sema_bench.data.digits import GLYPH, SPLITS, Split, glyphs

Protocol = Literal["zoom", "field", "cue"]
PROTOCOLS: tuple[Protocol, ...] = ("zoom", "field", "cue")

#: Side of a training image in pixels; no canvas is smaller.
BASE = 64
#: Largest magnification of a training scene under ``zoom``.
ZOOM_RANGE = 4.0
#: Digits of one scene under ``cue``.
CUE_DIGITS = 2
#: Fragments on one base area.
_FRAGMENTS = 6
_FRAGMENT = GLYPH // 2
#: Side of a mark, and how bright it is: a digit of its colour can be read on it.
_MARK = 2 * GLYPH
_MARK_BRIGHTNESS = 0.5
_COLOURS = np.array([[255, 80, 80], [80, 255, 80], [90, 90, 255], [255, 255, 70]], dtype=np.int64)
_WHITE = np.array([[255, 255, 255]], dtype=np.int64)
_NOISE = 48
_BANK = 512
#: Tries to find places, and to begin anew where the first ones left no room.
_TRIES = 100


class _Bank(NamedTuple):
    """Glyphs, and fragments of them, ready to be pasted in each colour."""

    digits: NDArray[np.uint8]  # (colours, n, GLYPH, GLYPH, 3)
    labels: NDArray[np.int64]  # (n,)
    fragments: NDArray[np.uint8]  # (colours · _BANK, _FRAGMENT, _FRAGMENT, 3)


class DigitScenes:
    """Scenes of one protocol.

    Args:
        protocol: what they ask.
        split: which digits they show.
        images: how many there are.
        seed: what they are drawn from.
        first: index of the first one: an epoch that starts where the last one ended shows new scenes.
    """

    classes = tuple(str(digit) for digit in range(10))

    def __init__(self, protocol: Protocol, split: Split, *, images: int, seed: int = 0, first: int = 0) -> None:
        self._protocol = protocol
        self._split = split
        self._images = images
        self._key = (seed, PROTOCOLS.index(protocol), SPLITS.index(split))
        self._first = first
        self._bank: _Bank | None = None
        self._draw: Callable[[np.random.Generator, _Bank, tuple[int, int]], tuple[Pixels, int]] = {
            "zoom": _plain_scene,
            "field": _plain_scene,
            "cue": _cue_scene,
        }[protocol]

    def __len__(self) -> int:
        return self._images

    def name(self, index: int) -> str:
        return f"scene {self._first + index}"

    def label(self, index: int) -> int:
        return self._drawn(index, (BASE, BASE))[1]

    def scene(self, index: int, size: tuple[int, int]) -> Pixels:
        return self.labelled_scene(index, size)[0]

    def labelled_scene(self, index: int, size: tuple[int, int]) -> tuple[Pixels, int]:
        """Return a scene, (H, W, 3), and its label."""
        if min(size) < BASE:
            raise ValueError(f"a scene of digits needs {BASE}×{BASE} pixels; got {size[0]}×{size[1]}")
        if self._protocol != "zoom":
            return self._drawn(index, size)
        pixels, label = self._drawn(index, (BASE, BASE))
        return _resampled(pixels, (0.0, 0.0, BASE, BASE), size), label

    def training_scene(self, index: int, size: tuple[int, int]) -> tuple[Pixels, int]:
        """Return a scene as training shows it: like any, but under ``zoom`` a crop with all of the digit, enlarged."""
        if self._protocol == "field":
            return self.labelled_scene(index, size)
        generator = self._generator(index)
        if self._protocol == "cue":
            side = round(_MARK * (BASE / _MARK) ** generator.random())
            return _marked_scene(generator, self._glyphs(), size, side=side)
        pixels, label, (top, left) = _plain_scene_and_place(generator, self._glyphs(), (BASE, BASE))
        side = BASE / ZOOM_RANGE ** generator.random()
        low = np.maximum(0, np.array([left, top]) + GLYPH - side)
        high = np.minimum(np.array([left, top]), BASE - side)
        x, y = low + generator.random(2) * (high - low)
        return _resampled(pixels, (x, y, x + side, y + side), size), label

    def _drawn(self, index: int, size: tuple[int, int]) -> tuple[Pixels, int]:
        return self._draw(self._generator(index), self._glyphs(), size)

    def _generator(self, index: int) -> np.random.Generator:
        return np.random.default_rng((*self._key, self._first + index))

    def _glyphs(self) -> _Bank:
        if self._bank is None:
            self._bank = _make_bank(self._split, _COLOURS if self._protocol == "cue" else _WHITE)
        return self._bank


def _make_bank(split: Split, colours: NDArray[np.int64]) -> _Bank:
    known = glyphs(split)
    digits = (known.images[None, ..., None] * colours[:, None, None, None, :] // 255).astype(np.uint8)
    generator = np.random.default_rng(0)
    pieces = []
    for colour, which in zip(*(generator.integers(0, n, _BANK * len(colours)) for n in digits.shape[:2]), strict=True):
        top, left = generator.integers(0, GLYPH - _FRAGMENT, 2)
        pieces.append(digits[colour, which, top : top + _FRAGMENT, left : left + _FRAGMENT])
    return _Bank(digits, known.labels, np.stack(pieces))


def _plain_scene(generator: np.random.Generator, bank: _Bank, size: tuple[int, int]) -> tuple[Pixels, int]:
    pixels, label, _ = _plain_scene_and_place(generator, bank, size)
    return pixels, label


def _plain_scene_and_place(
    generator: np.random.Generator, bank: _Bank, size: tuple[int, int]
) -> tuple[Pixels, int, tuple[int, int]]:
    """Draw one digit among fragments."""
    which = int(generator.integers(len(bank.labels)))
    (place,) = _places(generator, size, [GLYPH])
    pixels = _canvas(generator, bank, size)
    _paste(pixels, bank.digits[0, which], place)
    return pixels, int(bank.labels[which]), place


def _cue_scene(generator: np.random.Generator, bank: _Bank, size: tuple[int, int]) -> tuple[Pixels, int]:
    return _marked_scene(generator, bank, size, side=_MARK)


def _marked_scene(
    generator: np.random.Generator, bank: _Bank, size: tuple[int, int], *, side: int
) -> tuple[Pixels, int]:
    """Draw digits of different colours, and a square mark of one of them that says which one is asked for."""
    which = generator.integers(0, len(bank.labels), CUE_DIGITS)
    colours = generator.permutation(len(_COLOURS))[:CUE_DIGITS]
    *places, place_of_mark = _places(generator, size, [GLYPH] * CUE_DIGITS + [_MARK])
    pixels = _canvas(generator, bank, size)
    if side > _MARK:  # it lies below the digits, wherever they are
        place_of_mark = (int(generator.integers(size[0] - side + 1)), int(generator.integers(size[1] - side + 1)))
    mark = np.broadcast_to((_COLOURS[colours[0]] * _MARK_BRIGHTNESS).astype(np.uint8), (side, side, 3))
    _paste(pixels, mark, place_of_mark)
    for colour, digit, place in zip(colours, which, places, strict=True):
        _paste(pixels, bank.digits[colour, digit], place)
    return pixels, int(bank.labels[which[0]])


def _canvas(generator: np.random.Generator, bank: _Bank, size: tuple[int, int]) -> Pixels:
    """Return noise with fragments of digits on it, as many per area whatever the size."""
    height, width = size
    noise = generator.integers(0, _NOISE, (height, width, 1), dtype=np.uint8)
    pixels = np.repeat(noise, 3, axis=2)
    count = round(_FRAGMENTS * height * width / BASE**2)
    tops = generator.integers(0, height - _FRAGMENT + 1, count).tolist()
    lefts = generator.integers(0, width - _FRAGMENT + 1, count).tolist()
    which = generator.integers(0, len(bank.fragments), count).tolist()
    for place, piece in zip(zip(tops, lefts, strict=True), which, strict=True):
        _paste(pixels, bank.fragments[piece], place)
    return pixels


def _paste(pixels: Pixels, piece: NDArray[Any], place: tuple[int, int]) -> None:
    """Let ``piece`` shine on the canvas: the brighter of both is seen."""
    top, left = place
    window = pixels[top : top + piece.shape[0], left : left + piece.shape[1]]
    np.maximum(window, piece, out=window)


def _places(generator: np.random.Generator, size: tuple[int, int], sides: list[int]) -> list[tuple[int, int]]:
    """Return (top, left) of squares of these sides, anywhere on the canvas, none of which touches another."""
    for _ in range(_TRIES):
        boxes: list[tuple[int, int, int]] = []
        for _ in range(_TRIES):
            side = sides[len(boxes)]
            top, left = (int(generator.integers(0, extent - side + 1)) for extent in size)
            if not any(_touch((top, left, side), box) for box in boxes):
                boxes.append((top, left, side))
            if len(boxes) == len(sides):
                return [(top, left) for top, left, _ in boxes]
    raise RuntimeError(f"{len(sides)} objects find no place on {size}")


def _touch(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[2] and b[1] < a[1] + a[2]


def _resampled(pixels: Pixels, box: tuple[float, float, float, float], size: tuple[int, int]) -> Pixels:
    """Return the part ``box`` (left, top, right, bottom) of ``pixels``, bicubic, (H, W) large."""
    from PIL import Image

    image = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image)
