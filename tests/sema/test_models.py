"""Test every model: its size, its cost, the shapes of its maps, and what it refuses."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch_counter import count_macs

import sema
from sema.models import MODELS as PRESETS
from sema.models.hierarchical import HierarchicalBackbone
from sema.models.swin import Swin
from sema.models.vit import VisionTransformer
from sema.models.vmamba import VMamba
from sema.models.vminet import VMINet

#: GMAC at a square input, as counted on the official implementations.
PUBLISHED_GMACS = [
    ("mila_tiny", {224: 4.131, 256: 5.396, 384: 12.140, 512: 21.582, 768: 48.560, 1024: 86.328}),
    ("mila_small", {224: 7.249}),
    ("mila_base", {224: 16.114}),
    ("deit_tiny", {224: 1.254}),
    ("deit_small", {224: 4.599, 384: 15.490, 512: 31.749, 768: 98.588, 1024: 242.897}),
    ("deit_base", {224: 17.564}),
    ("vminet_ti", {224: 0.347}),
    ("vminet_xs", {224: 1.252}),
    ("vminet_s", {224: 2.295}),
    ("vminet_b", {224: 4.769}),
    ("vminet2_ti", {224: 0.347}),
    ("vminet2_xs", {224: 1.252}),
    ("vminet2_s", {224: 2.295}),
    ("vminet2_b", {224: 4.769}),
    ("sima_nano_12_p16", {224: 0.557}),
    ("sima_tiny_12_p16", {224: 1.245}),
    ("sima_small_12_p16", {224: 4.853, 256: 6.338, 384: 14.256, 512: 25.340, 768: 57.011, 1024: 101.350}),
    ("sima_tiny_24_p16", {224: 2.336}),
    ("sima_small_24_p16", {224: 9.118}),
    ("sima_medium_24_p16", {224: 16.186}),
    ("xcit_small_12_p16", {224: 4.796}),
    ("cvt_13", {224: 4.566}),
    ("swin_tiny", {224: 4.491}),
    ("swin_tiny[windows=padded]", {224: 4.491, 384: 14.300, 512: 25.503, 768: 54.429, 1024: 98.411}),
    ("swin_small", {224: 8.741}),
    ("swin_base", {224: 15.431}),
    ("flatten_swin_tiny", {224: 4.483}),
    ("inline_swin_tiny", {224: 4.459}),
    ("vmamba_tiny_s1l8", {224: 4.813, 256: 6.286, 384: 14.142, 512: 25.140, 768: 56.565, 1024: 100.559}),
    ("vmamba_small_s2l15", {224: 8.499}),
    ("vmamba_base_s2l15", {224: 15.070}),
    ("vmamba_small_s1l20", {224: 8.470}),
    ("vmamba_base_s1l20", {224: 15.031}),
    # Counts of the official code give Vim-S 4.852 and Vim-B 18.767: its causal convolutions also compute three tokens
    # beyond each end of the sequence, 24·2·3·4·D MACs.
    ("vim_tiny", {224: 1.293}),
    ("vim_small", {224: 4.851}),
    ("vim_base", {224: 18.766}),
    # No published count: MILA-T's, with a V projection, and windows instead of the linear products.
    ("sema_tiny", {224: 4.406}),
]

ATTENTIONS = sema.list_attentions()
MODELS = sema.list_models()


def on_meta(name, **options):
    with torch.device("meta"):
        return sema.create_model(name, **options).eval()


def small_backbone(attention="sema", **options):
    arguments = {"stages": ((8, 2, 1), (16, 4, 1), (32, 8, 2), (64, 16, 1)), "num_classes": 5, **options}
    return HierarchicalBackbone(attention=attention, **arguments)


def small_vit(**options):
    arguments = {"dim": 16, "depth": 4, "num_heads": 2, "attention": "softmax", "num_classes": 5, "img_size": 64}
    return VisionTransformer(**{**arguments, **options})


def small_vmamba(**options):
    arguments = {"dim": 8, "depths": (1, 2), "ssm_ratio": 2, "num_classes": 5}
    return VMamba(**{**arguments, **options})


def in_eval(model):
    """Return the model in eval mode, with batch-norm statistics other than the initial ones."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


SMALL = [
    pytest.param(small_backbone, id="hierarchical"),
    pytest.param(small_vit, id="vit"),
    pytest.param(small_vmamba, id="vmamba"),
]


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count_is_that_of_the_official_model(name):
    assert sum(p.numel() for p in on_meta(name).parameters()) == PRESETS.preset(name).parameters


