"""Compare our parameters and MACs with published ones; see docs/method/macs.md.

The published figures are data (``published.csv``), each with its source. A figure that differs from the model's MACs by
design names an adjustment from our count to the printed one. Adjustments are computed, so a wrong explanation is a
mismatch like any other. Totals of detectors and segmenters are counted around the model. Accuracies and speeds are not
computed here.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from importlib.resources import files
from typing import Any

import sema
from sema.macs import Macs
from sema_bench.spec.resolution import Resolution, parse_resolutions

#: Quantity of a printed count → its unit, and the unit's name.
UNITS = {"params": (1, ""), "mparams": (10**6, " M"), "gmacs": (10**9, " G"), "scan_gflops": (10**9, " GFLOP")}
#: Quantity of a printed measurement → its form in words.
MEASURED = {
    "top1": "top-1 {} %",
    "top5": "top-5 {} %",
    "throughput": "{} images/s",
    "box_ap": "box AP {}",
    "mask_ap": "mask AP {}",
    "miou": "mIoU {} %",
    "miou_ms": "mIoU {} % at several scales",
}
#: Conditions that a printed figure may have; ``task`` is a detector or a segmenter around the model.
CONDITIONS = ("task", "protocol", "precision", "card", "batch", "step")
#: Detector or segmenter of a figure → our task.
TASKS = {"mask-rcnn-1x": "detect", "mask-rcnn-3x": "detect", "upernet": "segment"}
#: Value of a total that nobody printed: only ours is shown.
UNPRINTED = "n/a"
WITHIN = "within 1.5 %"
#: Counters of detectors and segmenters differ in biases, norms and activations: largest relative difference.
_DENSE_TOLERANCE = Decimal("0.015")
_NOT_REPRODUCED = "not reproduced"


@dataclass(frozen=True)
class Figure:
    """One printed figure."""

    model: str  # our name
    quantity: str  # one of UNITS or MEASURED
    value: str  # as printed
    resolution: Resolution  # of the input in pixels
    kind: str  # counted on the official implementation, exactly or to three digits, or published
    adjustment: str  # what it includes besides the model's MACs: one of ADJUSTMENTS, or empty
    conditions: str  # key=value of some of CONDITIONS, e.g. ``card=A100 batch=128``
    source: str  # paper and table, or repository and file
    note: str

    @property
    def stated(self) -> dict[str, str]:
        """Map conditions to their values."""
        return dict(item.split("=") for item in self.conditions.split())

    @property
    def is_count(self) -> bool:
        """True if it counts only the model."""
        return self.quantity in UNITS and "task" not in self.stated


@dataclass(frozen=True)
class Comparison:
    """A printed figure beside ours."""

    figure: Figure
    ours: Decimal | None  # in the figure's unit, with its adjustment; None if it cannot be computed here
    agreement: str  # that of ``agreement``, or "not compared"


@dataclass(frozen=True)
class Verdict:
    """One model: our counts at 224×224 and at the sizes of printed counts, and every printed figure beside ours."""

    model: str
    params: int | None = None
    macs: Mapping[Resolution, Macs] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    problem: str = ""  # why the model could not be counted

    @property
    def mismatches(self) -> tuple[Comparison, ...]:
        return tuple(c for c in self.comparisons if c.agreement == "MISMATCH")

    def agreement(self, resolution: Resolution) -> str:
        """The weakest agreement of the figures at a size; ``n/a`` if none can be compared."""
        known = {c.agreement for c in self.comparisons if c.figure.resolution == resolution}
        if self.problem:
            return "MISMATCH"
        return next((word for word in ("MISMATCH", "last digit", "rounds", "exact") if word in known), "n/a")


REFERENCE = Resolution(224, 224)


def published_figures() -> list[Figure]:
    """Read all printed figures from the data file."""
    text = files("sema_bench.studies.verification").joinpath("published.csv").read_text(encoding="utf-8")
    rows: Iterable[dict[str, Any]] = csv.DictReader(text.splitlines())
    return [Figure(**{**row, "resolution": parse_resolutions(row["resolution"])[0]}) for row in rows]


def verify(model: str, figures: Iterable[Figure]) -> Verdict:
    """Count ``model`` on the meta device and compare it with its ``figures``."""
    figures = [figure for figure in figures if figure.model == model]
    try:
        built: Any = _on_meta(lambda: sema.create_model(model)).eval()
        params = sum(p.numel() for p in built.parameters())
        sizes = {REFERENCE, *(figure.resolution for figure in figures if figure.is_count)}
        macs = {size: built.macs(size) for size in sorted(sizes)}
        dense = functools.cache(functools.partial(_dense_model, model))
        comparisons = tuple(_compare(built, dense, figure) for figure in figures)
    except Exception as problem:
        return Verdict(model, problem=f"{type(problem).__name__}: {problem}")
    return Verdict(model, params, macs, comparisons)


def _compare(model: Any, dense: Callable[[str, str], Any], figure: Figure) -> Comparison:
    if figure.quantity not in UNITS:
        return Comparison(figure, None, "not compared")
    task = figure.stated.get("task")
    counted = dense(TASKS[task], WINDOWS.get(figure.adjustment, "")) if task else model
    ours = Decimal(_value(counted, figure)) / UNITS[figure.quantity][0]
    if figure.adjustment == _NOT_REPRODUCED:
        return Comparison(figure, ours, "not compared")
    if figure.value == UNPRINTED:
        return Comparison(figure, ours, UNPRINTED)
    result = agreement(ours, figure.value, lenient=figure.kind == "published")
    if task and result == "MISMATCH" and abs(ours / Decimal(figure.value) - 1) <= _DENSE_TOLERANCE:
        result = WITHIN
    return Comparison(figure, ours, result)


def _dense_model(name: str, task: str, windows: str) -> Any:
    """Build the detector or segmenter around a model on the meta device."""
    from sema_bench.spec.model_source import parse_source
    from sema_bench.worker.build_dense import build_dense

    source = parse_source(f"{name}[windows={windows}]" if windows else name)
    return _on_meta(lambda: build_dense(source, (224, 224), task=task)).eval()


def _on_meta(build: Callable[[], Any]) -> Any:
    import torch  # --help must not load it

    with torch.device("meta"):
        return build()


def agreement(ours: Decimal, printed: str, *, lenient: bool) -> str:
    """Compare with a printed figure: ``exact``, ``rounds`` (to the printed digits), ``last digit`` or ``MISMATCH``.

    ``last digit`` means off by at most one unit of the last digit. Only ``lenient`` comparisons accept that:
    authors may cut digits off or round twice.
    """
    target = Decimal(printed)
    unit = Decimal(1).scaleb(int(target.as_tuple().exponent))
    if ours == target:
        return "exact"
    if ours.quantize(unit, rounding=ROUND_HALF_UP) == target:
        return "rounds"
    return "last digit" if lenient and abs(ours - target) <= unit else "MISMATCH"


def _value(model: Any, figure: Figure) -> int:
    if figure.quantity in ("params", "mparams"):
        return sum(p.numel() for p in model.parameters())
    size = figure.resolution
    if figure.quantity == "scan_gflops":
        return _scan_flops(model, size)
    windows = WINDOWS.get(figure.adjustment)
    if windows and figure.is_count:
        model = _on_meta(lambda: sema.create_model(figure.model, windows=windows))
    adjust = ADJUSTMENTS.get(figure.adjustment)
    return int(model.macs(size).total) + (adjust(model, size) if adjust else 0)


def _scan_flops(model: Any, size: Resolution) -> int:
    return int(model.macs(size).scan_flops)


def _scan_and_norm_flops(model: Any, size: Resolution) -> int:
    """Count as VMamba's counter does: it adds scans, and fvcore's default of 5 FLOPs per element of a layer norm."""
    import torch

    elements: list[int] = []
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    hooks = [norm.register_forward_hook(lambda module, inputs, out: elements.append(out.numel())) for norm in norms]
    with torch.no_grad():
        model(torch.empty(1, 3, *size, device="meta"))
    for hook in hooks:
        hook.remove()
    return _scan_flops(model, size) + 5 * sum(elements)


def _convolution_tails(model: Any, size: Resolution) -> int:
    """Count the padded tokens at the end of the sequence that Vim's causal convolutions compute and drop."""
    convs = [conv for block in model.layers for conv in (block.mixer.conv1d, block.mixer.conv1d_b)]
    return sum((conv.kernel_size[0] - 1) * conv.weight.numel() for conv in convs)


