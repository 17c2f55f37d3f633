"""CTViT: the encoder of CT-CLIP, attention within slices and then along them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vol3d.encoders.recompute import Recomputing
from vol3d.encoders.stems import NormedStem
from vol3d.model.interfaces import Features
from vol3d.types import Affines, Triple, Volumes


class CTViT(Recomputing):
    """Patches, a transformer over the tokens of each slice, then one over each column of slices.

    Positions come from causal depthwise convolutions and, within a slice, from a bias learned as a function of the
    offset. The last tokens are exchanged for the nearest entries of a codebook, as CT-CLIP's contrastive training saw
    them; gradients pass straight through, and the codebook itself is not trained.

    Args:
        in_channels: HU windows a volume comes with.
        patch_size: voxels a token covers along x, y, z.
        embed_dim, num_heads, head_dim: the transformers'.
        slice_depth, column_depth: layers within slices and along columns.
        codebook_size: entries; None leaves the tokens as they are.
        latent_grid, latent_dim: tokens along x, y and width of the head that turns the mean slice into the vector
            compared with reports; None: no head.
        checkpointing: recompute layers in the backward pass; less memory, same result.
        preset: name of the Grid this encoder was trained on.

    Shape:
        image: (batch, in_channels, x, y, z) → tokens (batch, gx * gy * gz, embed_dim), pooled their mean.

    Source: CT-CLIP (arXiv:2403.17834). Along columns its code reads the memory of (x, y, z) tokens as (z, x, y), which
    for the published 24 × 24 × 24 grid makes the convolution causal along x; that is kept, since the weights learned
    it, and is applied as such to any grid.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        patch_size: Sequence[int] = (20, 20, 10),
        embed_dim: int = 512,
        num_heads: int = 8,
        head_dim: int = 32,
        slice_depth: int = 4,
        column_depth: int = 4,
        codebook_size: int | None = 8192,
        latent_grid: Sequence[int] | None = None,
        latent_dim: int = 512,
        checkpointing: bool = False,
        preset: str | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.embed_dim, self.patch_size = in_channels, embed_dim, tuple(patch_size)
        self.checkpointing, self.preset = checkpointing, preset
        self.stem = NormedStem(in_channels, self.patch_size, embed_dim)
        self.bias = OffsetBias(embed_dim, num_heads)
        make = lambda depth, causal: nn.ModuleList(  # noqa: E731  # two stacks of the same layers
            CTViTLayer(embed_dim, num_heads, head_dim, causal_axis=causal) for _ in range(depth)
        )
        self.slices, self.norm_slices = make(slice_depth, 2), nn.LayerNorm(embed_dim, bias=False)
        self.columns, self.norm_columns = make(column_depth, 0), nn.LayerNorm(embed_dim, bias=False)
        codebook = None if codebook_size is None else F.normalize(torch.randn(codebook_size, embed_dim), dim=-1)
        self.register_buffer("codebook", codebook)
        self.latent_grid = None if latent_grid is None else tuple(latent_grid)
        self.latent = None
        if self.latent_grid is not None:
            self.latent = nn.Linear(math.prod(self.latent_grid) * embed_dim, latent_dim, bias=False)

    def forward(self, image: Volumes, affine: Affines | None = None) -> Features:
        self.check_channels(image)
        grid_size = self.grid_size(tuple(image.shape[2:]))
        tokens, _ = self.stem(image)
        bias = self.bias(*grid_size[:2])
        for layer in self.slices:
            tokens = self.run(layer, tokens, grid_size, bias)
        tokens = self.norm_slices(tokens)
        for layer in self.columns:
            tokens = self.run(layer, tokens, grid_size, None)
        tokens = self.norm_columns(tokens)
        if self.codebook is not None:
            tokens = tokens + (nearest(tokens, self.codebook) - tokens).detach()
        return Features(tokens, grid_size, self.token_affine(affine), tokens.mean(1))

    def head_outputs(self, features: Features) -> dict[str, Tensor]:
        """`contrastive` (batch, latent_dim): the head's linear map of the mean over slices, when there is a head.

        Raises:
            ValueError: the token grid is not the one the head was made for.
        """
        if self.latent is None:
            return {}
        gx, gy, gz = features.grid_size
        if (gx, gy) != self.latent_grid:
            raise ValueError(
                f"{gx} × {gy} tokens a slice, the contrastive head is made for {self.latent_grid}: use the Grid "
                f"{self.preset!r}, or build the encoder with latent_grid=({gx}, {gy})"
            )
        mean = features.tokens.unflatten(1, (gx * gy, gz)).mean(2)
        return {"contrastive": self.latent(mean.flatten(1))}


def nearest(tokens: Tensor, codebook: Tensor) -> Tensor:
    """The codebook's entry with the largest cosine to each token, in the codebook's own length."""
    directions = F.normalize(codebook, dim=-1)
    chosen = torch.stack(
        [(rows.detach().to(directions.dtype) @ directions.T).argmax(-1) for rows in tokens]
    )  # row by row: memory
    return codebook[chosen].to(tokens.dtype)


