"""Test the messages between driver and worker: each survives the wire, and anything else is refused with a reason."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sema_bench.analysis.roofline import Peaks
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement
from sema_bench.spec.sampling import EvaluationSettings
from sema_bench.worker import protocol
from sema_bench.worker.probes.base import Findings
from sema_bench.worker.protocol import (
    ClockReadings,
    CompareClocks,
    Evaluate,
    Evaluated,
    Failure,
    FindOrigin,
    FreeMemory,
    Inspect,
    MeasurePeaks,
    Origin,
    Prepare,
    Prepared,
    ReadFreeMemory,
    Release,
    Request,
    Sample,
    Samples,
    Tally,
    WorkloadSpec,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)

CELL = Cell(model="sema_tiny", height=32, width=64)
WORKLOAD = WorkloadSpec(CELL, seed=3, weights=Path("a/b.safetensors"))
TALLY = Tally(position=4, seen=3, unreadable=1, unreadable_named=(("a.png", "no image"),), waited_s=0.5)
MEASUREMENTS = (Measurement(metric="latency_s", value=0.25, ci_low=0.2, samples=(0.25, 1)),)
EXCHANGES: list[tuple[Request[Any], object]] = [
    (Inspect(WORKLOAD, ("params", "macs")), Findings(MEASUREMENTS, {"a": [1, {"b": None}]})),
    (Prepare(WORKLOAD, 1.0, 0.2, extra_work=0.1), Prepared(1.5, (1.0, 2), warm=True, traffic_bytes=7)),
    (Sample(5, settle=1, limit_s=2.5), Samples((0.1, 1), (0.1, 2), (0, 0), (0, 3))),
    (Evaluate(WORKLOAD, TALLY, 5.0, EvaluationSettings(workers=None)), Evaluated(TALLY, 9, Findings(MEASUREMENTS))),
    (Evaluate(WORKLOAD, Tally(), 5.0, EvaluationSettings(batch=4)), Evaluated(TALLY, 9)),
    (CompareClocks(3), ClockReadings(("a", "b"), (1.0,), (1.1,), 1e-9)),
    (Release(), None),
    (FindOrigin(), Origin(sema=None, torch="2.9")),
    (ReadFreeMemory("cuda:0"), FreeMemory(2**40)),
    (MeasurePeaks(CELL), Peaks(1e9, ((2**20, 5e9), (2**22, 4e9)))),
]


def test_every_request_is_tried_here() -> None:
    assert {request.do for request, _ in EXCHANGES} == protocol._requests.keys()


@pytest.mark.parametrize(("request_sent", "answer"), EXCHANGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(request_sent: Request[Any], answer: object) -> None:
    assert decode_request(encode_request(7, request_sent)) == (7, request_sent)
    assert decode_answer(encode_answer(7, answer).encode(), 7, request_sent) == answer
    failure = Failure("oom", "no memory", {"unknown": "yes"})
    assert decode_answer(encode_answer(7, failure).encode(), 7, request_sent) == failure


def test_whole_numbers_stay_whole() -> None:
    """A count in a record reads 1000, not 1000.0."""
    sent = Findings((Measurement(metric="params", value=1000),), {})
    decoded = decode_answer(encode_answer(1, sent).encode(), 1, EXCHANGES[0][0])
    assert isinstance(decoded.measurements[0].value, int)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Traceback", "sent something that is not JSON"),
        ("[" * 100_000, "sent something that is not JSON"),
        ({"number": 2, "ok": {}}, "sent an answer to another request"),
        ({"ok": {}}, "sent an answer to another request"),
        ({"number": 1}, "sent a wrong answer to 'inspect': measurements: Field required"),
        ({"number": 1, "error": {}}, "sent a wrong answer to 'inspect': status: Field required"),
        ({"number": 1, "ok": {"details": {}}}, "sent a wrong answer to 'inspect': measurements: Field required"),
        ({"number": 1, "ok": {"details": 3, "measurements": []}}, "details: Input should be an object"),
        ({"number": 1, "ok": {"details": {}, "measurements": "ab"}}, "measurements: Input should be a valid array"),
        ({"number": 1, "ok": {"details": {}, "measurements": [{}]}}, r"measurements\.0\.metric: Field required"),
        ({"number": 1, "ok": {"details": {}, "measurements": [{"metric": "x", "value": 1}]}}, "unknown metric 'x'"),
        ({"number": 1, "ok": {"measurements": [{"metric": "params", "value": True}]}}, r"measurements\.0\.value"),
        ({"number": 1, "ok": []}, "sent a wrong answer to 'inspect': Input should be an object"),
    ],
)
def test_what_is_no_answer_is_refused(line: object, message: str) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    with pytest.raises(ValueError, match=message):
        decode_answer(text.encode(), 1, EXCHANGES[0][0])


@pytest.mark.parametrize("wall_s", ["1e-9", True, None, float("nan")])
def test_a_sample_is_a_number(wall_s: object) -> None:
    body = {"wall_s": [wall_s], "cpu_s": [1], "page_faults": [1], "switches": [1]}
    with pytest.raises(ValueError, match=r"wall_s\.0: Input should be a valid number"):
        decode_answer(json.dumps({"number": 1, "ok": body}).encode(), 1, Sample(1))
    body |= {"wall_s": [1], "switches": [True]}
    with pytest.raises(ValueError, match=r"switches\.0: Input should be a valid integer"):
        decode_answer(json.dumps({"number": 1, "ok": body}).encode(), 1, Sample(1))


def test_names_that_are_not_utf_8_arrive() -> None:
    cell = dataclasses.replace(CELL, model="m\udcff.py:build")
    request = Inspect(WorkloadSpec(cell, seed=0, weights=Path("w\udcff")), ("params",))
    assert decode_request(encode_request(1, request)) == (1, request)
    answer = encode_answer(1, Failure("error", "no m\udcff.py")).encode()
    assert decode_answer(answer, 1, request) == Failure("error", "no m?.py")


def test_samples_are_written_without_copies_and_other_objects_not_at_all() -> None:
    class Uncopied(float):
        def __deepcopy__(self, memo: object) -> float:
            raise AssertionError("it takes 5 times as long as the rest, between two samples")

    assert '"wall_s": [0.5]' in encode_answer(1, Samples((Uncopied(0.5),), (), (), ()))
    with pytest.raises(TypeError):
        encode_answer(1, Findings((), {"a": object()}))
    with pytest.raises(TypeError):
        encode_request(1, Sample(object()))  # type: ignore[arg-type]


def test_a_worker_never_sends_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_answer(1, Samples((float("nan"),), (), (), ()))
