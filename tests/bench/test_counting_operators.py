"""Test operators of vision models: both counters agree with a count by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sema_bench.counting.build import build_ledger
from sema_bench.counting.costs import Ledger
from sema_bench.spec.cell import Cell
from sema_bench.worker.workload import Workload

SIDE = 8


class Calls(nn.Module):
    """Call a function or a layer on the image, or on the output of ``prepare``, and return one tensor."""

    def __init__(self, call: Callable[..., object], prepare: Callable[[Tensor], object] = lambda x: x) -> None:
        super().__init__()
        self.call = call
        self.prepare = prepare

    def forward(self, x: Tensor) -> Tensor:
        made = self.prepare(x)
        out = self.call(*made) if isinstance(made, tuple) else self.call(made)
        return out[0] if isinstance(out, tuple) else out


def ledger_of(call: Callable[..., object], prepare: Callable[[Tensor], object] = lambda x: x) -> Ledger:
    """Count ``call`` on an image (1, 3, 8, 8) of the meta device."""
    return build_ledger(Calls(call, prepare).eval().to("meta"), (SIDE, SIDE))


def assert_counted(ledger: Ledger, macs: int) -> None:
    assert (ledger.untraced, ledger.uncovered) == ({}, ())
    assert ledger.total.sources == {"fvcore": macs, "FlopCounterMode / 2": macs}


def elementwise(ledger: Ledger) -> int:
    assert ledger.total.costs is not None
    return ledger.total.costs.elementwise_flops


def rows(x: Tensor) -> Tensor:
    """Return the rows of an image (1, 3, 8, 8) as a sequence (1, 8, 8)."""
    return x.mean(1)


def as_complex(x: Tensor) -> Tensor:
    return torch.complex(x, x)


def recurrent_macs(
    gates: int, *, steps: int, inputs: int, hidden: int, layers: int = 1, directions: int = 1, projection: int = 0
) -> int:
    """Count the gates of all inputs and all states, and a projection of each state."""
    out = projection or hidden
    macs = 0
    for layer in range(layers):
        width = inputs if layer == 0 else directions * out
        macs += directions * (gates * hidden * (width + out) + hidden * projection)
    return steps * macs


# Recurrent layers


@pytest.mark.parametrize(("layer", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
@pytest.mark.parametrize(
    ("layers", "directions", "bias"), [(1, 1, True), (2, 2, True), (3, 1, False)], ids=["one", "both ways", "no bias"]
)
def test_recurrent_layers_count_every_gate_of_every_step(
    layer: type[nn.RNNBase], gates: int, layers: int, directions: int, bias: bool
) -> None:
    call = layer(SIDE, 16, num_layers=layers, bidirectional=directions == 2, bias=bias, batch_first=True)
    macs = recurrent_macs(gates, steps=SIDE, inputs=SIDE, hidden=16, layers=layers, directions=directions)
    assert_counted(ledger_of(call, rows), macs)


def test_a_projected_lstm_counts_its_projection_and_narrower_states() -> None:
    call = nn.LSTM(SIDE, 16, num_layers=2, proj_size=5, bidirectional=True)
    macs = recurrent_macs(4, steps=3 * SIDE, inputs=SIDE, hidden=16, layers=2, directions=2, projection=5)
    assert_counted(ledger_of(call, lambda x: x[0]), macs)


@pytest.mark.parametrize(("cell", "gates"), [(nn.RNNCell, 1), (nn.GRUCell, 3), (nn.LSTMCell, 4)])
def test_recurrent_cells_count_every_gate(cell: type[nn.RNNCellBase], gates: int) -> None:
    macs = recurrent_macs(gates, steps=SIDE, inputs=SIDE, hidden=16)
    assert_counted(ledger_of(cell(SIDE, 16), lambda x: x[0, 0]), macs)


def test_rows_of_an_image_through_an_lstm() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(96, 32, batch_first=True)
            self.head = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x.permute(0, 2, 1, 3).flatten(2))[0][:, -1])

    ledger = build_ledger(Rows().to("meta").eval(), (32, 32))
    assert_counted(ledger, 32 * 4 * 32 * (96 + 32) + 32 * 10)
    assert ledger.total.costs is not None
    assert ledger.total.costs.projection == ledger.total.costs.macs, "all of it with weights"


# torch's own attention and encoders

_TOKENS, _DIM, _HIDDEN = SIDE, SIDE, 32
_ATTENTION = 4 * _TOKENS * _DIM**2 + 2 * _TOKENS**2 * _DIM
_ENCODER = _ATTENTION + 2 * _TOKENS * _DIM * _HIDDEN


@pytest.mark.parametrize("weights", [False, True])
def test_multihead_attention_counts_projections_and_products(weights: bool) -> None:
    attend = nn.MultiheadAttention(_DIM, 2, batch_first=True)
    call = Calls(lambda x: attend(x, x, x, need_weights=weights), rows)
    call.attend = attend
    assert_counted(build_ledger(call.to("meta").eval(), (SIDE, SIDE)), _ATTENTION)


def test_encoders_count_the_same_in_eval_mode() -> None:
    layer = nn.TransformerEncoderLayer(_DIM, 2, _HIDDEN, batch_first=True)
    assert_counted(ledger_of(layer, rows), _ENCODER)
    assert_counted(ledger_of(nn.TransformerEncoder(layer, 3), rows), 3 * _ENCODER)


class Choosy(nn.Module):
    """Branches on the image's values, so it is counted on a real image with CPU kernels."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if x.isnan().any():
            return x
        out = self.layer(x.mean(1))
        return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize(
    ("build", "macs"),
    [
        (
            lambda: nn.LSTM(SIDE, 16, batch_first=True),
            recurrent_macs(4, steps=SIDE, inputs=SIDE, hidden=16),
        ),
        (lambda: nn.TransformerEncoderLayer(_DIM, 2, _HIDDEN, batch_first=True), _ENCODER),
    ],
    ids=["lstm", "encoder"],
)
def test_fused_kernels_of_a_cpu_hide_nothing(build: Callable[[], nn.Module], macs: int) -> None:
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    ledger = build_ledger(Choosy(build()).to("meta").eval(), (SIDE, SIDE), real=lambda: Choosy(build()).eval())
    assert (ledger.total.sources, ledger.uncovered) == ({"FlopCounterMode / 2": macs}, ())
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == before


