"""Where the time of a model goes, by kind of operator, and how far that is from the best this machine could do.

``python benchmarks/profile_forms.py sema_tiny --res 224 896 --dtype float32 bfloat16 --mode optimized`` runs the model
in this process, with a clock around every module that computes something itself. The time of a module is that of its
own work, without that of the modules in it. The floor is the arithmetic of the whole model at the best rate of matrix
products that this machine shows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sema_bench.worker.allocator import set_allocator

set_allocator("retain")  # before torch allocates

import sema  # noqa: E402
from sema.attention.base import Attention  # noqa: E402
from sema.inference.fused import FusedConv2d, FusedLinear  # noqa: E402
from sema_bench.worker.peak_rates import measure_peaks  # noqa: E402

PASSES = 15


def kind_of(module: nn.Module) -> str:
    """Return what a module computes itself."""
    if isinstance(module, nn.Linear | FusedLinear):
        return "linear maps"
    if isinstance(module, nn.Conv2d | FusedConv2d):
        return "depthwise convolutions" if module.groups > 1 else "convolutions"
    if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.BatchNorm2d):
        return "norms"
    is_form = type(module).__module__ == "sema.inference.attentions"
    return "attention" if is_form or isinstance(module, Attention) else "between them"


class Clock:
    """Adds up the time of each kind's own work."""

    def __init__(self, model: nn.Module) -> None:
        self.seconds: Counter[str] = Counter()
        self._inner: list[float] = []
        for module in model.modules():
            module.forward = self._timed(kind_of(module), module.forward)

    def _timed(self, kind: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def timed(*args: object, **named: object) -> Tensor:
            self._inner.append(0.0)
            started = time.perf_counter()
            out = forward(*args, **named)
            took = time.perf_counter() - started
            self.seconds[kind] += took - self._inner.pop()
            if self._inner:
                self._inner[-1] += took
            return out

        return timed


@torch.inference_mode()
def profile(name: str, side: int, dtype: torch.dtype, mode: str) -> None:
    """Print the time of a forward pass at batch 1, by kind, the median of several passes."""
    torch.manual_seed(0)
    model = sema.create_model(name).eval().to(memory_format=torch.channels_last)
    flops = 2 * model.macs((side, side)).total
    image = torch.randn(1, 3, side, side).to(dtype=dtype, memory_format=torch.channels_last)
    if mode == "optimized":
        model = sema.optimize_for_inference(model, dtype=dtype, example_size=tuple(image.shape))
    else:
        model = model.to(dtype)
    clock = Clock(model)
    passes: list[dict[str, float]] = []
    for number in range(PASSES + 3):
        clock.seconds.clear()
        model(image)
        if number >= 3:
            passes.append(dict(clock.seconds))
    total = statistics.median(sum(found.values()) for found in passes)
    rate = measure_peaks(torch.device("cpu"), dtype).flop_per_s
    threads = f"threads {torch.get_num_threads()}"
    print(f"{name}, {side}, {mode}, {str(dtype).removeprefix('torch.')}, {threads}: {1e3 * total:.1f} ms")
    for kind in sorted(passes[0], key=lambda kind: -passes[0][kind]):
        took = statistics.median(found[kind] for found in passes)
        print(f"  {kind:24} {1e3 * took:8.1f} ms  {took / total:5.1%}")
    floor, work = flops / rate, f"{flops / 1e9:.1f} GFLOP at {rate / 1e9:.0f} GFLOP/s"
    print(f"  floor: {work}: {1e3 * floor:.1f} ms, {floor / total:.0%} of it")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--res", nargs="+", type=int, default=[224])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--mode", choices=("eager", "optimized"), default="optimized")
    chosen = parser.parse_args()
    for name in chosen.models:
        for side in chosen.res:
            for dtype in chosen.dtype:
                profile(name, side, getattr(torch, dtype), chosen.mode)
