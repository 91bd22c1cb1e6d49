"""Describe this machine and try to build models: ``python -m sema_bench.worker.survey``. It may import torch."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sema_bench.machine.cpus import cgroup_cpu_limit, default_threads
from sema_bench.machine.devices import gpus
from sema_bench.machine.environment import code_hash, commit_facts
from sema_bench.machine.host_memory import memory_limit_bytes
from sema_bench.machine.processes import die_with_parent, let_libraries_warn


def _describe() -> dict[str, dict[str, Any]]:
    import torch

    hugepages = _first_line("/sys/kernel/mm/transparent_hugepage/enabled")
    hardware = {
        "cpu": _cpu_name(),
        "machine": platform.machine(),
        "cpus": default_threads(),
        "cgroup_cpu_limit": cgroup_cpu_limit(),
        "memory_gib": round(memory_limit_bytes() / 2**30),
        "gpus": gpus(),
    }
    software = {
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
        "openmp": "OpenMP" in torch.__config__.show(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "transparent_hugepages": hugepages.partition("[")[2].partition("]")[0] if hugepages else None,
        "preload": os.environ.get("LD_PRELOAD", ""),
    }
    context = {
        "kernel": platform.release(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        **commit_facts(),
        "code": code_hash(),
    }
    return {"hardware": hardware, "software": software, "context": context}


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _first_line(path: str) -> str | None:
    with contextlib.suppress(OSError):
        return Path(path).read_text().partition("\n")[0]
    return None


def _main(parent: int, models: Sequence[str]) -> None:
    die_with_parent(parent)
    let_libraries_warn()
    from sema_bench.worker.build_model import refused_models  # torch may warn while it is imported

    refused = refused_models(models)
    print(json.dumps({**_describe(), "refused": refused}))


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
