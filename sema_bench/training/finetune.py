"""Begin with trained weights: fine-tuning at another size or on other classes, and training the classifier alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

import sema
from sema.model_name import parse_model_name
from sema_bench.errors import UsageError
from sema_bench.spec.model_source import parse_source
from sema_bench.spec.weights_source import unchanged_checkpoint
from sema_bench.training.job import Job
from sema_bench.worker.build_model import Weights, build_model, build_with_weights, read_weights


def load_initial(model: nn.Module, job: Job, classes: Sequence[str]) -> str:
    """Load the checkpoint that ``job`` begins with into ``model``; return a warning about the classifier, if any.

    Positions and window biases fit any size, see ``sema.load_checkpoint``: a table of positions keeps the grid that it
    was trained on, and every pass interpolates it. The classifier keeps its random weights if the checkpoint has other
    classes. UsageError: the checkpoint belongs to another model or has changed; ProbeError: it does not fit.
    """
    name, size = job.model, job.recipe.size
    weights = read_weights(unchanged_checkpoint(job.init))
    owner = weights.about.get("model")
    if isinstance(owner, str) and _network(owner) != _network(name):
        raise UsageError(f"{weights.path} has the weights of {owner}; train that model, or give other weights")
    donor = build_with_weights(name, size, Weights(weights.path, weights.classes, {}))
    stored, fresh = donor.state_dict(), model.state_dict()
    head = classifier_of(name, size, len(classes))
    others = weights.classes is not None and weights.classes != tuple(classes)
    if others or any(stored[key].shape != fresh[key].shape for key in head):
        stored |= {key: fresh[key] for key in head}
    sema.load_checkpoint(model, stored)
    if any(stored[key] is fresh[key] for key in head):
        return f"the classes of {weights.path} are others: the classifier ({', '.join(head)}) starts anew"
    return "" if weights.classes else f"{weights.path} names no classes, so its classifier is kept, by order"


def freeze_backbone(model: nn.Module, job: Job, classes: int) -> None:
    """Train only the classifier; raise UsageError if ``job`` gives our or a library's model no trained weights."""
    if not job.init and parse_source(job.model).kind in ("registry", "library"):
        raise UsageError("a frozen backbone needs trained weights; give them with --init CHECKPOINT")
    model.requires_grad_(False)
    for key in classifier_of(job.model, job.recipe.size, classes):
        model.get_parameter(key).requires_grad_(True)


def classifier_of(name: str, size: tuple[int, int], classes: int) -> list[str]:
    """Name the parameters whose shapes follow the number of classes, whatever model they belong to."""
    shapes = []
    for count in (classes, classes + 1):
        with torch.device("meta"):
            model = build_model(name, size, classes=count)
        shapes.append({key: parameter.shape for key, parameter in model.named_parameters()})
    head = [key for key, shape in shapes[0].items() if shapes[1].get(key) != shape]
    if not head:
        raise UsageError(f"{name} has no classifier of {classes} classes; let its function take num_classes")
    return head


def _network(name: str) -> object:
    """Reduce a model's name to what its weights depend on: not the window size, which is interpolated."""
    if parse_source(name).kind != "registry":
        return name.partition("@")[0]  # @: a digest of its code
    parsed = parse_model_name(name).network
    return parsed.model, parsed.attention, {key: value for key, value in parsed.options.items() if key != "window_size"}
