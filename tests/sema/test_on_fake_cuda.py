"""Test every model on CUDA without a card: fake tensors take CUDA's paths, and refuse tensors of another device.

If torch sees no card, SDPA takes its math form. Here it takes the kernel of one backend, as on a card.
"""

from __future__ import annotations

import collections
import contextlib

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import sema
from sema.kernels import scan_backends
from sema.layers.table_cache import TableCache

pytestmark = pytest.mark.fake_cuda

aten = torch.ops.aten
#: SDPA's operator for each backend, and its further arguments.
BACKENDS = {
    "flash": (aten._scaled_dot_product_flash_attention, ()),
    "efficient": (aten._scaled_dot_product_efficient_attention, (False,)),
    "cudnn": (aten._scaled_dot_product_cudnn_attention, (False,)),
}
WITH_MASKS = ("swin_tiny", "flatten_swin_tiny", "inline_swin_tiny")

#: One of each family; the others differ only in size and are left to the slow tests.
SMALLEST = (
    *("sema_tiny", "mila_tiny", "deit_tiny", "sima_deit_tiny", "vminet_ti", "vminet2_ti", "sima_nano_12_p16"),
    *("xcit_small_12_p16", "cvt_13", "sima_cvt_13", "swin_tiny", "flatten_swin_tiny", "inline_swin_tiny"),
    *("vmamba_tiny_s1l8", "vim_tiny"),
    *(f"sema_micro[{name}]" for name in sema.list_attentions()),
)
LARGER = [pytest.param(name, marks=pytest.mark.slow) for name in sema.list_models() if name not in SMALLEST]

over_models = pytest.mark.parametrize("name", [*SMALLEST, *LARGER])


def use_sdpa(monkeypatch, backend):
    """Make SDPA call the kernel of ``backend``, whatever torch would choose."""
    operator, options = BACKENDS[backend]

    def sdpa(q, k, v, attn_mask=None, *, scale=None):
        if backend == "flash":
            assert attn_mask is None, "flash attention takes no mask"
            return operator(q, k, v, scale=scale)[0]
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*q.shape[:3], k.shape[2])
        return operator(q, k, v, attn_mask, *options, scale=scale)[0]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sdpa)


@contextlib.contextmanager
def on_fake_cuda(module):
    """Give ``module``, built on the meta device, fake parameters and buffers on CUDA while the body runs."""
    with FakeTensorMode():
        for part in module.modules():
            for table in (part._parameters, part._buffers):
                for key, value in table.items():
                    if value is not None:
                        fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
                        table[key] = nn.Parameter(fake) if isinstance(value, nn.Parameter) else fake
        yield module


def on_meta(name, *, dtype=torch.float32, memory_format=torch.contiguous_format):
    with torch.device("meta"):
        return sema.create_model(name).eval().to(dtype).to(memory_format=memory_format)


def fake_image(*, dtype=torch.float32, memory_format=torch.contiguous_format, size=(64, 96)):
    return torch.empty(2, 3, *size, dtype=dtype, device="cuda", memory_format=memory_format)


def check_logits(logits):
    assert logits.device.type == "cuda"
    assert logits.shape == (2, 1000)


@over_models
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)],
    ids=["float32", "bfloat16-channels-last"],
)
def test_every_model_runs_on_cuda_and_makes_no_tensor_elsewhere(monkeypatch, name, dtype, layout):
    use_sdpa(monkeypatch, "efficient")
    with on_fake_cuda(on_meta(name, dtype=dtype, memory_format=layout)) as model, torch.inference_mode():
        check_logits(model(fake_image(dtype=dtype, memory_format=layout)))


@over_models
def test_every_model_takes_a_training_forward_pass_on_cuda(monkeypatch, name):
    use_sdpa(monkeypatch, "efficient")
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *options: True)
    with on_fake_cuda(on_meta(name).train()) as model, torch.autocast("cuda", torch.bfloat16):
        check_logits(model(fake_image()))


@pytest.mark.parametrize("backend", [*BACKENDS, "math"])
@pytest.mark.parametrize("name", ["sema_tiny", "deit_tiny", "swin_tiny", "cvt_13"])
def test_every_sdpa_backend_gets_what_it_takes(monkeypatch, name, backend):
    if backend != "math":
        use_sdpa(monkeypatch, backend)
    with on_fake_cuda(on_meta(name)) as model, torch.inference_mode():
        if name in WITH_MASKS and backend == "flash":
            with pytest.raises(AssertionError, match="takes no mask"):
                model(fake_image())
        else:
            check_logits(model(fake_image()))


