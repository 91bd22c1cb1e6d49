"""Say which classes of two sets differ, and which look as if they were no classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from sema_bench.text.escape import printable

#: So many names stand in one message.
NAMED = 20
#: The share of classes whose names have one form before others look odd.
_MOST = 2 / 3
#: Forms of names that are codes: words vary, codes do not.
_CODES = ("0", "a0", "a_0", "a-0")


def odd_classes(classes: Sequence[str], empty: Collection[str] = ()) -> list[str]:
    """Return the classes that may be none: those without an image, or whose name is not like the others.

    ``tmp_old`` and ``logs`` are odd beside ``n01440764`` and ``n01443537``; ``logs`` is not beside ``cat`` and ``dog``.

    Args:
        classes: names of all classes.
        empty: those without an image that can be read.
    """
    forms = {name: re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", "a", name)) for name in classes}
    usual, count = Counter(forms.values()).most_common(1)[0] if forms else ("", 0)
    alike = usual in _CODES and count >= _MOST * len(classes)
    marked = re.compile(r"[^\w\s(]|_|.*(~|\.bak|\.old|\.tmp)$")
    return [name for name in classes if name in empty or marked.match(name) or (alike and forms[name] != usual)]


def count_advice(classes: Sequence[str], outputs: int, empty: Collection[str] = ()) -> str:
    """Return what to do about data whose number of classes is not that of a model's outputs."""
    advice = "give data with a folder for each class of the model (empty ones count)"
    if odd := odd_classes(classes, empty):
        remove = f"remove what is no class, perhaps {name_list(odd)}"
        why = "no image can be read there" if set(odd) <= set(empty) else "without images, or named unlike the others"
        return f"{remove} ({why})" + (f", or {advice}" if len(classes) < outputs else "")
    return advice if len(classes) < outputs else f"remove what is no class: {name_list(classes)}"


def name_list(names: Sequence[str]) -> str:
    """Return names for a message, the first of many."""
    return printable(", ".join(map(repr, names[:NAMED]))) + (", …" if len(names) > NAMED else "")


def class_difference(training: Sequence[str], test: Sequence[str]) -> str:
    """Return which classes only one of two parts of the data has; "" if they are the same."""
    parts = (("training", training, frozenset(test)), ("test", test, frozenset(training)))
    only = ((part, [name for name in names if name not in other]) for part, names, other in parts)
    return "; ".join(f"only the {part} part has {name_list(names)}" for part, names in only if names)
