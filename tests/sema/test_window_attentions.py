"""Test SEMA and window attention: what the mean carries, what a window keeps out, how a shift wraps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from attention_cases import build_attention

DIM = 16
GRID = (13, 22)


def pair(options, other):
    """Return two attentions with the same parameters and different options."""
    one = build_attention("sema", options).double()
    two = build_attention("sema", other).double()
    two.load_state_dict(one.state_dict(), strict=False)
    return one, two


def test_the_global_mean_adds_the_mean_of_the_values_and_nothing_else():
    with_mean, without = pair({}, {"pooling": "none"})
    x = torch.randn(2, *GRID, DIM, dtype=torch.float64)
    mean = with_mean.qkv(x)[..., 2 * DIM :].mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(with_mean(x) - without(x), mean.expand(x.shape), rtol=1e-12, atol=1e-12)


def test_max_pooling_adds_the_maximum_of_the_values_and_nothing_else():
    with_max, without = pair({"pooling": "max"}, {"pooling": "none"})
    x = torch.randn(2, *GRID, DIM, dtype=torch.float64)
    most = with_max.qkv(x)[..., 2 * DIM :].amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(with_max(x) - without(x), most.expand(x.shape), rtol=1e-12, atol=1e-12)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling must be one of mean, max, none; got 'sum'"):
        build_attention("sema", {"pooling": "sum"})


def test_lepe_adds_a_convolution_of_the_values_and_nothing_else():
    with_lepe, without = pair({}, {"lepe": False})
    x = torch.randn(2, *GRID, DIM, dtype=torch.float64)
    local = with_lepe.lepe.reference(with_lepe.qkv(x)[..., 2 * DIM :])
    torch.testing.assert_close(with_lepe(x) - without(x), local, rtol=1e-12, atol=1e-12)


def test_without_mean_and_lepe_sema_is_window_attention():
    sema = build_attention("sema", {"lepe": False, "pooling": "none"}).double()
    window = build_attention("window", {}).double()
    window.load_state_dict(sema.state_dict())
    x = torch.randn(2, *GRID, DIM, dtype=torch.float64)
    assert torch.equal(sema(x), window(x))


def test_a_far_token_reaches_the_output_through_the_mean_alone():
    sema = build_attention("sema", {"lepe": False}).double()
    x = torch.randn(1, *GRID, DIM, dtype=torch.float64)
    changed = x.clone()
    changed[0, 12, 21] += torch.randn(DIM, dtype=torch.float64)  # in the corner window, rows 7..12, column 21
    difference = sema(changed) - sema(x)
    step = (sema.qkv(changed) - sema.qkv(x))[0, 12, 21, 2 * DIM :] / (GRID[0] * GRID[1])
    outside = torch.ones(GRID, dtype=torch.bool)
    outside[7:, 21:] = False
    torch.testing.assert_close(difference[0, outside], step.expand(int(outside.sum()), DIM), rtol=0, atol=1e-13)
    assert (difference[0, 7:, 21:] - step).abs().amax(dim=-1).min() > 1e-6


@pytest.mark.parametrize(("name", "options"), [("sema", {"pooling": "none", "lepe": False}), ("window", {})])
def test_a_window_at_the_edge_gives_what_it_gives_as_an_image_of_its_own(name, options):
    attention = build_attention(name, options).double()
    x = torch.randn(1, *GRID, DIM, dtype=torch.float64)
    out = attention(x)
    for rows, columns in ((slice(0, 7), slice(14, 21)), (slice(0, 7), slice(21, 22)), (slice(7, 13), slice(21, 22))):
        torch.testing.assert_close(out[:, rows, columns], attention(x[:, rows, columns]), rtol=1e-12, atol=1e-13)


def test_on_equal_tokens_the_mean_doubles_the_values_whatever_the_grid():
    sema = build_attention("sema", {"lepe": False}).double()
    token = torch.randn(DIM, dtype=torch.float64)
    value = sema.qkv(token)[2 * DIM :]
    for grid in (GRID, (1, 1), (7, 7), (8, 15)):
        out = sema(token.expand(1, *grid, DIM))
        torch.testing.assert_close(out, (2 * value).expand(out.shape), rtol=1e-12, atol=1e-12)


def test_the_mean_is_accumulated_in_float32_in_half_precision():
    # 2^14 equal tokens: a bfloat16 running sum would stop growing at 256 of them.
    sema = build_attention("sema", {"lepe": False}).bfloat16()
    token = torch.randn(DIM).bfloat16()
    out = sema(token.expand(1, 128, 128, DIM))
    assert (out - 2 * sema.qkv(token)[2 * DIM :]).abs().max() < 0.05 * out.abs().max()


def test_default_scale_is_one_over_the_root_of_the_head_dim():
    default, explicit = pair({}, {"scale": 8**-0.5})
    x = torch.randn(1, *GRID, DIM, dtype=torch.float64)
    assert torch.equal(default(x), explicit(x))


SHIFTED = {"window_size": 7, "shift_size": 3}


def swin_windows(x, attention):
    """Roll, pad, mask the padding and each wrapped part from the others, attend window by window, roll back."""
    (height, width), w, s = x.shape[1:3], attention.rule.size, attention.rule.shift
    padded = (height + (-height) % w, width + (-width) % w)
    rolled = torch.roll(attention.qkv(x), (-s, -s), dims=(1, 2))
    qkv = x.new_zeros(1, *padded, 3 * DIM)
    qkv[:, :height, :width] = rolled
    label = torch.full(padded, -1)
    real = torch.zeros(height, width, dtype=torch.long)
    for i, rows in enumerate((slice(0, height - s), slice(height - s, None))):
        for j, columns in enumerate((slice(0, width - s), slice(width - s, None))):
            real[rows, columns] = 2 * i + j
    label[:height, :width] = real
    out = x.new_zeros(1, *padded, DIM)
    for top in range(0, padded[0], w):
        for left in range(0, padded[1], w):
            cut = (slice(top, top + w), slice(left, left + w))
            tag = label[cut].flatten()
            q, k, v = (
                part.reshape(w * w, attention.num_heads, -1).transpose(0, 1)
                for part in qkv[0][cut].reshape(w * w, 3 * DIM).chunk(3, dim=-1)
            )
            scores = attention.scale * q @ k.transpose(-2, -1)
            if attention.relative_position_bias_table is not None:
                y, z = torch.meshgrid(torch.arange(w), torch.arange(w), indexing="ij")
                place = torch.stack((y.flatten(), z.flatten()))
                offset = place[:, :, None] - place[:, None, :] + w - 1
                table = attention.relative_position_bias_table
                scores = scores + table[offset[0] * (2 * w - 1) + offset[1]].permute(2, 0, 1)
            scores = scores.masked_fill(tag[:, None] != tag, float("-inf"))
            mixed = (scores.softmax(dim=-1) @ v).transpose(0, 1).reshape(w, w, DIM)
            out[0][cut] = mixed
    return torch.roll(out[:, :height, :width], (s, s), dims=(1, 2))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("grid", [(14, 21), (13, 22), (15, 8)])
def test_shifted_windows_equal_padding_that_is_masked(grid, bias):
    attention = build_attention("window", {**SHIFTED, "relative_position_bias": bias}).double()
    x = torch.randn(1, *grid, DIM, dtype=torch.float64)
    torch.testing.assert_close(attention(x), swin_windows(x, attention), rtol=1e-11, atol=1e-12)


def test_a_shift_never_lets_opposite_edges_attend_to_each_other():
    attention = build_attention("window", SHIFTED).double()
    x = torch.randn(1, 14, 21, DIM, dtype=torch.float64)
    changed = x.clone()
    changed[:, :3] += 1.0  # the rows that the roll carries to the bottom
    unchanged = attention(changed) == attention(x)
    assert unchanged[:, 3:].all()
    assert not unchanged[:, :3].any()


@pytest.mark.parametrize("grid", [(7, 7), (5, 3), (7, 14), (14, 6)])
def test_a_map_with_a_side_that_one_window_covers_is_not_shifted(grid):
    shifted = build_attention("window", SHIFTED).double()
    plain = build_attention("window", {"window_size": 7}).double()
    plain.load_state_dict(shifted.state_dict())
    x = torch.randn(1, *grid, DIM, dtype=torch.float64)
    assert torch.equal(shifted(x), plain(x))


FORMS = ["masked", "padded", "scaled"]


def with_windows(forms, grid, bias=True):
    """Return an attention of each form, with the same parameters, and a map."""
    options = {**SHIFTED, "relative_position_bias": bias}
    attentions = [build_attention("window", {**options, "windows": form}).double() for form in forms]
    for attention in attentions[1:]:
        attention.load_state_dict(attentions[0].state_dict())
    return *attentions, torch.randn(2, *grid, DIM, dtype=torch.float64)


def test_the_three_forms_are_one_where_the_window_divides_the_map_and_is_not_scaled():
    masked, padded, scaled, x = with_windows(FORMS, (14, 14))
    assert torch.equal(masked(x), padded(x))
    assert torch.equal(masked(x), scaled(x))


def test_padding_takes_weight_from_the_tokens_at_the_edge_alone():
    masked, padded, x = with_windows(["masked", "padded"], (15, 21))
    for attention in (masked, padded):
        attention.rule = replace(attention.rule, shift=0)
    difference = (masked(x) - padded(x)).abs().amax(dim=(0, 3))
    assert difference[:14].max() == 0
    assert difference[14].min() > 1e-6


def test_padded_windows_are_those_of_a_map_with_zeros_around_it():
    masked, padded, x = with_windows(["masked", "padded"], (13, 22))
    larger = torch.nn.functional.pad(x, (0, 0, 0, 6, 0, 1))
    torch.testing.assert_close(padded(x), masked(larger)[:, :13, :22], rtol=1e-12, atol=1e-12)


def test_a_scaled_window_at_twice_the_size_has_the_table_that_loading_into_it_gives():
    scaled, x = with_windows(["scaled"], (28, 28))
    wide = build_attention("window", {"window_size": 14, "shift_size": 7, "relative_position_bias": True}).double()
    state = scaled.state_dict()
    table = "relative_position_bias_table"
    wide.load_state_dict({**state, table: wide.fit_stored(table, state[table])})
    torch.testing.assert_close(scaled(x), wide(x), rtol=1e-12, atol=1e-12)


def bicubic(stored, size):
    """Return the matrix (size, stored) that interpolates by cubic convolution with a = −0.75; edges repeat."""
    matrix = torch.zeros(size, stored, dtype=torch.float64)
    for i in range(size):
        at = (i + 0.5) * stored / size - 0.5
        for j in range(math.floor(at) - 1, math.floor(at) + 3):
            t, a = abs(at - j), -0.75
            near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
            matrix[i, min(max(j, 0), stored - 1)] += near if t <= 1 else far
    return matrix


def test_the_table_of_a_scaled_window_is_interpolated_by_cubic_convolution():
    (scaled, _) = with_windows(["scaled"], (1, 1))
    table = scaled.relative_position_bias_table.detach()
    down, across = bicubic(13, 2 * 9 - 1), bicubic(13, 2 * 12 - 1)
    expected = torch.einsum("ay,bx,yxh->abh", down, across, table.view(13, 13, -1)).flatten(0, 1)
    (bias,) = scaled.biases((18, 24))  # windows of 9×12 tokens
    corner = bias.view(-1, 9, 12, 9, 12)[:, 8, 11]  # from the last token: offsets 8…0 down and 11…0 across
    own = expected.view(17, 23, -1)[8:, 11:].flip(0, 1).permute(2, 0, 1)
    torch.testing.assert_close(corner, own, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", [(14, 21), (13, 22), (3, 5)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("sema", {}), ("window", {}), ("window", SHIFTED)),
        *(("window", {**SHIFTED, "relative_position_bias": True, "windows": form}) for form in FORMS),
    ],
)
def test_fused_windows_of_cuda_give_what_explicit_ones_do(monkeypatch, name, options, grid):
    attention = build_attention(name, options).double()
    x = torch.randn(2, *grid, DIM, dtype=torch.float64)
    explicit = attention(x)
    monkeypatch.setattr("sema.attention.window.is_fused", lambda device: True)
    torch.testing.assert_close(attention(x), explicit, rtol=1e-11, atol=1e-12)


BIASED = {**SHIFTED, "relative_position_bias": True}


@pytest.mark.parametrize("most", [1, 5, 7])
@pytest.mark.parametrize("options", [{}, SHIFTED, BIASED, {"relative_position_bias": True}])
def test_sdpa_never_gets_more_windows_than_a_grid_of_cuda_holds(monkeypatch, options, most):
    attention = build_attention("window", options).double()
    x = torch.randn(most, 15, 22, DIM, dtype=torch.float64)  # more than ``most`` windows in each region but the corner
    explicit, sdpa, calls = attention(x), torch.nn.functional.scaled_dot_product_attention, []

    def strict_sdpa(q, k, v, **options):
        calls.append(max(q.shape[:2]))
        assert calls[-1] <= max(most, attention.num_heads), "CUDA error: invalid configuration argument"
        return sdpa(q, k, v, **options)

    monkeypatch.setattr("sema.attention.window.is_fused", lambda device: True)
    monkeypatch.setattr("sema.attention.window._MOST_AT_ONCE", most)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", strict_sdpa)
    torch.testing.assert_close(attention(x), explicit, rtol=1e-11, atol=1e-12)
    assert len(calls) > 4


@pytest.mark.parametrize("options", [SHIFTED, BIASED, {"relative_position_bias": True}])
def test_images_of_a_batch_share_the_mask_that_sdpa_gets(monkeypatch, options):
    attention, sizes = build_attention("window", options), {}
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def watched_sdpa(q, k, v, *, attn_mask, scale):
        sizes[batch] = sizes.get(batch, 0) + attn_mask.untyped_storage().nbytes()
        return sdpa(q, k, v, attn_mask=attn_mask, scale=scale)

    monkeypatch.setattr("sema.attention.window.is_fused", lambda device: True)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched_sdpa)
    for batch in (1, 4):
        attention(torch.randn(batch, *GRID, DIM))
    assert sizes[4] == sizes[1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sema", {"window_size": 0}, "window_size must be at least 1; got 0"),
        ("window", {"window_size": -7}, "window_size must be at least 1"),
        ("window", {"shift_size": 7}, r"shift_size must be in \[0, window_size=7\); got 7"),
        ("window", {"shift_size": -1}, "shift_size"),
        ("window", {"windows": "padding"}, "windows must be one of masked, padded, scaled; got 'padding'"),
        (
            "window",
            {"windows": "scaled", "shift_size": 2},
            "scaled windows take shift_size 0 or 3",
        ),
        ("window", {"windows": (0, 7)}, "the grid of scaled windows must be positive"),
    ],
)
def test_impossible_windows_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_attention(name, options)