#: Operators that are not views but launch nothing.
NO_LAUNCHES = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "detach", "device", "lift_fresh"}


class Launches(TorchDispatchMode):
    """Counts the operators that launch a kernel."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__
        if not func.is_view and name not in NO_LAUNCHES:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def cache_fakes(monkeypatch):
    """Let the caches of tables take fake tensors; otherwise they take only real ones."""
    monkeypatch.setattr(TableCache, "may_cache", lambda cache, sources, *, training: True)
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda tensor: 0)


def launches_of(name, *, dtype=torch.float32):
    """Count the launches of the second pass, which finds tables of parameters in their caches, as on a card."""
    with on_fake_cuda(on_meta(name, dtype=dtype)) as model, torch.no_grad():  # inference mode would hide copies
        image = fake_image(dtype=dtype, size=(224, 224))
        model(image)
        with Launches() as launches:
            model(image)
    return launches.counts


@pytest.mark.parametrize(
    ("name", "dtype", "tf32", "launches"),
    [
        ("sema_tiny", torch.float32, False, 446),
        ("sema_tiny", torch.bfloat16, True, 446),
        ("sema_tiny", torch.float32, True, 482),  # TF32 would round what the CPE adds
        ("deit_small", torch.float32, False, 125),
    ],
)
def test_a_forward_pass_has_no_more_launches_than_it_needs(monkeypatch, name, dtype, tf32, launches):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    cache_fakes(monkeypatch)
    use_sdpa(monkeypatch, "efficient")
    counts = launches_of(name, dtype=dtype)
    assert sum(counts.values()) <= launches, counts


@pytest.mark.parametrize("name", ["vmamba_tiny_s1l8", "vim_tiny", "sema_micro[vim]"])
def test_auto_takes_tritons_scan_on_cuda_and_the_model_says_so(monkeypatch, name):
    pytest.importorskip("triton")
    scans = [module for module in sema.create_model(name).modules() if hasattr(module, "scan_kernel")]
    assert {module.scan_kernel for module in scans} == {"torch"}, "on a CPU"
    counts = launches_of(name)
    assert counts["selective_scan_triton"] >= len(scans)
    assert not counts["selective_scan"]


@pytest.mark.parametrize(
    ("has_triton", "states", "kernel"),
    [
        (True, 256, "triton"),
        (True, 257, "torch (Triton's holds at most 256 states)"),
        (False, 16, "torch (the package triton is not installed)"),
    ],
)
def test_auto_takes_the_torch_form_where_tritons_is_not_there_or_does_not_fit(monkeypatch, has_triton, states, kernel):
    if has_triton:
        pytest.importorskip("triton")
    monkeypatch.setattr(scan_backends, "_HAS_TRITON", has_triton)
    with torch.device("meta"):
        on_shapes = sema.create_attention("vim", dim=8, num_heads=1, state_dim=states)
    with on_fake_cuda(on_shapes) as attention, torch.no_grad(), Launches() as launches:
        attention(torch.empty(1, 3, 5, 8, device="cuda"))
        assert attention.scan_kernel == kernel
    assert launches.counts["selective_scan_triton" if kernel == "triton" else "selective_scan"] == 1


@pytest.mark.parametrize("scan", ["torch", "triton"])
def test_a_scan_by_name_stays_that_scan(scan):
    if scan == "triton":
        pytest.importorskip("triton")
    counts = launches_of(f"vim_tiny[scan={scan}]")
    assert counts["selective_scan_triton" if scan == "triton" else "selective_scan"] == 24


@pytest.mark.parametrize("name", ["vmamba_tiny_s1l8", "vim_tiny"])
def test_a_form_keeps_a_scan_that_was_named(name):
    kernels = {}
    for scan in ("auto", "torch"):
        form = sema.optimize_for_inference(sema.create_model(f"{name}[scan={scan}]"), example_size=(1, 3, 32, 32))
        kernels[scan] = form.kernels["selective_scan"]
    assert kernels["torch"] == "torch"
    assert kernels["auto"] != "torch"
