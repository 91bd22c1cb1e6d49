"""Describe this machine and try to build models: ``python -m sema_bench.worker.survey``. It may import torch."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sema_bench.machine.cpus import cgroup_cpu_limit, default_threads
from sema_bench.machine.devices import gpu_states, gpus
from sema_bench.machine.environment import code_hash, commit_facts
from sema_bench.machine.host_memory import memory_limit_bytes
from sema_bench.machine.processes import die_with_parent, importing_torch, let_libraries_warn


def _describe() -> dict[str, dict[str, Any]]:
    import torch

    cards, states = _gpus()
    hugepages = _first_line("/sys/kernel/mm/transparent_hugepage/enabled")
    hardware = {
        "cpu": _cpu_name(),
        "machine": platform.machine(),
        "cpus": default_threads(),
        "cgroup_cpu_limit": cgroup_cpu_limit(),
        "memory_gib": round(memory_limit_bytes() / 2**30),
        "gpus": cards,
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
        "gpus": states,
        "wsl": "microsoft" in platform.release().lower(),
        "mps": (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control").exists(),
    }
    return {"hardware": hardware, "software": software, "context": context}


def _gpus() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Describe the GPUs for ``hardware``, and each as torch sees it for ``context``.

    NVML's facts are matched to torch's devices by UUID. If torch sees no GPU, ``hardware`` has those of NVML.
    """
    import torch

    listed, states = gpus(), gpu_states()
    if not torch.cuda.is_available():
        return listed, []
    by_uuid = {str(state["uuid"]).partition("-")[2]: card for state, card in zip(states, listed, strict=True)}
    cards, seen = [], []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        uuid, capability = str(facts.uuid), (facts.major, facts.minor)
        card = {**by_uuid.get(uuid, {}), "name": facts.name, "capability": f"{facts.major}.{facts.minor}"}
        card["memory_bytes"] = card.get("memory_bytes") or facts.total_memory
        cards.append(card)
        state = states[index] if index < len(states) else {}
        kernels = has_kernels(capability, torch.cuda.get_arch_list())
        seen.append({**card, **state, "torch_uuid": uuid, "kernels": kernels})
    return cards, seen


def has_kernels(capability: tuple[int, int], archs: Sequence[str]) -> bool | None:
    """Check whether a torch with code for ``archs``, e.g. sm_90, runs on a card; None if no arch can be read.

    Machine code runs on cards of the same major version that are not older, and PTX (compute_90) on all later cards;
    code with a letter, such as sm_90a, only on its own card.
    """
    matches = [match for arch in archs if (match := re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", arch))]
    for kind, major, minor, letter in (match.groups() for match in matches):
        arch = (int(major), int(minor))
        if capability == arch or (not letter and arch < capability and (kind == "compute" or arch[0] == capability[0])):
            return True
    return False if matches else None


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
    with importing_torch():  # it may warn
        from sema_bench.worker.build_model import refused_models

    refused = refused_models(models)
    print(json.dumps({**_describe(), "refused": refused}))


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
