"""Draw scenes of handwritten digits from a seed, at any size: protocols in which something grows with the image.

Models train at ``BASE`` × ``BASE`` pixels and are tested at any size. A scene is the same on every machine, and no
digit of the test part ever appears in training. The digits are the 1,797 images of 8×8 pixels that come with
scikit-learn: the test part of the UCI data "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998).

- ``zoom``: the scene of the base size, resampled: the object grows with the image, as in papers that train at 224 and
  test at 384 to 1024. Training shows crops of the scene, enlarged up to ``ZOOM_RANGE`` times.
- ``field``: the canvas grows, and the digit keeps its size, among a constant number of fragments of digits per area.
- ``cue``: ``CUE_DIGITS`` digits of different colours, and a square mark of one of these colours elsewhere on the
  canvas; the answer is the digit of the mark's colour. Nothing near a digit shows whether it is the answer. Distances
  grow with the canvas, among a constant number of coloured fragments per area. A network that ignores the mark is right
  in (1 + (CUE_DIGITS − 1) / 10) / CUE_DIGITS = 55 % of the scenes. Marks in training are up to as large as the canvas,
  so that a network learns their meaning before it has to find one: with only small marks, no network tried here ever
  got beyond 55 %.
- ``segment``: a constant number of digits and fragments per area, and each pixel has a class: that of the digit whose
  ink covers at least half of it, or background. The canvas grows, and digits keep their size.
- ``segment-zoom``: the same scene of the base size, resampled as by ``zoom``.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sema_bench.data.base import Label, Mask, Photographs, Pixels, UnreadableImageError
from sema_bench.errors import UsageError
from sema_bench.spec.data_source import PROTOCOLS, SEGMENTED, SMALLEST_SCENE

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

#: Side of a scan in pixels, and of a glyph, which is twice as long.
_SCAN = 8
GLYPH = 2 * _SCAN
_TEST_EVERY = 3
_LEVELS = 16.0
#: Side of a training image in pixels; no canvas is smaller.
BASE = SMALLEST_SCENE
ZOOM_RANGE = 4.0
CUE_DIGITS = 2
#: Digits on one base area of a scene whose pixels have classes.
SEGMENT_DIGITS = 2
#: Fragments on one base area.
_FRAGMENTS = 6
_FRAGMENT = GLYPH // 2
#: Side of a mark, and how bright it is: a digit of its colour can be read on it.
_MARK = 2 * GLYPH
_MARK_BRIGHTNESS = 0.5
_COLOURS = np.array([[255, 80, 80], [80, 255, 80], [90, 90, 255], [255, 255, 70]], dtype=np.int64)
_WHITE = np.array([[255, 255, 255]], dtype=np.int64)
_NOISE = 48
#: In other digits, pixels darker than this (of 255) are not ink.
_FAINT = 64
_BANK = 512
#: Tries to place an object, and to start over if the first ones leave no room.
_TRIES = 100
#: A pixel with at least this much ink (of 255) belongs to its digit.
_INK = 128
_DIGITS = tuple(map(str, range(10)))


class Glyphs(NamedTuple):
    """The digits of one part."""

    images: NDArray[np.uint8]  # (n, GLYPH, GLYPH), 0 to 255
    labels: NDArray[np.int64]  # (n,), 0 to 9


@functools.cache
def glyphs(split: Split) -> Glyphs:
    """Load the digits of ``split``."""
    from sklearn.datasets import load_digits  # takes a second, and few runs need it

    small, labels = load_digits(return_X_y=True)
    chosen = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        chosen[np.flatnonzero(labels == digit)[::_TEST_EVERY]] = True
    if split == "train":
        chosen = ~chosen
    return Glyphs(_doubled(small[chosen].reshape(-1, _SCAN, _SCAN) / _LEVELS), labels[chosen].astype(np.int64))


def _doubled(scans: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Interpolate scans (n, 8, 8), 0 to 1, linearly to glyphs; black beyond the edge."""
    from scipy.ndimage import zoom

    # centres of pixels are aligned
    images: NDArray[np.float64] = zoom(scans, (1, 2, 2), order=1, mode="grid-constant", grid_mode=True)
    return np.round(images * 255).astype(np.uint8)


