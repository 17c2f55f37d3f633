"""SpectreEncoder: SPECTRE's two stages, from its own package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import nn

from vol3d.encoders.optional import optional
from vol3d.encoders.recompute import Recomputing
from vol3d.model.interfaces import Features
from vol3d.types import Affines, Triple, Volumes


class SpectreEncoder(Recomputing):
    """A transformer over the patches of each crop, then one over the crops of the volume.

    The local tokens of all crops, put back on the volume's grid, are the tokens; the second stage's CLS token is the
    pooled vector. Weights: `encoder.local` and `encoder.combiner` take the package's two published files as they are.

    Args:
        in_channels: HU windows a volume comes with.
        crop_size, patch_size: voxels along x, y, z of a crop and of a token in it.
        embed_dim, num_heads: of both stages; depth, combiner_depth: their layers.
        checkpointing: recompute both stages in the backward pass; less memory, same result.
        preset: name of the Grid this encoder was trained on.

    Shape:
        image: (batch, in_channels, x, y, z), multiples of the crop → tokens (batch, gx * gy * gz, embed_dim).

    Raises:
        ImportError: the package spectre-fm or timm is not installed.

    Source: SPECTRE (arXiv:2511.17209), package spectre-fm.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        crop_size: Sequence[int] = (128, 128, 64),
        patch_size: Sequence[int] = (16, 16, 8),
        embed_dim: int = 1080,
        depth: int = 24,
        num_heads: int = 12,
        combiner_depth: int = 4,
        checkpointing: bool = False,
        preset: str | None = None,
    ) -> None:
        super().__init__()
        models = optional("spectre.models", asker="SpectreEncoder", packages="spectre-fm and timm", extra="spectre")
        self.in_channels, self.embed_dim, self.patch_size = in_channels, embed_dim, tuple(patch_size)
        self.crop_size, self.checkpointing, self.preset = tuple(crop_size), checkpointing, preset
        shared: dict[str, Any] = {
            "embed_dim": embed_dim, "num_heads": num_heads, "num_classes": 0, "global_pool": "", "pos_embed": "rope",
            "init_values": 1.0, "norm_layer": nn.LayerNorm,
        }  # fmt: skip
        self.local = models.VisionTransformer(
            img_size=self.crop_size, patch_size=self.patch_size, in_chans=in_channels, depth=depth,
            rope_kwargs={"base": 1000.0}, **shared,
        )  # fmt: skip
        self.combiner = models.FeatureVisionTransformer(
            patch_dim=2 * embed_dim, depth=combiner_depth, rope_kwargs={"base": 100.0}, **shared
        )

    @property
    def smallest_shape(self) -> Triple:
        return self.crop_size

    def grid_size(self, shape: Triple) -> Triple:
        for axis, (size, crop) in enumerate(zip(shape, self.crop_size, strict=True)):
            if size % crop:
                raise ValueError(
                    f"image is {size} voxels along {'xyz'[axis]}, not a multiple of the crop {crop}: use a Grid whose "
                    f"shape is a multiple of {self.crop_size}"
                )
        return super().grid_size(shape)

    def forward(self, image: Volumes, affine: Affines | None = None) -> Features:
        self.check_channels(image)
        grid_size = self.grid_size(tuple(image.shape[2:]))
        nx, ny, nz = (size // crop for size, crop in zip(image.shape[2:], self.crop_size, strict=True))
        crops = rearrange(image, "b c (nx x) (ny y) (nz z) -> (b nx ny nz) c x y z", nx=nx, ny=ny, nz=nz)
        seen = self.run(self.local, crops)
        summary = torch.cat([seen[:, 0], seen[:, 1:].mean(1)], dim=-1).unflatten(0, (len(image), -1))
        pooled = self.run(self.combiner, summary, (nx, ny, nz))[:, 0]
        gx, gy, gz = (size // count for size, count in zip(grid_size, (nx, ny, nz), strict=True))
        tokens = rearrange(
            seen[:, 1:], "(b nx ny nz) (gx gy gz) c -> b (nx gx ny gy nz gz) c",
            nx=nx, ny=ny, nz=nz, gx=gx, gy=gy, gz=gz,
        )  # fmt: skip
        return Features(tokens, grid_size, self.token_affine(affine), pooled)


SPECTRE_CONFIGS: dict[str, dict[str, Any]] = {"spectre-large": {"preset": "spectre"}}
