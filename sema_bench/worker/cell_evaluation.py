"""Set up the evaluation of a cell: by the model's own head, or by a probe of its features."""

from __future__ import annotations

import dataclasses

from sema_bench.data.datasets import TestImages, check_parts
from sema_bench.errors import ProbeError
from sema_bench.spec.data_source import parse_data, unlike_data
from sema_bench.spec.sampling import EvaluationSettings
from sema_bench.worker.evaluation import ClassMatch, Evaluation, InputFormat, match_classes
from sema_bench.worker.protocol import Tally
from sema_bench.worker.readout import FeatureProbe, ProbedEvaluation
from sema_bench.worker.workload import Workload


def evaluation_of(workload: Workload, tally: Tally, settings: EvaluationSettings) -> Evaluation:
    """Set up the evaluation of a cell; it resumes from ``tally`` if that counts the same images.

    Missing data raises UsageError, and classes that do not match the model's raise ProbeError.
    """
    cell, weights = workload.cell, workload.weights
    spec = parse_data(cell.data)
    images = TestImages(spec, protocol=cell.protocol, corrupt=cell.corrupt)
    size, batch = (cell.height, cell.width), min(settings.batch, len(images))
    input_format = InputFormat(size, batch, workload.device, workload.dtype, workload.memory_format)
    if cell.readout == "head":
        outputs = workload.resized(dataclasses.replace(cell, batch=1)).output_shape()
        if problem := unlike_data(of_pixels=len(outputs) == 4, data=spec):
            raise ProbeError(problem)
        match = match_classes(
            images.classes,
            weights.classes if weights else None,
            outputs[1],
            numbered=images.numbered,
            empty=images.empty_classes,
        )
        tally = tally if tally.mark == images.mark else Tally(mark=images.mark)
        return Evaluation(workload.model, images, match, input_format, workers=settings.workers, tally=tally)
    training = TestImages(spec, protocol=cell.protocol, split="train")
    check_parts(spec, training, images)
    mark = f"{images.mark}-{training.mark}"
    probe = FeatureProbe(workload, training, input_format, workers=settings.workers)
    return ProbedEvaluation(
        probe,
        images,
        ClassMatch(None, "by name: a probe learns the classes of the training images"),
        input_format,
        workers=settings.workers,
        tally=tally if tally.mark == mark else Tally(mark=mark),
    )
