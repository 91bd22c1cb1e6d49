"""A worker that speaks the protocol and behaves as its model's name says; no torch, no real timing.

Names: ``good``, ``slow<seconds>`` (latency at any size), ``crash``, ``kill9``, ``signal40``, ``hang``, ``native-hang``
(in C code that never returns to Python), ``grandchild`` (starts a sleeping child, then hangs), ``oom<side>`` (runs out
of memory from that side on), ``fits<batch>`` (larger batches run out of memory when they are timed), ``error``,
``garbage``, ``sampler-crash`` (dies when asked for samples), ``twice`` (answers each request twice, as two processes
on one pipe do), ``hollow`` (its answers lack their keys), ``nothing`` (its answers are neither results nor errors),
``launches`` (its host launches kernels for 95 % of each step).
Environment: ``FAKE_SLOWER`` lengthens all latencies by this share; ``FAKE_PARAMS`` is the number of parameters;
``FAKE_CRASH`` names a model that crashes, ``FAKE_UNKNOWN`` a model that the worker does not know; ``FAKE_ONCE`` names a
file: if it exists, the next request crashes, once; ``FAKE_PAUSE_S`` makes each sample request take that long;
``FAKE_LOG`` names a file that gets the model's name at each sample request; ``FAKE_NOISE`` changes the latency of each
process by up to three times this share; ``FAKE_UNEVEN`` is the share by which its turns differ; ``FAKE_DRIFT`` is the
factor between its two clocks; ``FAKE_CROWDED`` names a file: if it exists, ``crowded`` runs out of memory, once.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from sema_bench.machine.processes import die_with_parent


def misbehave(model: str, do: str, side: int, batch: int) -> dict[str, object] | None:
    if model == os.environ.get("FAKE_UNKNOWN"):
        return {"error": {"status": "error", "message": "UsageError: unknown model", "details": {"unknown": "yes"}}}
    if (once := Path(os.environ.get("FAKE_ONCE", ""))).is_file():
        once.unlink()
        os._exit(5)
    if model == "crash" or model == os.environ.get("FAKE_CRASH"):
        sys.stderr.write("about to crash\n")
        os._exit(3)
    if model == "kill9":
        os.kill(os.getpid(), signal.SIGKILL)
    if model == "signal40":
        os.kill(os.getpid(), 40)
    if model == "hang":
        time.sleep(3600)
    if model == "native-hang":
        if "FAKE_PID_FILE" in os.environ:
            Path(os.environ["FAKE_PID_FILE"]).write_text(str(os.getpid()))
        ctypes.PyDLL(None).sleep(3600)
    if model == "grandchild":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        Path(os.environ["FAKE_PID_FILE"]).write_text(str(child.pid))
        time.sleep(3600)
    if model == "garbage":
        sys.stdout.write("Traceback: not JSON\n")
        sys.stdout.flush()
        time.sleep(3600)
    if model == "crowded" and do == "prepare" and (first := Path(os.environ["FAKE_CROWDED"])).exists():
        first.unlink()
        return {"error": {"status": "oom", "message": "can't allocate memory"}}
    if model == "sampler-crash" and do == "sample":
        os._exit(7)
    if model == "error":
        return {
            "error": {
                "status": "error",
                "message": "ValueError: no such thing",
                "details": {"traceback": "Traceback …"},
            }
        }
    if (match := re.fullmatch(r"fits(\d+)", model)) and do == "prepare" and batch > int(match[1]):
        return {"error": {"status": "oom", "message": "can't allocate memory"}}
    if (match := re.fullmatch(r"oom(\d+)", model)) and side >= int(match[1]):
        return {"error": {"status": "oom", "message": "can't allocate memory"}}
    if model == "hollow":
        return {"ok": {}}
    if model == "nothing":
        return {}
    return None


def main() -> None:
    die_with_parent(int(sys.argv[sys.argv.index("--parent") + 1]))
    model, side, batch, latency, asked = "", 0, 0, 0.0, 0
    chance = random.Random(os.getpid())
    print('{"ready": true}', flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        do = request["do"]
        if "workload" in request:
            cell = request["workload"]["cell"]
            model, side, batch = cell["model"], cell["height"], cell["batch"]
            slow = re.fullmatch(r"slow([\d.]+)", model)
            latency = float(slow[1]) if slow else 1e-6 * side**2
            latency *= 1 + float(os.environ.get("FAKE_SLOWER", "0")) + request.get("extra_work", 0.0)
        answer = misbehave(model, do, side, batch)
        if answer is None:
            ok: dict[str, object] | None = None
            if do == "inspect" and request["probes"] == ["forecast"]:
                predicted = 2**20 * side**2 // 1024 * batch  # 1 MiB per image of 32 × 32
                ok = {
                    "measurements": [{"metric": "predicted_peak_bytes", "value": predicted, "samples": []}],
                    "details": {},
                }
            elif do == "inspect":
                count = {"metric": "params", "value": int(os.environ.get("FAKE_PARAMS", "1000")), "samples": []}
                ok = {"measurements": [count], "details": {"probes": request["probes"]}}
            elif do == "prepare":
                ok = {"first_forward_s": latency, "warmup_s": [latency] * 3, "warm": True}
            elif do == "clocks":
                drift = float(os.environ.get("FAKE_DRIFT", "1"))
                seconds = [latency * drift] * request["count"]
                ok = {
                    "names": ["a", "b"],
                    "first_s": seconds,
                    "second_s": [latency] * len(seconds),
                    "resolution_s": 1e-9,
                }
            elif do == "sample":
                time.sleep(float(os.environ.get("FAKE_PAUSE_S", "0")))
                if "FAKE_LOG" in os.environ:
                    with Path(os.environ["FAKE_LOG"]).open("a") as log:
                        log.write(f"{model}\n")
                asked += 1
                wander = float(os.environ.get("FAKE_NOISE", "0")) * (os.getpid() % 7 - 3)
                wander += float(os.environ.get("FAKE_UNEVEN", "0")) * chance.uniform(-1, 1)
                walls = [(1 + wander) * latency * (1 + 0.001 * ((asked + i) % 3)) for i in range(request["count"])]
                ok = {"wall_s": walls, "cpu_s": walls, "page_faults": [0] * len(walls), "switches": [0] * len(walls)}
                if model == "launches":
                    ok["launch_s"] = [0.95 * wall for wall in walls]
            answer = {"ok": ok}
        line_out = json.dumps({"number": request["number"], **answer}) + "\n"
        sys.stdout.write(line_out * (2 if model == "twice" else 1))
        sys.stdout.flush()


main()
