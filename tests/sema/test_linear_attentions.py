"""Test MILA, SimA, VMI and their layers: rotation, normalisation over tokens, weights tied to positions."""

from __future__ import annotations

import pytest
import torch
from attention_cases import build_attention
from torch import nn

from sema.layers.conv import DepthwiseConv2d, MapConv2d
from sema.layers.counted import layer_macs
from sema.layers.drop_path import DropPath, drop_path_rates
from sema.layers.positions import ConditionalPositionalEncoding, rope_table, rotate_positions, rotate_written_out

DIM = 16


def test_first_half_of_the_pairs_follows_the_row_and_the_rest_the_column():
    angles = rope_table(lambda angle: angle, (5, 9), DIM, device=torch.device("cpu"), dtype=torch.float64)
    quarter = DIM // 4
    theta = [10000.0 ** (-k / quarter) for k in range(quarter)]
    for k in range(quarter):
        assert angles[3, 7, k].item() == pytest.approx(3 * theta[k], rel=1e-14)
        assert angles[3, 7, quarter + k].item() == pytest.approx(7 * theta[k], rel=1e-14)


def test_rotated_products_depend_on_the_offset_between_positions_alone():
    q, k = torch.randn(2, DIM, dtype=torch.float64)
    q_turned, k_turned = (rotate_positions(part.expand(1, 20, 20, DIM).contiguous())[0] for part in (q, k))
    product = torch.einsum("ijc,klc->ijkl", q_turned, k_turned)
    torch.testing.assert_close(product[:-3, :-2, :-3, :-2], product[3:, 2:, 3:, 2:], rtol=1e-11, atol=1e-11)


def test_rotation_keeps_the_length_of_every_pair():
    x = torch.randn(2, 6, 7, DIM, dtype=torch.float64)
    turned = rotate_positions(x)
    torch.testing.assert_close(
        turned.unflatten(-1, (-1, 2)).norm(dim=-1), x.unflatten(-1, (-1, 2)).norm(dim=-1), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_real_arithmetic_rotates_as_complex_numbers_do(dtype):
    x = torch.randn(2, 6, 7, DIM).to(dtype)
    torch.testing.assert_close(rotate_positions(x), rotate_written_out(x), rtol=0, atol=1e-6)


def test_a_rotation_kept_from_inference_does_not_disturb_training():
    x = torch.randn(1, 4, 4, DIM)
    with torch.inference_mode():
        inferred = rotate_positions(x)
    trained = rotate_positions(x.requires_grad_())
    trained.sum().backward()
    assert torch.equal(inferred, trained.detach())
    assert x.grad is not None


def test_mila_of_a_single_token_is_that_token():
    mila = build_attention("mila", {"lepe": False}).double()
    x = torch.randn(2, 1, 1, DIM, dtype=torch.float64)
    # The one coefficient is φ(q)·φ(k) / (φ(q)·φ(k) + 1e-6): 1 except for the guard.
    torch.testing.assert_close(mila(x), x, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("dim", "num_heads"), [(18, 1), (12, 4)])
def test_mila_refuses_channels_that_do_not_pair(dim, num_heads):
    with pytest.raises(ValueError, match="multiple of 4"):
        build_attention("mila", {}, dim=dim, num_heads=num_heads)


@pytest.mark.parametrize("grid", [(13, 22), (2, 3)])
def test_all_product_orders_of_sima_give_the_same(grid):
    auto = build_attention("sima", {}).double()
    x = torch.randn(2, *grid, DIM, dtype=torch.float64)
    for order in ("quadratic", "linear"):
        other = build_attention("sima", {"product_order": order}).double()
        other.load_state_dict(auto.state_dict())
        torch.testing.assert_close(other(x), auto(x), rtol=1e-11, atol=1e-13)


def test_sima_takes_the_order_with_fewer_macs():
    sima = build_attention("sima", {})  # d = 8
    orders = {name: build_attention("sima", {"product_order": name}) for name in ("quadratic", "linear")}
    for grid in ((2, 3), (1, 7), (2, 4), (13, 22)):
        assert sima.macs(grid).total == min(other.macs(grid).total for other in orders.values())


def test_sima_refuses_an_unknown_product_order():
    with pytest.raises(ValueError, match="product_order must be one of auto, quadratic, linear; got 'cubic'"):
        build_attention("sima", {"product_order": "cubic"})


def test_sima_of_a_zero_channel_is_zero_not_nan():
    sima = build_attention("sima", {}).double()
    with torch.no_grad():
        sima.qkv.weight[:DIM] = 0
        sima.qkv.bias[:DIM] = 0
    out = sima(torch.randn(1, 5, 6, DIM, dtype=torch.float64))
    assert torch.equal(out, torch.zeros_like(out))


def test_vmi_sums_equal_tokens_to_the_same_total_at_every_grid():
    vmi = build_attention("vmi", {"token_grid": (6, 8)}).double()
    with torch.no_grad():
        vmi.sum.weight.fill_(0.25)
    for grid in ((6, 8), (12, 16), (5, 3), (13, 22)):
        assert vmi.sum.weights(grid).sum().item() == pytest.approx(0.25 * 48, rel=1e-12)


def test_vmi_at_its_base_grid_uses_the_stored_weights():
    vmi = build_attention("vmi", {"token_grid": (6, 8)})
    assert vmi.sum.weights((6, 8)) is vmi.sum.weight


@pytest.mark.parametrize("grid", [(6, 8), (12, 16), (18, 8), (6, 24)])
def test_a_masked_channel_leaves_out_the_same_part_of_the_map_at_every_grid(grid):
    vmi = build_attention("vmi", {"token_grid": (6, 8), "expansion": 4, "masked": True}).double()
    with torch.no_grad():
        vmi.sum.weight.fill_(0.25)
    x = torch.randn(2, 6, 8, vmi.hidden_dim, dtype=torch.float64)
    expected = torch.stack([0.25 * x.flatten(1, 2)[:, channel:, channel].sum(1) for channel in range(64)], dim=-1)
    assert not expected[:, 48:].any(), "as many tokens as that are left out of these channels"
    finer = x.repeat_interleave(grid[0] // 6, 1).repeat_interleave(grid[1] // 8, 2)
    total = (vmi.sum.weights(grid) @ vmi.sum.visible(finer))[:, 0]
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"token_grid": (0, 4)}, {"expansion": 0}])
def test_vmi_refuses_options_that_are_not_positive(options):
    with pytest.raises(ValueError, match="must be positive"):
        build_attention("vmi", options)


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_depthwise_convolution_is_the_sum_of_shifted_copies(kernel_size):
    conv = DepthwiseConv2d(DIM, kernel_size=kernel_size).double()
    x = torch.randn(2, 5, 9, DIM, dtype=torch.float64)
    torch.testing.assert_close(conv(x), conv.reference(x), rtol=1e-12, atol=1e-12)


