"""A fake card for ``sema-bench selftest --gpu``: run as a check, as a worker, or as a replay.

``replay`` answers a check with the answers in ``gpu_answers.json``. ``check`` and ``worker`` run the real
code: tensors of "cuda:0" are on the CPU, and fakes of torch.cuda and NVML describe the card in that file. Its answers
were written by hand, without a card. To record a real card, replace it with the file that
``sema-bench selftest --gpu --json FILE`` writes.

``FAKE_CHECK=<number>:<fault>`` makes a replayed check misbehave: ``crash``, ``hang``, ``error``, ``lacks``,
``garbage``, or ``worse`` (one answer is far off). ``FAKE_CHECKOUT`` is a folder with the tests that check 1 runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sema_bench.machine.processes import die_with_parent

ANSWERS = Path(__file__).with_name("gpu_answers.json")
#: Cells shrunk by this factor take seconds on a CPU.
SHRINK = 14
STAND_INS = {
    "sema_tiny": "sema_micro",
    "deit_small": "sema_micro[softmax]",
    "vmamba_tiny_s1l8[scan=torch]": "sema_micro[vmamba,scan=torch]",
    "vmamba_tiny_s1l8[scan=triton]": "sema_micro[vmamba,scan=triton]",
}
#: Check → path of an answer that the check judges, and a value that breaks its limit.
WORSE: dict[int, tuple[tuple[Any, ...], Any]] = {
    0: (("nvml", "uuid"), "GPU-of-another-card"),
    1: (("failed",), ["FAILED test_x - not equal"]),
    2: (("events_s",), 99.0),
    3: (("cudagraph_skips",), 3),
    4: (("errors", "after new weights in place"), 0.01),
    5: (("precisions", "TF32", "flop_per_s"), 1.0),
    6: (("allocated_bytes",), 5),
    7: (("shapes", "scan of 8192²"), "RuntimeError: CUDA error: invalid configuration argument"),
    8: (("full", "energy_j"), 1.0),
    9: (("watched_s",), 9.0),
    10: (("beside_work",), 0),
    11: (("copy_bytes_per_s",), 1.0),
    12: (("ran", 1, "operators"), ["aten::_scaled_dot_product_attention_math"]),
    13: (("sizes", "224 float32", "logits_error"), 0.5),
    14: (("forms", 1, "status"), "error: its inference form differs"),
    15: (("losses", "float16"), [1.0, 1.0, 2.0, 2.0]),
    16: (("gate", "ratio"), 1.5),
    17: (("cells", 0, "latency_s"), 1e-9),
}


def recorded() -> dict[int, dict[str, Any]]:
    return {check["number"]: check for check in json.loads(ANSWERS.read_text(encoding="utf-8"))["checks"]}


def made_worse(number: int, answers: Any) -> Any:
    (*path, last), value = WORSE[number]
    answers = json.loads(json.dumps(answers))
    part = answers
    for key in path:
        part = part[key]
    part[last] = value
    return answers


def replay(number: str, device: str, path: str, parent: str) -> None:
    die_with_parent(int(parent))
    wanted, _, fault = os.environ.get("FAKE_CHECK", "").partition(":")
    stored = recorded()[int(number)]
    body: dict[str, Any] = {"answers": stored["answers"]}
    if not stored["answers"]:
        body = {"status": stored["status"], "reason": stored["reason"]}
    if wanted == number:
        if fault == "crash":
            print("CUDA error: an illegal memory access was encountered", flush=True)
            os._exit(134)
        if fault == "hang":
            time.sleep(3600)
        body = {
            "error": {"status": "FAILED", "reason": "ValueError: broken", "traceback": "Traceback …"},
            "lacks": {"status": "not here", "reason": "pytest is not installed"},
            "garbage": {"answers": {"nonsense": 1}},
            "worse": {"answers": made_worse(int(number), stored["answers"])},
        }[fault]
    if log := os.environ.get("FAKE_LOG"):
        with Path(log).open("a") as file:
            file.write(f"{number}\n")
    Path(path).write_text(json.dumps(body), encoding="utf-8")


class FakeNvml:
    """NVML for the recorded card; a query without an answer is not supported."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU, NVML_ERROR_NOT_FOUND = 1, 2, 0, 6

    def __init__(self, card: dict[str, Any]) -> None:
        known, self._millijoules = card["nvml"], 0.0
        self._started = time.monotonic()
        memory = SimpleNamespace(total=card["memory_bytes"], free=5 * 2**27, used=2**30)
        self._answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlSystemGetDriverVersion": known.get("driver", "0"),
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlDeviceGetName": card["name"],
            "nvmlDeviceGetUUID": known.get("uuid", f"GPU-{card['uuid']}"),
            "nvmlDeviceGetCudaComputeCapability": tuple(card["capability"]),
            "nvmlDeviceGetMigMode": (known.get("mig", 0), 0),
            "nvmlDeviceGetComputeMode": known.get("compute_mode", 0),
            "nvmlDeviceGetEccMode": (known.get("ecc", 1), 1),
            "nvmlDeviceGetDisplayActive": known.get("display", 0),
            "nvmlDeviceGetMemoryInfo": memory,
            "nvmlDeviceGetPowerUsage": 300_000,
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetTemperature": 60,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=os.getpid(), usedGpuMemory=2**29)],
            "nvmlDeviceGetGraphicsRunningProcesses": [],
            "nvmlDeviceGetProcessUtilization": [SimpleNamespace(pid=os.getpid(), smUtil=90)],
        }

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def query(*arguments: Any) -> Any:
            if name == "nvmlDeviceGetTotalEnergyConsumption":
                return 300_000 * (time.monotonic() - self._started)
            if name not in self._answers:
                raise self.NVMLError("Not Supported")
            return self._answers[name]

        return query


