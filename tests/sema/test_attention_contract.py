"""Test the contract of every attention in the registry; see ``sema.attention.base``."""

from __future__ import annotations

import pytest
import torch
from attention_cases import CASES, DIM, FEWER_CASES, GRIDS, NUM_HEADS, WITH_COEFFICIENTS, build_attention
from torch_counter import count_macs

from sema.attention.base import Attention

over_attentions = pytest.mark.parametrize(("name", "options"), CASES)
over_grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")

ODD_GRID = (13, 22)

#: Largest relative ℓ2 error of the bfloat16 forward: inputs of unit variance, rounded to 8 bits before each product.
BFLOAT16_TOLERANCE = 2e-2
#: The sum of every row of the coefficients. Others depend on the input; focused attention's are 1 only without its ε.
ROW_SUMS = {"sema": 2.0, "window": 1.0, "softmax": 1.0, "linear": 1.0, "inline": 1.0}


def image(grid, *, batch=2, dtype=torch.float64):
    return torch.randn(batch, *grid, DIM, dtype=dtype)


def relative_error(got, expected):
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


@over_attentions
@over_grids
def test_forward_equals_the_reference_in_float64(name, options, grid):
    attention, x = build_attention(name, options).double(), image(grid)
    out = attention(x)
    assert out.shape == x.shape
    torch.testing.assert_close(out, attention.reference(x), rtol=1e-10, atol=1e-10)


@over_attentions
def test_forward_equals_the_float64_reference_in_float32(name, options):
    attention, x = build_attention(name, options), image(ODD_GRID, dtype=torch.float32)
    out = attention(x)
    # A few hundred float32 roundings, each 6e-8.
    assert relative_error(out, attention.double().reference(x.double())) < 1e-5


