"""Run benchmarks with ``pytest benchmarks --benchmark-only``; interleaved ratios are printed at the end."""

from __future__ import annotations

import pytest

from sema_bench.worker.allocator import set_allocator

set_allocator("retain")  # before torch allocates: see sema_bench/worker/allocator.py

RATIOS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-sizes", action="store_true", help="every size of every family, not the smallest alone")
    parser.addoption("--modes", default="", help="some of the modes, e.g. eager,optimized")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RATIOS] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash[RATIOS]
    if lines:
        terminalreporter.section("interleaved ratios")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def report_ratio(request: pytest.FixtureRequest):
    return request.config.stash[RATIOS].append