def glyphs_from(photographs: Photographs) -> Glyphs:
    """Take digits from other images, bright on dark: the box of the ink, made square, as coarse as scikit-learn's.

    Raises:
        UsageError: a label is not a digit, or an image shows nothing bright.
    """
    where = photographs.origins[0]
    if len(photographs.classes) > len(_DIGITS):
        raise UsageError(f"glyphs: {where} has {len(photographs.classes)} classes, and digits are 0 to 9")
    scans = []
    for index in range(len(photographs)):
        try:
            image = photographs.photograph(index).convert("L")
        except UnreadableImageError as problem:
            raise UsageError(f"glyphs: {photographs.name(index)} of {where} cannot be read: {problem}") from None
        box = image.point([255 * (level >= _FAINT) for level in range(256)]).getbbox()
        if box is None or np.asarray(image).mean() > 2 * _FAINT:
            raise UsageError(f"glyphs: {photographs.name(index)} of {where} is not a bright digit on a dark ground")
        left, top, right, bottom = box
        side = max(right - left, bottom - top)
        corner = (left + right - side) // 2, (top + bottom - side) // 2
        square = image.crop((*corner, corner[0] + side, corner[1] + side))  # black beyond the edge
        scans.append(np.asarray(square.resize((_SCAN, _SCAN), Image.Resampling.BOX)) / 255)
    return Glyphs(_doubled(np.stack(scans)), np.array(photographs.labels, dtype=np.int64))


class _Bank(NamedTuple):
    """Glyphs, and fragments of them, ready to be pasted in each colour."""

    digits: NDArray[np.uint8]  # (colours, n, GLYPH, GLYPH, 3)
    labels: NDArray[np.int64]  # (n,)
    fragments: NDArray[np.uint8]  # (colours · _BANK, _FRAGMENT, _FRAGMENT, 3)


class _Masked(NamedTuple):
    """A scene whose pixels have classes."""

    pixels: Pixels
    ink: NDArray[np.uint8]  # (H, W), of its digits alone
    owners: NDArray[np.uint8]  # (H, W), 1 + the digit in whose square a pixel lies, or 0
    first: tuple[int, int]  # corner (top, left) of one digit


class DigitScenes:
    """Scenes of one of the ``PROTOCOLS``, with the digits of ``split``, or other ``glyphs``.

    A label is the index of a class, or for scenes of ``SEGMENTED`` protocols a mask (H, W) of such indices.
    """

    numbered = False
    origins: tuple[str, ...] = ()
    empty_classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(
        self, protocol: str, split: Split, *, images: int, seed: int = 0, glyphs: Glyphs | None = None
    ) -> None:
        self._protocol = protocol
        self._split = split
        self._glyphs = glyphs
        self._images = images
        self._key = (seed, PROTOCOLS.index(protocol), SPLITS.index(split))
        self.segmented = protocol in SEGMENTED
        self.classes = ("background", *_DIGITS) if self.segmented else _DIGITS

    def __len__(self) -> int:
        return self._images

    def scene(self, index: int, size: tuple[int, int]) -> tuple[Pixels, Label]:
        """Draw a scene (H, W, 3); return it with its label."""
        if min(size) < BASE:
            raise ValueError(f"a scene of digits needs {BASE}×{BASE} pixels; got {size[0]}×{size[1]}")
        if self._protocol == "cue":
            return _marked_scene(self._generator(index), self._bank, size, side=_MARK)
        zooms = self._protocol in ("zoom", "segment-zoom")
        if self.segmented:
            scene = _masked_scene(self._generator(index), self._bank, (BASE, BASE) if zooms else size)
            return _resampled_with_mask(scene, (0.0, 0.0, BASE, BASE), size) if zooms else (scene.pixels, _mask(scene))
        pixels, label, _ = _plain_scene(self._generator(index), self._bank, (BASE, BASE) if zooms else size)
        return _resampled(pixels, (0.0, 0.0, BASE, BASE), size) if zooms else pixels, label

    def training_scene(self, index: int, size: tuple[int, int]) -> tuple[Pixels, Label]:
        """Draw a scene for training: zoom protocols crop and enlarge it around a digit, ``cue`` enlarges the mark."""
        if self._protocol in ("field", "segment"):
            return self.scene(index, size)
        generator = self._generator(index)
        if self._protocol == "cue":
            side = round(_MARK * (BASE / _MARK) ** generator.random())
            return _marked_scene(generator, self._bank, size, side=side)
        if self.segmented:
            scene = _masked_scene(generator, self._bank, (BASE, BASE))
            return _resampled_with_mask(scene, _crop_around(generator, scene.first), size)
        pixels, label, corner = _plain_scene(generator, self._bank, (BASE, BASE))
        return _resampled(pixels, _crop_around(generator, corner), size), label

    def _generator(self, index: int) -> np.random.Generator:
        return np.random.default_rng((*self._key, index))

    @functools.cached_property
    def _bank(self) -> _Bank:
        return _make_bank(self._glyphs or glyphs(self._split), _COLOURS if self._protocol == "cue" else _WHITE)


