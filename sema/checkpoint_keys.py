"""Find the weights of a model among the tensors of a checkpoint.

Training scripts store a state dict next to an optimizer's state, a loss or an average of the weights, and wrappers add
parts to its keys. One rule handles all of that: **a prefix is chosen when the keys under it cover the model**, that is,
when every key of the model is under it. The rest of the file is dropped.

Several prefixes may cover the model. Usual names (``model``, ``state_dict``, …, in this order) come first, then those
of an average (``model_ema``, …), then any other. Within each group, tensors with the model's shapes come first. If two
prefixes still tie (``student``, ``teacher``), the checkpoint is refused.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from sema.checkpoint_files import CheckpointError, first_names
from sema.checkpoint_layout import CheckpointLayout

#: Parts of a key that wrappers around a model or a module add: DDP, torch.compile, FSDP, activation checkpointing.
_WRAPPER_PARTS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_fpw_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
#: Names under which training scripts store a state dict, and its moving average.
_USUAL = ("model", "state_dict", "model_state_dict", "net", *_WRAPPER_PARTS)
_AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
_AVERAGE = re.compile(r"(^|_)(ema|swa|averaged?)(_|$)")
#: Prefixes of tensors that are named like weights but are something else.
_NO_WEIGHTS = re.compile(r"(^|[._])(optim\w*|grads?|gradients?|momentum\w*|exp_avg\w*|init|initial\w*)([._]|$)")
#: Values of ``_rank`` for an average's prefix, and for other prefixes inside an average.
_AVERAGE_RANKS = (1, 3)
#: Buffers that counting and averaging tools add to any module: thop, torch's AveragedModel.
_TOOL_BUFFERS = ("total_ops", "total_params", "n_averaged")
#: The most parts of a key that may form a prefix.
_LONGEST_PREFIX = 8
_NAMED = 3


def select_weights(
    name: str, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor], layout: CheckpointLayout, *, ema: bool
) -> tuple[dict[str, Tensor], tuple[str, ...], str]:
    """Select the ``tensors`` of the checkpoint ``name`` that belong to the state dict ``targets`` of a model.

    Returns:
        All tensors under the best prefix, by the model's keys; the names of the others, with ``branch.*`` for a whole
        branch; and a hint for the error message if most of the model is under another prefix.

    Raises:
        CheckpointError: there is no moving average, two prefixes tie, or two keys map to the same key of the model.
    """
    our_key = _translation(targets, layout)
    prefixes = _Prefixes(tensors, targets, our_key)
    if ema and not any(_rank(prefix) in _AVERAGE_RANKS for prefix in prefixes.matches):
        raise CheckpointError(f"{name} holds no moving average of the weights; leave ema off")
    best = prefixes.covering(ema=ema)
    if len(best) > 1:
        raise CheckpointError(
            f"{name} holds the model {len(best)} times, under {' and '.join(map(repr, best[:_NAMED]))}; "
            "save the keys under one of them as a separate state dict"
        )
    prefix = best[0] if best else prefixes.usual(ema=ema)
    stored: dict[str, Tensor] = {}
    dropped: dict[str, None] = {}
    for key, value in tensors.items():
        if not key.startswith(prefix):
            dropped[_branch(key, prefix)] = None
            continue
        ours = our_key(key[len(prefix) :])
        if ours is None:
            continue
        owner, _, last = ours.rpartition(".")
        if last in _TOOL_BUFFERS and ours not in targets:
            dropped[f"*.{last}" if owner else last] = None
        elif ours in stored:
            raise CheckpointError(f"the checkpoint holds {ours!r} twice, in two layouts")
        else:
            stored[ours] = value
    return stored, tuple(dropped), "" if best else prefixes.hint(prefix)


def _translation(targets: Mapping[str, Tensor], layout: CheckpointLayout) -> Callable[[str], str | None]:
    """Make a function that maps a key without its prefix to the model's key; it ignores parts that wrappers add."""
    wrappers = set(_WRAPPER_PARTS)
    bare = {_without(key, wrappers): key for key in targets}
    if len(bare) < len(targets):  # some of the model's keys differ only in such parts
        wrappers -= {part for key in targets for part in key.split(".")}
        bare = {_without(key, wrappers): key for key in targets}

    @functools.cache
    def our_key(key: str) -> str | None:
        ours = layout.translate(_without(key, wrappers))
        return ours if ours is None else bare.get(ours, ours)

    return our_key


def _without(key: str, parts: set[str]) -> str:
    return ".".join(part for part in key.split(".") if part not in parts)


