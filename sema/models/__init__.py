"""Models by name, one line each."""

from __future__ import annotations

from sema.registry import Registry

MODELS = Registry(
    "model",
    ("sema_tiny", "sema.models.mila_family:sema_tiny"),
    ("sema_small", "sema.models.mila_family:sema_small"),
    ("sema_base", "sema.models.mila_family:sema_base"),
    ("sema_micro", "sema.models.mila_family:sema_micro"),
    ("mila_tiny", "sema.models.mila_family:mila_tiny"),
    ("mila_small", "sema.models.mila_family:mila_small"),
    ("mila_base", "sema.models.mila_family:mila_base"),
    ("deit_tiny", "sema.models.vit:deit_tiny"),
    ("deit_small", "sema.models.vit:deit_small"),
    ("deit_base", "sema.models.vit:deit_base"),
    ("vminet_ti", "sema.models.vminet:vminet_ti"),
    ("vminet_xs", "sema.models.vminet:vminet_xs"),
    ("vminet_s", "sema.models.vminet:vminet_s"),
    ("vminet_b", "sema.models.vminet:vminet_b"),
    ("sima_nano_12_p16", "sema.models.xcit:sima_nano_12_p16"),
    ("sima_tiny_12_p16", "sema.models.xcit:sima_tiny_12_p16"),
    ("sima_small_12_p16", "sema.models.xcit:sima_small_12_p16"),
    ("sima_tiny_24_p16", "sema.models.xcit:sima_tiny_24_p16"),
    ("sima_small_24_p16", "sema.models.xcit:sima_small_24_p16"),
    ("sima_medium_24_p16", "sema.models.xcit:sima_medium_24_p16"),
    ("xcit_small_12_p16", "sema.models.xcit:xcit_small_12_p16"),
    ("sima_deit_tiny", "sema.models.vit:sima_deit_tiny"),
    ("sima_deit_small", "sema.models.vit:sima_deit_small"),
    ("sima_deit_base", "sema.models.vit:sima_deit_base"),
    ("cvt_13", "sema.models.cvt:cvt_13"),
    ("sima_cvt_13", "sema.models.cvt:sima_cvt_13"),
    ("swin_tiny", "sema.models.swin:swin_tiny"),
    ("swin_small", "sema.models.swin:swin_small"),
    ("swin_base", "sema.models.swin:swin_base"),
    ("flatten_swin_tiny", "sema.models.swin:flatten_swin_tiny"),
    ("inline_swin_tiny", "sema.models.swin:inline_swin_tiny"),
    ("vmamba_tiny_s1l8", "sema.models.vmamba:vmamba_tiny_s1l8"),
    ("vmamba_small_s2l15", "sema.models.vmamba:vmamba_small_s2l15"),
    ("vmamba_base_s2l15", "sema.models.vmamba:vmamba_base_s2l15"),
    ("vmamba_small_s1l20", "sema.models.vmamba:vmamba_small_s1l20"),
    ("vmamba_base_s1l20", "sema.models.vmamba:vmamba_base_s1l20"),
    ("vim_tiny", "sema.models.vim:vim_tiny"),
    ("vim_small", "sema.models.vim:vim_small"),
    ("vim_base", "sema.models.vim:vim_base"),
)

#: Models that take ``attention=``: any attention fits the same backbone.
ATTENTION_SWAPPABLE = frozenset(
    {"sema_micro", "sema_tiny", "sema_small", "sema_base", "mila_tiny", "mila_small", "mila_base"}
)
