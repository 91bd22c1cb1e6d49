"""Classify frozen features by a linear probe or by nearest neighbours, both fitted to the training images.

Features are the input (B, C) of the model's classifier, the linear layer whose output is the model's. If no linear
layer gives the output, as in a model built without a classifier, the output itself is the features.

- ``linear``: scikit-learn's logistic regression on standardised features. Its C is the one that is right most often on
  every fifth training image, counted class by class, after a fit to the others; the final fit takes all images.
- ``knn``: the votes of the 20 nearest training images by cosine, each exp(cosine / 0.07), as in DINO (arXiv 2104.14294,
  ``eval_knn.py``). Classes without a vote rank by their nearest image; in DINO they tie, and the first wins.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema_bench.data.datasets import TestImages
from sema_bench.errors import ProbeError
from sema_bench.worker.build_model import dropped_weights
from sema_bench.worker.evaluation import Evaluation, InputFormat
from sema_bench.worker.workload import Workload

NEIGHBOURS, TEMPERATURE = 20, 0.07
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
MOST_STEPS = 1000
_HELD_OUT = 5
#: Score of a class without training images.
_NEVER = -1e30

#: Features (B, C) → scores (B, classes).
Scores = Callable[[Tensor], Tensor]


class FeatureProbe:
    """A model whose head is a probe: (B, 3, H, W) → scores (B, classes), once ``fit`` has returned True.

    Args:
        workload: its network, and the readout of its cell.
        training: images to fit to.
        input_format: of the batches.
        workers: see ``Evaluation``.
    """

    def __init__(
        self, workload: Workload, training: TestImages, input_format: InputFormat, *, workers: int | None
    ) -> None:
        self._kind, self.network = workload.cell.readout, workload.network
        self._weights = "loaded" if workload.weights else "random"
        self._training, self._format = training, input_format
        one = workload.resized(dataclasses.replace(workload.cell, batch=1))
        self._classifier = find_classifier(self.network, one.input)
        self._batches = input_format.batches(training, range(len(training)), workers=workers)
        self._features: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._unreadable = 0
        self._scores: Scores | None = None
        self.facts: dict[str, Any] = {}  # features and fit, for a record

    def __call__(self, inputs: Tensor) -> Tensor:
        assert self._scores is not None
        return self._scores(self.features(inputs))

    def fit(self, seconds: float) -> bool:
        """Continue for about ``seconds``; return whether it is fitted. The fit itself runs in one piece."""
        if self._scores is not None:
            return True
        started = time.perf_counter()
        with torch.inference_mode():
            while time.perf_counter() - started < seconds:
                if (batch := next(self._batches, None)) is None:
                    self._fit()
                    return False  # testing begins with the next piece
                self._unreadable += len(batch.unreadable)
                if len(batch.labels):
                    self._features.append(self._format.run(self.features, batch.pixels))
                    self._labels.append(batch.labels)
        return False

    def features(self, inputs: Tensor) -> Tensor:
        """Compute features (B, C) in float32."""
        if self._classifier is None:
            features: Tensor = self.network(inputs)
        else:
            seen: list[Tensor] = []
            hook = self._classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
            try:
                self.network(inputs)
            finally:
                hook.remove()
            features = seen[-1]
        if features.ndim != 2:
            raise ProbeError(f"the model's features are {tuple(features.shape)}; a probe needs one vector an image")
        return features.float()

    def _fit(self) -> None:
        if not self._labels:
            raise ProbeError(f"none of the {self._unreadable} training images can be read")
        features, labels = torch.cat(self._features), torch.cat(self._labels)
        self._features, self._labels = [], []
        fit = {"linear": linear_scores, "knn": neighbour_scores}[self._kind]
        self._scores, fit_facts = fit(features, labels, len(self._training.classes))
        names = {module: name for name, module in self.network.named_modules()}
        self.facts = {
            "weights": self._weights,
            "features": f"input of {names[self._classifier]}" if self._classifier else "output of the model",
            "channels": features.shape[1],
            "training_images": len(labels),
            "training_unreadable": self._unreadable,
            **fit_facts,
        }


class ProbedEvaluation(Evaluation):
    """Evaluates a ``FeatureProbe``, after fitting it; a process that resumes fits it again."""

    def advance(self, seconds: float) -> bool:
        return self.model.fit(seconds) and super().advance(seconds)

    def stated(self) -> dict[str, Any]:
        return super().stated() | {"readout": self.model.facts} | dropped_weights(self.model.network)


def find_classifier(network: nn.Module, example: Tensor) -> nn.Linear | None:
    """Find the linear layer whose output is the network's; None if there is none."""
    outputs: list[tuple[nn.Linear, Tensor]] = []
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(lambda each, _, out: outputs.append((each, out))) for module in linears]
    try:
        with torch.inference_mode():
            result = network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return next((module for module, output in outputs if output is result), None)


