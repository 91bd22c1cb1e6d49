"""DeiT: the plain vision transformer, softmax attention over all tokens of one size; also SimA in the same network.

Paper: DeiT, arXiv 2012.12877; ViT, arXiv 2010.11929; SimA, arXiv 2206.08898.

Legend: B batch, H W token grid, N = H·W, C channels, P patch size.

    image (B, in_chans, H·P, W·P) → patches (B, N, C), class token in front, + positions
    → blocks:  x ← x + proj(attn(LN(x)));  x ← x + MLP(LN(x))  → LN → class token → head

Deviations from the paper: any image size from P pixels. Positions learned at the base grid are interpolated (bicubic)
to the input's. If P does not divide the image, the last rows and columns are dropped, as in the official code.

State-dict keys are those of the official and timm code except one: ``blocks.N.attn.proj`` is ``blocks.N.proj`` here,
because the output projection belongs to the block and not to the attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sema.attention import ATTENTIONS
from sema.checkpoint_layout import CheckpointLayout
from sema.layers.drop_path import drop_path_rates
from sema.models.backbone import TokenBackbone, TransformerBlock, init_linear, quarter_of, quarters_info, run_quarters

_LAYER_NORM_EPS = 1e-6
_ATTENTIONS = ("softmax", "sima")


class VisionTransformer(TokenBackbone):
    """ViT with a class token and learned positions: (B, in_chans, H, W) → (B, num_classes).

    Args:
        dim: channels C.
        depth: number of blocks; a multiple of 4, so that each quarter is a stage.
        num_heads: heads of the attention.
        attention: ``softmax`` or ``sima``, over all tokens including the class token.
        num_classes, in_chans, drop_path_rate: see ``Backbone``.
        img_size: see ``TokenBackbone``.

    Raises:
        ValueError: ``depth`` is not a multiple of 4, ``img_size`` is not a multiple of 16, or ``attention`` is unknown.
    """

    checkpoint_layout = CheckpointLayout(renames=((r"^(blocks\.\d+)\.attn\.proj\.", r"\1.proj."),))

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        attention: str,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        img_size: int | tuple[int, int] = 224,
    ) -> None:
        quarter = quarter_of(depth)
        if attention not in _ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(_ATTENTIONS)}; got {attention!r}")
        super().__init__(dim, num_classes=num_classes, in_chans=in_chans, img_size=img_size, class_in_middle=False)
        self.quarter, self.feature_info = quarter, quarters_info("blocks", dim, quarter)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim, ATTENTIONS.build(attention, dim, num_heads), norm_eps=_LAYER_NORM_EPS, drop_path_rate=rate
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.head = nn.Linear(dim, num_classes)
        self.apply(init_linear)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)[0].unsqueeze(1)  # (B, 1, 1 + N, C)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0, 0]))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Compute four maps (B, H, W, C) of one size: the patch tokens after each quarter of the depth."""
        x, _, grid = self.embed(x)
        return [
            torch.unflatten(tokens[:, 0, 1:], 1, grid)
            for tokens in run_quarters(self.blocks, x.unsqueeze(1), self.quarter)
        ]
