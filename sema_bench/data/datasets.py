"""Data that is open: any kind of it gives pixels and a label by index, at the size that a model is asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from sema_bench.data.base import Photographs, Pixels, UnreadableImageError
from sema_bench.data.preprocess import MEAN, STD, resized_and_cropped, stated
from sema_bench.spec.data_source import DataSpec


class Unreadable(NamedTuple):
    """An image that could not be decoded."""

    name: str
    reason: str


class TestImages:
    """Images of ``spec`` as a model is tested on them.

    Attributes:
        classes: names of the classes, in the order of the labels.
        origins: folders, files or names of where they are.
        numbered: whether classes are numbers alone, and there may be more of them than these images show.
        empty_classes: names of classes without an image that can be read.
        notes: what a person should know of these images, a sentence each.

    Raises:
        UsageError: the data is not there, or is not what ``spec`` says.
    """

    __test__ = False  # no test, whatever pytest makes of the name

    def __init__(self, spec: DataSpec) -> None:
        self._spec = spec
        self._scenes = None
        self._photographs: Photographs | None = None
        if spec.drawn:
            from sema_bench.data.scenes import DigitScenes

            self._scenes = DigitScenes(
                spec.location,  # type: ignore[arg-type]
                "test",
                images=int(spec.option("images")),
                seed=int(spec.option("seed")),
            )
            self.classes, self._length = self._scenes.classes, len(self._scenes)
            self.origins: tuple[str, ...] = (f"{spec}, test digits",)
            self.numbered = False
            self.empty_classes: tuple[str, ...] = ()
            self.notes: tuple[str, ...] = ()
        else:
            self._photographs = open_photographs(spec, "test")
            self.classes, self._length = self._photographs.classes, len(self._photographs)
            self.origins, self.numbered = self._photographs.origins, self._photographs.numbered
            self.empty_classes, self.notes = self._photographs.empty_classes, self._photographs.notes
        limit = int(spec.option("limit")) if not spec.drawn else 0
        self._used = min(limit or self._length, self._length)

    def __len__(self) -> int:
        return self._used

    def sample(self, index: int, size: tuple[int, int]) -> tuple[Pixels, int] | Unreadable:
        """Return image ``index``, (H, W) pixels large, and its label, or why there is none.

        With a limit the images used are spread evenly over all there are: the first ones would be of a few classes.
        """
        if self._scenes is not None:
            return self._scenes.labelled_scene(index, size)
        assert self._photographs is not None
        where = index * self._length // self._used
        try:
            image = self._photographs.photograph(where)
            pixels = resized_and_cropped(image, size, crop_pct=float(self._spec.option("crop_pct")))
        except UnreadableImageError as problem:
            return Unreadable(self._photographs.name(where), str(problem))
        return pixels, self._photographs.label(where)

    @property
    def mark(self) -> str:
        """What tells these images from others, so that an evaluation is not gone on with on other ones."""
        digest = hashlib.sha256(f"{self._spec} {len(self)} {self.classes}".encode())
        if self._photographs is not None:
            for index in range(self._length):
                digest.update(f"{self._photographs.name(index)} {self._photographs.label(index)}\n".encode())
        return digest.hexdigest()[:16]

    def stated(self) -> dict[str, Any]:
        """Return what a record states of the data: what it is, how much, and each constant of its preparation."""
        facts: dict[str, Any] = {"data": str(self._spec), "images": len(self), "classes": len(self.classes)}
        if self._scenes is not None:
            return facts | {"preparation": {"resize": "none, drawn at the size", "mean": list(MEAN), "std": list(STD)}}
        facts |= {"notes": list(self.notes)} if self.notes else {}
        return facts | {"preparation": stated(float(self._spec.option("crop_pct")))}


def common_origin(one: tuple[str, ...], other: tuple[str, ...]) -> str | None:
    """Return where two sets of images overlap: a place of one that is, or lies in, a place of the other."""
    for a in one:
        for b in other:
            if a == b or a.startswith(f"{b}/") or b.startswith(f"{a}/"):
                return max(a, b, key=len)
    return None


def open_photographs(spec: DataSpec, split: str) -> Photographs:
    """Open the images of ``split`` (``train`` or ``test``).

    Of a folder with both parts in it and of a dataset of the hub it is the one of that name; other data is the same for
    both.

    Raises:
        UsageError: the data is not there, or is not what ``spec`` says.
    """
    if spec.kind == "folder":
        from sema_bench.data.folder import open_folder

        return open_folder(Path(spec.location), split)
    if spec.kind == "flat":
        from sema_bench.data.folder import open_flat

        return open_flat(Path(spec.location), Path(str(spec.option("labels"))))
    if spec.kind == "tar":
        from sema_bench.data.tars import open_shards

        return open_shards(spec.location)
    from sema_bench.data.hub import open_hub

    named = "train" if split == "train" else str(spec.option("split")) or "validation"
    return open_hub(spec.location, split=named, config=str(spec.option("config")) or None)
