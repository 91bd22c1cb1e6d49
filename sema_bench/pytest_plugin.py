"""The fixture ``sema_benchmark``: a model measured by this suite's probes inside pytest-benchmark.

    def test_sema_tiny(sema_benchmark):
        record = sema_benchmark("sema_tiny", res=224)
        assert record.value("params") == 26_043_528

A failed cell fails the test. Every pytest of the environment loads this file, so it imports the rest of ``sema_bench``
only when a test uses the fixture.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sema_bench.spec.record import Record


@pytest.fixture
def sema_benchmark(benchmark: Any) -> Callable[..., Record]:
    """Make a function that measures one model at one size; its other arguments are keys of a suite."""

    def measure(model: str, *, res: int | str = 224, **axes: Any) -> Record:
        from sema_bench.store.pytest_benchmark_file import EXTRA_KEY, MACHINE_KEY

        if benchmark.disabled:
            pytest.skip("benchmarks are disabled")
        record, machine = measure_cell(model, str(res), **axes)
        if record.status != "ok":
            pytest.fail(f"{model} at {res}: {record.status}: {record.reason}", pytrace=False)
        benchmark.extra_info[EXTRA_KEY] = json.loads(record.to_json())
        benchmark.extra_info[MACHINE_KEY] = machine
        benchmark.extra_info |= {name: m.value for name, m in record.measurements.items()}
        stats = benchmark._make_stats(1)
        for sample in record.measurements["latency_s"].samples:
            stats.update(sample)
        benchmark._mode = "sema_benchmark(...)"
        return record

    return measure


def measure_cell(model: str, res: str, **axes: Any) -> tuple[Record, dict[str, Any]]:
    """Measure one cell on this machine, by all probes that need no data; return its record and its machine.

    ``axes`` are keys of a suite: ``batch=[8]``, ``dtype=["bfloat16"]``, ``time_limit_s=5.0``, … Raise SemaBenchError if
    they do not make one cell that can be measured.
    """
    from sema_bench.errors import UsageError
    from sema_bench.run import Run
    from sema_bench.spec.suite import parse_suite

    probes = ["params", "macs", "memory", "throughput"]
    body = {"name": "pytest", "claim": "", "cost": "", "probes": probes, "time_limit_s": 3.0, **axes}
    suite = parse_suite({**body, "models": [model], "res": res}, source="sema_benchmark")
    with tempfile.TemporaryDirectory(prefix="sema-bench-") as folder:
        run = Run.start(suite, root=Path(folder))
        if len(run.plan.cells) != 1:
            raise UsageError(f"sema_benchmark measures one cell; these axes have {len(run.plan.cells)}")
        (record,) = run.execute(quiet=True)
        return record, run.read().machine
