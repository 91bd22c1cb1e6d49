"""Our parameters and MACs beside published ones, and whether they agree; see docs/counting.md.

The published figures are data (``published.csv``), each with its source. A figure that holds something other than the
model's MACs names an adjustment: how to get from our count to what was printed. An adjustment is computed, so that an
explanation that does not give the printed figure is a mismatch like any other.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

#: What a printed figure is in: the quantity that we compute, divided by this.
_UNITS = {"params": 1, "mparams": 10**6, "gmacs": 10**9, "scan_gflops": 10**9}
_NOT_REPRODUCED = "not reproduced"


@dataclass(frozen=True)
class Figure:
    """One printed figure.

    Attributes:
        model: our name of the model.
        quantity: ``params``, ``mparams`` (10⁶), ``gmacs``, ``scan_gflops`` (10⁹), or ``top1`` in percent.
        value: as it was printed.
        resolution: side of the square input in pixels.
        kind: ``counted`` on the official implementation, exactly or to three digits; or ``published`` by its authors or
            others.
        adjustment: what the figure holds beside the model's MACs; a name in ``ADJUSTMENTS`` or empty.
        source: where it was printed.
        note: what to know about it.
    """

    model: str
    quantity: str
    value: str
    resolution: int
    kind: str
    adjustment: str
    source: str
    note: str


@dataclass(frozen=True)
class Comparison:
    """A printed figure beside ours.

    Attributes:
        figure: what was printed.
        ours: our value in the figure's unit, adjusted as the figure says; None for top-1, which is not measured here.
        agreement: ``exact``, ``rounds`` (to the printed digits), ``last digit`` (one unit off in it), ``not compared``,
            or ``MISMATCH``.
    """

    figure: Figure
    ours: Decimal | None
    agreement: str


@dataclass(frozen=True)
class Verdict:
    """One model: our counts at its reference size, and every printed figure beside them.

    Attributes:
        model: name in the registry.
        params: parameters.
        macs: MACs at 224×224.
        scan_flops: FLOPs of selective scans at 224×224.
        comparisons: one for each printed figure.
        problem: why the model could not be counted; empty if it could.
    """

    model: str
    params: int | None
    macs: int | None
    scan_flops: int | None
    comparisons: tuple[Comparison, ...]
    problem: str = ""

    @property
    def mismatches(self) -> tuple[Comparison, ...]:
        return tuple(c for c in self.comparisons if c.agreement == "MISMATCH")

    @property
    def agreement(self) -> str:
        """Return the weakest agreement of all figures; ``n/a`` where none can be compared."""
        found = {c.agreement for c in self.comparisons} - {"not compared"}
        if self.problem:
            return "MISMATCH"
        return next((word for word in ("MISMATCH", "last digit", "rounds", "exact") if word in found), "n/a")


REFERENCE_SIDE = 224


def published_figures() -> list[Figure]:
    """Return every printed figure that is known, in the order of the data file."""
    rows = csv.DictReader(
        files("sema_bench.studies.verification").joinpath("published.csv").read_text(encoding="utf-8").splitlines()
    )
    return [Figure(**{**row, "resolution": int(row["resolution"])}) for row in rows]  # type: ignore[arg-type]


def verify(model: str, figures: Iterable[Figure]) -> Verdict:
    """Count ``model`` on the meta device and compare it with those of ``figures`` that are about it."""
    import torch

    import sema

    try:
        with torch.device("meta"):
            built = sema.create_model(model).eval()
        params = sum(p.numel() for p in built.parameters())
        macs = built.macs((REFERENCE_SIDE, REFERENCE_SIDE))  # type: ignore[operator]
        comparisons = tuple(_compare(built, params, figure) for figure in figures if figure.model == model)
    except Exception as problem:
        return Verdict(model, None, None, None, (), f"{type(problem).__name__}: {problem}")
    return Verdict(model, params, macs.total, macs.scan_flops, comparisons)


def _compare(model: nn.Module, params: int, figure: Figure) -> Comparison:
    if figure.quantity == "top1":
        return Comparison(figure, None, "not compared")
    ours = Decimal(_value(model, params, figure)) / _UNITS[figure.quantity]
    if figure.adjustment == _NOT_REPRODUCED:
        return Comparison(figure, ours, "not compared")
    return Comparison(figure, ours, agreement(ours, figure.value, lenient=figure.kind == "published"))


def agreement(ours: Decimal, printed: str, *, lenient: bool) -> str:
    """Say how ``ours`` agrees with a printed figure.

    ``rounds``: it rounds to the printed digits. ``last digit``: it is off by at most one unit of the last printed
    digit, as it is where authors cut digits off or round twice; for ``lenient`` comparisons alone.
    """
    target = Decimal(printed)
    unit = Decimal(1).scaleb(int(target.as_tuple().exponent))
    if ours == target:
        return "exact"
    if ours.quantize(unit, rounding=ROUND_HALF_UP) == target:
        return "rounds"
    return "last digit" if lenient and abs(ours - target) <= unit else "MISMATCH"


def _value(model: nn.Module, params: int, figure: Figure) -> int:
    if figure.quantity in ("params", "mparams"):
        return params
    macs = model.macs((figure.resolution, figure.resolution))  # type: ignore[operator]
    if figure.quantity == "scan_gflops":
        return int(macs.scan_flops)
    adjust = ADJUSTMENTS.get(figure.adjustment, _nothing)
    return int(macs.total + adjust(model, figure.resolution))


def _nothing(model: Any, side: int) -> int:
    return 0


def _scan_flops(model: Any, side: int) -> int:
    return int(model.macs((side, side)).scan_flops)


def _scan_and_norm_flops(model: Any, side: int) -> int:
    """fvcore counts 5 FLOPs for each element of a layer norm by default; VMamba's counter adds them and the scans."""
    import torch

    total = _scan_flops(model, side)

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal total
        total += 5 * output.numel()

    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    hooks = [norm.register_forward_hook(count) for norm in norms]
    with torch.no_grad():
        model(torch.empty(1, 3, side, side, device="meta"))
    for hook in hooks:
        hook.remove()
    return total


