"""Test detectors and segmenters around backbones: parts against torchvision's, counts, and refusals."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import roi_align as torchvision_roi_align

from sema_bench.counting.by_torch import count_with_torch
from sema_bench.errors import ProbeError
from sema_bench.report.remarks import counting_notes
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record
from sema_bench.worker import dense
from sema_bench.worker.dense import FeaturePyramid, MaskRcnnHead, Pyramid, roi_align
from sema_bench.worker.parts import PARTS
from sema_bench.worker.probes.forecast import ForecastProbe
from sema_bench.worker.probes.macs import MacsProbe
from sema_bench.worker.probes.memory import MemoryProbe
from sema_bench.worker.probes.throughput import summarise
from sema_bench.worker.stopwatch import Stopwatch
from sema_bench.worker.workload import Workload

WIDTHS = (256, 512, 1024, 2048)  # ResNet-50


def macs(run: nn.Module, *inputs: object) -> int:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.run = run

        def forward(self, _: Tensor) -> object:
            return self.run(*inputs)

    return count_with_torch(Closed(), torch.empty(0, device="meta"))[0][""].macs


def params(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    with torch.device("meta"):
        return maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81).eval()


def test_the_neck_has_the_parameters_and_macs_of_torchvisions(theirs: nn.Module) -> None:
    grids = [(25, 40), (13, 20), (7, 10), (4, 5)]
    maps = [torch.empty(1, width, *grid, device="meta") for width, grid in zip(WIDTHS, grids, strict=True)]
    with torch.device("meta"):
        ours = FeaturePyramid(Pyramid(WIDTHS, (4, 8, 16, 32)))
    assert params(ours) == params(theirs.backbone.fpn)
    assert ours.macs(grids)[0].total == macs(theirs.backbone.fpn, OrderedDict(zip("abcd", maps, strict=True)))
    assert ours.macs(grids)[1] == [each.shape[2:] for each in ours(maps)]


def test_the_head_has_the_parameters_and_macs_of_torchvisions(theirs: nn.Module) -> None:
    grids = [(25, 40), (13, 20), (7, 10), (4, 5), (2, 3)]
    maps = [torch.empty(1, 256, *grid, device="meta") for grid in grids]
    with torch.device("meta"):
        ours = MaskRcnnHead(classes=81)
    rois, rpn = theirs.roi_heads, theirs.rpn.head
    background = 1024 + 1  # our scores have one more class
    parts = (rpn, rois.box_head, rois.box_predictor, rois.mask_head, rois.mask_predictor)
    assert params(ours) - background == params(*parts)
    counted = macs(rpn, maps) + sum(
        macs(part, torch.empty(count, *shape, device="meta"))
        for part, count, shape in (
            (rois.box_head, 1000, (256, 7, 7)),
            (rois.box_predictor, 1000, (1024,)),
            (rois.mask_head, 100, (256, 14, 14)),
            (rois.mask_predictor, 100, (256, 14, 14)),
        )
    )
    assert ours.macs(grids).total - 1000 * 1024 == counted
    assert [tuple(each.shape) for each in ours(maps)[2:]] == [(1, 1000, 82), (1, 1000, 324), (1, 100, 81, 28, 28)]


@torch.no_grad()
def test_the_neck_gives_the_numbers_of_torchvisions() -> None:
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    torch.manual_seed(0)
    widths = (3, 5, 7, 9)
    ours = FeaturePyramid(Pyramid(widths, (4, 8, 16, 32)))
    fpn = FeaturePyramidNetwork(widths, 256, extra_blocks=LastLevelMaxPool())
    for mine, its in zip(ours.parameters(), fpn.parameters(), strict=True):
        mine.copy_(its)
    maps = [torch.randn(1, c, *grid) for c, grid in zip(widths, [(13, 9), (7, 5), (4, 3), (2, 2)], strict=True)]
    for mine, its in zip(ours(maps), fpn(OrderedDict(zip("abcd", maps, strict=True))).values(), strict=True):
        assert torch.allclose(mine, its, atol=1e-5)


def test_samples_of_boxes_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, side, 2 * side, dtype=torch.float64) for side in (32, 16, 8, 4)]
    boxes = MaskRcnnHead(classes=1).boxes[:, :5].double()
    ours = roi_align([*maps, maps[-1]], boxes, 7).unflatten(0, (2, -1))  # (image, 4 maps · 5 boxes, 3, 7, 7)
    for level, each in enumerate(maps):
        pixels = boxes[level] * torch.tensor([256, 128, 256, 128])
        expected = torchvision_roi_align(each, [pixels, pixels], 7, 32 / 128 / 2**level, 2, aligned=True)
        assert torch.allclose(ours[:, 5 * level : 5 * level + 5].flatten(0, 1), expected)


def test_proposals_lie_inside_the_image_and_where_the_rule_of_fpn_puts_them() -> None:
    boxes = MaskRcnnHead(classes=1).boxes
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    sides = (boxes[..., 2:] - boxes[..., :2]) * torch.tensor([1280, 800])
    level = torch.floor(4 + torch.log2(sides.prod(-1).sqrt() / 224)).clamp(2, 5)
    assert torch.equal(level, torch.arange(2.0, 6)[:, None].expand(4, 250))


# Detectors and segmenters as cells


def cell(model: str, task: str, **changes: object) -> Cell:
    return dataclasses.replace(Cell(model=model, height=67, width=101, task=task), **changes)


@pytest.fixture
def few_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "PROPOSALS", 16)
    monkeypatch.setattr(dense, "MASKED", 4)


def values(probe: object, workload: Workload) -> dict[str, float]:
    return {m.metric: m.value for m in probe.measure(workload).measurements}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "task"),
    [("sema_micro", "detect"), ("cvt_13", "segment"), ("deit_tiny", "detect"), ("sima_nano_12_p16", "segment")],
)
def test_three_sources_agree_on_each_part(model: str, task: str) -> None:
    workload = Workload(cell(model, task))
    ledger = workload.ledger()
    workload.__dict__["ledger"] = lambda: ledger
    found = MacsProbe().measure(workload)
    counted = {m.metric: m.value for m in found.measurements}
    assert found.details == {"uncovered_operators": []}
    assert counted["macs"] == sum(counted[f"macs_{part}"] for part in PARTS)
    for path in ("", *PARTS):
        assert len(ledger.entries[path].sources) == 3
        assert len(set(ledger.entries[path].sources.values())) == 1


def test_timms_models_give_maps_and_count_as_ours() -> None:
    pytest.importorskip("timm")
    size = (256, 320)
    theirs = Workload(cell("timm:swin_tiny_patch4_window7_224", "detect", height=size[0], width=size[1]))
    ours = Workload(cell("swin_tiny[windows=padded]", "detect"))
    assert values(MacsProbe(), theirs)["macs"] == ours.meta_model().macs(size).total  # type: ignore[operator]


@pytest.mark.usefixtures("few_proposals")
@pytest.mark.parametrize("task", ["detect", pytest.param("segment", marks=pytest.mark.slow)])
def test_a_step_is_finite_as_large_as_forecast_and_compiles(task: str) -> None:
    workload = Workload(cell("sema_micro", task, batch=2))
    predicted = values(ForecastProbe(), Workload(workload.cell))
    largest = max(module.weight.nbytes for module in workload.network.modules() if isinstance(module, nn.Conv2d))
    measured = values(MemoryProbe(), workload)
    for of, as_predicted in (("memory", "peak"), *((part, part) for part in PARTS)):
        least = predicted[f"predicted_{as_predicted}_bytes"]
        most = least + 1.01 * largest  # oneDNN may hold a convolution's weights twice
        assert 0.99 * least <= measured[f"peak_{of}_bytes"] <= most
    assert max(measured[f"peak_{part}_bytes"] for part in PARTS) == measured["peak_memory_bytes"]
    assert len({measured[f"peak_{part}_bytes"] for part in PARTS}) == 3
    stopwatch = Stopwatch(workload)
    stopwatch.first_forward()
    assert stopwatch.output_bytes > 0
    samples = stopwatch.sample(2)
    assert len(samples.neck_s) == 2
    measured_by = {m.metric: m.samples for m in summarise(samples, batch=2, first_forward_s=1, yardstick=None, seed=0)}
    of_parts = [measured_by[f"latency_{part}_s"] for part in PARTS]
    assert [min(each) > 0 for each in of_parts] == [True] * 3
    assert [sum(each) for each in zip(*of_parts, strict=True)] == pytest.approx(samples.wall_s)
    assert not any(module._forward_pre_hooks for module in workload.network.modules())
    with torch.inference_mode():
        plain = workload.forward()
        compiled = torch.compile(workload.network, fullgraph=True, backend="eager")(workload.input)
    torch.testing.assert_close(compiled, plain)


def test_the_record_says_how_missing_maps_are_made() -> None:
    workload = Workload(cell("deit_tiny", "segment"))
    workload.meta_model()
    (note,) = counting_notes([Record(cell=workload.cell, status="ok", details=workload.model_details())])
    assert note == (
        "deit_tiny: the backbone's last map has stride 16; maps of stride 4, 8, 32 are made of it by deconvolutions "
        "and max pooling (simple feature pyramid)"
    )


def test_a_model_of_ones_own_says_what_its_maps_are(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "class Maps(nn.Conv2d):\n"
        "    feature_info = [{'num_chs': 6, 'reduction': 8}]\n"
        "    def forward(self, x):\n"
        "        return [super().forward(x)]\n"
        "def maps(): return Maps(3, 6, 8, 8)\n"
        "def plain(): return nn.Conv2d(3, 6, 8, 8)\n"
    )
    assert values(MacsProbe(), Workload(cell(f"{file}:maps", "segment")))["macs_backbone"] == 8 * 12 * 6 * 3 * 64
    with pytest.raises(ProbeError, match=r"task segment needs maps, and .*:plain@.* has no feature_info"):
        Workload(cell(f"{file}:plain", "segment")).meta_model()
