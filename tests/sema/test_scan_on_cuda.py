"""Test the selective scan on CUDA without a card: its launches, where and on which grid, registers, and results.

Triton compiles its kernels ahead of time for cards that are not here. This prints their registers and spills:

    pytest -n 0 -s -m "slow or not slow" tests/sema/test_scan_on_cuda.py -k spill
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sema.layers import selective_scan as module
from sema.layers.selective_scan import scan_scratch_bytes

#: (directions, batch, P, Q, channels, states) as in VMamba and Vim, with fewer tokens and channels, and sizes of 1.
SHAPES = ["2,1,9,9,70,1", "2,1,1,67,70,16", "1,1,1,1,1,1", "1,1,1,65,3,1", "1,2,3,1,1,5"]
WHOLE = [pytest.param(shape, marks=pytest.mark.slow) for shape in ("2,1,14,14,192,1", "2,1,1,197,384,16")]


def arguments(g, b, p, q, d, n, **options):
    shapes = ((g, b, p, q, d), (g, b, p, q, d), (g, d, n), (g, b, p, q, n), (g, b, p, q, n))
    return [torch.zeros(shape, **options) for shape in shapes]


class Launches:
    """Stands in for a Triton kernel; logs the current device and the grid of each launch."""

    def __init__(self, log):
        self.log = log

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.log.append(grid)


@pytest.fixture
def launches(monkeypatch):
    from sema.kernels import scan_triton

    log = []

    @contextlib.contextmanager
    def device_of(x):
        log.append(("enter", x.shape))
        yield
        log.append("leave")

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for kernel in ("_run_chunk", "_carry"):
        monkeypatch.setattr(scan_triton, kernel, Launches(log))
    return log


@pytest.mark.triton
def test_kernels_are_launched_on_the_card_of_their_tensors(launches):
    given = arguments(2, 1, 3, 5, 4, 2)
    torch.ops.sema.selective_scan_triton(*given)
    assert launches == [("enter", given[1].shape), (2, 1), (2, 1), (2, 1), "leave"]


@pytest.mark.triton
@pytest.mark.parametrize(("side", "channels"), [(2048, 1), (1, 65_536)])
def test_no_grid_is_larger_than_cuda_allows(launches, side, channels):
    """An image of 8192² pixels has 2048² tokens: 65,536 chunks, one more than the second axis of a grid holds."""
    torch.ops.sema.selective_scan_triton(*arguments(1, 1, side, side, channels, 1))
    grids = [entry for entry in launches if isinstance(entry[0], int)]
    assert len(grids) == 3
    assert all(first < 2**31 and all(axis <= 65_535 for axis in others) for first, *others in grids)


#: VMamba and Vim on a current card; the rest is left to the slow tests.
COMPILED = [
    pytest.param(capability, states, marks=() if capability == 90 and states <= 16 else pytest.mark.slow)
    for capability in (75, 80, 90)
    for states in (1, 16, 64, 256)
]


@pytest.mark.triton
@pytest.mark.parametrize(("capability", "states"), COMPILED)
def test_kernels_spill_no_registers(tmp_path, monkeypatch, capability, states):
    """With one state all sizes are 1. On a card they become constants; the interpreter never does that."""
    from sema.kernels import scan_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    ones = ("batch", "length", "channels", "states", "chunks") if states == 1 else ()
    tile = scan_triton._tile(384, states)
    for dtype in ("fp32", "fp64"):
        for name, kernel, constants in (
            ("first pass", scan_triton._run_chunk, {"CHUNK": scan_triton._CHUNK, "LAST": False, **tile}),
            ("last pass", scan_triton._run_chunk, {"CHUNK": scan_triton._CHUNK, "LAST": True, **tile}),
            ("carry", scan_triton._carry, tile),
        ):
            fixed = constants | {size: 1 for size in ones if size in kernel.arg_names}
            registers, spilled = compile_for(capability, kernel, fixed, dtype, tmp_path)
            print(
                f"sm_{capability} {states:3} states {dtype} {name:10}: {registers:3} registers, {spilled} bytes spilled"
            )
            assert spilled == 0


def compile_for(capability, kernel, constants, dtype, folder):
    """Compile a kernel for a card that is not here; return its registers and the bytes that it spills."""
    import triton
    from triton.backends import nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: f"*{dtype}" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
    source = ASTSource(
        fn=kernel,
        signature=types | dict.fromkeys(constants, "constexpr"),
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
    )
    (folder / "kernel.ptx").write_text(triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"])
    architecture = f"sm_{capability}" + ("a" if capability >= 90 else "")
    done = subprocess.run(
        [Path(nvidia.__file__).parent / "bin" / "ptxas", "-v", f"--gpu-name={architecture}", "kernel.ptx"],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    return int(re.findall(r"Used (\d+) registers", done.stderr)[0]), sum(map(int, spills))


_IN_TRITON = """
import sys
import torch
from sema.kernels.scan_backends import load_scan
from sema.layers.selective_scan import selective_scan
torch.manual_seed(0)
for shape in sys.argv[1:]:
    g, b, p, q, d, n = map(int, shape.split(","))
    given = [torch.randn(1, b, p, q, d), 0.3 * torch.rand(g, b, p, q, d), -torch.rand(g, d, n) - 0.1]
    given += [torch.randn(g, b, p, q, n) for _ in range(2)]
    given[0] = given[0].expand_as(given[1])  # as VMamba gives it
    expected = selective_scan(*(x.double() for x in given))
    got = load_scan("triton")(*given)
    assert (got - expected).norm() <= 1e-5 * expected.norm(), shape
print("equal")
"""


@pytest.mark.interpreter
@pytest.mark.parametrize("shapes", [SHAPES, *WHOLE], ids=str)
def test_the_kernels_equal_the_torch_form_at_the_shapes_of_models_and_at_sizes_of_one(shapes):
    done = subprocess.run(
        [sys.executable, "-c", _IN_TRITON, *([shapes] if isinstance(shapes, str) else shapes)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def test_on_cuda_the_torch_form_runs_all_channels_at_once():
    """Blocks of channels suit a CPU's cache; on a card each block would launch every step again."""
    shape = (2, 8, 56, 56, 96, 16)
    blocks, scratch = {}, {}
    with FakeTensorMode():
        for device in ("cpu", "cuda"):
            delta, a = arguments(*shape, device=device)[1:3]
            blocks[device] = len(list(module._blocks(delta, a)))
            scratch[device] = scan_scratch_bytes(delta, a)
    assert blocks == {"cpu": 3, "cuda": 1}
    assert scratch["cuda"] > 2 * scratch["cpu"], "the forecast knows"
