"""Test probes on real models: counts agree, memory adds up, and samples mean what they say."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import sema
from sema.attention import ATTENTIONS
from sema.inference.fused import has_mkl, has_packed_kernels
from sema.macs import Macs
from sema_bench.errors import ProbeError, UsageError
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement
from sema_bench.spec.sampling import Sampling
from sema_bench.worker.build_model import usage_errors
from sema_bench.worker.probes import throughput
from sema_bench.worker.probes.base import Findings
from sema_bench.worker.probes.macs import MacsProbe
from sema_bench.worker.probes.memory import MemoryProbe
from sema_bench.worker.probes.params import ParamsProbe
from sema_bench.worker.probes.throughput import summarise
from sema_bench.worker.protocol import (
    Failure,
    Inspect,
    Prepare,
    Prepared,
    Release,
    Sample,
    Samples,
    WorkloadSpec,
    decode_answer,
    encode_request,
)
from sema_bench.worker.session import Session, _describe
from sema_bench.worker.stopwatch import Stopwatch
from sema_bench.worker.workload import Workload


def workload(model: str = "sema_tiny", side: int = 64, **changes: object) -> Workload:
    return Workload(dataclasses.replace(Cell(model=model, height=side, width=side), **changes))


@pytest.mark.parametrize("name", [*(f"sema_micro[{attention}]" for attention in ATTENTIONS), "deit_tiny"])
def test_three_sources_agree_on_the_macs_and_no_operator_is_left_out(name: str) -> None:
    findings = MacsProbe().measure(Workload(Cell(model=name, height=70, width=101)))
    values = {m.metric: m.value for m in findings.measurements}
    assert values["macs"] == values["macs_fvcore"] == values["macs_flop_counter"]
    assert values["flops"] == 2 * values["macs"] + values["scan_flops"]
    assert values["macs"] == values["macs_attention"] + values["macs_projection"] + values["macs_convolution"]
    assert findings.details["uncovered_operators"] == []


def test_a_disagreement_is_an_error_with_the_three_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    from sema.models.hierarchical import HierarchicalBackbone

    right = HierarchicalBackbone.macs

    def one_percent_off(self: HierarchicalBackbone, resolution: tuple[int, int]) -> Macs:
        macs = right(self, resolution)
        return macs.plus(Macs(convolution=macs.total // 100))

    monkeypatch.setattr(HierarchicalBackbone, "macs", one_percent_off)
    with pytest.raises(ProbeError) as refused:
        MacsProbe().measure(workload())
    message = str(refused.value)
    assert re.search(
        r"disagree by more than 0\.5%: analytic [\d,]+, fvcore [\d,]+, FlopCounterMode / 2 [\d,]+;", message
    )
    assert "they first differ in the model itself" in message


@pytest.mark.parametrize("frozen", [(), ("0",), ("0", "2")], ids=["none", "one", "all"])
def test_frozen_parameters_count_in_the_total_alone(frozen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1))
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    monkeypatch.setattr(Workload, "meta_model", lambda self: model)
    values = {m.metric: m.value for m in ParamsProbe().measure(workload()).measurements}
    counts = {"0": 3 * 4 + 4, "2": 4 * 5 + 5}
    assert values == {
        "params": sum(count for name, count in counts.items() if name not in frozen),
        "params_total": sum(counts.values()),
    }


@pytest.mark.parametrize("mode", ["eager", pytest.param("compile", marks=pytest.mark.slow)])
def test_a_batch_norm_of_one_value_says_what_to_do_and_skips_the_cell(mode: str) -> None:
    """At 32×32 pixels, SEMA's last map is one token."""
    cell = Cell(model="sema_tiny", height=32, width=32, step="train", mode=mode)
    with pytest.raises(Exception, match="more than 1 value per channel") as caught:
        Session().prepare(Prepare(WorkloadSpec(cell, 0), 1.0, 0.0))
    failure = _describe(caught.value)
    assert failure.status == "skipped"
    assert failure.message.endswith("use a larger batch or larger images")
    with pytest.raises(UsageError, match="use a larger batch or larger images"), usage_errors():
        raise caught.value


def test_counting_allocates_no_weights() -> None:
    counted = workload()
    MacsProbe().measure(counted)
    assert "model" not in counted.__dict__


def test_cpu_memory_adds_up_and_bounds_what_must_be_alive() -> None:
    measured = workload(side=96)
    values = {m.metric: m.value for m in MemoryProbe().measure(measured).measurements}
    parameters = sum(p.numel() for p in sema.create_model("sema_tiny").parameters())
    assert values["weights_bytes"] >= 4 * parameters
    assert values["input_bytes"] == 4 * 3 * 96 * 96
    assert values["activation_bytes"] == values["peak_memory_bytes"] - values["weights_bytes"] - values["input_bytes"]
    widest = 4 * 256 * 24 * 24  # the stem's 4C channels at a quarter of the side, in and out of its ReLU
    assert widest <= values["activation_bytes"] <= 8 * widest


