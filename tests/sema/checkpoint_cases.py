"""Models and state dicts for tests of checkpoints."""

from __future__ import annotations

import torch
from golden_fill import fill_state_dict, load_golden

from sema.checkpoints import LoadReport
from sema.models.hierarchical import HierarchicalBackbone

NOTHING = LoadReport((), (), ())


def small_model(attention="mila", **options):
    arguments = {"stages": ((8, 2, 1), (16, 4, 1)), "num_classes": 5, **options}
    return HierarchicalBackbone(attention=attention, **arguments)


def official_mila():
    shapes, expected = load_golden("mlla_t")
    return fill_state_dict(shapes, expected["G"])


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
