"""Compare the classes of two sets, and name folders that may not be classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from sema_bench.text.escape import printable

_NAMED = 20
#: Other names look odd once this share of the classes has names of one form.
_MOST = 2 / 3
#: Forms of names that are codes: words vary, codes do not.
_CODES = ("0", "a0", "a_0", "a-0")


def odd_classes(classes: Sequence[str], empty: Collection[str] = ()) -> list[str]:
    """Find what may not be a class: ``empty`` folders, and names such as ``logs`` beside ``n01440764``."""
    forms = {name: re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", "a", name)) for name in classes}
    usual, count = Counter(forms.values()).most_common(1)[0] if forms else ("", 0)
    alike = usual in _CODES and count >= _MOST * len(classes)
    marked = re.compile(r"[^\w\s(]|_|.*(~|\.bak|\.old|\.tmp)$")
    return [name for name in classes if name in empty or marked.match(name) or (alike and forms[name] != usual)]


def count_advice(classes: Sequence[str], outputs: int, empty: Collection[str] = ()) -> str:
    """Say what to do if data and a model's outputs differ in their number of classes."""
    advice = "give data with a folder for each class of the model (empty ones count)"
    if odd := odd_classes(classes, empty):
        remove = f"remove what is not a class, perhaps {name_list(odd)}"
        why = "no image can be read there" if set(odd) <= set(empty) else "without images, or named unlike the others"
        return f"{remove} ({why})" + (f", or {advice}" if len(classes) < outputs else "")
    return advice if len(classes) < outputs else f"remove what is not a class: {name_list(classes)}"


def name_list(names: Sequence[str]) -> str:
    """List the first names for a message."""
    return printable(", ".join(map(repr, names[:_NAMED]))) + (", …" if len(names) > _NAMED else "")


def class_difference(training: Sequence[str], test: Sequence[str]) -> str:
    """Say which classes only one of two parts of the data has; "" if none."""
    parts = (("training", training, frozenset(test)), ("test", test, frozenset(training)))
    only = ((part, [name for name in names if name not in other]) for part, names, other in parts)
    return "; ".join(f"only the {part} part has {name_list(names)}" for part, names in only if names)
