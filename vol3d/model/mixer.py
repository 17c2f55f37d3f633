"""MixerProjector: two resolutions of the volume, mixed over tokens and over channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vol3d.model.interfaces import Features, Projector
from vol3d.types import Tokens, Triple


class MixerProjector(Projector):
    """The encoder's tokens and its next finer map, each shortened by mixer layers, one after the other.

    Mixing over tokens fixes how many there are, so this projector is made for one grid.

    Args:
        grid_size: tokens of the encoder along x, y, z.
        fine_grid, fine_dim: grid and channels of the encoder's last scale.
        num_tokens_fine, num_tokens_coarse: tokens after each layer; the last two make the budget.

    Shape:
        (batch, gx * gy * gz, in_dim) and the last of `Features.scales` → (batch, tokens, out_dim).

    Raises:
        ValueError: the encoder has no scales, or a grid is not the one this was made for.

    Source: Med3DVLM (arXiv:2503.20047): fine 256 × 384, coarse 32 × 768, two layers, 128 + 128 tokens.
    """

    uses = frozenset({"scales"})

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        grid_size: Sequence[int],
        fine_grid: Sequence[int],
        fine_dim: int,
        num_tokens_fine: Sequence[int] = (192, 128),
        num_tokens_coarse: Sequence[int] = (64, 128),
    ) -> None:
        super().__init__(in_dim, out_dim)
        depth = len(num_tokens_coarse)
        if len(num_tokens_fine) != depth:
            raise ValueError(f"{len(num_tokens_fine)} layers for the fine tokens, {depth} for the coarse: as many each")
        if out_dim % 2 ** (depth - 1):
            raise ValueError(f"out_dim {out_dim} is not a multiple of {2 ** (depth - 1)}, which {depth} layers need")
        self.grid, self.fine_grid = tuple(grid_size), tuple(fine_grid)
        self.budget = num_tokens_fine[-1] + num_tokens_coarse[-1]
        self.fine = self._layers(math.prod(fine_grid), fine_dim, num_tokens_fine)
        self.coarse = self._layers(math.prod(grid_size), in_dim, num_tokens_coarse)

    def _layers(self, tokens: int, width: int, counts: Sequence[int]) -> nn.Sequential:
        layers = []
        for index, count in enumerate(counts):
            wider = self.out_dim // 2 ** (len(counts) - index - 1)
            layers.append(MixerLayer(tokens, width, count, wider))
            tokens, width = count, wider
        return nn.Sequential(*layers)

    def num_tokens(self, grid_size: Triple) -> int:
        if tuple(grid_size) != self.grid:
            raise ValueError(f"token grid is {tuple(grid_size)}, this projector is made for {self.grid}: build it anew")
        return self.budget

    def forward(self, features: Features) -> Tokens:
        self.num_tokens(features.grid_size)
        if not features.scales:
            raise ValueError("MixerProjector reads a finer map beside the tokens, this encoder gives none: use one "
                             "with scales (ResNet3D, UNet3D, SwinEncoder, ViT3D with stem='conv')")  # fmt: skip
        fine = features.scales[-1]
        if tuple(fine.shape[2:]) != self.fine_grid:
            raise ValueError(f"the finer map is {tuple(fine.shape[2:])}, this projector is made for {self.fine_grid}")
        # The coarse tokens last, nearest to the words, as Med3DVLM orders them.
        return torch.cat([self.fine(fine.flatten(2).transpose(1, 2)), self.coarse(features.tokens)], dim=1)


class MixerLayer(nn.Module):
    """An MLP over tokens, which changes their number, then one over channels, which changes their width."""

    def __init__(self, tokens: int, width: int, tokens_out: int, width_out: int) -> None:
        super().__init__()
        self.norm_tokens, self.norm_channels = nn.LayerNorm(width), nn.LayerNorm(width)
        self.over_tokens = _mlp(tokens, tokens_out)
        self.over_channels = _mlp(width, width_out)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.over_tokens(self.norm_tokens(tokens).transpose(1, 2)).transpose(1, 2)
        return self.over_channels(self.norm_channels(tokens))


def _mlp(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))