def test_grouped_queries_meet_the_keys_of_their_group() -> None:
    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x.repeat(1, 2, 1, 1), x, x, enable_gqa=True)

    assert_counted(ledger_of(attend), 6 * SIDE**2 * 2 * SIDE)


def test_a_parameter_may_be_the_input_of_a_module() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, SIDE))
            self.layer = nn.Linear(SIDE, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.token)

    assert_counted(build_ledger(Token().to("meta"), (SIDE, SIDE)), SIDE * 5)


# Operators built from others

_N = SIDE


@pytest.mark.parametrize(
    ("call", "macs"),
    [
        (lambda x: torch.tensordot(x[0], x[0], dims=([0, 1], [0, 1])), 3 * _N * _N * _N),
        (lambda x: torch.inner(x[0], x[0]), (3 * _N) ** 2 * _N),
        (lambda x: torch.chain_matmul(x[0, 0], x[0, 1], x[0, 2]), 2 * _N**3),
        (lambda x: torch.linalg.multi_dot([x[0, 0, :2], x[0, 1], x[0, 2]]), 2 * 2 * _N**2),
        (lambda x: torch.linalg.matrix_power(x[0], 3), 2 * 3 * _N**3),
        (lambda x: torch.vdot(x[0, 0, 0], x[0, 0, 0]), _N),
        (lambda x: torch.einsum("ij,jk,kl->il", x[0, 0], x[0, 1], x[0, 2]), 2 * _N**3),
        (lambda x: torch.einsum("bij,bjk->bi", x[0], x[0]), 3 * _N**2),  # the sum over k comes first
        (lambda x: torch.einsum("i,j->ij", x[0, 0, 0], x[0, 0, 0]), 0),  # nothing is accumulated
        (lambda x: torch.outer(x[0, 0, 0], x[0, 0, 0]), 0),
        (lambda x: F.bilinear(x[0, 0], x[0, 1], x.new_empty(5, _N, _N)), _N * 5 * (_N * _N + _N)),
        (lambda x: torch.cdist(x.view(32, 6), x.view(32, 6)), 32 * 32 * (6 + 2)),  # two columns hold the norms
        (lambda x: torch._int_mm(x[0].view(24, 8).char(), x[0].view(8, 24).char()), 24 * 24 * 8),
        (lambda x: torch.conv_tbc(x[0], x.new_empty(3, _N, 5), x.new_empty(5), 1), 3 * _N * 3 * _N * 5),
        (lambda x: F.cosine_similarity(x, x), 0),
        (lambda x: x.new_empty(5, 27) @ F.unfold(x, 3, padding=1), 5 * 27 * _N**2),
        (lambda x: torch.vmap(lambda a: a @ a)(x), 3 * _N**3),
    ],
    ids=[
        *("tensordot", "inner", "chain_matmul", "multi_dot", "matrix_power", "vdot", "three operands", "sum first"),
        *("einsum without sum", "outer", "bilinear", "cdist", "int_mm", "conv_tbc", "cosine", "unfold", "vmap"),
    ],
)
def test_operators_that_consist_of_others_count_as_these(call: Callable[[Tensor], Tensor], macs: int) -> None:
    assert_counted(ledger_of(call), macs)


