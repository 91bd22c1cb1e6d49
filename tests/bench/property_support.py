"""Generate inputs for property tests: any text, any JSON, and text close to what a parser expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hypothesis import strategies as st

from sema_bench.errors import UsageError

#: Any text, including lone surrogates: Python decodes bytes that are not UTF-8 to these.
ANY = st.text(st.characters(), max_size=60)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ANY
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY, inner, max_size=3), max_leaves=8
)
Result = TypeVar("Result")


def near(alphabet: str, *words: str) -> st.SearchStrategy[str]:
    """Return text that mixes what a parser looks for with other characters."""
    pieces = st.sampled_from([*alphabet, *words]) | st.characters()
    return st.lists(pieces, max_size=14).map("".join) | ANY


def read_or_mistake(read: Callable[[], Result], *, begins: str = "") -> Result | None:
    """Call ``read``; return None after a mistake, whose message must begin with ``begins``."""
    try:
        return read()
    except UsageError as problem:
        message = str(problem)
    assert message.startswith(begins)
    assert message != begins
    return None