def _make_bank(known: Glyphs, colours: NDArray[np.int64]) -> _Bank:
    digits = (known.images[None, ..., None] * colours[:, None, None, None, :] // 255).astype(np.uint8)
    generator = np.random.default_rng(0)
    pieces = []
    for colour, which in zip(*(generator.integers(0, n, _BANK * len(colours)) for n in digits.shape[:2]), strict=True):
        top, left = generator.integers(0, GLYPH - _FRAGMENT, 2)
        pieces.append(digits[colour, which, top : top + _FRAGMENT, left : left + _FRAGMENT])
    return _Bank(digits, known.labels, np.stack(pieces))


def _plain_scene(
    generator: np.random.Generator, bank: _Bank, size: tuple[int, int]
) -> tuple[Pixels, int, tuple[int, int]]:
    """Draw one digit among fragments; return the scene, its label and the corner of the digit."""
    which = int(generator.integers(len(bank.labels)))
    (corner,) = _corners(generator, size, [GLYPH])
    pixels = _canvas(generator, bank, size)
    _paste(pixels, bank.digits[0, which], corner)
    return pixels, int(bank.labels[which]), corner


def _marked_scene(
    generator: np.random.Generator, bank: _Bank, size: tuple[int, int], *, side: int
) -> tuple[Pixels, int]:
    """Draw digits of different colours, and a square mark in the colour of the answer."""
    which = generator.integers(0, len(bank.labels), CUE_DIGITS)
    colours = generator.permutation(len(_COLOURS))[:CUE_DIGITS]
    *corners, mark_corner = _corners(generator, size, [GLYPH] * CUE_DIGITS + [_MARK])
    pixels = _canvas(generator, bank, size)
    if side > _MARK:  # it may lie under the digits
        mark_corner = (int(generator.integers(size[0] - side + 1)), int(generator.integers(size[1] - side + 1)))
    mark = np.broadcast_to((_COLOURS[colours[0]] * _MARK_BRIGHTNESS).astype(np.uint8), (side, side, 3))
    _paste(pixels, mark, mark_corner)
    for colour, digit, corner in zip(colours, which, corners, strict=True):
        _paste(pixels, bank.digits[colour, digit], corner)
    return pixels, int(bank.labels[which[0]])


def _masked_scene(generator: np.random.Generator, bank: _Bank, size: tuple[int, int]) -> _Masked:
    """Draw digits among fragments, the same number of each per area at every size."""
    count = round(SEGMENT_DIGITS * size[0] * size[1] / BASE**2)
    which = generator.integers(0, len(bank.labels), count)
    corners = _corners(generator, size, [GLYPH] * count)
    pixels = _canvas(generator, bank, size)
    ink, owners = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    for digit, (top, left) in zip(which, corners, strict=True):
        _paste(pixels, bank.digits[0, digit], (top, left))
        square = np.s_[top : top + GLYPH, left : left + GLYPH]
        ink[square], owners[square] = bank.digits[0, digit, ..., 0], 1 + bank.labels[digit]
    return _Masked(pixels, ink, owners, corners[0])


def _mask(scene: _Masked) -> Mask:
    return np.where(scene.ink >= _INK, scene.owners, 0).astype(np.uint8)


def _crop_around(generator: np.random.Generator, corner: tuple[int, int]) -> tuple[float, float, float, float]:
    """Draw a square (left, top, right, bottom) in a scene of the base size that holds the digit at ``corner``."""
    top, left = corner
    side = BASE / ZOOM_RANGE ** generator.random()
    low = np.maximum(0, np.array([left, top]) + GLYPH - side)
    high = np.minimum(np.array([left, top]), BASE - side)
    x, y = low + generator.random(2) * (high - low)
    return x, y, x + side, y + side


def _canvas(generator: np.random.Generator, bank: _Bank, size: tuple[int, int]) -> Pixels:
    """Draw noise with fragments of digits, the same number per area at every size."""
    height, width = size
    noise = generator.integers(0, _NOISE, (height, width, 1), dtype=np.uint8)
    pixels = np.repeat(noise, 3, axis=2)
    count = round(_FRAGMENTS * height * width / BASE**2)
    tops = generator.integers(0, height - _FRAGMENT + 1, count).tolist()
    lefts = generator.integers(0, width - _FRAGMENT + 1, count).tolist()
    which = generator.integers(0, len(bank.fragments), count).tolist()
    for corner, piece in zip(zip(tops, lefts, strict=True), which, strict=True):
        _paste(pixels, bank.fragments[piece], corner)
    return pixels


def _paste(pixels: Pixels, piece: NDArray[Any], corner: tuple[int, int]) -> None:
    """Paste ``piece`` onto the canvas; the brighter value of each pixel remains."""
    top, left = corner
    window = pixels[top : top + piece.shape[0], left : left + piece.shape[1]]
    np.maximum(window, piece, out=window)


def _corners(generator: np.random.Generator, size: tuple[int, int], sides: list[int]) -> list[tuple[int, int]]:
    """Place squares of these sides anywhere on the canvas without contact; return (top, left) of each."""
    for _ in range(_TRIES):
        boxes: list[tuple[int, int, int]] = []
        for _ in range(max(_TRIES, 4 * len(sides))):
            side = sides[len(boxes)]
            top, left = (int(generator.integers(0, extent - side + 1)) for extent in size)
            if not any(_touch((top, left, side), box) for box in boxes):
                boxes.append((top, left, side))
            if len(boxes) == len(sides):
                return [(top, left) for top, left, _ in boxes]
    raise RuntimeError(f"{len(sides)} objects do not fit on {size}")


def _touch(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[2] and b[1] < a[1] + a[2]


def _resampled(
    pixels: NDArray[np.uint8],
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    method: Image.Resampling = Image.Resampling.BICUBIC,
) -> NDArray[np.uint8]:
    """Resize the part ``box`` (left, top, right, bottom) of ``pixels`` to (H, W)."""
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), method, box=box))


def _resampled_with_mask(
    scene: _Masked, box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[Pixels, Mask]:
    """Resize a part of ``scene``, and its ink in the same way: squares of digits do not touch."""
    owners = _resampled(scene.owners, box, size, Image.Resampling.NEAREST)
    resized = _Masked(_resampled(scene.pixels, box, size), _resampled(scene.ink, box, size), owners, scene.first)
    return resized.pixels, _mask(resized)
