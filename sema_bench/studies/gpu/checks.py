"""The table of checks: what each proves, and in how many minutes on a data-centre card."""

from __future__ import annotations

from sema_bench.studies.gpu import clocks, identity, memory, numerics, power, speed
from sema_bench.studies.gpu.check import Check

# fmt: off
CHECKS = (
    Check(0, "identity", "what is measured is this card", 0.2, identity.measure_identity, identity.judge_identity),
    Check(1, "tests", "kernels equal their definitions, logits those of the CPU", 3.0,
          identity.measure_tests, identity.judge_tests),
    Check(2, "clocks", "events and the host's clock agree", 0.5, clocks.measure_clocks, clocks.judge_clocks),
    Check(3, "launches", "what a launch costs, and that graphs save it", 2.0,
          clocks.measure_launches, clocks.judge_launches),
    Check(4, "graphs", "a graph holds no stale memory; out of memory in a capture is oom", 1.5,
          memory.measure_graphs, memory.judge_graphs),
    Check(5, "precisions", "TF32 and bfloat16 do something, and nothing else", 1.0,
          numerics.measure_precisions, numerics.judge_precisions),
    Check(6, "memory", "the columns of memory, and the forecast", 2.0, memory.measure_memory, memory.judge_memory),
    Check(7, "limits", "the largest batch, recovery, and launches of more than 65,535 blocks", 2.5,
          memory.measure_limits, memory.judge_limits),
    Check(8, "energy", "energy counter, power, and the window of two seconds", 1.0,
          power.measure_energy, power.judge_energy),
    Check(9, "telemetry", "watching the card does not change times", 0.5,
          clocks.measure_telemetry, clocks.judge_telemetry),
    Check(10, "neighbour", "another process at work is seen, one that holds a context is not", 0.5,
          power.measure_neighbour, power.judge_neighbour),
    Check(11, "peaks", "the roofline's peaks", 1.5, speed.measure_peaks, speed.judge_peaks),
    Check(12, "sdpa", "the axis sdpa picks the kernel that it names", 1.5,
          numerics.measure_sdpa, numerics.judge_sdpa),
    Check(13, "scans", "the Triton scan equals PyTorch's", 2.0, numerics.measure_scans, numerics.judge_scans),
    Check(14, "forms", "inference forms, layouts and cuDNN's search", 2.0,
          numerics.measure_forms, numerics.judge_forms),
    Check(15, "modes", "every mode runs, and training learns", 3.0, speed.measure_modes, speed.judge_modes),
    Check(16, "noise", "the noise floor, and the gate", 3.0, speed.measure_noise, speed.judge_noise),
    Check(17, "curve", "the claim itself, small: linear models stay linear", 2.5,
          speed.measure_curve, speed.judge_curve),
)