def test_cpe_is_its_input_plus_a_convolution_of_it_in_one_pass_whatever_became_of_its_weights():
    cpe = ConditionalPositionalEncoding(8).double().eval()
    x = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    cpe(x).sum().backward()
    assert cpe.weight.grad is not None
    for _ in range(2):
        with torch.no_grad():
            assert torch.allclose(cpe(x), cpe.reference(x), atol=1e-12)
            with torch.profiler.profile() as profiler:
                cpe(x)
            cpe.weight.mul_(2.0)
        assert "aten::add" not in {event.key for event in profiler.key_averages()}


def test_depthwise_convolution_neither_takes_nor_gives_a_copy_in_another_layout():
    out = DepthwiseConv2d(DIM)(torch.randn(2, 5, 9, DIM))
    assert out.is_contiguous()


@pytest.mark.parametrize("side", [31, 32, 33])
def test_a_stride_two_convolution_on_an_odd_map_is_that_of_the_map_padded_to_even(side):
    conv = MapConv2d(3, 8).double()
    x = torch.randn(1, side, side + 1, 3, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % 2, 0, -x.shape[1] % 2))
    out = conv(x)
    assert out.shape[1:3] == layer_macs(conv, (side, side + 1))[1] == (-(-side // 2), -(-(side + 1) // 2))
    torch.testing.assert_close(out, conv(padded), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(4, 4, 3), nn.ConvTranspose2d(4, 4, 2), nn.Conv2d(4, 4, (1, 3)), nn.Conv2d(4, 4, 3, dilation=2)],
    ids=str,
)
def test_a_layer_without_a_formula_is_refused(layer):
    with pytest.raises(TypeError, match="MACs"):
        layer_macs(nn.Sequential(nn.ReLU(), layer), (8, 8))


def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    out = drop(x)
    per_sample = out.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert set(per_sample[:, 0].tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    # Standard error of the mean of 4000 such samples: 0.009.
    assert abs(out.mean().item() - 1.0) < 0.04
    assert drop.eval()(x) is x


def test_drop_path_rates_rise_linearly_to_the_last_block():
    assert drop_path_rates(0.2, 5) == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert drop_path_rates(0.2, 1) == [0.0]
    with pytest.raises(ValueError, match=r"must be in \[0, 1\); got 1"):
        DropPath(1.0)
