"""Test the ledger: three sources by module, kinds of cost, and its notes when sources disagree or cannot count."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from command_support import invoke
from torch import Tensor, nn

import sema
from sema_bench.counting.build import build_ledger
from sema_bench.counting.by_fvcore import count_with_fvcore
from sema_bench.counting.by_torch import count_with_torch
from sema_bench.counting.costs import Costs
from sema_bench.counting.operators import ELEMENTWISE, FOURIER, MOVEMENT, NORMALISATION, SCANS
from sema_bench.report.ledger import CSV_COLUMNS, notes, tree_lines
from sema_bench.worker.parts import PARTS


def meta(model: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return model().eval()


class Bare(nn.Module):
    """One operator that the counters must know, on (1, 3, H, W)."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.operator = operator
        self.kernel2 = nn.Parameter(torch.empty(3, 5, 2, 2, device="meta"))
        self.kernel3 = nn.Parameter(torch.empty(6, 1, 3, 3, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        rows = x[0]  # (3, 8, 8)
        if self.operator == "fused attention":
            return F.scaled_dot_product_attention(x, x, x)
        if self.operator == "baddbmm":
            return torch.baddbmm(rows, rows, rows)
        if self.operator == "addbmm":
            return torch.addbmm(rows[0], rows, rows)
        if self.operator == "einsum":
            return torch.einsum("bij,bjk->bik", rows, rows)
        if self.operator == "einsum of batches":
            return torch.einsum("...ij,...jk->...ik", x, rows)
        if self.operator == "matmul by vector":
            return rows @ rows[0, 0]
        if self.operator == "transposed convolution":
            return F.conv_transpose2d(x, self.kernel2, stride=2)
        if self.operator == "grouped convolution":
            return F.conv2d(x, self.kernel3, padding=1, groups=3)
        return torch.cdist(rows, rows)


class Wider(nn.Linear):
    """A linear map that computes 64 more outputs than it gives."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features + 64, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., :-64]


@pytest.mark.parametrize("layer", ["attn.qkv", "proj"])
def test_the_formula_of_a_model_does_not_follow_its_layers(layer: str) -> None:
    model = meta(lambda: sema.create_model("deit_tiny"))
    for path, narrow in list(model.named_modules()):
        if path.endswith(layer) and isinstance(narrow, nn.Linear):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, Wider(narrow))
    parting = build_ledger(model, (32, 32)).first_parting()
    assert parting is not None
    assert parting.path.startswith("blocks.0")


@pytest.mark.parametrize(
    ("operator", "macs"),
    [
        ("fused attention", 2 * 3 * 8 * 8 * 8),
        ("baddbmm", 3 * 8**3),
        ("addbmm", 3 * 8**3),
        ("einsum", 3 * 8**3),
        ("einsum of batches", 3 * 8**3),
        ("matmul by vector", 3 * 8 * 8),
        ("transposed convolution", 8 * 8 * 3 * 5 * 2 * 2),
        ("grouped convolution", 8 * 8 * 6 * 9),
    ],
)
def test_operators_that_common_counters_miss_are_counted_by_both(operator: str, macs: int) -> None:
    image = torch.empty(1, 3, 8, 8, device="meta")
    by_fvcore, by_torch = count_with_fvcore(Bare(operator), image), count_with_torch(Bare(operator), image)
    assert (by_fvcore[0][""], by_fvcore[1]) == (macs, set())
    assert (by_torch[0][""].macs, by_torch[1]) == (macs, set())


def test_an_operator_that_nobody_counts_is_named() -> None:
    ledger = build_ledger(Bare("cdist"), (8, 8))
    assert ledger.uncovered == ("_cdist_forward",)
    assert ledger.total.sources == {"fvcore": 0, "FlopCounterMode / 2": 0}


def test_flex_attention_counts_as_dense_attention_compiled_or_not() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    class Flex(nn.Module):
        def __init__(self, compiled: bool) -> None:
            super().__init__()
            self.attend = torch.compile(flex_attention) if compiled else flex_attention

        def forward(self, x: Tensor) -> Tensor:
            return self.attend(x, x, x)

    code = flex_attention.__code__
    for compiled in (False, True):
        ledger = build_ledger(Flex(compiled), (8, 8))
        assert ledger.total.sources["FlopCounterMode / 2"] == 2 * 3 * 8**3
        # torch.jit.trace refuses compiled code, and the ledger says so
        assert ledger.total.fvcore == 2 * 3 * 8**3 or (compiled and "fvcore" in ledger.untraced)
        assert "block mask" in ledger.notes[0]
    assert flex_attention.__code__ is code


def test_an_operator_of_a_user_counts_by_its_registered_formula_and_is_named_without_one() -> None:
    from torch.utils.flop_counter import register_flop_formula

    def define(name: str) -> None:
        @torch.library.custom_op(f"sema_bench_test::{name}", mutates_args=(), schema="(Tensor a, Tensor b) -> Tensor")
        def product(a: Tensor, b: Tensor) -> Tensor:
            return a @ b

        product.register_fake(lambda a, b: a.new_empty(*a.shape[:-1], b.shape[-1]))

    define("mul")  # torch has an operator of this name that costs nothing
    define("known")
    register_flop_formula(torch.ops.sema_bench_test.known)(
        lambda a, b, *_, out_shape=None, **__: 2 * a[0] * a[1] * a[2] * a[3] * b[-1]
    )

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.sema_bench_test.mul(torch.ops.sema_bench_test.known(x, x), x)

    ledger = build_ledger(Net(), (8, 8))
    assert ledger.total.sources == {"fvcore": 3 * 8**3, "FlopCounterMode / 2": 3 * 8**3}
    assert ledger.uncovered == ("sema_bench_test::mul",)


def test_no_operator_stands_in_two_tables() -> None:
    tables = (set(NORMALISATION), ELEMENTWISE, FOURIER, MOVEMENT, SCANS)
    assert sum(map(len, tables)) == len(set().union(*tables))


@pytest.mark.parametrize(
    "name",
    ["sema_tiny", "swin_tiny", "deit_tiny", "vminet_ti", "vmamba_tiny_s1l8", "vim_tiny", "cvt_13", "xcit_small_12_p16"]
)  # fmt: skip
def test_every_source_says_the_same_of_every_module_and_the_kinds_are_those_of_the_formula(name: str) -> None:
    model = meta(lambda: sema.create_model(name))
    ledger = build_ledger(model, (64, 104))
    assert [entry.path for entry in ledger.entries.values() if not entry.agrees] == []
    formula, counted = model.macs((64, 104)), ledger.total.costs
    assert counted is not None
    assert (counted.attention, counted.projection, counted.convolution) == formula[:3]
    assert ledger.uncovered == ()
    assert ledger.untraced == {}
    assert ledger.scan_flops == formula.scan_flops


def test_every_order_of_counting_gives_the_same() -> None:
    """Tables that a model keeps between forward passes must not hide the cost of making them."""
    model = meta(lambda: sema.create_model("xcit_small_12_p16"))
    first, second = (build_ledger(model, (64, 64)).total for _ in range(2))
    assert first == second
    assert len(set(first.sources.values())) == 1


def test_a_module_includes_its_submodules_and_kinds_stay_apart() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
            self.head = nn.Linear(4, 7, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.stem(x).flatten(2).transpose(1, 2)  # (1, 64, 4)
            return self.head(tokens + (tokens @ tokens.transpose(1, 2)) @ tokens)

    ledger = build_ledger(meta(Net), (8, 8))
    stem = ledger.entries["stem"].costs
    assert stem == Costs(convolution=64 * 12, normalisation_flops=2 * 64 * 4, elementwise_flops=64 * 4)
    total = ledger.total.costs
    assert total is not None
    assert (total.attention, total.projection) == (2 * 64 * 64 * 4, 64 * 4 * 7)
    assert total.elementwise_flops == 2 * 64 * 4
    assert ledger.entries["stem.0"].params == 12


class Liar(nn.Module):
    """Claims ``said`` MACs, and costs what its layer costs."""

    def __init__(self, said: int) -> None:
        super().__init__()
        self.said = said
        self.layer = nn.Linear(16, 16)

    def macs(self, grid: tuple[int, int]) -> sema.macs.Macs:
        return sema.macs.Macs(projection=self.said)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_the_first_module_that_parts_is_named() -> None:
    right = 8 * 8 * 16 * 16

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Liar(right), Liar(2 * right), Liar(3 * right))

        def macs(self, resolution: tuple[int, int]) -> sema.macs.Macs:
            return sema.macs.total_macs(*(block.macs(resolution) for block in self.blocks))

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x.mean(1)[..., None].expand(-1, -1, -1, 16))

    ledger = build_ledger(meta(Net), (8, 8))
    assert not ledger.total.agrees
    parting = ledger.first_parting()
    assert parting is not None
    assert parting.path == "blocks.1"
    assert parting.sources == {"analytic": 2 * right, "fvcore": right, "FlopCounterMode / 2": right}


class Choosy(nn.Module):
    """Branches on the image's values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.abs().sum() > 0 else x


def test_control_flow_that_depends_on_values_is_counted_on_a_real_image_and_said() -> None:
    ledger = build_ledger(Choosy().to("meta"), (8, 8), real=Choosy)
    assert ledger.total.sources["FlopCounterMode / 2"] == 64 * 12
    assert "one random image" in ledger.notes[0]
    ledger = build_ledger(Choosy().to("meta"), (8, 8))
    assert set(ledger.untraced) == {"fvcore", "FlopCounterMode / 2"}
    assert "meta" in ledger.untraced["FlopCounterMode / 2"]


def test_alike_neighbours_share_a_line() -> None:
    lines = list(tree_lines(build_ledger(meta(lambda: sema.create_model("deit_tiny")), (64, 64))))
    blocks = [line for line in lines if line.count > 1]
    assert [(line.label, line.count) for line in blocks] == [("0 … 11", 12)]


def test_the_command_prints_the_tree_and_the_totals() -> None:
    code, out, _ = invoke("ledger", "deit_small", "--res", "224", "--depth", "1")
    assert code == 0
    assert "products with" in out
    assert "analytic 4,598,882,304, fvcore 4,598,882,304, FlopCounterMode / 2 4,598,882,304" in out
    assert "first disagree" not in out


def test_the_command_writes_one_csv_row_per_module() -> None:
    code, out, _ = invoke("ledger", "vminet_ti", "--res", "64x96", "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert tuple(rows[0]) == CSV_COLUMNS
    model = sema.create_model("vminet_ti")
    assert [row["module"] for row in rows] == [name for name, _ in model.named_modules()]
    assert int(rows[0]["macs_analytic"]) == model.macs((64, 96)).total


def test_the_network_around_a_model_is_counted_at_the_size_of_papers() -> None:
    code, out, _ = invoke("ledger", "sema_micro", "--task", "segment", "--csv", "-", "--depth", "1")
    rows = {row["module"]: int(row["macs_analytic"] or 0) for row in csv.DictReader(io.StringIO(out))}
    assert code == 0
    assert rows[""] == sum(rows[part] for part in PARTS)
    assert rows["head"] == (4 * 512 * 512 * 9 + 512 * 150) * (512 // 4) * (2048 // 4)


def test_frozen_parameters_are_in_the_total_and_said() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))
    model[0].requires_grad_(False)
    ledger = build_ledger(model.to("meta"), (8, 8))
    frozen, trained = 3 * 4 + 4, 4 * 5 + 5
    assert (ledger.total.params, ledger.total.params_total) == (trained, frozen + trained)
    assert (ledger.entries["0"].params, ledger.entries["0"].params_total) == (0, frozen)
    assert f"{frozen} of {frozen + trained} parameters are frozen" in next(notes(ledger))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "unknown model"),
        (["sema_tiny", "--res", "224..1024"], "one size"),
        (["sema_tiny", "--res", "x"], "bad resolution"),
        (["sema_tiny[window_size=0]"], "window_size"),
        (["missing.py:build"], "missing.py"),
        (["sema_tiny", "--task", "segmnt"], "did you mean 'segment'?"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str) -> None:
    code, out, err = invoke("ledger", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