def install() -> None:
    """Install the fake card in this process."""
    card = recorded()[0]["answers"]
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[os.getpid() % len(cpus)]})  # one CPU: when busy, threads wait for each other
    sys.modules["pynvml"] = FakeNvml(card)  # type: ignore[assignment]

    import torch
    from torch.overrides import TorchFunctionMode

    def at_home(value: Any) -> Any:
        if isinstance(value, torch.device | str) and str(value).startswith("cuda"):
            return "cpu"
        return value

    class OnCpu(TorchFunctionMode):
        """Put tensors of "cuda:0" on the CPU."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.device:
                return func(*args, **(kwargs or {}))
            if func is torch.Tensor.pin_memory:
                return args[0]
            named = {name: at_home(value) for name, value in (kwargs or {}).items()}
            return func(*map(at_home, args), **named)

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            self.at_s = 0.0

        def record(self) -> None:
            self.at_s = time.perf_counter()

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * (end.at_s - self.at_s)

    class Stream:
        def wait_stream(self, other: Stream) -> None: ...

    class Graph:
        def replay(self) -> None:
            time.sleep(1e-3)

    about = SimpleNamespace(
        name=card["name"],
        uuid=card["uuid"],
        major=card["capability"][0],
        minor=card["capability"][1],
        total_memory=card["memory_bytes"],
        multi_processor_count=card["multiprocessors"],
    )
    fakes: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": lambda device: contextlib.nullcontext(),
        "synchronize": lambda device=None: None,
        "get_device_properties": lambda device=None: about,
        "get_device_capability": lambda device=None: tuple(card["capability"]),
        "get_device_name": lambda device=None: card["name"],
        "get_arch_list": lambda: card["arch_list"],
        "mem_get_info": lambda device=None: (5 * 2**27, card["memory_bytes"]),
        "memory_allocated": lambda device=None: 2**20,
        "max_memory_allocated": lambda device=None: 2**28,
        "max_memory_reserved": lambda device=None: 2**28,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "current_stream": lambda device=None: Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "graph": lambda graph, **options: contextlib.nullcontext(),
        "is_bf16_supported": lambda *arguments: True,
    }
    for name, fake in fakes.items():
        setattr(torch.cuda, name, fake)
    torch.compile = lambda model, **options: model  # type: ignore[assignment]
    for check in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):  # by torch release
        setattr(torch.optim.Optimizer, check, lambda optimizer: None)
    OnCpu().__enter__()

    from sema.kernels import scan_backends
    from sema.layers.selective_scan import selective_scan
    from sema_bench.worker import peak_rates

    for scan in ("triton", "mamba_ssm"):
        sys.modules.setdefault(f"sema.kernels.scan_{scan}", SimpleNamespace(selective_scan_triton=selective_scan))  # type: ignore[arg-type]
    assert scan_backends.load_scan("triton") is selective_scan
    peak_rates._SIDES["cuda"] = (32, 64)
    peak_rates._COPIES["cuda"] = (2**12, 2**14)


def main(role: str, arguments: list[str]) -> None:
    if role == "replay":
        replay(*arguments)
    elif role == "worker":
        from sema_bench.worker import server

        sys.argv = ["worker", *arguments]
        server.main()
    else:
        import sema_bench
        from sema_bench.studies.gpu import run

        if checkout := os.environ.get("FAKE_CHECKOUT"):
            sema_bench.__file__ = f"{checkout}/sema_bench/__init__.py"
        worker = (sys.executable, __file__, "worker")
        run.main(arguments, shrink=SHRINK, stand_ins=STAND_INS, worker_command=worker)


if __name__ in ("__main__", "__mp_main__") and sys.argv[1] != "replay":
    install()
if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
