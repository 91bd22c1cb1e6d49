"""Every model by name, one line each: its title, its number of parameters, and the numbers that define it.

Arguments before the ``*`` of a class are structure, fixed here. Those after it are options that users may set; a line
may change their default, as with ``drop_path_rate``. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sema.registry import Preset, PresetRegistry


def family(target: str, description: str, **shared: Any) -> Callable[..., Preset]:
    """Make the presets of a class: ``swin = family(…)``, then ``swin("Swin-T", 28_288_354, depths=…)``.

    Args:
        target: ``module:class``, the module in ``sema.models``.
        description: what the family is, for lists of models.
        shared: arguments of every preset of the family.
    """

    def preset(title: str, parameters: int, **arguments: Any) -> Preset:
        return Preset(f"sema.models.{target}", f"{title}: {description}", parameters, {**shared, **arguments})

    return preset


_MILA, _NARROW = "hierarchical:HierarchicalBackbone", "hierarchical:NarrowBackbone"
_VIT, _XCIT, _CVT, _SWIN, _VMAMBA = "vit:VisionTransformer", "xcit:XCiT", "cvt:CvT", "swin:Swin", "vmamba:VMamba"
_PATCHES = "over 16×16 patches"
_ROWS_AND_COLUMNS = "selective scans along rows and columns"

sema = family(_MILA, "SEMA attention in MILA's macro design", attention="sema")
micro = family(_NARROW, "our own two blocks of 32 channels with SEMA, to train on a CPU", attention="sema")
mila = family(_MILA, "MILA (MLLA), linear attention with rotary positions", attention="mila")
deit = family(_VIT, f"ViT with softmax attention {_PATCHES}", attention="softmax", depth=12, drop_path_rate=0.1)
sima_deit = family(_VIT, "DeiT with SimA in place of softmax attention", attention="sima", depth=12, drop_path_rate=0.1)
vminet = family("vminet:VMINet", "separable self-attention, one weighted sum of all tokens", depths=(2, 2, 18, 2))
vminet2 = family(
    "vminet:VMINet", "VMINet with each channel's token sum masked, no norm behind it", depths=(2, 2, 18, 2), version=2
)
sima = family(_XCIT, f"softmax-free attention {_PATCHES}", attention="sima")
xcit = family(_XCIT, f"cross-covariance attention {_PATCHES}", attention="xca")
cvt = family(_CVT, "softmax attention with convolutional projections", mechanism="softmax", drop_path_rate=0.1)
sima_cvt = family(_CVT, "CvT-13 with SimA in place of softmax attention", mechanism="sima", drop_path_rate=0.1)
swin = family(_SWIN, "softmax attention in shifted 7×7 windows", attentions=("window",) * 4)
flatten_swin = family(
    _SWIN,
    "focused linear attention in stages 1 and 2, shifted windows in 3 and 4",
    attentions=("focused", "focused", "window", "window"),
)
inline_swin = family(
    _SWIN, "InLine attention in stages 1 to 3, windows in stage 4", attentions=("inline", "inline", "inline", "window")
)
vmamba_s1 = family(_VMAMBA, f"{_ROWS_AND_COLUMNS}, 1× channels in the scan", ssm_ratio=1)
vmamba_s2 = family(_VMAMBA, f"{_ROWS_AND_COLUMNS}, 2× channels in the scan", ssm_ratio=2)
vim = family("vim:Vim", f"bidirectional selective scan {_PATCHES}", depth=24)

#: (channels, heads, blocks) of each stage of MILA's backbone.
_TINY = ((64, 2, 2), (128, 4, 4), (256, 8, 8), (512, 16, 4))
_SMALL = ((64, 2, 3), (128, 4, 6), (256, 8, 21), (512, 16, 6))
_BASE = ((96, 3, 3), (192, 6, 6), (384, 12, 21), (768, 24, 6))

_PRESETS = {
    "sema_tiny": sema("SEMA-T", 26_043_528, stages=_TINY, drop_path_rate=0.2),
    "sema_small": sema("SEMA-S", 46_084_168, stages=_SMALL, drop_path_rate=0.3),
    "sema_base": sema("SEMA-B", 102_882_424, stages=_BASE, drop_path_rate=0.5),
    "sema_micro": micro("SEMA-micro", 93_240, stages=((32, 2, 2),)),
    "mila_tiny": mila("MILA-T", 24_392_200, stages=_TINY, drop_path_rate=0.2),
    "mila_small": mila("MILA-S", 43_015_048, stages=_SMALL, drop_path_rate=0.3),
    "mila_base": mila("MILA-B", 95_983_960, stages=_BASE, drop_path_rate=0.5),
    "deit_tiny": deit("DeiT-Ti", 5_717_416, dim=192, num_heads=3),
    "deit_small": deit("DeiT-S", 22_050_664, dim=384, num_heads=6),
    "deit_base": deit("DeiT-B", 86_567_656, dim=768, num_heads=12),
    "vminet_ti": vminet("VMINet-Ti", 2_036_938, dim=24, expansion=2),
    "vminet_xs": vminet("VMINet-XS", 7_440_370, dim=48, expansion=2),
    "vminet_s": vminet("VMINet-S", 13_347_442, dim=48, expansion=4),
    "vminet_b": vminet("VMINet-B", 28_387_138, dim=96, expansion=2),
    "vminet2_ti": vminet2("VMINet2.0-Ti", 2_032_426, dim=24, expansion=2),
    "vminet2_xs": vminet2("VMINet2.0-XS", 7_431_346, dim=48, expansion=2),
    "vminet2_s": vminet2("VMINet2.0-S", 13_338_418, dim=48, expansion=4),
    "vminet2_b": vminet2("VMINet2.0-B", 28_369_090, dim=96, expansion=2),
    "sima_nano_12_p16": sima("SimA-XCiT-N12/16", 3_053_176, dim=128, depth=12, num_heads=4, norm_all=False),
    "sima_tiny_12_p16": sima("SimA-XCiT-T12/16", 6_716_224, dim=192, depth=12, num_heads=4),
    "sima_small_12_p16": sima("SimA-XCiT-S12/16", 26_253_208, dim=384, depth=12, num_heads=8, drop_path_rate=0.05),
    "sima_tiny_24_p16": sima("SimA-XCiT-T24/16", 12_116_800, dim=192, depth=24, num_heads=4, drop_path_rate=0.05),
    "sima_small_24_p16": sima("SimA-XCiT-S24/16", 47_671_192, dim=384, depth=24, num_heads=8, drop_path_rate=0.1),
    "sima_medium_24_p16": sima("SimA-XCiT-M24/16", 84_395_560, dim=512, depth=24, num_heads=8, drop_path_rate=0.15),
    "xcit_small_12_p16": xcit("XCiT-S12/16", 26_253_304, dim=384, depth=12, num_heads=8, drop_path_rate=0.05),
    "sima_deit_tiny": sima_deit("SimA-DeiT-Ti", 5_717_416, dim=192, num_heads=3),
    "sima_deit_small": sima_deit("SimA-DeiT-S", 22_050_664, dim=384, num_heads=6),
    "sima_deit_base": sima_deit("SimA-DeiT-B", 86_567_656, dim=768, num_heads=12),
    "cvt_13": cvt("CvT-13", 19_997_480),
    "sima_cvt_13": sima_cvt("SimA-CvT-13", 19_997_480),
    "swin_tiny": swin("Swin-T", 28_288_354, dim=96, depths=(2, 2, 6, 2), drop_path_rate=0.2),
    "swin_small": swin("Swin-S", 49_606_258, dim=96, depths=(2, 2, 18, 2), drop_path_rate=0.3),
    "swin_base": swin("Swin-B", 87_768_224, dim=128, depths=(2, 2, 18, 2), drop_path_rate=0.5),
    "flatten_swin_tiny": flatten_swin("FLatten-Swin-T", 29_192_384, dim=96, depths=(2, 2, 6, 2), drop_path_rate=0.2),
    "inline_swin_tiny": inline_swin("InLine-Swin-T", 29_223_544, dim=96, depths=(2, 2, 6, 2), drop_path_rate=0.2),
    "vmamba_tiny_s1l8": vmamba_s1("VMamba-T[s1l8]", 30_249_064, dim=96, depths=(2, 2, 8, 2), drop_path_rate=0.2),
    "vmamba_small_s2l15": vmamba_s2("VMamba-S[s2l15]", 50_147_752, dim=96, depths=(2, 2, 15, 2), drop_path_rate=0.3),
    "vmamba_base_s2l15": vmamba_s2("VMamba-B[s2l15]", 88_557_800, dim=128, depths=(2, 2, 15, 2), drop_path_rate=0.6),
    "vmamba_small_s1l20": vmamba_s1("VMamba-S[s1l20]", 49_012_840, dim=96, depths=(2, 2, 20, 2), drop_path_rate=0.3),
    "vmamba_base_s1l20": vmamba_s1("VMamba-B[s1l20]", 86_614_504, dim=128, depths=(2, 2, 20, 2), drop_path_rate=0.5),
    "vim_tiny": vim("Vim-Ti", 7_148_008, dim=192, drop_path_rate=0.0),
    "vim_small": vim("Vim-S", 25_796_584, dim=384, drop_path_rate=0.05),
    "vim_base": vim("Vim-B", 97_598_440, dim=768, drop_path_rate=0.1),
}

MODELS = PresetRegistry("model", _PRESETS)

#: Models that take ``attention=``: any attention fits the same backbone.
ATTENTION_SWAPPABLE = frozenset(name for name in MODELS if "attention" in MODELS.options(name))
