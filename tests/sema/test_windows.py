"""Windows without padding: the regions tile the grid, and cutting and merging are inverse."""

from __future__ import annotations

import pytest
import torch

from sema.layers.windows import split_windows, window_pairs, window_regions, window_slots

SIZES = [(1, 1), (3, 5), (7, 7), (14, 7), (13, 22), (8, 6), (29, 1)]


@pytest.mark.parametrize("grid", SIZES)
@pytest.mark.parametrize("window_size", [1, 4, 7])
def test_regions_tile_the_grid_once_with_the_windows_that_padding_would_give(grid, window_size):
    covered = torch.zeros(grid)
    label = torch.full((1, *grid, 1), -1)
    count = 0
    for region in window_regions(grid, window_size):
        region.view(covered[None, :, :, None])[:] += 1
        region.view(label)[:] = count + torch.arange(region.windows).reshape(1, region.rows, region.columns, 1, 1, 1)
        count += region.windows
    assert torch.equal(covered, torch.ones(grid))
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    expected = (row // window_size * 1000 + column // window_size).flatten()
    found = label.flatten()
    assert torch.equal(found[:, None] == found, expected[:, None] == expected)


@pytest.mark.parametrize("grid", SIZES)
def test_there_are_at_most_four_regions_and_one_where_the_window_divides(grid):
    regions = window_regions(grid, 7)
    assert len(regions) == (1 + (grid[0] > 7 and grid[0] % 7 > 0)) * (1 + (grid[1] > 7 and grid[1] % 7 > 0))


@pytest.mark.parametrize("grid", SIZES)
def test_splitting_and_storing_gives_the_map_back(grid):
    x = torch.randn(2, *grid, 3 * 8)
    out = torch.full((2, *grid, 8), float("nan"))
    for region in window_regions(grid, 4):
        middle = split_windows(x, region, parts=3, num_heads=2)[1]
        slots = window_slots(out, region, 2)
        slots.copy_(middle.view(slots.shape))
    assert torch.equal(out, x[..., 8:16])


@pytest.mark.parametrize("grid", SIZES)
def test_pairs_are_counted_as_a_mask_would_count_them(grid):
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    label = (row // 7 * 1000 + column // 7).flatten()
    assert window_pairs(grid, 7) == (label[:, None] == label).sum().item()
