"""Show where a model's time goes, by kind of operator, and how far it is from the best that this machine can do.

``python benchmarks/profile_forms.py sema_tiny --res 224 896 --dtype float32 bfloat16 --mode optimized`` runs the model
in this process and times every call of a module. A module's time excludes the modules in it. Vim's scan and VMINet's
sum over tokens are called by their blocks and count as the rest. The rate of products is their FLOPs divided by their
time; the floor is the time that the whole model's FLOPs take at this machine's best rate.
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
from sema.inference.forms import LayerNormForm  # noqa: E402
from sema.inference.fused import FusedConv2d, FusedLinear  # noqa: E402
from sema_bench.worker.peak_rates import measure_peaks  # noqa: E402

WARM_UP, PASSES = 3, 15


def kind_of(module: nn.Module) -> str:
    """Name the kind of work that a module does itself."""
    if isinstance(module, nn.Linear | FusedLinear):
        return "products"
    if isinstance(module, nn.Conv2d | FusedConv2d):
        return "depthwise convolutions" if module.groups > 1 else "convolutions"
    if isinstance(module, nn.LayerNorm | LayerNormForm | nn.RMSNorm | nn.BatchNorm2d):
        return "norms"
    is_form = type(module).__module__ == "sema.inference.attentions"
    return "attention" if is_form or isinstance(module, Attention) else "the rest"


class Clock:
    """Adds up the time of each kind's own work, and the FLOPs of products."""

    def __init__(self, model: nn.Module) -> None:
        self.seconds: Counter[str] = Counter()
        self.product_flops = 0
        self._inner: list[float] = []
        for module in model.modules():
            module.forward = self._timed(module, kind_of(module), module.forward)

    def _timed(self, module: nn.Module, kind: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def timed(*args: Tensor, **named: object) -> Tensor:
            self._inner.append(0.0)
            started = time.perf_counter()
            out = forward(*args, **named)
            took = time.perf_counter() - started
            self.seconds[kind] += took - self._inner.pop()
            if kind == "products":
                self.product_flops += 2 * args[0].numel() * module.out_features
            if self._inner:
                self._inner[-1] += took
            return out

        return timed


@torch.inference_mode()
def profile(name: str, side: int, dtype: torch.dtype, mode: str) -> None:
    """Print the time of a forward pass at batch 1 by kind: the median of several passes."""
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
    for number in range(WARM_UP + PASSES):
        clock.seconds.clear()
        clock.product_flops = 0
        model(image)
        if number >= WARM_UP:
            passes.append(dict(clock.seconds))
    total = statistics.median(sum(times.values()) for times in passes)
    rate = measure_peaks(torch.device("cpu"), dtype).flop_per_s
    threads = f"threads {torch.get_num_threads()}"
    print(f"{name}, {side}, {mode}, {str(dtype).removeprefix('torch.')}, {threads}: {1e3 * total:.1f} ms")
    medians = {kind: statistics.median(times[kind] for times in passes) for kind in passes[0]}
    for kind, took in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"  {kind:24} {1e3 * took:8.1f} ms  {took / total:5.1%}")
    reached = clock.product_flops / medians["products"]
    print(f"  products: {reached / 1e9:.0f} of {rate / 1e9:.0f} GFLOP/s, {reached / rate:.0%}")
    floor = flops / rate
    print(f"  floor: {flops / 1e9:.1f} GFLOP at that rate: {1e3 * floor:.1f} ms, {floor / total:.0%} of the time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--res", nargs="+", type=int, default=[224])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--mode", choices=("eager", "optimized"), default="optimized")
    options = parser.parse_args()
    for name in options.models:
        for side in options.res:
            for dtype in options.dtype:
                profile(name, side, getattr(torch, dtype), options.mode)
