"""Find an image by its name in a label file: its path or the end of it, with or without a suffix."""

from __future__ import annotations

import functools
import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from sema_bench.data.image_files import has_image_suffix


class ImageNames:
    r"""Images of the folder ``root`` by their names in label files; ``names`` are their paths below it.

    ``sub/a.png`` is also ``./sub/a.png``, ``sub\a.png``, ``a.png``, ``sub/a`` and ``a``, and each may stand behind the
    folder's own path or the end of it. Upper case and the form of accents matter only if nothing matches exactly.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self._root = root
        self.names = names
        self._exact = {name: index for index, name in enumerate(names)}
        self._forms = functools.cache(self._folded_forms)

    def find(self, text: str) -> Sequence[int]:
        """List the indices of all images that match ``text``."""
        if text in self._exact:
            return (self._exact[text],)
        return self._search(text, _plain) or self._search(text, _folded)

    def is_path(self, text: str) -> bool:
        """Check whether ``text`` is the whole path of an image below the folder, suffix included."""
        return text in self._exact or any(_plain(text) == _plain(self.names[index]) for index in self.find(text))

    def _search(self, text: str, fold: Callable[[str], str]) -> Sequence[int]:
        above, images = self._forms(fold)
        name = fold(text)
        for path in (name, *(name[len(folder) :] for folder in above if name.startswith(folder))):
            if hits := images.get(f"/{path}") or images.get(path):
                return hits
        return ()

    def _folded_forms(self, fold: Callable[[str], str]) -> tuple[list[str], dict[str, list[int]]]:
        """Fold the ends of the folder's path, and the ends of each image's; ``/`` marks a whole path."""
        roots = (self._root.absolute(), self._root.resolve())
        above = [f"{end}/" for path in roots for end in _ends(fold(path.as_posix()))]
        images: defaultdict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(self.names):
            stem = os.path.splitext(name)[0] if has_image_suffix(name) else name  # noqa: PTH122 - of another system
            for form in {f"/{fold(name)}", *_ends(fold(name)), *_ends(fold(stem))}:
                images[form].append(index)
        return above, images


def _plain(name: str) -> str:
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/")).lstrip("/")


def _folded(name: str) -> str:
    return _plain(name).casefold()


def _ends(path: str) -> list[str]:
    """List a path, the path without its first folder, and so on: ``a/b/c``, ``b/c``, ``c``."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]