@pytest.mark.parametrize(("name", "gmacs"), PUBLISHED_GMACS)
def test_macs_are_the_published_ones(name, gmacs):
    model = on_meta(name)
    assert {side: round(model.macs((side, side)).total / 1e9, 3) for side in gmacs} == gmacs


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("_tiny")])
@pytest.mark.parametrize("resolution", [(33, 47), (32, 32)])
def test_macs_equal_what_torch_counts(name, resolution):
    model = on_meta(name)
    x = torch.empty(1, 3, *resolution, device="meta")
    assert model.macs(resolution).total == count_macs(lambda: model(x))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("resolution", [(224, 224), (97, 65)])
def test_macs_equal_what_torch_counts_with_every_attention(attention, resolution):
    model = on_meta("sema_micro", attention=attention)
    x = torch.empty(1, 3, *resolution, device="meta")
    assert model.macs(resolution).total == count_macs(lambda: model(x))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_swapping_the_attention_changes_nothing_but_the_attention(attention):
    def rest(model):
        return {key: value.shape for key, value in model.state_dict().items() if ".attn." not in key}

    assert rest(on_meta("sema_tiny", attention=attention)) == rest(on_meta("sema_tiny"))
    assert rest(on_meta(f"sema_tiny[{attention}]")) == rest(on_meta("mila_tiny"))


@pytest.mark.parametrize("build", SMALL)
@pytest.mark.parametrize("resolution", [(32, 32), (33, 47), (65, 97), (64, 64)])
def test_any_resolution_runs_forward_and_backward(build, resolution):
    model = build()
    out = model(torch.randn(2, 3, *resolution))
    assert out.shape == (2, 5)
    out.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_runs_in_the_backbone_at_an_odd_size(attention):
    model = in_eval(small_backbone(attention))
    assert torch.isfinite(model(torch.randn(1, 3, 97, 65))).all()


def test_features_are_the_four_maps_before_downsampling():
    maps = small_backbone().forward_features(torch.randn(2, 3, 97, 65))
    assert [tuple(m.shape) for m in maps] == [(2, 25, 17, 8), (2, 13, 9, 16), (2, 7, 5, 32), (2, 4, 3, 64)]


def test_features_of_vit_are_maps_after_each_quarter_without_the_class_token():
    model = small_vit(depth=8).eval()
    maps = model.forward_features(torch.randn(2, 3, 33, 50))
    assert [tuple(m.shape) for m in maps] == [(2, 2, 3, 16)] * 4


@pytest.mark.parametrize("build", SMALL)
def test_forward_ends_where_forward_features_ends(build):
    model, x = in_eval(build()).double(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    seen = []
    is_vit = isinstance(model, VisionTransformer)
    last = model.blocks[-1] if is_vit else model.layers[-1]
    last.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model(x)
    features = model.forward_features(x)[-1]
    stored = seen[0][:, 0, 1:] if is_vit else seen[0]
    torch.testing.assert_close(stored.reshape(features.shape), features, rtol=0, atol=0)


def test_forward_keeps_no_map_of_an_earlier_stage_alive():
    model = in_eval(small_backbone())
    maps: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def keep(_module, _inputs, output):
        maps.append(weakref.ref(output))

    def look(_module, _inputs):
        alive.append(sum(ref() is not None for ref in maps))

    for stage in model.layers[:3]:
        for block in stage.blocks:
            block.register_forward_hook(keep)
    model.layers[3].blocks[0].register_forward_pre_hook(look)
    with torch.inference_mode():
        model(torch.randn(1, 3, 64, 64))
    assert (len(maps), alive) == (4, [0])


@pytest.mark.parametrize("build", SMALL)
def test_eval_is_deterministic_and_independent_of_the_batch(build):
    model, x = in_eval(build(drop_path_rate=0.5)).double(), torch.randn(3, 3, 50, 64, dtype=torch.float64)
    out = model(x)
    assert torch.equal(out, model(x))
    torch.testing.assert_close(out, torch.cat([model(one) for one in x.split(1)]), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("build", SMALL)
def test_memory_format_of_the_image_does_not_matter(build):
    model, x = in_eval(build()).double(), torch.randn(2, 3, 50, 64, dtype=torch.float64)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), model(x), rtol=1e-11, atol=1e-11)


