"""The table of checks: the minutes of each on a data-centre card, and the fact that it proves.

A check ``clocks`` is ``measure_clocks`` and ``judge_clocks`` of its module.
"""

from __future__ import annotations

from sema_bench.studies.gpu import clocks, identity, memory, numerics, power, speed
from sema_bench.studies.gpu.check import Check

_TABLE = (
    (identity, "identity", 0.2, "the measured card is this one"),
    (identity, "tests", 3.0, "kernels equal their definitions, logits those of the CPU"),
    (clocks, "clocks", 0.5, "events and the host's clock agree"),
    (clocks, "launches", 2.0, "the cost of a launch, and that graphs save it"),
    (memory, "graphs", 1.5, "a graph holds no stale memory; out of memory in a capture is oom"),
    (numerics, "precisions", 1.0, "TF32 and bfloat16 do something, and nothing else"),
    (memory, "memory", 2.0, "the columns of memory, and the forecast"),
    (memory, "limits", 2.5, "the largest batch, recovery, and launches of more than 65,535 blocks"),
    (power, "energy", 1.0, "energy counter, power, and the window of two seconds"),
    (clocks, "telemetry", 0.5, "watching the card does not change times"),
    (power, "neighbour", 0.5, "another process at work is seen, one that holds a context is not"),
    (speed, "peaks", 1.5, "the roofline's peaks"),
    (numerics, "sdpa", 1.5, "the axis sdpa picks the kernel that it names"),
    (numerics, "scans", 2.0, "the Triton scan equals PyTorch's"),
    (numerics, "forms", 2.0, "inference forms, layouts and cuDNN's search"),
    (speed, "modes", 3.5, "every mode runs, and training learns"),
    (speed, "noise", 3.0, "the noise floor, and the gate"),
    (speed, "curve", 2.5, "the claim itself, small: linear models stay linear"),
)
CHECKS = tuple(
    Check(number, name, proves, minutes, getattr(module, f"measure_{name}"), getattr(module, f"judge_{name}"))
    for number, (module, name, minutes, proves) in enumerate(_TABLE)
)