def test_what_consists_of_an_unknown_operator_names_that_one() -> None:
    ledger = ledger_of(lambda x: torch.linalg.inv(x[0]))
    assert "linalg_inv_ex" in ledger.uncovered
    assert "linalg_inv" not in ledger.uncovered


# Convolutions


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(3, 4, 3, padding="same"), _N**2 * 12 * 9),
        (nn.Conv2d(3, 4, 4, padding="same", dilation=3), _N**2 * 12 * 16),  # pads one more at the end
        (nn.Sequential(nn.Unflatten(2, (2, 4)), nn.Conv3d(3, 4, (2, 3, 4), padding="same")), _N**2 * 12 * 24),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), _N**2 * 12 * 9),
        (nn.ConvTranspose2d(3, 6, 3, stride=2, groups=3), _N**2 * 3 * 2 * 9),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1)), _N**2 * 12 * 9),
        (nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3, padding=1)), _N**2 * 12 * 9 + 4 * 27 + 4),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), _N**2 * 12),
        (nn.Sequential(nn.AdaptiveAvgPool2d((None, 1)), nn.Flatten(2), nn.Linear(_N, 5)), 3 * _N * 5),
    ],
    ids=[
        "same",
        "same, even",
        "same, 3d",
        "circular",
        "transposed",
        "weight norm",
        "spectral norm",
        "group norm",
        "pool",
    ],
)
def test_layers_whose_sizes_python_computes_are_traced(layer: nn.Module, macs: int) -> None:
    assert_counted(ledger_of(layer), macs)


def test_an_image_without_a_batch_is_convolved_too() -> None:
    assert_counted(ledger_of(nn.Conv2d(3, 4, 3), lambda x: x[0]), 6**2 * 12 * 9)


def test_a_deformable_convolution_counts_as_a_convolution() -> None:
    torchvision = pytest.importorskip("torchvision")

    def call(x: Tensor) -> Tensor:
        return torchvision.ops.deform_conv2d(x, x.new_empty(1, 18, 6, 6), x.new_empty(4, 3, 3, 3))

    assert_counted(ledger_of(call), 6**2 * 12 * 9)


# Work that a trace hides


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x @ x


@pytest.mark.parametrize(
    "call",
    [
        lambda x: (x, x @ x)[0],
        Square.apply,
        lambda x: checkpoint(lambda y: y @ y, x, use_reentrant=True),
        lambda x: checkpoint(lambda y: y @ y, x, use_reentrant=False),
    ],
    ids=["not returned", "function of autograd", "reentrant checkpoint", "checkpoint"],
)
def test_what_runs_is_counted_though_a_trace_hides_it(call: Callable[[Tensor], Tensor]) -> None:
    assert_counted(ledger_of(call), 3 * _N**3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_function_is_counted_by_one_counter_and_the_other_says_why_not() -> None:
    scripted = torch.jit.script(_square)
    ledger = ledger_of(lambda x: scripted(x))
    assert ledger.total.sources == {"FlopCounterMode / 2": 3 * _N**3}
    assert "scripted" in ledger.untraced["fvcore"]


def _square(x: Tensor) -> Tensor:
    return x @ x


# Complex numbers


@pytest.mark.parametrize(
    ("call", "products"),
    [
        (lambda z: z[0] @ z[0], 3 * _N**3),
        (lambda z: torch.bmm(z[0], z[0]), 3 * _N**3),
        (lambda z: torch.baddbmm(z[0], z[0], z[0]), 3 * _N**3),
        (lambda z: torch.addmm(z[0, 0], z[0, 1], z[0, 2]), _N**3),
        (lambda z: torch.einsum("bchw,cd->bdhw", z, z[0, :, :3, 0]), 3 * 3 * _N**2),
        (lambda z: torch.tensordot(z[0], z[0], dims=([0, 1], [0, 1])), 3 * _N**3),
        (lambda z: z[0, 0] @ z[0, 0, 0], _N**2),
        (lambda z: torch.dot(z[0, 0, 0], z[0, 0, 0]), _N),
        (lambda z: z[0] @ z[0].mH, 3 * _N**3),
        (nn.Linear(_N, 5, dtype=torch.complex64), 3 * _N * _N * 5),
        (nn.Conv2d(3, 5, 3, padding=1, dtype=torch.complex64), _N**2 * 3 * 5 * 9),
        (nn.Conv2d(3, 6, 3, groups=3, bias=False, dtype=torch.complex64), 6**2 * 6 * 9),
        (nn.Conv2d(3, 5, 4, padding="same", dtype=torch.complex64), _N**2 * 3 * 5 * 16),
        (nn.ConvTranspose2d(3, 5, 2, stride=2, dtype=torch.complex64), _N**2 * 3 * 5 * 4),
    ],
    ids=[
        *("matmul", "bmm", "baddbmm", "addmm", "einsum", "tensordot", "mv", "dot", "adjoint", "linear"),
        *("convolution", "grouped", "same", "transposed"),
    ],
)
def test_a_complex_product_is_four_real_ones(call: Callable[[Tensor], Tensor], products: int) -> None:
    assert_counted(ledger_of(call, as_complex), 4 * products)


def test_complex_weights_stored_as_pairs_of_real_numbers_count_alike() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(5, 7, 2))

        def forward(self, x: Tensor) -> Tensor:
            return (torch.fft.rfft2(x) @ torch.view_as_complex(self.weight)).abs()

    assert_counted(build_ledger(Mixer().to("meta"), (SIDE, SIDE)), 4 * 3 * _N * 5 * 7)


