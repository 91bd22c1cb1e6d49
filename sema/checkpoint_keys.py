"""Find the weights of a model among the tensors of a checkpoint.

Training scripts put a state dict into others, beside an optimiser's state, a loss or an average of the weights, and
wrappers add parts to the names in it. One rule takes all of that off: **a prefix is taken when the keys under it cover
the model**, that is, when every key of the model is found under it. The rest of the file is dropped.

Of several such prefixes the usual names (``model``, ``state_dict``, …, in this order) go first, then those of an
average (``model_ema``, …), then any other. Among these, tensors of the model's own shapes go before others. Two that
are equal in all of that (``student``, ``teacher``) are refused.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from sema.checkpoint_files import CheckpointError
from sema.checkpoint_layout import CheckpointLayout

#: Parts of a key that wrappers around a model or a module add: DDP, torch.compile, FSDP, activation checkpointing, ….
_WRAPPER_PARTS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_fpw_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
#: Names under which training scripts keep a state dict, and those of its moving average.
_USUAL = ("model", "state_dict", "model_state_dict", "net", *_WRAPPER_PARTS)
_AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
_AVERAGE = re.compile(r"(^|_)(ema|swa|averaged?)(_|$)")
#: Prefixes of tensors that have the names of weights and are none.
_NO_WEIGHTS = re.compile(r"(^|[._])(optim\w*|grads?|gradients?|momentum\w*|exp_avg\w*|init|initial\w*)([._]|$)")
#: Of ``_rank``: prefixes of an average, and any inside one.
_AVERAGE_RANKS = (1, 3)
#: Buffers of tools that count or average, on modules of any kind: thop, torch's AveragedModel.
_TOOL_BUFFERS = ("total_ops", "total_params", "n_averaged")
#: Parts of a key that may be a prefix.
_LONGEST_PREFIX = 8
_NAMED = 3


class Selection(NamedTuple):
    """What a checkpoint holds for a model.

    Attributes:
        stored: key of the model → tensor, and what else is under the prefix.
        dropped: what is not under it, or belongs to a tool; a branch is named ``branch.*``.
        hint: where most of the model is, if that is under another prefix; a sentence for the error message.
    """

    stored: dict[str, Tensor]
    dropped: tuple[str, ...]
    hint: str


def select_weights(
    name: str, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor], layout: CheckpointLayout, *, ema: bool
) -> Selection:
    """Return the tensors of a checkpoint under the keys of a model.

    Args:
        name: of the checkpoint, for messages.
        tensors: those of ``named_tensors``.
        targets: the model's state dict.
        layout: how official keys differ from the model's.
        ema: take the moving average.

    Raises:
        CheckpointError: there is no moving average, two prefixes are equally good, or two keys mean the same one.
    """
    our_key = _translation(targets, layout)
    matches = _matches(tensors, targets, our_key)
    if ema and not any(_rank(prefix) in _AVERAGE_RANKS for prefix in matches):
        raise CheckpointError(f"{name} holds no moving average of the weights; leave ema off")
    # Counters of batches came with torch 1.0; older files lack them and nothing reads them in eval mode.
    needed = {key for key in targets if not key.endswith("num_batches_tracked")}
    prefix = _covering_prefix(name, targets, needed, matches, ema=ema)
    hint = ""
    if prefix is None:
        prefix = _usual_prefix(tensors, matches, ema=ema)
        hint = _hint(needed, matches, prefix)
    stored: dict[str, Tensor] = {}
    dropped: dict[str, None] = {}
    for key, value in tensors.items():
        if not key.startswith(prefix):
            dropped[_branch(key, prefix)] = None
            continue
        ours = our_key(key[len(prefix) :])
        if ours is None:
            continue
        tool = ours.rpartition(".")[2]
        if tool in _TOOL_BUFFERS and ours not in targets:
            dropped[f"*.{tool}" if "." in ours else tool] = None
            continue
        if ours in stored:
            raise CheckpointError(f"the checkpoint holds {ours!r} twice, in two layouts")
        stored[ours] = value
    return Selection(stored, tuple(dropped), hint)


def translate(key: str, layout: CheckpointLayout) -> str | None:
    """Return our key for an official one, None for a buffer that the model derives itself."""
    if any(re.search(pattern, key) for pattern in layout.derived):
        return None
    for pattern, replacement in layout.renames:
        key = re.sub(pattern, replacement, key)
    return key


def _translation(targets: Mapping[str, Tensor], layout: CheckpointLayout) -> Callable[[str], str | None]:
    """Return the function from a key without its prefix to the model's; parts that wrappers add make no difference."""
    wrappers = set(_WRAPPER_PARTS)
    bare = {_without(key, wrappers): key for key in targets}
    if len(bare) < len(targets):  # the model has keys that such parts alone tell apart
        wrappers -= {part for key in targets for part in key.split(".")}
        bare = {_without(key, wrappers): key for key in targets}

    @functools.cache
    def our_key(key: str) -> str | None:
        ours = translate(_without(key, wrappers), layout)
        return ours if ours is None else bare.get(ours, ours)

    return our_key


def _without(key: str, parts: set[str]) -> str:
    return ".".join(part for part in key.split(".") if part not in parts)


