"""Test the memory forecast: what live tensors will take, without allocating them, and what fits."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch
from command_support import invoke
from rich.console import Console
from torch import Tensor, nn

import sema
from sema.layers.selective_scan import scan_scratch_bytes, selective_scan
from sema_bench.driver.memory_fit import Outlook
from sema_bench.report.plan import print_outlooks
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.worker.forecast import forecast
from sema_bench.worker.probes.forecast import ForecastProbe
from sema_bench.worker.probes.memory import MemoryProbe
from sema_bench.worker.workload import Workload


def values(findings: object) -> dict[str, float]:
    return {m.metric: m.value for m in findings.measurements}


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("sema_tiny", {}),
        ("sema_tiny", {"batch": 3}),
        ("sema_tiny", {"dtype": "bfloat16"}),
        ("mila_tiny", {"layout": "contiguous"}),
        ("deit_tiny", {"height": 250, "width": 333}),
        ("swin_tiny", {}),
        ("vminet_ti", {}),
        ("sima_nano_12_p16", {}),
        ("cvt_13", {}),
        ("vmamba_tiny_s1l8", {}),
        ("vim_tiny", {}),
    ],
)
def test_the_forecast_is_what_is_measured(model: str, changes: dict[str, object]) -> None:
    cell = dataclasses.replace(Cell(model=model, height=224, width=224), **changes)
    measured = values(MemoryProbe().measure(Workload(cell)))
    predicted = values(ForecastProbe().measure(Workload(cell)))
    assert predicted["weights_bytes"] == measured["weights_bytes"]
    assert predicted["input_bytes"] == measured["input_bytes"]
    # It is exact unless operators take hidden memory; a CPU without products of bfloat16 takes copies.
    copies = cell.dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    tolerance = 0.1 if copies else 0.03
    assert predicted["predicted_peak_bytes"] == pytest.approx(measured["peak_memory_bytes"], rel=tolerance)


def test_a_forecast_allocates_nothing_and_holds_at_any_size() -> None:
    with torch.device("meta"):
        model = sema.create_model("sema_tiny")
    predicted = forecast(model, (64, 3, 8192, 8192))
    assert predicted.input_bytes == 64 * 3 * 8192**2 * 4
    assert predicted.predicted_peak_bytes - predicted.weights_bytes - predicted.input_bytes > 2**40


@pytest.mark.fake_cuda
@pytest.mark.parametrize("changes", [{}, {"sdpa": "efficient"}, {"sdpa": "cudnn"}, {"dtype": "bfloat16"}])
def test_a_card_elsewhere_needs_no_more_memory_than_fused_attention_takes(
    changes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_card = Cell(model="deit_small", height=512, width=512, device="cuda:0", **changes)
    on_cpu = dataclasses.replace(on_card, device="cpu", sdpa="auto")
    card, cpu = (Workload(cell).forecast() for cell in (on_card, on_cpu))
    assert card.predicted_peak_bytes <= 1.2 * cpu.predicted_peak_bytes


@pytest.mark.fake_cuda
@pytest.mark.parametrize("model", ["swin_tiny", "sema_tiny[softmax]", "vmamba_tiny_s1l8[scan=triton]"])
def test_masks_wide_heads_and_scans_of_a_card_are_predicted_without_one(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_card = Cell(model=model, height=288, width=256, device="cuda:0")
    on_cpu = dataclasses.replace(on_card, device="cpu", model=model.replace("triton", "torch"))
    card, cpu = (values(ForecastProbe().measure(Workload(cell))) for cell in (on_card, on_cpu))
    assert card["predicted_peak_bytes"] <= 1.2 * cpu["predicted_peak_bytes"]


@pytest.mark.fake_cuda
def test_the_math_form_of_attention_stays_large_in_a_forecast_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fused, math = (
        Workload(Cell(model="deit_small", height=512, width=512, device="cuda:0", sdpa=sdpa)).forecast()
        for sdpa in ("auto", "math")
    )
    math_bytes, fused_bytes = (f.predicted_peak_bytes - f.weights_bytes - f.input_bytes for f in (math, fused))
    assert math_bytes > 3 * fused_bytes


@pytest.mark.parametrize("model", ["sema_micro", "deit_tiny"])
def test_training_on_a_card_elsewhere_is_predicted(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cell = Cell(model=model, height=64, width=64, batch=2, device="cuda:0", step="train")
    findings = ForecastProbe().measure(Workload(cell))
    assert values(findings)["optimizer_bytes"] > values(findings)["weights_bytes"]
    assert findings.details == {"forecast_device": "cpu"}
    record = Record(cell=cell, status="ok", details=findings.details)
    console = Console(file=io.StringIO(), width=200)
    print_outlooks([Outlook(record, 2**40)], console)
    assert "predicted as on a CPU: torch sees no card here" in console.file.getvalue()


def test_storages_count_from_birth_to_death() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a = x + 1  # 1 alive
            b = a * 2  # 2
            del a  # 1
            c = b.view(-1)  # a view takes no storage
            return (c + c).sum()  # 2, and the sum

    predicted = forecast(Net(), (1, 1, 16, 16))
    assert predicted.predicted_peak_bytes - predicted.input_bytes == 2 * 16 * 16 * 4 + 4


@pytest.mark.parametrize("shape", [(2, 1, 56, 56, 96, 1), (2, 3, 13, 22, 40, 4), (1, 1, 1, 197, 384, 16)])
def test_a_scan_takes_what_it_says_beside_its_output(shape: tuple[int, ...]) -> None:
    from torch.profiler import ProfilerActivity, profile

    g, b, p, q, d, n = shape
    u, delta = torch.randn(g, b, p, q, d), torch.rand(g, b, p, q, d)
    given = (u, delta, -torch.rand(g, d, n), torch.randn(g, b, p, q, n), torch.randn(g, b, p, q, n))
    with (
        torch.inference_mode(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler,
    ):
        selective_scan(*given)
    live = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    said = scan_scratch_bytes(delta, given[2]) + delta.nbytes
    assert said == pytest.approx(peak, rel=0.05)


@pytest.mark.fake_cuda
def test_tritons_scan_is_predicted_to_need_less_than_the_torch_form_on_cuda() -> None:
    pytest.importorskip("triton")
    triton, plain = (
        Workload(Cell(model=f"vim_tiny[scan={scan}]", height=512, width=512, device="cuda:0")).forecast()
        for scan in ("auto", "torch")
    )
    y = 2 * (32 * 32 + 1) * 384 * 4  # bytes of its output: two directions, float32
    assert plain.predicted_peak_bytes - triton.predicted_peak_bytes > 2 * 16 * y - 4 * y, "16 states, twice"


def test_a_model_that_cannot_be_predicted_says_why(tmp_path: Path) -> None:
    (tmp_path / "choosy.py").write_text(
        "import torch\n"
        "class Choosy(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))\n"
        "def build():\n    return Choosy()\n"
    )
    from sema_bench.spec.model_source import parse_source

    name = parse_source(f"{tmp_path / 'choosy.py'}:build").name
    findings = ForecastProbe().measure(Workload(Cell(model=name, height=32, width=32)))
    assert findings.measurements == ()
    assert "DataDependent" in findings.details["not_forecast"]


def outlook(predicted: int | None, capacity: int | None) -> Outlook:
    measurements = {} if predicted is None else {
        "predicted_peak_bytes": Measurement(metric="predicted_peak_bytes", value=predicted)
    }  # fmt: skip
    record = Record(cell=Cell(model="sema_tiny", height=64, width=64), status="ok", measurements=measurements)
    return Outlook(record, capacity)


def test_what_fits_leaves_room_for_the_worker() -> None:
    gib = 2**30
    assert outlook(gib, 2 * gib).fits is True
    assert outlook(gib, gib + 1).fits is False
    assert outlook(gib, None).fits is None
    assert outlook(None, gib).fits is None


def test_plan_marks_what_does_not_fit() -> None:
    code, out, err = invoke("plan", "--models", "sema_micro", "--res", "64,32768", "--device", "cpu", "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0, err
    assert [row["fits"] for row in rows] == ["true", "false"]
    assert int(rows[0]["predicted_peak_bytes"]) < int(rows[1]["predicted_peak_bytes"])


@pytest.mark.slow
def test_plan_names_what_does_not_fit() -> None:
    code, out, err = invoke("plan", "--models", "sema_micro", "--res", "32768", "--device", "cpu")
    assert code == 0, err
    assert "does not fit: sema_micro at 32768" in out


def test_plan_without_memory_answers_at_once() -> None:
    code, out, _ = invoke("plan", "--res", "224..8192", "--models", "sema_tiny", "--no-memory", "--device", "meta")
    assert code == 0
    sizes = [line.split("@")[1].split("x")[0] for line in out.splitlines()]
    assert sizes[:8] == ["224", "288", "384", "512", "640", "768", "896", "1024"]
    assert sizes[-1] == "8192"


def test_a_sweep_on_meta_counts_and_predicts_and_runs_nothing(tmp_path: Path) -> None:
    arguments = ["scale", "--device", "meta", "--models", "sema_micro", "--res", "64,8192", "--run", "m"]
    code, out, err = invoke(*arguments, "--out", str(tmp_path))
    assert code == 0, err
    assert "device meta: nothing runs" in err
    assert "predicted peak, MiB" in out
    records = [json.loads(line) for line in (tmp_path / "m" / "records.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["ok", "ok"]
    metrics = [{m["metric"] for m in record["measurements"]} for record in records]
    assert all({"params", "macs", "predicted_peak_bytes"} <= names for names in metrics)
    assert all("latency_s" not in names for names in metrics)


def test_meta_refuses_what_only_a_device_has() -> None:
    code, _, err = invoke("scale", "--device", "meta", "--probes", "throughput", "--res", "224", "--dry-run")
    assert code == 2
    assert "device meta runs nothing" in err