@over_attentions
def test_gradients_equal_those_of_the_reference(name, options):
    attention, x = build_attention(name, options).double(), image(ODD_GRID).requires_grad_()
    probe = torch.randn_like(x)
    wanted = [x, *attention.parameters()]
    got, expected = (
        torch.autograd.grad((run(x) * probe).sum(), wanted) for run in (attention.forward, attention.reference)
    )
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@over_attentions
def test_every_parameter_has_a_use(name, options):
    attention, x = build_attention(name, options).double(), image(ODD_GRID)
    attention(x).square().sum().backward()
    unused = [key for key, p in attention.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


@over_attentions
def test_an_image_gives_the_same_alone_and_in_a_batch(name, options):
    attention, x = build_attention(name, options).double(), image(ODD_GRID, batch=3)
    alone = torch.cat([attention(one) for one in x.split(1)])
    torch.testing.assert_close(attention(x), alone, rtol=1e-12, atol=1e-12)


@over_attentions
def test_memory_layout_of_the_input_does_not_matter(name, options):
    attention, x = build_attention(name, options).double(), image(ODD_GRID)
    strided = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not strided.is_contiguous()
    torch.testing.assert_close(attention(strided), attention(x), rtol=1e-12, atol=1e-12)


@over_attentions
def test_input_is_left_as_it_was(name, options):
    attention, x = build_attention(name, options).double(), image(ODD_GRID)
    before = x.clone()
    attention(x)
    assert torch.equal(x, before)


@over_attentions
@over_grids
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_macs_equal_what_torch_counts(name, options, grid, device):
    attention = build_attention(name, options).to(device)
    x = torch.empty(1, *grid, DIM, device=device)
    assert attention.macs(grid).total == count_macs(lambda: attention(x))


@pytest.mark.parametrize(("name", "options"), WITH_COEFFICIENTS)
@over_grids
def test_coefficients_weigh_the_values_to_the_output_without_local_terms(name, options, grid):
    attention = build_attention(name, options).double()
    x = image(grid)
    local: object = 0.0
    if hasattr(attention, "local_reference"):
        local = attention.local_reference(x)
    elif getattr(attention, "lepe", None):
        local = attention.lepe.reference(_values_as_map(attention, x))
    mixed = attention.coefficients(x) @ attention.values(x)
    mixed = mixed.transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(mixed + local, attention(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "options"), [case for case in WITH_COEFFICIENTS if case.values[0] in ROW_SUMS])
def test_coefficient_rows_sum_to_the_constant_of_the_mechanism(name, options):
    attention = build_attention(name, options).double()
    expected = 1.0 if options.get("pooling") == "none" else ROW_SUMS[name]
    sums = attention.coefficients(image(ODD_GRID)).sum(dim=-1)
    # The largest deviation is linear attention's guard of 1e-6 in the denominator.
    torch.testing.assert_close(sums, torch.full_like(sums, expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "options"), WITH_COEFFICIENTS)
def test_some_rows_of_the_coefficients_are_rows_of_all(name, options):
    attention = build_attention(name, options).double()
    x, rows = image(ODD_GRID), torch.tensor([3, 0, ODD_GRID[0] * ODD_GRID[1] - 1])
    torch.testing.assert_close(attention.coefficients(x, rows), attention.coefficients(x)[..., rows, :])


@over_attentions
def test_a_mechanism_without_coefficients_says_so(name, options):
    attention = build_attention(name, options).double()
    if attention.has_coefficients:
        assert attention.coefficients(image((2, 3))).shape == (2, NUM_HEADS, 6, 6)
    else:
        with pytest.raises(TypeError, match="no coefficient matrix"):
            attention.coefficients(image((2, 3)))
        with pytest.raises(TypeError, match="no coefficient matrix"):
            attention.values(image((2, 3)))


@over_attentions
def test_bfloat16_stays_within_the_stated_bound(name, options):
    attention, x = build_attention(name, options), image(ODD_GRID, dtype=torch.float32)
    exact = attention.double().reference(x.double())
    out = attention.bfloat16()(x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert relative_error(out, exact) < BFLOAT16_TOLERANCE


@pytest.mark.parametrize(("name", "options"), FEWER_CASES)
def test_compiles_as_one_graph_and_gives_the_same_gradients(name, options):
    torch.compiler.reset()
    attention, x = build_attention(name, options).double(), image(ODD_GRID, batch=1).requires_grad_()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    out, expected = compiled(x), attention(x)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    probe = torch.randn_like(out)
    got, wanted = (torch.autograd.grad((y * probe).sum(), x)[0] for y in (out, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@over_attentions
def test_exports(name, options):
    attention, x = build_attention(name, options).double().eval(), image(ODD_GRID)
    exported = torch.export.export(attention, (x,)).module()
    torch.testing.assert_close(exported(x), attention(x), rtol=1e-10, atol=1e-10)


@over_attentions
@over_grids
def test_runs_on_the_meta_device(name, options, grid):
    x = image(grid).to("meta")
    out = build_attention(name, options).double().to("meta")(x)
    assert (out.shape, out.dtype, out.device.type) == (x.shape, x.dtype, "meta")


@over_attentions
def test_runs_under_inference_mode_and_autocast(name, options):
    attention, x = build_attention(name, options), image(ODD_GRID, dtype=torch.float32)
    with torch.inference_mode():
        plain = attention(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = attention(x)
    # Autocast rounds every product's inputs to bfloat16, as a bfloat16 model does.
    assert relative_error(mixed, plain) < BFLOAT16_TOLERANCE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@over_attentions
@over_grids
def test_forward_on_cuda_equals_the_float64_reference(monkeypatch, name, options, grid):
    # cuDNN convolves float32 in TF32 by default, which is exact to 1e-3 only.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    attention, x = build_attention(name, options), image(grid, dtype=torch.float32)
    exact = attention.double().reference(x.double())
    on_gpu = attention.float().cuda()
    assert relative_error(on_gpu(x.cuda()).cpu(), exact) < 1e-5
    half = on_gpu.bfloat16()(x.cuda().bfloat16())
    assert relative_error(half.cpu(), exact) < BFLOAT16_TOLERANCE


@over_attentions
def test_dim_must_be_a_positive_multiple_of_num_heads(name, options):
    for dim, num_heads in ((DIM, 3), (0, 1), (DIM, 0)):
        with pytest.raises(ValueError, match="dim must be a positive multiple of num_heads"):
            build_attention(name, options, dim=dim, num_heads=num_heads)


def test_base_class_leaves_the_mechanism_to_its_subclasses():
    attention = Attention(DIM, NUM_HEADS)
    x = image((2, 2))
    for call in (attention.forward, attention.reference):
        with pytest.raises(NotImplementedError):
            call(x)
    with pytest.raises(NotImplementedError):
        attention.macs((2, 2))


def _values_as_map(attention, x):
    return attention.values(x).transpose(1, 2).reshape(x.shape)
