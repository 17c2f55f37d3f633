"""ViT3D: a vision transformer over the patches of a volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vol3d.encoders.recompute import Recomputing
from vol3d.encoders.stems import AxialPositions, ConvStem, LinearStem, NormedStem, strided_affine
from vol3d.model.interfaces import Features
from vol3d.model.positions import RotaryPositions3D, sincos_positions_3d
from vol3d.model.rebuilding import rebuilt
from vol3d.types import Affines, Triple, Volumes

Positions = Literal["learned", "sincos", "rotary", "axial"]
Reach = Literal["slice", "scan", "study"]


class ViT3D(Recomputing):
    """Vision transformer for volumes of any grid.

    Patches become tokens by one linear map (`stem="linear"`), by a linear map between two LayerNorms (`"normed"`), or
    by a stack of stride-2 convolutions (`"conv"`), which learns far faster from few studies and gives finer feature
    maps to a mask head. Attention is torch's scaled_dot_product_attention; `attention` narrows how far a block looks,
    so that volumes of 1 mm fit.

    Args:
        in_channels: HU windows a volume comes with.
        patch_size: voxels a token covers along x, y, z; powers of two for the conv stem.
        grid_size: tokens along x, y, z that learned or axial positions are made for; learned ones are interpolated to
            another grid.
        embed_dim, depth, num_heads, mlp_ratio: the transformer's.
        positions: learned (one vector a token), axial (one vector an index of each axis), sincos (fixed), or rotary
            (relative, inside attention).
        cls_token: prepend a token, without position, whose output is `Features.pooled`.
        stem: "linear", "normed" or "conv".
        stem_channels: channels the normed stem's kernel is made for, when one image channel stands for all of them.
        qkv_bias: bias of the query, key and value maps (M3D has none).
        head_dim: width of a head (embed_dim // num_heads when None).
        final_norm: LayerNorm of the last block's tokens (RadFM has none).
        attention: how far the blocks look, repeated over the depth: "slice" (tokens of the same z; a CLS token joins
            each slice and is averaged), "scan" (the whole volume), "study" (all volumes of the study, see `scans`).
            None: "scan" throughout.
        checkpointing: recompute blocks in the backward pass; less memory, same result.
        preset: name of the Grid this encoder was trained on.

    Shape:
        image: (batch, in_channels, x, y, z) → tokens (batch, gx * gy * gz, embed_dim). With `scans=k`, each k
        consecutive volumes are one study, and attention "study" crosses them.

    Raises:
        ValueError: the image's size is not a multiple of the patch size, or its channels are not in_channels.

    Source: Dosovitskiy et al. 2021 (arXiv:2010.11929); conv stem after Xiao et al. 2021 (arXiv:2106.14881), here
    in 3D with GroupNorm; slice, scan and study attention after HLIP (arXiv:2505.21862). M3D (arXiv:2404.00578) is
    `patch_size=(16, 16, 4)` in this axis order with learned positions, a CLS token and no qkv bias.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        patch_size: Sequence[int] = (16, 16, 8),
        grid_size: Sequence[int] | None = None,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        positions: Positions = "sincos",
        cls_token: bool = False,
        stem: Literal["linear", "normed", "conv"] = "linear",
        stem_channels: int | None = None,
        qkv_bias: bool = True,
        head_dim: int | None = None,
        final_norm: bool = True,
        attention: Sequence[Reach] | None = None,
        checkpointing: bool = False,
        preset: str | None = None,
    ) -> None:
        super().__init__()
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        if positions in ("learned", "axial") and grid_size is None:
            raise ValueError(f"{positions} positions need grid_size, the tokens along x, y, z they are made for")
        if stem_channels is not None and stem != "normed":
            raise ValueError(f"stem_channels {stem_channels} is for stem='normed', the stem is {stem!r}: leave it out")
        self.embed_dim, self.in_channels, self.patch_size = embed_dim, in_channels, tuple(patch_size)
        self.positions, self.checkpointing, self.preset = positions, checkpointing, preset
        self.reach = _reach(attention, depth)
        self.learned_grid = tuple(grid_size) if grid_size is not None else None
        if stem == "normed":
            self.stem = NormedStem(in_channels, self.patch_size, embed_dim, stem_channels)
        else:
            self.stem = (ConvStem if stem == "conv" else LinearStem)(in_channels, self.patch_size, embed_dim)
        if positions == "learned":
            self.position_embeddings = nn.Parameter(0.02 * torch.randn(1, math.prod(grid_size), embed_dim))
        self.axial = AxialPositions(self.learned_grid, embed_dim) if positions == "axial" else None
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, embed_dim)) if cls_token else None
        head_dim = head_dim or embed_dim // num_heads
        self.rotary = RotaryPositions3D(head_dim) if positions == "rotary" else None
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, qkv_bias, head_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim) if final_norm else nn.Identity()

    def forward(self, image: Volumes, affine: Affines | None = None, *, scans: int = 1) -> Features:
        self.check_channels(image)
        if len(image) % scans:
            raise ValueError(f"{len(image)} volumes are not studies of {scans} scans each: give every study as many")
        grid_size = self.grid_size(tuple(image.shape[2:]))
        tokens, scales = self.stem(image)
        tokens = self._add_positions(tokens, grid_size)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        angles = None if self.rotary is None else self.rotary(grid_size, self.cls_token is not None, tokens.device)
        ends, looks = (0, len(self.blocks) - 1), []
        for number, (block, reach) in enumerate(zip(self.blocks, self.reach, strict=True)):
            if not self.training:
                looks += [block.looks(tokens, cls_token=self.cls_token is not None)] * ends.count(number)
            tokens = self.run(_look, block, tokens, angles, reach, grid_size[2], scans)
        tokens = self.norm(tokens)
        pooled = None
        if self.cls_token is not None:
            pooled, tokens = tokens[:, 0], tokens[:, 1:]
        attention = torch.stack(looks, dim=1) if looks else None
        return Features(tokens, grid_size, self.token_affine(affine), pooled, scales, attention=attention)

    def token_affine(self, affine: Affines | None) -> Affines | None:
        if isinstance(self.stem, ConvStem):
            return strided_affine(affine, self.patch_size)
        return super().token_affine(affine)

    def _add_positions(self, tokens: Tensor, grid_size: Triple) -> Tensor:
        if self.positions == "sincos":
            return tokens + sincos_positions_3d(grid_size, self.embed_dim, tokens.device).to(tokens.dtype)
        if self.positions == "learned":
            return tokens + self._learned_positions(grid_size)
        if self.axial is not None:
            return tokens + self.axial(grid_size)
        return tokens

    def _learned_positions(self, grid_size: Triple) -> Tensor:
        if grid_size == self.learned_grid:
            return self.position_embeddings
        x, y, z = self.learned_grid
        grid = rearrange(self.position_embeddings, "1 (x y z) c -> 1 c x y z", x=x, y=y, z=z)
        grid = F.interpolate(grid, size=grid_size, mode="trilinear", align_corners=False)
        return rearrange(grid, "1 c x y z -> 1 (x y z) c")


