"""Read JSON from files that anyone may have written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any


def read_json(text: str | bytes, *, constant: Callable[[str], Any] | None = None) -> Any:
    """Parse JSON, with NaN and Infinity as ``constant`` makes them (None without it); raise ValueError for other text.

    Half of a surrogate pair, which cannot be written to a file, becomes ``?``.
    """
    try:
        body = json.loads(text, parse_constant=constant or (lambda name: None))
        if "\\ud" in text.lower() if isinstance(text, str) else b"\\ud" in text.lower():
            body = json.loads(json.dumps(body, ensure_ascii=False).encode(errors="replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return body


def mapping(value: object) -> Mapping[str, Any]:
    """Take ``value`` as a JSON object; anything else is an empty one."""
    return value if isinstance(value, Mapping) else {}
