"""Say in plain words which key pydantic refuses, and why."""

from __future__ import annotations

import re
from typing import Any

#: Pydantic's words → ours, longer ones first.
_WORDS = {
    "Input should be ": "must be ",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
    "a valid integer, got a number with a fractional part": "a whole number",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text in quotes",
    "a valid list": "a list",
    "a valid tuple": "a list",
    "a valid dictionary": "a table",
    "String should have at most": "must have at most",
    "String should match pattern": "must match",
}
_PATTERN = re.compile("|".join(map(re.escape, _WORDS)))
#: Prefixes of the validation steps that pydantic puts between the parts of a key.
_STEPS = ("constrained-", "tuple[", "function-", "literal[")


def key_of(error: Any) -> str:
    """Name the key of a pydantic error as a person would: ``training.epochs``, ``models, entry 1``."""
    parts = [part for part in error["loc"] if not str(part).startswith(_STEPS)]
    names = ".".join(part for part in parts if isinstance(part, str))
    return ", ".join(filter(None, [names, *(f"entry {part + 1}" for part in parts if isinstance(part, int))]))


def message_of(error: Any) -> str:
    """Say what was expected and, unless the message has it, what was given."""
    if error["type"] == "too_short":
        return "give at least one"
    if error["type"] == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    text = re.sub(r" or instance of \w+", "", str(error["msg"]))
    return f"{_PATTERN.sub(lambda words: _WORDS[words[0]], text)}; got {error['input']!r}"