def test_real_convolutions_stand_in_for_a_complex_one_exactly() -> None:
    """A model counted on a real image sees the same values as without counting."""
    from sema_bench.counting.by_torch import counting

    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 7, dtype=torch.complex128)
    for layer in (
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2, dtype=torch.complex128),
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, bias=False, dtype=torch.complex128),
    ):
        with torch.no_grad():
            expected = layer(x)
        with counting():
            torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "flops"),
    [
        (lambda z: z * z, 6),
        (lambda z: z / z, 6),
        (lambda z: z * 1j, 6),
        (lambda z: z * 2.0, 2),
        (lambda z: z + z, 2),
        (lambda z: z.real * z.real, 1),
    ],
    ids=["product", "quotient", "by i", "by a real number", "sum", "real"],
)
def test_elementwise_work_counts_the_real_numbers(call: Callable[[Tensor], Tensor], flops: int) -> None:
    ledger = ledger_of(call, as_complex)
    assert_counted(ledger, 0)
    assert elementwise(ledger) == flops * 3 * _N**2


@pytest.mark.parametrize(
    ("call", "flops"),
    [
        (lambda x: torch.fft.fft(as_complex(x)), 5 * 3 * _N**2 * math.log2(_N)),
        (lambda x: torch.fft.ifft2(as_complex(x)), 5 * 3 * _N**2 * math.log2(_N**2)),
        (lambda x: torch.fft.rfft(x), 2.5 * 3 * _N**2 * math.log2(_N)),
        (lambda x: torch.fft.rfft2(x), 2.5 * 3 * _N**2 * math.log2(_N**2)),
        (lambda x: torch.fft.irfft2(as_complex(x)[..., :5], s=(_N, _N)), 2.5 * 3 * _N**2 * math.log2(_N**2)),
        (lambda x: torch.fft.fft2(as_complex(x[..., :7, :5])), 5 * 3 * 35 * math.log2(35)),
    ],
    ids=["fft", "ifft2", "rfft", "rfft2", "irfft2", "odd sizes"],
)
def test_fourier_transforms_count_five_n_log_n(call: Callable[[Tensor], Tensor], flops: float) -> None:
    ledger = ledger_of(call)
    assert_counted(ledger, 0)
    assert elementwise(ledger) == round(flops)


def test_a_filter_in_the_frequency_domain_is_elementwise_work() -> None:
    """GFNet's token mixer: two transforms and one complex product for each frequency and channel."""

    class GlobalFilter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(3, _N, _N // 2 + 1, 2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(self.weight), s=x.shape[-2:])

    ledger = build_ledger(GlobalFilter().to("meta"), (SIDE, SIDE))
    assert_counted(ledger, 0)
    transform = 2.5 * 3 * _N**2 * math.log2(_N**2)
    assert elementwise(ledger) == 2 * round(transform) + 6 * 3 * _N * (_N // 2 + 1)


def test_rotary_positions_in_complex_form_leave_the_macs_of_ours_alone() -> None:
    """MILA rotates queries and keys by complex factors: elementwise, so formula and counters still agree."""
    ledger = Workload(Cell(model="sema_tiny[mila]", height=64, width=64)).ledger()
    assert len(set(ledger.total.sources.values())) == 1
    assert ledger.uncovered == ()