def test_maps_are_channels_last_in_memory_whatever_the_image_is():
    for memory_format in (torch.contiguous_format, torch.channels_last):
        maps = small_backbone().forward_features(torch.randn(2, 3, 64, 64).contiguous(memory_format=memory_format))
        assert all(m.is_contiguous() for m in maps)


@pytest.mark.parametrize("build", SMALL)
def test_compiles_as_one_graph_and_exports(build):
    torch.compiler.reset()
    model, x = in_eval(build()).double(), torch.randn(2, 3, 33, 50, dtype=torch.float64)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-10, atol=1e-10)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("build", SMALL)
@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 1, 64, 64), (2, 64, 64, 3)])
def test_a_wrong_input_is_refused_with_what_was_expected(build, shape):
    with pytest.raises(ValueError, match=r"expected an image batch \(B, 3, H, W\); got shape"):
        build()(torch.randn(shape))


@pytest.mark.parametrize("resolution", [(31, 64), (64, 31)])
def test_an_image_below_the_smallest_size_is_refused(resolution):
    with pytest.raises(ValueError, match=f"at least 32 pixels; got {resolution[0]}×{resolution[1]}"):
        small_backbone()(torch.randn(1, 3, *resolution))


@pytest.mark.parametrize("build", SMALL)
def test_classes_and_channels_follow_the_arguments(build):
    model = build(num_classes=7, in_chans=1)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)


def test_vit_positions_are_the_stored_ones_at_the_base_grid_and_interpolated_elsewhere():
    model = small_vit()
    assert model.positions((4, 4)) is model.pos_embed
    with torch.no_grad():
        model.pos_embed.copy_(torch.ones_like(model.pos_embed) * torch.arange(16.0))
    # A constant map interpolates to itself.
    torch.testing.assert_close(model.positions((7, 3)), torch.arange(16.0).expand(1, 22, 16), rtol=1e-6, atol=1e-6)


def test_vit_leaves_out_pixels_beyond_the_last_whole_patch():
    model, x = small_vit().eval(), torch.randn(1, 3, 50, 47)
    torch.testing.assert_close(model(x), model(x[:, :, :48, :32]), rtol=0, atol=0)
    with pytest.raises(ValueError, match="at least 16 pixels; got 15×64"):
        model(torch.randn(1, 3, 15, 64))


def test_positions_of_an_oblong_image_are_used_as_they_are():
    model = small_vit(img_size=(64, 96)).eval()
    assert model.pos_embed.shape == (1, 25, 16)
    assert model.positions((4, 6)) is model.pos_embed
    other = small_vit().eval()
    sema.load_checkpoint(other, model.state_dict())
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match="a table of 24 positions is neither a square nor for the grid 4×4"):
        other(torch.randn(1, 3, 64, 64))


def test_token_grids_of_the_stages_follow_img_size():
    grids = [
        next(block.attn.sum.token_grid for block in stage.blocks)
        for stage in on_meta("sema_tiny", attention="vmi", img_size=100).layers
    ]
    assert grids == [(25, 25), (13, 13), (7, 7), (4, 4)]


@pytest.mark.parametrize("name", ["sema_tiny[window,windows=scaled]", "swin_tiny[windows=scaled]"])
def test_a_model_scales_its_windows_from_the_size_that_each_stage_has_at_224(name):
    for stage, side in zip(on_meta(name).layers, (56, 28, 14, 7), strict=True):
        layout = stage.blocks[1].attn.rule.layout((2 * side, 3 * side))
        assert layout.window == (14, 21)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (small_backbone, {"stages": ((8, 2, 1), (15, 3, 1))}, "twice the channels"),
        (small_backbone, {"stages": ((8, 3, 1),)}, "a positive multiple of num_heads"),
        (small_backbone, {"stages": ((5, 1, 1), (10, 2, 1))}, "dim must be even"),
        (small_vit, {"depth": 6}, "multiple of 4"),
        (small_vit, {"attention": "linear"}, "attention must be one of softmax, sima"),
        (Swin, {"dim": 32, "depths": (1,), "attentions": ("linear",)}, "attentions must be window, focused or inline"),
        (sema.create_model, {"name": "swin_tiny", "windows": "full"}, "windows must be one of masked, padded, scaled"),
        (small_vit, {"img_size": 65}, "multiple of 16"),
        (VMINet, {"dim": 8, "depths": (1,), "expansion": 1, "version": 3}, "version must be 1 or 2; got 3"),
    ],
)
def test_dimensions_that_do_not_fit_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
