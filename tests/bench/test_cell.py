"""Test the identity of a cell: its id never changes, and each of its fields is an axis."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from sema_bench.analysis.conditions import short_name
from sema_bench.spec.axes import axes_of
from sema_bench.spec.cell import AXES, SURROUNDINGS, Cell


def cell(**changes: Any) -> Cell:
    return Cell(**{"model": "m", "height": 224, "width": 224, **changes})


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, "m@224x224/b1/float32/channels_last/eager/cpu/t1/retain"),
        ({"model": "sema_tiny[linear]"}, "sema_tiny[linear]@224x224/b1/float32/channels_last/eager/cpu/t1/retain"),
        ({"height": 512, "width": 768}, "m@512x768/b1/float32/channels_last/eager/cpu/t1/retain"),
        ({"batch": 32}, "m@224x224/b32/float32/channels_last/eager/cpu/t1/retain"),
        ({"batch": 0, "batch_policy": "max"}, "m@224x224/bmax/float32/channels_last/eager/cpu/t1/retain"),
        ({"batch": 64, "batch_policy": "max"}, "m@224x224/bmax/float32/channels_last/eager/cpu/t1/retain"),
        ({"dtype": "bfloat16"}, "m@224x224/b1/bfloat16/channels_last/eager/cpu/t1/retain"),
        ({"tf32": True}, "m@224x224/b1/float32+tf32/channels_last/eager/cpu/t1/retain"),
        ({"cudnn_benchmark": True}, "m@224x224/b1/float32/channels_last/eager/cpu/t1/retain/cudnn-benchmark"),
        ({"layout": "contiguous"}, "m@224x224/b1/float32/contiguous/eager/cpu/t1/retain"),
        ({"mode": "cuda-graphs"}, "m@224x224/b1/float32/channels_last/cuda-graphs/cpu/t1/retain"),
        (
            {"device": "cuda:1", "allocator": "default", "threads": 8},
            "m@224x224/b1/float32/channels_last/eager/cuda:1/t8/default",
        ),
        ({"step": "train"}, "m@224x224/b1/float32/channels_last/eager/cpu/t1/retain/train"),
        (
            {"step": "train", "checkpointing": True, "sdpa": "math"},
            "m@224x224/b1/float32/channels_last/eager/cpu/t1/retain/train/checkpointing/sdpa-math",
        ),
        (
            {"data": "digits:field", "weights": "seed 0@1a2b3c4d"},
            "m@224x224/b1/float32/channels_last/eager/cpu/t1/retain/digits:field/seed 0@1a2b3c4d",
        ),
        (
            {"sdpa": "flash", "weights": "a/b.safetensors@1a2b3c4d"},
            "m@224x224/b1/float32/channels_last/eager/cpu/t1/retain/sdpa-flash/a/b.safetensors@1a2b3c4d",
        ),
    ],
)
def test_the_id_of_a_cell_is_what_it_was_in_the_first_release(changes: dict[str, Any], key: str) -> None:
    assert cell(**changes).id == key


def test_the_axes_are_the_fields_with_their_types_and_defaults() -> None:
    assert list(AXES) == [field.name for field in dataclasses.fields(Cell)]
    plain = cell()
    for name, axis in AXES.items():
        assert type(getattr(plain, name)) is axis.type
        assert axis.default in (None, getattr(plain, name))
        assert not axis.choices or axis.default in axis.choices
        assert set(axis.cuda_only) < set(axis.choices) or not axis.cuda_only
    assert set(SURROUNDINGS) < set(AXES)


def test_options_that_axes_share_are_described_once() -> None:
    options = [axis.option for axis in AXES.values() if axis.help]
    assert len(set(options)) == len(options)
    assert {axis.option for axis in AXES.values()} == set(options)


def test_a_field_without_an_axis_is_refused_by_its_name() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Extended(Cell):
        colour: str = "red"

    with pytest.raises(TypeError, match=r"Extended\.colour has no Axis"):
        axes_of(Extended)


def test_a_short_name_has_the_settings_that_are_unusual_and_apply() -> None:
    assert short_name(cell()) == ""
    odd = cell(batch=8, dtype="bfloat16", mode="compile", step="train", checkpointing=True, sdpa="math", threads=2)
    assert short_name(odd) == "bfloat16 batch 8 compile training step checkpointing SDPA math 2 threads"
    assert short_name(odd, without=["threads", "sdpa"]) == "bfloat16 batch 8 compile training step checkpointing"
    assert short_name(cell(device="cuda:0", allocator="default")) == "cuda:0"