def linear_scores(features: Tensor, labels: Tensor, classes: int) -> tuple[Scores, dict[str, Any]]:
    """Fit logistic regression; ProbeError if the training images are too few to choose C."""
    from sklearn.exceptions import ConvergenceWarning  # two seconds
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = features.cpu().double().numpy(), labels.numpy()
    by_class = np.argsort(y, kind="stable")
    by_class = by_class[np.bincount(y)[y[by_class]] > 1]  # a class's only image is not held out
    held = np.isin(np.arange(len(y)), by_class[_HELD_OUT - 1 :: _HELD_OUT])
    if not held.any() or len(np.unique(y)) < 2:
        raise ProbeError(
            f"a linear probe needs training images of at least two classes, {_HELD_OUT} images or more without those "
            f"that are the only one of their class; got {len(y)} of {len(np.unique(y))}"
        )

    def fitted(strength: float, chosen: Any) -> Any:
        model = LogisticRegression(C=strength, max_iter=MOST_STEPS)
        return make_pipeline(StandardScaler(), model).fit(x[chosen], y[chosen])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the record says it
        right = [fitted(strength, ~held).score(x[held], y[held]) for strength in STRENGTHS]
        strength = STRENGTHS[right.index(max(right))]
        scaler, model = fitted(strength, slice(None))
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, _NEVER)
    bias[model.classes_] = 0
    # Of two classes the model has the coefficients of the second, and the first scores 0.
    given = model.classes_[-len(model.coef_) :]
    weight[given] = model.coef_ / scaler.scale_
    bias[given] = model.intercept_ - weight[given] @ scaler.mean_
    weights, biases = (torch.from_numpy(each).to(features.device) for each in (weight, bias))
    steps = int(model.n_iter_.max())
    return lambda inputs: inputs.double() @ weights.T + biases, {
        "classifier": "logistic regression",
        "c": strength,
        "accuracy_held_out": float(max(right)),
        "steps": steps,
        "converged": steps < MOST_STEPS,
    }


def neighbour_scores(features: Tensor, labels: Tensor, classes: int) -> tuple[Scores, dict[str, Any]]:
    """Keep the training features as neighbours; ProbeError if they are fewer than ``NEIGHBOURS``."""
    if len(labels) < NEIGHBOURS:
        raise ProbeError(f"a k-NN probe takes {NEIGHBOURS} neighbours, and there are {len(labels)} training images")
    bank, owners = F.normalize(features), labels.to(features.device)

    def scores(given: Tensor) -> Tensor:
        cosines = F.normalize(given) @ bank.T
        nearest = cosines.topk(NEIGHBOURS)
        empty = cosines.new_zeros(len(given), classes)
        votes = empty.scatter_add(1, owners[nearest.indices], (nearest.values / TEMPERATURE).exp())
        best = (empty - 2).scatter_reduce(1, owners.expand(len(given), -1), cosines, "amax")
        return torch.where(votes > 0, votes, best - 1)

    return scores, {"classifier": "k-NN by cosine", "k": NEIGHBOURS, "temperature": TEMPERATURE}