def test_the_live_tensor_peak_is_repeatable_and_sees_temporaries() -> None:
    class Spike(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.expand(64, -1, -1, -1) + 1).sum()

    measured = workload(side=32)
    measured.__dict__["model"] = Spike()
    peaks = {
        next(m.value for m in MemoryProbe().measure(measured).measurements if m.metric == "activation_bytes")
        for _ in range(3)
    }
    assert len(peaks) == 1
    assert peaks.pop() == pytest.approx(64 * measured.input.nbytes, rel=0.01)


def test_each_size_is_compiled_as_one_static_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default torch.compile serves later sizes dynamically, or partly in eager mode, under the same label."""
    graphs: list[torch.fx.GraphModule] = []
    compile_for_real = torch.compile

    def counting(model: nn.Module, **options: bool) -> object:
        def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
            graphs.append(graph)
            return graph.forward

        return compile_for_real(model, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", counting)
    held = workload("sema_micro", side=64, mode="compile")
    expected = workload("sema_micro", side=96).forward()
    for count, side in enumerate((64, 80, 96), start=1):
        held = held.resized(dataclasses.replace(held.cell, height=side, width=side))
        answers = [held.forward() for _ in range(2)]
        assert len(graphs) == count
    torch.testing.assert_close(answers[-1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not has_mkl(), reason="this build of torch has no MKL")
def test_weights_for_other_sizes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sema.inference.builder.fastest_product", lambda *args, **options: "MKL")
    form = workload("sema_micro", mode="optimized")
    measured = {m.metric: m.value for m in MemoryProbe().measure(form).measurements}
    assert measured["weights_bytes"] == form.weights_bytes() + form.frozen_bytes() > 1.5 * form.weights_bytes()


def test_the_optimized_mode_runs_the_same_network_in_its_inference_form() -> None:
    plain, form = workload("sema_micro"), workload("sema_micro", mode="optimized")
    assert form.forward().equal(form.forward())
    torch.testing.assert_close(form.forward(), plain.forward(), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.Linear) for module in form.model.modules())
    assert form.weights_bytes() == plain.weights_bytes()
    assert form.output_shape() == plain.output_shape() == (1, 1000)
    counted = [{m.metric: m.value for m in MacsProbe().measure(each).measurements} for each in (plain, form)]
    assert counted[0] == counted[1]
    half = workload("sema_micro", mode="optimized", dtype="bfloat16")
    assert half.forward().dtype == torch.bfloat16
    stock = workload("sema_micro", dtype="bfloat16")
    assert stock.weights_bytes() < half.weights_bytes() < plain.weights_bytes(), "some parts keep float32"
    assert {m.metric for m in MemoryProbe().measure(form).measurements} >= {"peak_memory_bytes", "activation_bytes"}


def test_the_optimized_form_as_a_graph_is_held_against_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, held = workload("sema_micro"), workload("sema_micro", mode="compile-optimized")
    Stopwatch(held).first_forward()
    torch.testing.assert_close(held.forward(), plain.forward(), rtol=1e-4, atol=1e-5)
    assert held.mode_details()["kernels"].keys() >= {"products", "window_attention"}
    assert held.weights_bytes() == plain.weights_bytes()
    monkeypatch.setattr(Workload, "uncompiled", sema.create_model("sema_micro").eval())  # other weights
    with pytest.raises(ProbeError, match="differs from the model by"):
        Stopwatch(held).first_forward()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frozen_weights_are_constants_of_each_size_alone(dtype: str, layout: str) -> None:
    held = workload(side=32, mode="compile-frozen", dtype=dtype, layout=layout)
    held.__dict__["network"] = Small().eval().to(held.dtype).to(memory_format=held.memory_format)
    for side in (32, 48):
        held = held.resized(dataclasses.replace(held.cell, height=side, width=side))
        Stopwatch(held).first_forward()  # it compares the logits with eager
        parameters = sum(p.nbytes for p in held.network.parameters())
        assert 0.5 * parameters < held.frozen_bytes() < 1.5 * parameters
        if has_packed_kernels(held.device, held.dtype):
            before = held.forward()
            with torch.no_grad():
                held.network.conv.weight.mul_(2.0)
            assert held.forward().equal(before), "packed weights are constants"
    held.reset_size()
    assert held.frozen_bytes() == 0, "otherwise each size would leave its weights behind"


def test_memory_counts_frozen_weights_beside_the_models_own() -> None:
    held = workload(side=32, mode="compile-frozen")
    held.__dict__["network"] = Small().eval()
    measured = {m.metric: m.value for m in MemoryProbe().measure(held).measurements}
    assert measured["weights_bytes"] == held.weights_bytes() + held.frozen_bytes()
    assert measured["peak_memory_bytes"] > measured["weights_bytes"] > held.weights_bytes()


def test_a_frozen_graph_that_differs_from_eager_is_not_timed() -> None:
    held = workload(side=32, mode="compile-frozen")
    held.__dict__["network"] = Small().eval()
    held.__dict__["model"] = Small().eval()  # other weights
    with pytest.raises(ProbeError, match="differs from the model by"):
        Stopwatch(held).first_forward()


def test_only_the_frozen_mode_freezes() -> None:
    with torch._inductor.config.patch(freezing=True):  # as TORCHINDUCTOR_FREEZING=1 does
        assert workload("sema_micro", mode="compile").model is not None
        assert torch._inductor.config.freezing is False


def test_an_output_that_is_not_finite_is_not_timed() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) / 0

    broken = workload(side=32)
    broken.__dict__["model"] = Broken()
    with pytest.raises(ProbeError, match="not finite"):
        Stopwatch(broken).first_forward()


def test_two_workloads_with_one_seed_hold_the_same_numbers() -> None:
    assert torch.equal(workload().forward(), workload().forward())
    assert not torch.equal(
        workload().forward(), Workload(Cell(model="sema_tiny", height=64, width=64), seed=1).forward()
    )


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_workload_is_what_the_cell_says(layout: str, dtype: str) -> None:
    built = workload(layout=layout, dtype=dtype, batch=2)
    assert built.input.shape == (2, 3, 64, 64)
    assert built.input.dtype == next(built.model.parameters()).dtype == getattr(torch, dtype)
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert built.input.is_contiguous(memory_format=wanted)
    assert built.forward().shape == (2, 1000)
    assert not built.model.training


def test_a_stopwatch_gives_one_sample_per_forward_pass() -> None:
    watch = Stopwatch(workload(side=32))
    took, fresh = watch.first_forward()
    assert took > 0
    assert fresh, "nothing came from a compiler's cache"
    samples = watch.sample(4)
    assert len(samples.wall_s) == len(samples.cpu_s) == len(samples.page_faults) == 4
    assert min(samples.wall_s) > 0
    assert len(watch.sample(4, limit_s=0.0).wall_s) == 1, "the pass that exceeds the limit is the last"


def test_warm_up_ends_when_three_passes_agree_or_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Stopwatch(workload(side=32)).warm_up(0.0)[1] is False, "once in any case"
    times = iter([4.0, 2.0, 1.0, 1.05, 1.02, 9.0])
    monkeypatch.setattr(Stopwatch, "sample", lambda self, count: Samples((next(times),), (0.0,), (0.0,), (0.0,)))
    assert Stopwatch(workload()).warm_up(100.0) == ([4.0, 2.0, 1.0, 1.05, 1.02], True)
    drifting = iter(float(2**n) for n in range(100))
    monkeypatch.setattr(Stopwatch, "sample", lambda self, count: Samples((next(drifting),), (0.0,), (0.0,), (0.0,)))
    assert Stopwatch(workload()).warm_up(10.0) == ([1.0, 2.0, 4.0, 8.0], False)


def test_the_stop_rule_wants_samples_time_and_a_narrow_interval() -> None:
    sampling = Sampling(precision=0.01, time_limit_s=5.0)
    assert not throughput.is_precise([0.1] * 9, sampling), "fewer than ten"
    assert not throughput.is_precise([0.01] * 20, sampling), "less than half a second"
    assert throughput.is_precise([0.1] * 10, sampling)
    assert not throughput.is_precise([0.1, 0.12] * 10, sampling), "wide"
    assert not throughput.is_enough([0.9] * 9, sampling), "ten, unless a pass takes a second"
    assert not throughput.is_enough([4.0, 4.0], sampling), "three samples always"
    assert not throughput.is_enough([4.0, 4.0, 4.0], sampling), "six would fit into six times the limit"
    assert throughput.is_enough([6.0, 6.0, 6.0], sampling), "they would not"
    assert throughput.is_enough([1.0] * 6, sampling)
    assert not throughput.is_enough([], sampling)


@pytest.mark.parametrize("latency_s", [0.25, 1.5, 5.0, 6.0, 7.0])
def test_the_share_of_the_sampling_that_is_done_is_one_when_the_limit_ends_it(latency_s: float) -> None:
    sampling = Sampling(time_limit_s=6.0)
    for count in range(30):
        walls = [latency_s] * count
        is_over = throughput.is_enough(walls, sampling) and sum(walls) >= sampling.time_limit_s
        assert (throughput.sampled_share(walls, sampling) >= 1 - 1e-9) is is_over


def test_throughput_is_the_batch_over_the_latency_with_its_interval_turned_round() -> None:
    wall = (0.1, 0.11, 0.12, 0.12, 0.13, 0.2)
    metrics = {
        m.metric: m
        for m in summarise(
            Samples(wall, wall, (0.0,) * 6, (0.0,) * 6),
            batch=8,
            first_forward_s=1.0,
            yardstick=Measurement(metric="yardstick_s", value=0.05, ci_low=0.049, ci_high=0.051),
            seed=0,
        )
    }
    latency, rate = metrics["latency_s"], metrics["throughput_images_per_s"]
    assert rate.value == pytest.approx(8 / latency.value)
    assert latency.ci_high is not None
    assert rate.ci_low == pytest.approx(8 / latency.ci_high)
    assert rate.p10 is not None
    assert rate.p90 is not None
    assert rate.p10 < rate.value < rate.p90
    assert metrics["first_forward_s"].value == 1.0
    assert metrics["relative_latency"].value == pytest.approx(latency.value / 0.05)


def test_a_worker_answers_the_protocol_and_survives_a_bad_cell() -> None:
    """The real worker gets a bad cell, then one cell from inspection to samples."""
    cell = Cell(model="sema_tiny", height=32, width=32)
    requests = [
        Inspect(WorkloadSpec(dataclasses.replace(cell, height=16), 0), ("memory",)),
        Inspect(WorkloadSpec(cell, 0), ("params", "memory")),
        Prepare(WorkloadSpec(cell, 0), 1.0, 0.1),
        Sample(2, settle=1),
        Release(),
    ]
    lines = "".join(encode_request(number, request) for number, request in enumerate(requests))
    command = [sys.executable, "-m", "sema_bench.worker.server", "--allocator", "default", "--parent", str(os.getpid())]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120, check=True)
    ready, *answers = done.stdout.splitlines()
    assert json.loads(ready) == {"ready": True}
    bad, inspected, prepared, sampled, released = (
        decode_answer(line.encode(), number, request)
        for number, (line, request) in enumerate(zip(answers, requests, strict=True))
    )
    assert isinstance(bad, Failure)
    assert bad.status == "error"
    assert "at least 32" in bad.message
    assert isinstance(inspected, Findings)
    assert {m.metric for m in inspected.measurements} >= {"params", "peak_memory_bytes"}
    assert isinstance(prepared, Prepared)
    assert prepared.first_forward_s > 0
    assert isinstance(sampled, Samples)
    assert len(sampled.wall_s) == 2
    assert released is None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_the_retaining_allocator_stops_page_faults_between_forward_passes() -> None:
    """With glibc's defaults, every iteration unmaps a large buffer and faults it in again; with ours, none does."""
    code = (
        "import sys; from sema_bench.worker.allocator import set_allocator\n"
        "set_allocator(sys.argv[1])\n"
        "from sema_bench.worker.stopwatch import Stopwatch\n"
        "from sema_bench.spec.cell import Cell; from sema_bench.worker.workload import Workload\n"
        "watch = Stopwatch(Workload(Cell(model='sema_tiny', height=512, width=512)))\n"
        "print(min(watch.sample(6).page_faults))"
    )
    counts = {
        setting: float(
            subprocess.run([sys.executable, "-c", code, setting], capture_output=True, text=True, check=True).stdout
        )
        for setting in ("default", "retain")
    }
    assert counts["retain"] < 1000 < counts["default"]


def test_sampling_limits_are_finite_for_every_mode() -> None:
    assert math.isfinite(Sampling().wall_limit_s("compile"))
    assert Sampling().wall_limit_s("compile") > Sampling().wall_limit_s("eager") >= 30


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_memory_adds_up() -> None:
    values = {m.metric: m.value for m in MemoryProbe().measure(workload(device="cuda:0")).measurements}
    parts = ("weights_bytes", "input_bytes", "workspace_bytes", "activation_bytes")
    assert values["peak_memory_bytes"] == sum(values[part] for part in parts)
    assert 0 <= values["workspace_bytes"] <= 2**27
    assert values["peak_reserved_bytes"] >= values["peak_memory_bytes"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_event_times_are_positive() -> None:
    watch = Stopwatch(workload(device="cuda:0"))
    watch.first_forward()
    assert min(watch.sample(3).wall_s) > 0
