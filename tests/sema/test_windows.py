"""Test windows: the regions tile the grid, merging inverts cutting, and each rule gives the size that it states."""

from __future__ import annotations

import pytest
import torch

from sema.layers.windows import WindowRule, split_windows, window_pairs, window_regions, window_slots

SIZES = [(1, 1), (3, 5), (7, 7), (14, 7), (13, 22), (8, 6), (29, 1)]


@pytest.mark.parametrize("grid", SIZES)
@pytest.mark.parametrize("window", [(1, 1), (4, 4), (7, 7), (4, 7), (5, 2)])
def test_regions_tile_the_grid_once_with_the_windows_that_padding_would_give(grid, window):
    covered = torch.zeros(grid)
    label = torch.full((1, *grid, 1), -1)
    count = 0
    for region in window_regions(grid, window):
        region.view(covered[None, :, :, None])[:] += 1
        region.view(label)[:] = count + torch.arange(region.windows).reshape(1, region.rows, region.columns, 1, 1, 1)
        count += region.windows
    assert torch.equal(covered, torch.ones(grid))
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    expected = (row // window[0] * 1000 + column // window[1]).flatten()
    flat = label.flatten()
    assert torch.equal(flat[:, None] == flat, expected[:, None] == expected)


@pytest.mark.parametrize("grid", SIZES)
def test_there_are_at_most_four_regions_and_one_where_the_window_divides(grid):
    regions = window_regions(grid, (7, 7))
    assert len(regions) == (1 + (grid[0] > 7 and grid[0] % 7 > 0)) * (1 + (grid[1] > 7 and grid[1] % 7 > 0))


@pytest.mark.parametrize("grid", SIZES)
def test_splitting_and_storing_gives_the_map_back(grid):
    x = torch.randn(2, *grid, 3 * 8)
    out = torch.full((2, *grid, 8), float("nan"))
    for region in window_regions(grid, (4, 4)):
        middle = split_windows(x, region, parts=3, num_heads=2)[1]
        slots = window_slots(out, region, 2)
        slots.copy_(middle.view(slots.shape))
    assert torch.equal(out, x[..., 8:16])


@pytest.mark.parametrize("grid", SIZES)
def test_pairs_are_counted_as_a_mask_would_count_them(grid):
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    label = (row // 7 * 1000 + column // 7).flatten()
    assert window_pairs(grid, (7, 7)) == (label[:, None] == label).sum().item()


SWIN_STAGES = [(56, 56), (28, 28), (14, 14), (7, 7)]


@pytest.mark.parametrize(("side", "window"), [(224, 7), (288, 9), (384, 12), (512, 16), (640, 20), (768, 24)])
def test_scaled_windows_are_those_of_vmambas_table_at_its_sizes(side, window):
    for base in SWIN_STAGES:
        grid = side * base[0] // 224
        layout = WindowRule("scaled", 7, 3, base).layout((grid, grid))
        shift = 0 if grid == window else window // 2
        assert layout == ((grid, grid), (window, window), (shift, shift))


def test_scaled_windows_between_those_sizes_are_rounded_up_to_whole_tokens():
    side, windows = 250, set()
    for stage, base in enumerate(SWIN_STAGES):
        grid = -(-side // (4 << stage))
        windows.add(WindowRule("scaled", 7, 3, base).layout((grid, grid)).window)
    assert windows == {(8, 8)}  # 7 · 250 / 224 = 7.8, and one window in the last stage as at 224


def test_a_shift_needs_two_windows_a_side_unless_the_map_is_padded():
    assert WindowRule("masked", 7, 3, (14, 14)).layout((7, 20)).shift == (0, 0)
    assert WindowRule("scaled", 7, 3, (7, 7)).layout((40, 40)).shift == (0, 0)
    assert WindowRule("padded", 7, 3, (14, 14)).layout((5, 20)) == ((7, 21), (7, 7), (3, 3))


def test_a_wide_map_has_wide_scaled_windows_and_each_side_its_shift():
    assert WindowRule("scaled", 7, 3, (14, 14)).layout((13, 22)) == ((13, 22), (7, 11), (3, 5))
