"""Checks 0 and 1: this is the card that was asked for, and the tests of its kernels pass."""

from __future__ import annotations

import importlib.util
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import torch

import sema_bench
from sema_bench.machine.devices import nvml_handle
from sema_bench.machine.processes import child_environment
from sema_bench.studies.gpu.check import Answers, Card, Finding, NotHereError, holds, stated
from sema_bench.worker.survey import has_kernels

#: Name in the answers → query to NVML.
_NVML: dict[str, Callable[[Any], Any]] = {
    "uuid": lambda handle: pynvml.nvmlDeviceGetUUID(handle),
    "mig_of": lambda handle: pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)),
    "mig": lambda handle: pynvml.nvmlDeviceGetMigMode(handle)[0],
    "compute_mode": lambda handle: pynvml.nvmlDeviceGetComputeMode(handle),
    "ecc": lambda handle: pynvml.nvmlDeviceGetEccMode(handle)[0],
    "display": lambda handle: pynvml.nvmlDeviceGetDisplayActive(handle),
    "driver": lambda handle: pynvml.nvmlSystemGetDriverVersion(),
}
#: Processes share the card. Any other mode refuses the second worker.
_DEFAULT_MODE = 0


def measure_identity(card: Card) -> dict[str, Any]:
    """Ask torch and NVML for the identity of the card; if NVML refuses a query, its error is the answer."""
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
    for name, query in _NVML.items():
        try:
            answers["nvml"][name] = query(nvml_handle(card.device))
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
    yield holds("NVML's card is torch's", same, nvml.get("uuid", errors.get("uuid", "unknown")), answers["uuid"])
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
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfEs", "-p", "no:cacheprovider", *map(str, files)]
    environment = child_environment(COLUMNS="300")  # pytest cuts its messages there
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines() or [""]
    passed = re.search(r"(\d+) passed", lines[-1])
    return {
        "passed": int(passed[1]) if passed else 0,
        "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
        "skipped": [line for line in lines if line.startswith("SKIPPED")],
        "output": "" if passed else (done.stdout + done.stderr)[-2000:],
    }


def judge_tests(answers: Answers) -> Iterator[Finding]:
    """Accept no failure, and no skip except for mamba_ssm."""
    skipped = [line for line in answers["skipped"] if "mamba_ssm" not in line]
    yield holds("tests passed", answers["passed"] > 0, answers["output"] or answers["passed"], "≥ 1")
    yield holds("tests failed", not answers["failed"], answers["failed"] or 0, "0")
    yield holds("tests skipped", not skipped, skipped or 0, "0, except for mamba_ssm")
