"""UNet3D: a residual convolutional encoder with a feature map at every resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vol3d.encoders.recompute import Recomputing
from vol3d.encoders.stems import strided_affine
from vol3d.model.interfaces import Features
from vol3d.types import Affines, Volumes


class UNet3D(Recomputing):
    """The encoding half of a residual U-Net; its deepest map gives the tokens, the finer ones a mask head.

    Args:
        in_channels: HU windows a volume comes with.
        width: channels at full resolution, doubled at each level.
        blocks: residual blocks a level; each level after the first halves the volume.
        checkpointing: recompute levels in the backward pass; less memory, same result.
        preset: name of the Grid this encoder was trained on.

    Shape:
        image: (batch, in_channels, x, y, z), multiples of 2 ** (levels − 1) → tokens (batch, gx * gy * gz,
        width * 2 ** (levels − 1)), scales from full resolution down.

    Source: the encoder of Myronenko 2018 (arXiv:1810.11654) as in MONAI's SegResNet, with GroupNorm.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        width: int = 32,
        blocks: Sequence[int] = (1, 2, 2, 4, 4),
        checkpointing: bool = False,
        preset: str | None = None,
    ) -> None:
        super().__init__()
        from monai.networks.nets.segresnet_ds import SegResEncoder

        stride = 2 ** (len(blocks) - 1)
        self.in_channels, self.embed_dim, self.patch_size = in_channels, width * stride, (stride,) * 3
        self.checkpointing, self.preset = checkpointing, preset
        norm = ("group", {"num_groups": min(8, width)})
        # Activations in place would overwrite what a checkpointed level reads again.
        act = ("relu", {"inplace": False})
        self.body = SegResEncoder(3, width, in_channels, act=act, norm=norm, blocks_down=tuple(blocks))
        self.norm = nn.LayerNorm(self.embed_dim)

    def forward(self, image: Volumes, affine: Affines | None = None) -> Features:
        self.check_channels(image)
        grid_size = self.grid_size(tuple(image.shape[2:]))
        current, maps = self.body.conv_init(image), []
        for level in self.body.layers:
            current = self.run(level["blocks"], current)
            maps.append(current)
            current = level["downsample"](current)
        tokens = self.norm(maps[-1].flatten(2).transpose(1, 2))
        return Features(tokens, grid_size, self.token_affine(affine), tokens.mean(1), tuple(maps[:-1]))

    def token_affine(self, affine: Affines | None) -> Affines | None:
        return strided_affine(affine, self.patch_size)


UNET3D_CONFIGS: dict[str, dict[str, Any]] = {"unet3d-base": {"preset": "merlin"}}