def _matches(
    tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor], our_key: Callable[[str], str | None]
) -> dict[str, dict[str, Tensor]]:
    """Return prefix → the keys of the model that are found under it, with their tensors."""
    matches: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        parts = key.split(".")
        for depth in range(min(len(parts), _LONGEST_PREFIX + 1)):
            prefix = "".join(f"{part}." for part in parts[:depth])
            ours = our_key(key[len(prefix) :])
            under = matches[prefix]
            if ours is not None and ours in targets:
                under[ours] = value
    return matches


def _covering_prefix(
    name: str,
    targets: Mapping[str, Tensor],
    needed: set[str],
    matches: Mapping[str, Mapping[str, Tensor]],
    *,
    ema: bool,
) -> str | None:
    """Return the prefix whose keys cover the model, None where there is none.

    Raises:
        CheckpointError: there are several, and nothing tells which one is meant.
    """

    def has_shapes(prefix: str) -> bool:
        return all(sides(x.shape) == sides(targets[key].shape) for key, x in matches[prefix].items())

    covering = [p for p, under in matches.items() if needed.issubset(under) and not _NO_WEIGHTS.search(p)]
    partly = max((len(needed & under.keys()) for prefix, under in matches.items() if _rank(prefix) == 0), default=0)
    if not ema and 10 * partly > len(needed):  # the weights are there: what covers the model elsewhere is not they
        covering = [prefix for prefix in covering if _rank(prefix) == 0]
    for rank in _AVERAGE_RANKS if ema else range(4):
        best = [prefix for prefix in covering if _rank(prefix) == rank]
        best = [prefix for prefix in best if has_shapes(prefix)] or best
        best = [p for p in best if not any(other != p and other.startswith(p) for other in best)]
        first = min(map(_order, best), default=())
        best = [prefix for prefix in best if _order(prefix) == first]
        if len(best) > 1:
            raise CheckpointError(
                f"{name} holds the model {len(best)} times, under {' and '.join(map(repr, best[:_NAMED]))}; "
                "save the keys under the one that you mean as a state dict of its own"
            )
        if best:
            return best[0]
    return None


def _usual_prefix(tensors: Mapping[str, Tensor], matches: Mapping[str, Mapping[str, Tensor]], *, ema: bool) -> str:
    """Return the prefix of usual names to compare a model with that no prefix covers: most of it is there."""
    own: dict[str, int] = {}
    for prefix in matches:
        if _rank(prefix) == 1 or (_rank(prefix) == 0 and not ema):
            parts = (key[len(prefix) :].partition(".")[0] for key in tensors if key.startswith(prefix))
            own[prefix] = sum(part not in _USUAL and not _AVERAGE.search(part) for part in parts)

    def quality(prefix: str) -> tuple[bool, int, int, int, int]:
        found = len(matches[prefix])
        return found > 0, -_rank(prefix), found, own[prefix], len(prefix)

    return max((prefix for prefix, count in own.items() if count or matches[prefix]), key=quality, default="")


def _hint(needed: set[str], matches: Mapping[str, Mapping[str, Tensor]], taken: str) -> str:
    """Say under which prefix at least half of the model is, if that is more than under the one taken."""
    counts = {prefix: len(needed & under.keys()) for prefix, under in matches.items()}
    most = max(counts.values(), default=0)
    if 2 * most < len(needed) or most <= counts.get(taken, 0):
        return ""
    best = [prefix for prefix, count in counts.items() if count == most]
    best = [p for p in best if not any(other != p and other.startswith(p) for other in best)]
    absent = sorted(needed - matches[best[0]].keys())
    return (
        f". {most} of the model's {len(needed)} keys are there under {' and '.join(map(repr, best[:_NAMED]))}, "
        f"without {', '.join(absent[:_NAMED])}{', …' if len(absent) > _NAMED else ''}; "
        "to load those alone, take the prefix off and leave strict off"
    )


def _rank(prefix: str) -> int:
    """Return 0 for a prefix of usual names, 1 for one of an average, 2 for any other, 3 for any other in an average."""
    others = [part for part in prefix.split(".")[:-1] if part not in _USUAL]
    if not others:
        return 0
    if all(map(_AVERAGE.search, others)):
        return 1
    return 3 if _AVERAGE.search(others[0]) else 2


def _order(prefix: str) -> tuple[int, ...]:
    """Return the place of a prefix among those of its rank; equal where nothing tells them apart."""
    names = (*_USUAL, *_AVERAGES)
    places = tuple(names.index(part) if part in names else len(names) for part in prefix.split(".")[:-1])
    return places if _rank(prefix) < 2 else places[:1]


def _branch(key: str, prefix: str) -> str:
    """Return the part of the tree that ``key`` is in and ``prefix`` is not."""
    parts = key.split(".")
    depth = next(depth for depth in range(1, len(parts) + 1) if not prefix.startswith(".".join(parts[:depth]) + "."))
    return ".".join(parts[:depth]) + (".*" if depth < len(parts) else "")


def sides(shape: Iterable[int]) -> list[int]:
    """Return the sides of a shape but for those of one element."""
    return [side for side in shape if side != 1]
