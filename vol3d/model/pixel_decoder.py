"""The encoder's tokens brought back to the grid's resolution, and where an encoder's finer maps are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vol3d.model.interfaces import Encoder
from vol3d.types import Triple


class PixelDecoder(nn.Module):
    """Tokens → a map at the grid's resolution, through the encoder's finer maps and the image.

    Args:
        encoder: its finer maps are looked at once, on a volume of a few tokens.
        dim: width of the tokens. pixel_dim: channels of the finest map.
    """

    def __init__(self, encoder: Encoder, dim: int, pixel_dim: int) -> None:
        super().__init__()
        channels, strides = finer_maps(encoder)
        whole = bool(strides) and strides[0] == (1, 1, 1)
        self.reads = channels if whole else [encoder.in_channels, *channels]  # finest first
        self.whole = whole
        self.widths = [min(dim, pixel_dim << level) for level in range(len(self.reads))]
        wider = [*self.widths[1:], dim]
        self.skips = nn.ModuleList(
            nn.Conv3d(read, width, 3, padding=1) for read, width in zip(self.reads, self.widths, strict=True)
        )
        self.reduce = nn.ModuleList(nn.Conv3d(a, b, 1) for a, b in zip(wider, self.widths, strict=True))
        self.mix = nn.ModuleList(_mix(width, finest=not level) for level, width in enumerate(self.widths))

    def forward(self, tokens: Tensor, grid_size: Triple, scales: Sequence[Tensor], image: Tensor) -> list[Tensor]:
        current = tokens.transpose(1, 2).unflatten(2, grid_size)
        # Channels last, as the tokens are: convolutions on a CPU are up to twice as fast.
        sources = [*scales] if self.whole else [image.contiguous(memory_format=torch.channels_last_3d), *scales]
        if len(sources) != len(self.skips):
            raise ValueError(
                f"the encoder gave {len(scales)} finer maps, this decoder was built for "
                f"{len(self.skips) - (not self.whole)}: encode with the features' own encoder, and do not drop scales"
            )
        maps = []
        for level in reversed(range(len(sources))):
            source = sources[level]
            # Fewer channels first: the map is enlarged after, not before.
            current = self.reduce[level](current)
            current = F.interpolate(current, size=source.shape[2:], mode="trilinear", align_corners=False)
            current = current + self.skips[level](source)
            current = current + self.mix[level](current)
            maps.append(current)
        return maps[::-1]


def _mix(width: int, *, finest: bool) -> nn.Sequential:
    """What joins a map and its skip. At the grid's resolution, where a pass over the map costs as much as all coarser
    levels, it is voxel by voxel and without a norm: the skip itself has looked at the neighbours."""
    if finest:
        return nn.Sequential(nn.ReLU(), nn.Conv3d(width, width, 1), nn.ReLU())
    norm = nn.GroupNorm(math.gcd(8, width), width)
    return nn.Sequential(norm, nn.ReLU(), nn.Conv3d(width, width, 3, padding=1), nn.ReLU())


@torch.no_grad()
def finer_maps(encoder: Encoder) -> tuple[list[int], list[Triple]]:
    """Channels and strides of an encoder's `scales`, finest first, found on a volume of a few tokens."""
    device = next(encoder.parameters()).device
    shape = encoder.smallest_shape
    training = encoder.training
    encoder.eval()
    try:
        scales = encoder(torch.zeros(1, encoder.in_channels, *shape, device=device)).scales
    finally:
        encoder.train(training)
    strides = [tuple(a // b for a, b in zip(shape, scale.shape[2:], strict=True)) for scale in scales]
    return [scale.shape[1] for scale in scales], strides
