"""What machine, driver, torch, threads, clocks and commit a run was measured with.

``capture`` asks a short-lived process, because the driver of a run never imports torch: its threads
would disturb what the workers time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sema_bench.errors import UsageError, WorkerError
from sema_bench.git import GitError, ask_git
from sema_bench.host_memory import memory_limit_bytes
from sema_bench.processes import child_environment, die_with_parent, let_libraries_warn
from sema_bench.schema import Environment

#: Pixels at which models of libraries are built to see whether they can be.
_TRIAL_SIZE = (224, 224)

_GIT_LIMIT_S = 10.0


def capture(models: Sequence[str] = (), *, python: str = sys.executable, timeout_s: float = 120.0) -> Environment:
    """Return the environment that a worker started with ``python`` would measure in.

    Args:
        models: names of models that are to be measured; each is built once, without memory.
        python: interpreter of the workers.
        timeout_s: how long to wait for it.

    Raises:
        UsageError: one of the models cannot be built as named.
        WorkerError: the interpreter cannot import torch; the message gives its last line.
    """
    body = json.loads(_ask(python, models, timeout_s))
    _raise_refused(body.pop("refused"))
    return Environment(**body)


def check_models(models: Sequence[str]) -> None:
    """Build models without memory, in a process of its own; nothing happens without any.

    Raises:
        UsageError: one of them cannot be built as named.
    """
    if models:
        _raise_refused(json.loads(_ask(sys.executable, models, 120.0))["refused"])


def _raise_refused(refused: Mapping[str, str]) -> None:
    for name, problem in refused.items():
        raise UsageError(f"model {name!r} cannot be built: {problem}")


def _ask(python: str, models: Sequence[str], timeout_s: float) -> str:
    """Let a fresh process describe itself as JSON: what this one has loaded and set does not count."""
    command = [python, "-m", "sema_bench.environment", str(os.getpid()), *models]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, env=child_environment()
        )
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise WorkerError(f"cannot run {python}: {failure}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise WorkerError(f"{python} cannot describe its environment: {last}")
    return done.stdout


def environment_from_json(body: Mapping[str, Any]) -> Environment:
    """Return the Environment that run.json holds."""
    return Environment(hardware=body["hardware"], software=body["software"], context=body.get("context", {}))


def resolve_device(requested: str, environment: Environment | None = None) -> str:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:<index>`` or ``meta`` into ``cpu``, ``cuda:<index>`` or ``meta``.

    Without an environment (a dry run) only NVML is asked, which needs no torch.

    Raises:
        UsageError: CUDA was asked for and is not there, or the name is none of these.
    """
    visible = _visible_devices()
    if environment is not None:
        count = int(environment.software.get("cuda_devices", 0))
    else:
        count = len(gpus()) if visible is None else min(len(visible), len(gpus()))
    if requested == "auto":
        return "cuda:0" if count else "cpu"
    if requested in ("cpu", "meta"):
        return requested
    kind, colon, index = requested.partition(":")
    if kind != "cuda" or (colon and not index.isdecimal()):
        raise UsageError(f"unknown device {requested!r}; known: auto, cpu, cuda, cuda:<index>, meta")
    if not count:
        found = "no GPU was found" if not gpus() else "this build of torch cannot use the GPU"
        raise UsageError(f"device {requested!r} asked for, but {found}; use --device cpu")
    position = int(index or 0)
    if position >= count:
        raise UsageError(f"device {requested!r} asked for, but the last of {count} here is cuda:{count - 1}")
    return f"cuda:{position}"


def _visible_devices() -> list[str] | None:
    """Return the entries of CUDA_VISIBLE_DEVICES, None where it is not set."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if text is None else [item.strip() for item in text.split(",") if item.strip()]


def default_threads() -> int:
    """Return the number of CPUs that this process may use: affinity and cgroup quota both count."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cpu_limit()
    return max(1, min(allowed, int(quota) if quota else allowed))


def check_threads(threads: Sequence[int], available: int | None = None) -> None:
    """Refuse more threads than CPUs.

    Args:
        threads: what is asked for.
        available: CPUs that a cell may use; None: those of this process.

    Raises:
        UsageError: one of ``threads`` is more than that.
    """
    available = available or default_threads()
    if max(threads, default=0) > available:
        raise UsageError(f"--threads: {max(threads)} asked for, and a cell may use {available} CPUs")


def cgroup_cpu_limit() -> float | None:
    """Return the CPU quota of this control group in cores, None where there is no limit."""
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):  # cgroup v1: −1 is no limit
        limit = int((group / "cpu/cpu.cfs_quota_us").read_text())
        return limit / int((group / "cpu/cpu.cfs_period_us").read_text()) if limit > 0 else None
    return None


