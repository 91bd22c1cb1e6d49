"""Checks 0 and 1: this is the card that was asked for, and the tests of its kernels pass."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pynvml
import torch

import sema_bench
from sema_bench.machine.devices import nvml_handle
from sema_bench.machine.processes import child_environment
from sema_bench.studies.gpu.check import Answers, Card, Finding, NotHereError, holds, stated
from sema_bench.worker.survey import has_kernels

#: What NVML is asked about the card: name in the answers → query.
_NVML: dict[str, Callable[[Any], Any]] = {
    "uuid": lambda handle: pynvml.nvmlDeviceGetUUID(handle),
    "mig_of": lambda handle: pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)),
    "mig": lambda handle: pynvml.nvmlDeviceGetMigMode(handle)[0],
    "compute_mode": lambda handle: pynvml.nvmlDeviceGetComputeMode(handle),
    "ecc": lambda handle: pynvml.nvmlDeviceGetEccMode(handle)[0],
    "display": lambda handle: pynvml.nvmlDeviceGetDisplayActive(handle),
    "memory_bytes": lambda handle: pynvml.nvmlDeviceGetMemoryInfo(handle).total,
    "power_limit_mw": lambda handle: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle),
    "max_sm_clock_mhz": lambda handle: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
    "driver": lambda handle: pynvml.nvmlSystemGetDriverVersion(),
}
#: Processes share the card. Any other mode refuses the second worker.
_DEFAULT_MODE = 0


def measure_identity(card: Card) -> dict[str, Any]:
    """Ask torch and NVML who this card is; what NVML refuses is kept as its error."""
    about = torch.cuda.get_device_properties(torch.device(card.device))
    answers: dict[str, Any] = {
        "name": about.name,
        "uuid": str(about.uuid),
        "capability": [about.major, about.minor],
        "memory_bytes": about.total_memory,
        "multiprocessors": about.multi_processor_count,
        "arch_list": torch.cuda.get_arch_list(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "wsl": "microsoft" in platform.release().lower(),
        "nvml": {},
        "nvml_errors": {},
    }
    try:
        pynvml.nvmlInit()
        handle = nvml_handle(card.device)
    except pynvml.NVMLError as problem:
        return {**answers, "nvml_errors": {"handle": str(problem)}}
    for name, query in _NVML.items():
        try:
            answers["nvml"][name] = query(handle)
        except pynvml.NVMLError as problem:
            answers["nvml_errors"][name] = str(problem)
    return answers


def judge_identity(answers: Answers) -> Iterator[Finding]:
    """Compare torch's card with NVML's."""
    nvml, errors = answers["nvml"], answers["nvml_errors"]
    major, minor = answers["capability"]
    yield stated("card", f"{answers['name']}, capability {major}.{minor}, {answers['memory_bytes'] / 2**30:.1f} GiB")
    yield stated(
        "software", f"torch {answers['torch']}, CUDA {answers['cuda']}, driver {nvml.get('driver', 'unknown')}"
    )
    known = [nvml["uuid"], nvml.get("mig_of", "")] if "uuid" in nvml else []  # torch may name the card of a slice
    same = any(uuid.endswith(answers["uuid"]) for uuid in known) if known else None
    yield holds("NVML's card is torch's", same, nvml.get("uuid", errors.get("handle", "unknown")), answers["uuid"])
    yield holds(
        "kernels for this capability",
        has_kernels((major, minor), answers["arch_list"]),
        answers["arch_list"],
        f"sm_{major}{minor}, or one that runs on it",
    )
    mode = nvml.get("compute_mode")
    yield holds("compute mode", None if mode is None else mode == _DEFAULT_MODE, mode, "0 (DEFAULT)")
    for name in ("mig", "ecc", "display"):
        yield stated(name, nvml.get(name, errors.get(name, "unknown")))
    yield stated("WSL", answers["wsl"])


def measure_tests(card: Card) -> dict[str, Any]:
    """Run the tests marked ``gpu`` of this checkout."""
    folder = Path(sema_bench.__file__).parents[1]
    files = [path for path in sorted(folder.glob("tests/**/test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    if not files:
        raise NotHereError("the tests are in the repository, not in the package; run from a checkout")
    if importlib.util.find_spec("pytest") is None:
        raise NotHereError("pytest is not installed; pip install pytest")
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = subprocess.run(
            [*command, *map(str, files)],
            cwd=folder,
            env=child_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        cases: list[ElementTree.Element] = []
        with contextlib.suppress(OSError, ElementTree.ParseError):
            cases = list(ElementTree.parse(report).iter("testcase"))
    bad = {case.get("name", ""): _why(case) for case in cases if {"failure", "error"} & {each.tag for each in case}}
    skipped = {case.get("name", ""): _why(case) for case in cases if any(each.tag == "skipped" for each in case)}
    return {
        "passed": len(cases) - len(bad) - len(skipped),
        "failed": bad,
        "skipped": skipped,
        "output": "" if cases else (done.stdout + done.stderr)[-2000:],
    }


def _why(case: ElementTree.Element) -> str:
    return next((each.get("message") or "" for each in case), "")[:300]


def judge_tests(answers: Answers) -> Iterator[Finding]:
    """Accept no failure, and no skip but that of a package."""
    skipped = {name: why for name, why in answers["skipped"].items() if "mamba_ssm" not in name + why}
    yield holds("tests passed", answers["passed"] > 0, answers["output"] or answers["passed"], "≥ 1")
    yield holds("tests failed", not answers["failed"], answers["failed"] or 0, "0")
    yield holds("tests skipped", not skipped, skipped or 0, "0, except for mamba_ssm")
