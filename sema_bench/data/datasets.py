"""Open any kind of data; each index gives pixels and a label, at the resolution of a model."""

from __future__ import annotations

import functools
import hashlib
import itertools
from pathlib import Path
from typing import Any, Protocol

from sema_bench.data.arrays import open_idx, open_npz
from sema_bench.data.base import Photographs, Sample, Unreadable
from sema_bench.data.classes import class_difference
from sema_bench.data.corruptions import corrupted
from sema_bench.data.folder import open_flat, open_folder
from sema_bench.data.hub import open_hub
from sema_bench.data.preprocess import MEAN, STD, resized_and_cropped, squashed
from sema_bench.data.scenes import DigitScenes, Split, glyphs_from
from sema_bench.data.tars import open_shards
from sema_bench.errors import UsageError
from sema_bench.spec.corruption import NONE
from sema_bench.spec.data_source import DataSpec, parse_data
from sema_bench.spec.protocol import PROTOCOLS


class TestImages:
    """Images of ``spec`` to test a model on; raises UsageError if the data is missing or is not what ``spec`` says.

    Args:
        protocol: how photographs are prepared.
        corrupt: the corruption to apply to prepared images, as in ``fog:3``.
        split: the test images, or the training images, prepared in the same way and not augmented.
    """

    __test__ = False  # pytest would take the name for a test

    def __init__(self, spec: DataSpec, *, protocol: str = "crop", corrupt: str = NONE, split: Split = "test") -> None:
        self._spec, self._protocol, self._corrupt = spec, PROTOCOLS[protocol], corrupt
        self._images: DigitScenes | Photographs
        if spec.drawn:
            count, seed = int(spec.option("images")), int(spec.option("seed"))
            others = str(spec.option("glyphs")) if split == "test" else ""
            glyphs = glyphs_from(open_photographs(parse_data(others), "test")) if others else None
            self._images = DigitScenes(spec.location, split, images=count, seed=seed, glyphs=glyphs)
        else:
            self._images = open_photographs(spec.training if split == "train" else spec, split)
        self.classes, self.origins, self.notes = self._images.classes, self._images.origins, self._images.notes
        self.segmented = spec.segmented
        self.numbered, self.empty_classes = self._images.numbered, self._images.empty_classes
        self._used = min(int(spec.options.get("limit", 0)) or len(self._images), len(self._images))

    def __len__(self) -> int:
        return self._used

    def sample(self, index: int, size: tuple[int, int]) -> Sample:
        """Return image ``index`` at (H, W) pixels with its label, or why it cannot be read."""
        index = index * len(self._images) // self._used  # with a limit, the first images may be of a few classes
        if isinstance(self._images, DigitScenes):
            sample: Sample = self._images.scene(index, size)
        else:
            prepare = functools.partial(resized_and_cropped, size=size, crop_pct=self._crop_pct)
            if self._protocol.squash:
                prepare = functools.partial(squashed, size=size)
            sample = self._images.sample(index, prepare)
        if self._corrupt == NONE or isinstance(sample, Unreadable):
            return sample
        return corrupted(sample[0], self._corrupt, index), sample[1]

    @property
    def _crop_pct(self) -> float:
        return self._protocol.crop_pct or float(self._spec.option("crop_pct"))

    @property
    def mark(self) -> str:
        """Identity of the image set; an evaluation is never resumed on different images."""
        digest = hashlib.sha256(f"{self._spec} {self._corrupt} {len(self)} {self.classes}".encode())
        if isinstance(self._images, Photographs):
            for index, label in enumerate(self._images.labels):
                digest.update(f"{self._images.name(index)} {label}\n".encode())
        return digest.hexdigest()[:16]

    def stated(self) -> dict[str, Any]:
        """Describe the data, and how it is prepared, for a record."""
        facts: dict[str, Any] = {"data": str(self._spec), "images": len(self), "classes": len(self.classes)}
        facts |= {"notes": list(self.notes)} if self.notes else {}
        facts |= {"corrupt": self._corrupt} if self._corrupt != NONE else {}
        preparation: dict[str, Any] = {"resize": "none, drawn at the size"}
        if not self._spec.drawn:
            preparation = {
                "resize": "shorter side to resolution / crop_pct",
                "interpolation": "bicubic, antialiased (Pillow)",
                "crop_pct": self._crop_pct,
                "crop": "centre",
            }
            if self._protocol.squash:
                preparation |= {"resize": "both sides to the resolution", "crop_pct": 1.0, "crop": "none"}
        return facts | {"preparation": {**preparation, "mean": list(MEAN), "std": list(STD)}}


def common_origin(one: tuple[str, ...], other: tuple[str, ...]) -> str | None:
    """Return an origin of one set that equals or lies in an origin of the other; None if the sets are apart."""
    for a, b in itertools.product(one, other):
        if f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/"):
            return max(a, b, key=len)
    return None


class _Part(Protocol):
    classes: tuple[str, ...]
    origins: tuple[str, ...]


def check_parts(spec: DataSpec, training: _Part, test: _Part) -> None:
    """Raise UsageError unless the two parts of ``spec`` have the same classes and no image in common."""
    if same := common_origin(test.origins, training.origins):
        raise UsageError(
            f"{spec} would be trained and tested on the same images, those of {same}; "
            "pass other images to train on with the data option train=DATA"
        )
    if test.classes != training.classes:
        difference = class_difference(training.classes, test.classes) or "their order differs"
        raise UsageError(f"{spec}: the classes of its training part are not those of its test part: {difference}")


def open_photographs(spec: DataSpec, split: str) -> Photographs:
    """Open the images of ``split`` (``train`` or ``test``); flat folders and shards have only one."""
    if spec.kind == "folder":
        return open_folder(Path(spec.location), split)
    if spec.kind == "flat":
        return open_flat(Path(spec.location), Path(str(spec.option("labels"))))
    if spec.kind == "tar":
        return open_shards(spec.location)
    if spec.kind == "idx":
        return open_idx(Path(spec.location), split)
    if spec.kind == "npz":
        return open_npz(Path(spec.location), "train" if split == "train" else str(spec.option("split")))
    named = "train" if split == "train" else str(spec.option("split")) or "validation"
    return open_hub(spec.location, split=named, config=str(spec.option("config")) or None)