class _Prefixes:
    """The prefixes of a checkpoint's keys; ``matches`` maps each to the model's keys under it, with their tensors."""

    def __init__(
        self, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor], our_key: Callable[[str], str | None]
    ) -> None:
        self.matches: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in tensors.items():
            parts = key.split(".")
            for depth in range(min(len(parts), _LONGEST_PREFIX + 1)):
                prefix = "".join(f"{part}." for part in parts[:depth])
                under, ours = self.matches[prefix], our_key(key[len(prefix) :])
                if ours is not None and ours in targets:
                    under[ours] = value
        self._tensors = tensors
        self._targets = targets
        # Batch counters came with torch 1.0; older files lack them, and nothing reads them in eval mode.
        self._needed = {key for key in targets if not key.endswith("num_batches_tracked")}
        self._counts = {prefix: len(self._needed & under.keys()) for prefix, under in self.matches.items()}

    def covering(self, *, ema: bool) -> list[str]:
        """List the best prefixes whose keys cover the model: one, several that tie, or none."""
        ranks = _AVERAGE_RANKS if ema else tuple(range(4))
        partly = max((count for prefix, count in self._counts.items() if _rank(prefix) == 0), default=0)
        if not ema and 10 * partly > len(self._needed):  # these are the weights, other prefixes hold something else
            ranks = (0,)
        covering = [p for p, count in self._counts.items() if count == len(self._needed) and _rank(p) in ranks]
        covering = [p for p in covering if not _NO_WEIGHTS.search(p)]
        best = _first(covering, key=lambda p: (_rank(p), not self._has_shapes(p)))
        return _first(_innermost(best), key=_order)

    def usual(self, *, ema: bool) -> str:
        """Choose the prefix of usual names that holds most of the model; the model is compared with it."""

        def quality(prefix: str) -> tuple[bool, int, int, int, int]:
            parts = (key[len(prefix) :].partition(".")[0] for key in self._tensors if key.startswith(prefix))
            # Keys that a longer usual prefix covers do not count.
            own = sum(part not in _USUAL and not _AVERAGE.search(part) for part in parts)
            count = len(self.matches[prefix])
            return count > 0, -_rank(prefix), count, own, len(prefix)

        ranks = (1,) if ema else (0, 1)
        qualities = {prefix: quality(prefix) for prefix in self.matches if _rank(prefix) in ranks}
        useful = [prefix for prefix, (_, _, count, own, _) in qualities.items() if count or own]
        return max(useful, key=qualities.__getitem__, default="")

    def hint(self, taken: str) -> str:
        """Name the prefix that holds at least half of the model, and more than the chosen one does."""
        most, needed = max(self._counts.values(), default=0), len(self._needed)
        if 2 * most < needed or most <= self._counts.get(taken, 0):
            return ""
        best = _innermost([prefix for prefix, count in self._counts.items() if count == most])
        absent = sorted(self._needed - self.matches[best[0]].keys())
        return (
            f". {most} of the model's {needed} keys are there under {' and '.join(map(repr, best[:_NAMED]))}, "
            f"without {first_names(absent)}; to load those alone, take the prefix off and leave strict off"
        )

    def _has_shapes(self, prefix: str) -> bool:
        return all(sides(x.shape) == sides(self._targets[key].shape) for key, x in self.matches[prefix].items())


def _first(prefixes: Iterable[str], *, key: Callable[[str], Any]) -> list[str]:
    """Select the prefixes with the smallest ``key``."""
    keys = {prefix: key(prefix) for prefix in prefixes}
    smallest = min(keys.values(), default=None)
    return [prefix for prefix in keys if keys[prefix] == smallest]


def _innermost(prefixes: list[str]) -> list[str]:
    """Select the prefixes that do not start another one."""
    return [p for p in prefixes if not any(other != p and other.startswith(p) for other in prefixes)]


def _rank(prefix: str) -> int:
    """Rank a prefix: 0 usual names, 1 an average, 2 any other, 3 any other inside an average."""
    others = [part for part in prefix.split(".")[:-1] if part not in _USUAL]
    if not others:
        return 0
    if all(map(_AVERAGE.search, others)):
        return 1
    return 3 if _AVERAGE.search(others[0]) else 2


def _order(prefix: str) -> tuple[int, ...]:
    """Make the sort key of prefixes of one rank; equal keys are a tie."""
    names = (*_USUAL, *_AVERAGES)
    order = tuple(names.index(part) if part in names else len(names) for part in prefix.split(".")[:-1])
    return order if _rank(prefix) < 2 else order[:1]


def _branch(key: str, prefix: str) -> str:
    """Name the branch that holds ``key`` but not ``prefix``."""
    parts = key.split(".")
    depth = next(depth for depth in range(1, len(parts) + 1) if not prefix.startswith(".".join(parts[:depth]) + "."))
    return ".".join(parts[:depth]) + (".*" if depth < len(parts) else "")


def sides(shape: Iterable[int]) -> list[int]:
    """List the sides of a shape, except those of size 1."""
    return [side for side in shape if side != 1]
