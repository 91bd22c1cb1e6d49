"""Attentions by name, one line each."""

from __future__ import annotations

from sema.registry import Registry

ATTENTIONS = Registry(
    "attention",
    ("sema", "sema.attention.sema:SemaAttention"),
    ("window", "sema.attention.window:WindowAttention"),
    ("softmax", "sema.attention.softmax:SoftmaxAttention"),
    ("linear", "sema.attention.linear:LinearAttention"),
    ("mila", "sema.attention.mila:MilaAttention"),
    ("sima", "sema.attention.sima:SimaAttention"),
    ("vmi", "sema.attention.vmi:VmiAttention"),
    ("xca", "sema.attention.xca:CrossCovarianceAttention"),
    ("focused", "sema.attention.focused:FocusedLinearAttention"),
    ("inline", "sema.attention.inline:InLineAttention"),
    ("vmamba", "sema.attention.vmamba:VmambaAttention"),
    ("vim", "sema.attention.vim:VimAttention"),
)
