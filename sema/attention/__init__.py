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
)