def _patches(size: Resolution) -> int:
    return size.height // 16 * (size.width // 16)


def _vim_own_counter(model: Any, size: Resolution) -> int:
    """Count as Vim's counter does: it adds the scans and misses the convolutions and projections inside them."""
    lost = 0
    for block in model.layers:
        mixer, tokens = block.mixer, _patches(size) + 1
        lost += mixer.sequence_macs(tokens).total - 3 * tokens * mixer.in_proj.in_features * mixer.dim
    return _scan_flops(model, size) - lost


def _queries_of_all_tokens(model: Any, size: Resolution) -> int:
    """Count the queries of all tokens in class attention: XCiT's code computes them but uses only the class token's."""
    dim = model.head.in_features
    return int(len(model.cls_attn_blocks) * _patches(size) * dim * dim)


#: Adjustments of printed figures: name → MACs (or FLOPs) to add at a size.
ADJUSTMENTS: Mapping[str, Callable[[Any, Resolution], int]] = {
    "scan FLOPs": _scan_flops,
    "scan and norm FLOPs": _scan_and_norm_flops,
    "convolution tails": _convolution_tails,
    "convolution tails and scan FLOPs": lambda model, size: _convolution_tails(model, size) + _scan_flops(model, size),
    "Vim's own counter": _vim_own_counter,
    "queries of all tokens": _queries_of_all_tokens,
}
#: Adjustments that count the model with another form of windows: name → its option ``windows``.
WINDOWS = {"padded windows": "padded", "scaled windows": "scaled"}
