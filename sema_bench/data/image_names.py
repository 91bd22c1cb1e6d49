"""Find the image that a label file means by a name: its path or the end of it, with or without a suffix."""

from __future__ import annotations

import functools
import posixpath
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from sema_bench.data.image_files import without_image_suffix


class ImageNames:
    r"""Images of one folder by the names that people give them.

    ``sub/a.png`` is also ``./sub/a.png``, ``sub\a.png``, ``a.png``, ``sub/a`` and ``a``, and each may stand behind the
    folder's own path or the end of it. Upper case and the form of accents matter only if nothing matches exactly.

    Args:
        root: the folder.
        names: paths of its images, relative to it.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self._root = root
        self._names = names
        self._exact = {name: index for index, name in enumerate(names)}

    def find(self, text: str) -> Sequence[int]:
        """Return the indices of the images that ``text`` may mean: none, one, or several."""
        if text in self._exact:
            return (self._exact[text],)
        return self._as_written.find(text) or self._folded.find(text)

    def is_path(self, text: str) -> bool:
        """Tell whether ``text`` is the whole path of an image below the folder, suffix included."""
        return text in self._exact or _plain(text) in map(_plain, (self._names[i] for i in self.find(text)))

    @functools.cached_property
    def _as_written(self) -> _Forms:
        return _Forms(self._root, self._names, _plain)

    @functools.cached_property
    def _folded(self) -> _Forms:
        return _Forms(self._root, self._names, lambda name: _plain(name).casefold())


class _Forms:
    """Every form of every image's name, after ``fold``."""

    def __init__(self, root: Path, names: Sequence[str], fold: Callable[[str], str]) -> None:
        self._fold = fold
        self._above = {f"{end}/" for path in (root.absolute(), root.resolve()) for end in _ends(fold(path.as_posix()))}
        self._whole: dict[str, list[int]] = {}
        self._short: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            path = fold(name)
            self._whole.setdefault(path, []).append(index)
            for form in {*_ends(path), *_ends(fold(without_image_suffix(name)))}:
                self._short.setdefault(form, []).append(index)

    def find(self, text: str) -> Sequence[int]:
        name = self._fold(text)
        below = (name[len(above) :] for above in self._above if name.startswith(above))
        return next((hit for form in (name, *below) if (hit := self._whole.get(form) or self._short.get(form))), ())


def _plain(name: str) -> str:
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/")).lstrip("/")


def _ends(path: str) -> list[str]:
    """Return a path, the path without its first folder, and so on: ``a/b/c``, ``b/c``, ``c``."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]