def _convolution_tails(model: Any, side: int) -> int:
    """Vim's causal convolutions also compute the tokens that they pad at the end of the sequence, and drop them."""
    convs = [conv for block in model.layers for conv in (block.mixer.conv1d, block.mixer.conv1d_b)]
    return sum((conv.kernel_size[0] - 1) * conv.weight.numel() for conv in convs)


def _vim_own_counter(model: Any, side: int) -> int:
    """Vim's counter adds the scans and loses the convolutions and the projections inside the scan."""
    lost = 0
    for block in model.layers:
        mixer, tokens = block.mixer, (side // model.patch_embed.patch_size) ** 2 + 1
        inside = mixer.sequence_macs(tokens).total - 3 * tokens * mixer.in_proj.in_features * mixer.dim
        lost += inside
    return _scan_flops(model, side) - lost


def _queries_of_all_tokens(model: Any, side: int) -> int:
    """XCiT's code makes queries of all tokens in class attention and uses the class token's alone."""
    dim = model.head.in_features
    return int(len(model.cls_attn_blocks) * (side // 16) ** 2 * dim * dim)


def _padded_windows(model: Any, side: int) -> int:
    """Swin's code pads maps to whole windows: the padded tokens are projected and attended to."""
    extra, grid = 0, side // int(model.patch_embed.patch_size)
    for stage in model.layers:
        for block in stage.blocks:
            dim, window = block.attn.dim, block.attn.window_size
            padded = -(-grid // window) * window
            whole = block.attn.macs((padded, padded)).total + padded**2 * dim**2
            extra += int(whole) - block.attn.macs((grid, grid)).total - grid**2 * dim**2
        grid = -(-grid // 2)
    return int(extra)


#: What a printed figure may hold beside the model's MACs: name → MACs (or FLOPs) to add at a square size.
ADJUSTMENTS: Mapping[str, Callable[[Any, int], int]] = {
    "scan FLOPs": _scan_flops,
    "scan and norm FLOPs": _scan_and_norm_flops,
    "convolution tails": _convolution_tails,
    "convolution tails and scan FLOPs": lambda model, side: _convolution_tails(model, side) + _scan_flops(model, side),
    "Vim's own counter": _vim_own_counter,
    "queries of all tokens": _queries_of_all_tokens,
    "padded windows": _padded_windows,
}
