"""Images of a Hugging Face dataset; needs the extra ``data``. No code of a dataset is ever executed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from sema_bench.data.base import Photographs, UnreadableImageError
from sema_bench.data.decode import decode
from sema_bench.errors import UsageError, first_line


@dataclass(kw_only=True)
class HubImages(Photographs):
    """Labelled images of a loaded dataset."""

    table: Any  # of the library ``datasets``, with encoded images
    image: str  # its column of images

    def __post_init__(self) -> None:
        for row, label in enumerate(self.labels):
            if type(label) is not int or not 0 <= label < len(self.classes):  # a test part with unpublished classes
                raise UsageError(f"{self.origins[0]}: row {row} has no class (label {label}); choose another split")

    def name(self, index: int) -> str:
        return f"row {index}"

    def photograph(self, index: int) -> Image:
        cell = self.table[index][self.image]
        if cell.get("bytes") is not None:
            return decode(cell["bytes"])
        if not cell.get("path"):
            raise UnreadableImageError("the row holds no image")
        return decode(Path(cell["path"]))


def open_hub(name: str, *, split: str, config: str | None = None) -> HubImages:
    """Open a dataset as ``datasets.load_dataset`` names it, or from a folder that its ``save_to_disk`` wrote."""
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
    except Exception as problem:  # from the network, parsers and the library
        raise UsageError(f"dataset {name!r} (split {split}) cannot be loaded: {first_line(problem)}") from None
    images = [key for key, kind in table.features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    if not images or not labels:
        missing = "images" if not images else "class labels"
        raise UsageError(f"dataset {name!r} has no column of {missing}; its columns: {', '.join(table.features)}")
    return HubImages(
        table=table.cast_column(images[0], datasets.Image(decode=False)),
        image=images[0],
        labels=list(table[labels[0]]),
        classes=tuple(table.features[labels[0]].names),
        origins=(f"dataset {name!r} (split {split}, config {config})",),
    )
