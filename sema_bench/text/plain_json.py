"""JSON as it is read from files that anyone may have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def read_json(text: str | bytes, *, constant: Callable[[str], Any] | None = None) -> Any:
    """Return what ``text`` holds; half of a surrogate pair, which no file can be written with, becomes ``?``.

    Args:
        text: UTF-8.
        constant: what becomes of NaN and Infinity; None reads them as missing.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        body = json.loads(text, parse_constant=constant or (lambda name: None))
        if (b"\\ud" if isinstance(text, bytes) else "\\ud") in text.lower():  # type: ignore[operator]
            body = json.loads(json.dumps(body, ensure_ascii=False).encode(errors="replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return body
