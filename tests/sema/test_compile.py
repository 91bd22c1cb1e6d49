"""torch.compile: one graph without breaks, and no new one for each size where sizes are dynamic."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import sema
from sema.models.swin import Swin

#: The first are of each kind (square or not, multiples of the window or not); then nothing new comes.
FIRST, KNOWN = ((112, 112), (128, 128), (128, 160)), ((168, 168), (160, 160), (192, 128))
OTHERS = [
    *(name for name in sema.list_attentions() if name != "sema"),
    *(f"window,shift_size=3,relative_position_bias=true,windows={form}" for form in ("masked", "padded", "scaled")),
]


@pytest.mark.parametrize("shift_size", [0, 1])
def test_windows_compile_as_one_graph_in_every_mode(shift_size: int) -> None:
    torch._dynamo.reset()
    attention = sema.create_attention("window", dim=8, num_heads=2, window_size=3, shift_size=shift_size).eval()
    x = torch.randn(1, 5, 7, 8)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        compiled = torch.compile(attention, fullgraph=True, backend="eager")
        with mode():
            torch.testing.assert_close(compiled(x), attention(x))
    torch.testing.assert_close(torch.export.export(attention, (x,)).module()(x), attention(x))


@pytest.mark.parametrize("name", ["sema", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_new_resolution_needs_no_new_graph(name: str) -> None:
    torch._dynamo.reset()
    model = sema.create_model(f"sema_micro[{name}]").eval()
    counter = CompileCounter()
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=counter)
    with torch.inference_mode():
        for size in FIRST:
            image = torch.randn(1, 3, *size)
            torch.testing.assert_close(compiled(image), model(image))
        graphs = counter.frame_count
        for size in KNOWN:
            compiled(torch.randn(1, 3, *size))
    assert graphs <= len(FIRST)
    assert counter.frame_count == graphs


@pytest.mark.parametrize("windows", ["masked", "padded", "scaled"])
def test_swin_compiles_as_one_graph_and_exports_with_every_form_of_windows(windows: str) -> None:
    torch._dynamo.reset()
    model = Swin(32, (2, 2), ("window", "window"), num_classes=5, windows=windows).eval()
    image = torch.randn(1, 3, 76, 52)  # maps of 19×13 and 10×7 tokens
    with torch.no_grad():
        expected = model(image)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(image), expected)
        torch.testing.assert_close(torch.export.export(model, (image,)).module()(image), expected)