def _reach(attention: Sequence[Reach] | None, depth: int) -> list[Reach]:
    """How far each block looks."""
    pattern: list[Reach] = list(attention or ["scan"])
    unknown = sorted(set(pattern) - {"slice", "scan", "study"})
    if unknown:
        raise ValueError(f"attention {unknown[0]!r}: choose slice, scan or study")
    if depth % len(pattern):
        raise ValueError(f"attention names {len(pattern)} blocks, which does not divide the depth {depth}")
    return pattern * (depth // len(pattern))


def _look(block: Block, tokens: Tensor, angles: Tensor | None, reach: Reach, slices: int, scans: int) -> Tensor:
    """One block over each slice, each volume, or each study. z runs fastest in the order of tokens."""
    if reach == "slice":
        prefix = tokens.shape[1] % slices if slices > 1 else 0  # a CLS token, or none
        front, grid = tokens[:, :prefix], tokens[:, prefix:]
        grid = rearrange(grid, "b (xy z) c -> (b z) xy c", z=slices)
        front = front.repeat_interleave(slices, dim=0)
        if angles is not None:  # within a slice only differences along x and y turn anything: those of the first do
            angles = torch.cat([angles[:prefix], angles[prefix::slices]])
        mixed = block(torch.cat([front, grid], dim=1), angles)
        front = mixed[:, :prefix].unflatten(0, (-1, slices)).mean(1)
        grid = rearrange(mixed[:, prefix:], "(b z) xy c -> b (xy z) c", z=slices)
        return torch.cat([front, grid], dim=1)
    if reach == "study" and scans > 1:
        angles = None if angles is None else angles.repeat(scans, 1)
        mixed = block(rearrange(tokens, "(study scan) n c -> study (scan n) c", scan=scans), angles)
        return rearrange(mixed, "study (scan n) c -> (study scan) n c", scan=scans)
    return block(tokens, angles)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self, embed_dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, head_dim: int | None = None
    ) -> None:
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        inner = num_heads * (head_dim or embed_dim // num_heads)
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(embed_dim)
        self.qkv = nn.Linear(embed_dim, 3 * inner, bias=qkv_bias)
        self.out = nn.Linear(inner, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, hidden), nn.GELU(), nn.Linear(hidden, embed_dim))

    def forward(self, tokens: Tensor, angles: Tensor | None = None) -> Tensor:
        tokens = tokens + self.attention(rebuilt(self.norm1, tokens, into=self.qkv), angles)
        widen, activation, narrow = self.mlp
        return tokens + rebuilt(activation, rebuilt(self.norm2, tokens, into=widen), into=narrow)

    def attention(self, qkv: Tensor, angles: Tensor | None) -> Tensor:
        heads = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        # A CPU's attention is a tenth faster on heads that lie in one piece; a GPU's reads them where they are.
        query, key, value = (heads.contiguous() if heads.device.type == "cpu" else heads).unbind(0)
        if angles is not None:
            query, key = RotaryPositions3D.rotate(query, angles), RotaryPositions3D.rotate(key, angles)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))

    def looks(self, tokens: Tensor, *, cls_token: bool) -> Tensor:
        """How much this block's CLS token looks at each other token, mean over the heads; without one, how much the
        mean of all queries does. Whatever the block's reach, and by content alone: rotary turns are left out.

        One row of the attention instead of all, and the query carried through the keys' weights instead of every token:
        (batch, tokens without CLS).
        """
        normed = self.norm1(tokens)
        asking = normed[:, 0] if cls_token else normed.mean(dim=1)
        weights = self.qkv.weight.chunk(3)
        query = F.linear(asking, weights[0], None if self.qkv.bias is None else self.qkv.bias.chunk(3)[0])
        query = rearrange(query, "b (h d) -> b h d", h=self.num_heads)
        keys = rearrange(weights[1], "(h d) c -> h d c", h=self.num_heads)  # their bias moves all logits alike
        reads = torch.einsum("bhd,hdc->bhc", query, keys) / math.sqrt(query.shape[-1])
        shares = (reads @ normed.transpose(1, 2)).softmax(dim=-1).mean(dim=1)
        return shares[:, 1:] if cls_token else shares


