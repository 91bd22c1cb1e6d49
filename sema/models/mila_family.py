"""The SEMA and MILA models at their published sizes, and a small one to be trained on a CPU.

Papers: MILA, arXiv 2405.16605, SEMA, arXiv 2506.08297; tables of architectures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from torch import nn

from sema.models.hierarchical import HierarchicalBackbone


class _Size(TypedDict):
    dims: tuple[int, ...]
    depths: tuple[int, ...]


_TINY: _Size = {"dims": (64, 128, 256, 512), "depths": (2, 4, 8, 4)}
_SMALL: _Size = {"dims": (64, 128, 256, 512), "depths": (3, 6, 21, 6)}
_BASE: _Size = {"dims": (96, 192, 384, 768), "depths": (3, 6, 21, 6)}


def sema_tiny(
    *,
    attention: str = "sema",
    attention_options: Mapping[str, Any] | None = None,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.2,
    img_size: int | tuple[int, int] = 224,
    head: str = "mean",
) -> HierarchicalBackbone:
    """SEMA-T: SEMA attention in MILA's macro design; 26.0 M parameters.

    The arguments are those of ``HierarchicalBackbone``.
    """
    return HierarchicalBackbone(
        **_TINY,
        attention=attention,
        attention_options=attention_options,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
        head=head,
    )


def sema_small(
    *,
    attention: str = "sema",
    attention_options: Mapping[str, Any] | None = None,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.3,
    img_size: int | tuple[int, int] = 224,
    head: str = "mean",
) -> HierarchicalBackbone:
    """SEMA-S: SEMA attention in MILA's macro design; 46.1 M parameters.

    The arguments are those of ``HierarchicalBackbone``.
    """
    return HierarchicalBackbone(
        **_SMALL,
        attention=attention,
        attention_options=attention_options,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
        head=head,
    )


def sema_base(
    *,
    attention: str = "sema",
    attention_options: Mapping[str, Any] | None = None,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.5,
    img_size: int | tuple[int, int] = 224,
    head: str = "mean",
) -> HierarchicalBackbone:
    """SEMA-B: SEMA attention in MILA's macro design; 102.9 M parameters.

    The arguments are those of ``HierarchicalBackbone``.
    """
    return HierarchicalBackbone(
        **_BASE,
        attention=attention,
        attention_options=attention_options,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
        head=head,
    )


def mila_tiny(
    *,
    attention: str = "mila",
    attention_options: Mapping[str, Any] | None = None,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.2,
    img_size: int | tuple[int, int] = 224,
    head: str = "mean",
) -> HierarchicalBackbone:
    """MILA-T: MILA (MLLA), linear attention with rotary positions; 24.4 M parameters.

    The arguments are those of ``HierarchicalBackbone``.
    """
    return HierarchicalBackbone(
        **_TINY,
        attention=attention,
        attention_options=attention_options,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
        head=head,
    )


def mila_small(
    *,
    attention: str = "mila",
    attention_options: Mapping[str, Any] | None = None,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.3,
    img_size: int | tuple[int, int] = 224,
    head: str = "mean",
) -> HierarchicalBackbone:
    """MILA-S: MILA (MLLA), linear attention with rotary positions; 43.0 M parameters.

    The arguments are those of ``HierarchicalBackbone``.
    """
    return HierarchicalBackbone(
        **_SMALL,
        attention=attention,
        attention_options=attention_options,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
        head=head,
    )


def mila_base(
    *,
    attention: str = "mila",
    attention_options: Mapping[str, Any] | None = None,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.5,
    img_size: int | tuple[int, int] = 224,
    head: str = "mean",
) -> HierarchicalBackbone:
    """MILA-B: MILA (MLLA), linear attention with rotary positions; 96.0 M parameters.

    The arguments are those of ``HierarchicalBackbone``.
    """
    return HierarchicalBackbone(
        **_BASE,
        attention=attention,
        attention_options=attention_options,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
        head=head,
    )


def sema_micro(
    *,
    attention: str = "sema",
    attention_options: Mapping[str, Any] | None = None,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    img_size: int | tuple[int, int] = 224,
    head: str = "mean",
) -> HierarchicalBackbone:
    """Two blocks of 32 channels at one fourth of the image's side; ours, to be trained on a CPU, in no paper.

    The arguments are those of ``HierarchicalBackbone``. The usual initial deviation of 0.02 suits hundreds of channels;
    with 32 nothing would be learned for hundreds of steps, so weights start at 1/√fan-in.
    """
    model = HierarchicalBackbone(
        dims=(32,),
        depths=(2,),
        head_dim=16,
        attention=attention,
        attention_options=attention_options,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
        head=head,
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
    return model
