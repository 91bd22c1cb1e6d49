"""Images of a Hugging Face dataset; needs the extra ``data``. Nothing that comes with a dataset is ever executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL.Image import Image

from sema_bench.data.base import UnreadableImageError
from sema_bench.data.decode import decode
from sema_bench.errors import UsageError


class HubImages:
    """Labelled images of a loaded dataset.

    Args:
        table: of the library ``datasets``, with encoded images.
        image: its column of images.
        label: its column of classes.
        classes: names of the classes.
        origin: what it is called, with its split.

    Raises:
        UsageError: a row has no class, as in test parts whose classes are not published.
    """

    numbered = False
    empty_classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, table: Any, image: str, label: str, classes: tuple[str, ...], origin: str) -> None:
        self._table = table
        self._image = image
        self._labels: list[int] = list(table[label])
        self.classes = classes
        self.origins: tuple[str, ...] = (origin,)
        for row, known in enumerate(self._labels):
            if type(known) is not int or not 0 <= known < len(classes):
                raise UsageError(f"{origin}: row {row} has no class (label {known}); choose another split")

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, index: int) -> str:
        return f"row {index}"

    def label(self, index: int) -> int:
        return self._labels[index]

    def photograph(self, index: int) -> Image:
        cell = self._table[index][self._image]
        if cell.get("bytes") is None and not cell.get("path"):
            raise UnreadableImageError("the row holds no image")
        return decode(cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"]))


def open_hub(name: str, *, split: str, config: str | None = None) -> HubImages:
    """Open a dataset of the hub by name, or a local one by its path.

    Args:
        name: as ``datasets.load_dataset`` takes it, or a folder that ``save_to_disk`` wrote.
        split: ``train``, ``validation``, …
        config: which configuration of the dataset.

    Raises:
        UsageError: ``datasets`` is not installed, the dataset cannot be loaded, or has no images or classes.
    """
    try:
        import datasets
    except ImportError:
        raise UsageError(f"hub:{name} needs the library datasets; pip install 'sema-bench[data]'") from None
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            table = datasets.load_from_disk(name)[split]
        elif (Path(name) / "state.json").is_file():
            table = datasets.load_from_disk(name)
        else:
            table = datasets.load_dataset(name, config, split=split)
    except Exception as problem:  # of the network, of parsers, and the library's own
        lines = str(problem).splitlines() or [type(problem).__name__]
        raise UsageError(f"dataset {name!r} (split {split}) cannot be loaded: {lines[0][:300]}") from None
    images = [key for key, kind in table.features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    if not images or not labels:
        missing = "images" if not images else "class labels"
        raise UsageError(f"dataset {name!r} has no column of {missing}; its columns: {', '.join(table.features)}")
    encoded = table.cast_column(images[0], datasets.Image(decode=False))
    classes = tuple(table.features[labels[0]].names)
    return HubImages(encoded, images[0], labels[0], classes, f"dataset {name!r} (split {split}, config {config})")