class CTViTLayer(nn.Module):
    """Depthwise convolution, attention, gated feed-forward; each residual."""

    def __init__(self, embed_dim: int, num_heads: int, head_dim: int, *, causal_axis: int) -> None:
        super().__init__()
        self.along = "slice" if causal_axis == 2 else "column"
        self.convolution = CausalConvolution(embed_dim, causal_axis)
        self.attention = CosineAttention(embed_dim, num_heads, head_dim)
        hidden = int(4 * 2 / 3 * embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.expand = nn.Linear(embed_dim, 2 * hidden, bias=False)
        self.reduce = nn.Linear(hidden, embed_dim, bias=False)

    def forward(self, tokens: Tensor, grid_size: Triple, bias: Tensor | None) -> Tensor:
        gx, gy, gz = grid_size
        tokens = tokens + self.convolution(tokens, grid_size)
        inside = "(b z) (x y) c" if self.along == "slice" else "(b x y) z c"
        rows = rearrange(tokens, f"b (x y z) c -> {inside}", x=gx, y=gy, z=gz)
        rows = rows + self.attention(rows, bias)
        value, gate = self.expand(self.norm(rows)).chunk(2, dim=-1)
        rows = rows + self.reduce(F.gelu(gate) * value)
        return rearrange(rows, f"{inside} -> b (x y z) c", x=gx, y=gy, z=gz)


class CausalConvolution(nn.Module):
    """3 × 3 × 3 depthwise convolution that sees only what lies before along one axis: it tells tokens where they are.

    Source: conditional positions (arXiv:2102.10882).
    """

    def __init__(self, embed_dim: int, causal_axis: int) -> None:
        super().__init__()
        self.causal_axis = causal_axis
        self.conv = nn.Conv3d(embed_dim, embed_dim, 3, groups=embed_dim)

    def forward(self, tokens: Tensor, grid_size: Triple) -> Tensor:
        image = tokens.transpose(1, 2).unflatten(2, grid_size)
        padding = [(2, 0) if axis == self.causal_axis else (1, 1) for axis in range(3)]
        image = F.pad(image, [width for pair in reversed(padding) for width in pair])
        return self.conv(image).flatten(2).transpose(1, 2)


class CosineAttention(nn.Module):
    """Attention by scaled cosines. Only queries are normalised by the LayerNorm, as in CT-CLIP."""

    def __init__(self, embed_dim: int, num_heads: int, head_dim: int, scale: float = 8.0) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, scale
        self.norm = nn.LayerNorm(embed_dim, bias=False)
        self.query = nn.Linear(embed_dim, num_heads * head_dim, bias=False)
        self.key_value = nn.Linear(embed_dim, 2 * num_heads * head_dim, bias=False)
        self.query_scale = nn.Parameter(torch.ones(head_dim))
        self.key_scale = nn.Parameter(torch.ones(head_dim))
        self.out = nn.Linear(num_heads * head_dim, embed_dim, bias=False)

    def forward(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        query = rearrange(self.query(self.norm(tokens)), "b n (h d) -> b h n d", h=self.num_heads)
        key, value = rearrange(self.key_value(tokens), "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        query = F.normalize(query, dim=-1) * self.query_scale
        key = F.normalize(key, dim=-1) * self.key_scale
        mask = None if bias is None else bias.to(query.dtype)
        mixed = F.scaled_dot_product_attention(
            query, key.to(query.dtype), value.to(query.dtype), attn_mask=mask, scale=self.scale
        )
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))


class OffsetBias(nn.Module):
    """A bias for every head as a function of the offset between two tokens of a slice.

    Computed once for each of the (2 gx − 1)(2 gy − 1) offsets rather than for every pair.

    Source: Swin V2's continuous position bias (arXiv:2111.09883).
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, embed_dim), nn.LeakyReLU(0.1),
            nn.Linear(embed_dim, embed_dim), nn.LeakyReLU(0.1),
            nn.Linear(embed_dim, num_heads),
        )  # fmt: skip

    def forward(self, gx: int, gy: int) -> Tensor:
        """(heads, gx * gy, gx * gy)."""
        device, dtype = self.net[0].weight.device, self.net[0].weight.dtype
        offsets_x, offsets_y = torch.arange(1 - gx, gx, device=device), torch.arange(1 - gy, gy, device=device)
        offsets = torch.stack(torch.meshgrid(offsets_x, offsets_y, indexing="ij"), dim=-1)
        signed = offsets.sign() * torch.log(offsets.abs().to(dtype) + 1)
        table = self.net(signed)  # (2 gx − 1, 2 gy − 1, heads)
        x, y = torch.arange(gx, device=device), torch.arange(gy, device=device)
        dx = x[:, None, None, None] - x[None, None, :, None] + gx - 1
        dy = y[None, :, None, None] - y[None, None, None, :] + gy - 1
        return rearrange(table[dx, dy], "x y u v heads -> heads (x y) (u v)")


CTVIT_CONFIGS: dict[str, dict[str, Any]] = {
    "ct-clip": {"latent_grid": (24, 24), "preset": "ct-clip"},
}