def code_hash() -> str:
    """Return 12 hex digits over the source of ``sema`` and ``sema_bench``, whether from a checkout or installed."""
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for folder in (package.parent / "sema", package):
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(package.parent)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def gpus() -> list[dict[str, Any]]:
    """Return name, memory and driver of each NVIDIA GPU that NVML sees (none without a driver)."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.append(
                {
                    "name": pynvml.nvmlDeviceGetName(handle),
                    "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                    "power_limit_w": _nvml(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle, 1000),
                    "max_sm_clock_mhz": _nvml(pynvml.nvmlDeviceGetMaxClockInfo, handle, 1, pynvml.NVML_CLOCK_SM),
                    "driver": driver,
                }
            )
        return found
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _nvml(query: Any, handle: Any, divisor: int, *arguments: Any) -> int | None:
    """Return what NVML answers, None where the card or the container does not tell."""
    import pynvml

    try:
        return int(query(handle, *arguments)) // divisor
    except pynvml.NVMLError:
        return None


def nvml_handle(device: str) -> Any:
    """Return NVML's handle of ``cuda:<index>``, CUDA_VISIBLE_DEVICES allowed for; NVML must be initialised.

    Raises:
        pynvml.NVMLError: it knows no such card.
    """
    import pynvml

    visible = _visible_devices()
    index = int(device.partition(":")[2] or 0)
    name = visible[index] if visible and index < len(visible) else str(index)
    by_index = name.isdecimal()
    return pynvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(name)


def free_device_bytes(device: str) -> int | None:
    """Return the free memory of ``cuda:<index>`` as NVML sees it; None where it cannot tell."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(nvml_handle(device)).free)
    except pynvml.NVMLError:
        return None


def _hardware() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "machine": platform.machine(),
        "cpus": default_threads(),
        "cgroup_cpu_limit": cgroup_cpu_limit(),
        "memory_gib": round(memory_limit_bytes() / 2**30),
        "gpus": gpus(),
    }


def _software() -> dict[str, Any]:
    import torch

    settings = torch.__config__.show()
    return {
        "os": platform.system(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "cuda_devices": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(),
        "mkl": torch.backends.mkl.is_available(),
        "openmp": "OpenMP" in settings,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "transparent_hugepages": _transparent_hugepages(),
        "preload": os.environ.get("LD_PRELOAD", ""),
    }


def _context() -> dict[str, Any]:
    return {
        "kernel": platform.release(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        **_commit(),
        "code": code_hash(),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _transparent_hugepages() -> str | None:
    line = _first_line("/sys/kernel/mm/transparent_hugepage/enabled")
    return line.partition("[")[2].partition("]")[0] if line else None


def _first_line(path: str) -> str | None:
    with contextlib.suppress(OSError):
        return Path(path).read_text().partition("\n")[0]
    return None


def _commit() -> dict[str, str | None]:
    """Return the commit of this code; where git cannot tell, why."""
    folder = Path(__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return {"commit": None, "commit_unknown": "the package does not lie in a git checkout"}
    try:
        commit = ask_git(folder, "rev-parse", "HEAD", timeout_s=_GIT_LIMIT_S)
        dirty = ask_git(folder, "status", "--porcelain", "-uno", timeout_s=_GIT_LIMIT_S)
    except GitError as problem:
        return {"commit": None, "commit_unknown": str(problem)}
    return {"commit": commit + ("+dirty" if dirty else "")}


def _refused(models: Sequence[str]) -> dict[str, str]:
    """Return name → reason for the models that cannot be built."""
    import torch

    import sema
    from sema_bench.axes import Resolution
    from sema_bench.foreign_model import SizeNotSupportedError, build_foreign
    from sema_bench.model_source import parse_source
    from sema_bench.probes.base import ProbeError

    refused = {}
    for name in models:
        source = parse_source(name)
        try:
            with torch.device("meta"):
                if source.kind == "registry":
                    sema.create_model(name)
                else:
                    build_foreign(source, Resolution(*_TRIAL_SIZE))
        except SizeNotSupportedError:
            continue  # a matter of each cell
        except (ValueError, TypeError, KeyError, ProbeError) as problem:
            refused[name] = str(problem)
    return refused


def _main(parent: int, models: Sequence[str]) -> None:
    die_with_parent(parent)
    let_libraries_warn()
    refused = _refused(models)
    print(json.dumps({"hardware": _hardware(), "software": _software(), "context": _context(), "refused": refused}))


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])


def environment_json(environment: Environment) -> dict[str, Any]:
    """Return what run.json holds of ``environment``."""
    return {
        "fingerprint": environment.fingerprint,
        "hardware": dict(environment.hardware),
        "software": dict(environment.software),
        "context": dict(environment.context),
    }
