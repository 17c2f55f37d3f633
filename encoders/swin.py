"""SwinEncoder: the encoder of SwinUNETR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vol3d.encoders.recompute import Recomputing
from vol3d.model.interfaces import Features
from vol3d.types import Affines, Volumes


class SwinEncoder(Recomputing):
    """Shifted-window transformer with a feature map at every resolution; the deepest gives the tokens.

    Args:
        in_channels: HU windows a volume comes with.
        width: channels at half resolution (MONAI's feature_size), doubled at each of the four levels after.
        depths, num_heads: of the four levels.
        window_size: tokens along an axis of a window.
        checkpointing: recompute blocks in the backward pass; less memory, same result.
        preset: name of the Grid this encoder was trained on.

    Shape:
        image: (batch, in_channels, x, y, z), multiples of 32 → tokens (batch, gx * gy * gz, 16 * width), scales at
        strides 2, 4, 8, 16.

    Source: SwinUNETR (arXiv:2201.01266), MONAI's implementation and its names of weights under `body.`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        width: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        checkpointing: bool = False,
        preset: str | None = None,
    ) -> None:
        super().__init__()
        from monai.networks.nets.swin_unetr import SwinTransformer

        self.in_channels, self.embed_dim, self.patch_size, self.preset = in_channels, 16 * width, (32,) * 3, preset
        self.body = SwinTransformer(
            in_channels, width, (window_size,) * 3, (2, 2, 2), tuple(depths), tuple(num_heads), spatial_dims=3
        )
        self.norm = nn.LayerNorm(self.embed_dim)
        self.checkpointing = checkpointing

    def pass_on(self, value: bool) -> None:
        for module in self.body.modules():
            if hasattr(module, "use_checkpoint"):
                module.use_checkpoint = value

    def forward(self, image: Volumes, affine: Affines | None = None) -> Features:
        self.check_channels(image)
        grid_size = self.grid_size(tuple(image.shape[2:]))
        *scales, deepest = self.body(image, normalize=False)
        tokens = self.norm(deepest.flatten(2).transpose(1, 2))
        return Features(tokens, grid_size, self.token_affine(affine), tokens.mean(1), tuple(scales))


SWIN_CONFIGS: dict[str, dict[str, Any]] = {"swin-unetr": {"preset": "merlin"}}