_M3D: dict[str, Any] = {
    "patch_size": (16, 16, 4), "grid_size": (16, 16, 8), "embed_dim": 768, "depth": 12, "num_heads": 12,
    "positions": "learned", "qkv_bias": False,
}  # fmt: skip

VIT3D_CONFIGS: dict[str, dict[str, Any]] = {
    "vit3d-tiny": {"patch_size": (8, 8, 4), "embed_dim": 192, "depth": 4, "num_heads": 3, "stem": "conv",
                   "preset": "merlin"},
    "vit3d-small": {"patch_size": (16, 16, 8), "embed_dim": 384, "depth": 12, "num_heads": 6, "preset": "merlin"},
    "vit3d-base": {"patch_size": (16, 16, 8), "embed_dim": 768, "depth": 12, "num_heads": 12, "preset": "merlin"},
    "vit3d-large": {"patch_size": (16, 16, 8), "embed_dim": 1024, "depth": 24, "num_heads": 16, "preset": "merlin"},
    # Two slice blocks, then one over the whole volume: 1 mm volumes fit.
    "vit3d-hlip": {"patch_size": (16, 16, 8), "embed_dim": 768, "depth": 12, "num_heads": 12, "cls_token": True,
                   "attention": ("slice", "slice", "scan"), "preset": "spectre"},
    "m3d-clip": {**_M3D, "cls_token": True, "preset": "m3d"},
    "segvol": {**_M3D, "preset": "segvol"},
    "radfm": {"patch_size": (32, 32, 4), "grid_size": (16, 16, 128), "embed_dim": 768, "depth": 12, "num_heads": 8,
              "head_dim": 64, "mlp_ratio": 2048 / 768, "positions": "axial", "stem": "normed", "stem_channels": 3,
              "qkv_bias": False, "final_norm": False, "preset": "radfm"},
}  # fmt: skip
