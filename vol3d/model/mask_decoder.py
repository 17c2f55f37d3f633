"""From prompts to masks: text, points, boxes and earlier masks ask, shared encoder features answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vol3d.model.interfaces import Encoder, Features
from vol3d.model.positions import grid_coordinates
from vol3d.types import Affines, Triple, Volumes

BANDS = 6
"""Frequencies a coordinate is written in; the finest wave is 1/32 of the grid long."""


@dataclass
class Prompts:
    """What is asked of each study; every study of a batch has as many prompts, padded where it has fewer.

    Shape:
        text: (batch, prompts, dim), of which `has_text` (batch, prompts) count; None when no prompt has words.
        points: (batch, prompts, points, 3) RAS mm with point_labels (batch, prompts, points): 1 inside, 0 outside,
            −1 no point.
        boxes: (batch, prompts, 6) RAS mm, corners x1, y1, z1, x2, y2, z2; NaN for a prompt without one.
        mask: (batch, prompts, x, y, z) on the grid, 0 to 1, of which `has_mask` (batch, prompts) count.
    """

    text: Tensor | None = None
    has_text: Tensor | None = None
    points: Tensor | None = None
    point_labels: Tensor | None = None
    boxes: Tensor | None = None
    mask: Tensor | None = None
    has_mask: Tensor | None = None

    def size(self) -> tuple[int, int]:
        """Studies and prompts."""
        for tensor in (self.text, self.points, self.boxes, self.mask):
            if tensor is not None:
                return tensor.shape[0], tensor.shape[1]
        raise ValueError("0 prompts: give a text, points, a box or an earlier mask")


@dataclass
class Seen:
    """What the decoder made of a volume, once for all prompts.

    Shape:
        tokens (batch, tokens, dim), positions (batch, tokens, dim), maps finest first (batch, width, x, y, z), affine
        (batch, 4, 4) voxel → RAS mm of a grid of `shape`.
    """

    tokens: Tensor
    positions: Tensor
    grid_size: Triple
    maps: list[Tensor]
    affine: Affines
    shape: Triple


@dataclass
class Answers:
    """Logits before any threshold.

    Shape:
        masks: (batch, prompts, x, y, z) at the grid's resolution; coarse: the same at each coarser level.
        presence: (batch, prompts). boxes: (batch, prompts, 6) corners in shares of the grid, 0 to 1 along x, y, z.
        tokens: (batch, prompts, dim), what each prompt became.
    """

    masks: Tensor
    coarse: list[Tensor]
    presence: Tensor
    boxes: Tensor
    tokens: Tensor


class PromptDecoder(nn.Module):
    """Masks, boxes and presence of any number of prompts from one look at the volume.

    `see` runs once a volume: a light U-Net decoder brings the encoder's tokens back to the grid's resolution, through
    the encoder's finer maps when it has them and through a convolution of the image itself. `forward` runs the prompts:
    a two-way transformer lets each prompt's tokens and the volume's tokens read each other, and the prompt's mask
    token becomes a filter over the maps. Prompts do not see one another: many at once give what one by one gives.

    Args:
        encoder: whose features are read; widths and strides of its finer maps are found by a look at a few voxels.
        dim: width of the prompt transformer. depth, num_heads: its blocks.
        pixel_dim: channels at the grid's resolution, doubled at each coarser level up to `dim`.

    Source: SAM's prompt tokens and two-way transformer (arXiv:2304.02643) in 3D as in SegVol (arXiv:2311.13385);
    text prompts over a shared map of voxels as in SAT (arXiv:2312.17183). Here points, boxes and text share one
    coordinate system in millimetres, and there is no second image encoder.
    """

    def __init__(
        self, encoder: Encoder, *, dim: int = 128, depth: int = 2, num_heads: int = 4, pixel_dim: int = 16
    ) -> None:
        super().__init__()
        self.dim = dim
        self.from_tokens = nn.Sequential(nn.LayerNorm(encoder.embed_dim), nn.Linear(encoder.embed_dim, dim))
        self.position = nn.Linear(6 * BANDS, dim)
        self.pixels = PixelDecoder(encoder, dim, pixel_dim)
        self.learned = nn.Embedding(3, dim)  # mask, presence, box
        self.point_kind = nn.Embedding(4, dim)  # outside, inside, lower corner, upper corner
        self.text_kind = nn.Parameter(torch.zeros(dim))
        self.from_mask = nn.Linear(2, dim)
        self.blocks = nn.ModuleList(TwoWayBlock(dim, num_heads) for _ in range(depth))
        self.norm, self.norm_tokens = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.filters = nn.ModuleList(_mlp(dim, width + 1) for width in self.pixels.widths)
        self.where = nn.Linear(dim, 1)
        self.click_gain, self.mask_gain = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))
        self.presence = nn.Linear(dim, 1)
        self.presence_gain = nn.Parameter(torch.tensor([0.25, 0.25]))
        self.box = _mlp(dim, 6)
        for head in self.filters:  # from "absent everywhere", where nearly all voxels are
            nn.init.constant_(head[-1].bias[-1:], -3.0)

    def see(self, features: Features, image: Volumes, affine: Affines) -> Seen:
        """Shape: image (batch, channels, x, y, z) as windowed, affine (batch, 4, 4) of the grid."""
        tokens = self.from_tokens(features.tokens)
        shape = tuple(image.shape[2:])
        centres = grid_coordinates(features.grid_size, tokens.device)[None]
        if features.affine is None:
            share = (centres + 0.5) / torch.tensor(features.grid_size, device=tokens.device)
        else:
            share = to_shares(_apply(features.affine, centres.to(features.affine.dtype)), affine, shape)
        positions = self.position(waves(share.to(torch.float32)))
        maps = self.pixels(tokens, features.grid_size, features.scales, image)
        return Seen(tokens, positions.expand(len(tokens), -1, -1), features.grid_size, maps, affine, shape)

    def forward(self, seen: Seen, prompts: Prompts) -> Answers:
        studies, count = prompts.size()
        queries, keep = self._queries(seen, prompts)
        width = seen.tokens.shape[-1]
        tokens = seen.tokens[:, None].expand(-1, count, -1, -1)
        if prompts.mask is not None:
            tokens = tokens + self._dense(prompts, seen.grid_size)
        tokens = tokens.reshape(studies * count, -1, width)
        positions = seen.positions[:, None].expand(-1, count, -1, -1).reshape(tokens.shape)
        for block in self.blocks:
            queries, tokens = block(queries, tokens, positions, keep)
        queries = self.norm(queries).unflatten(0, (studies, count))
        place = self.where(self.norm_tokens(tokens)).reshape(studies, count, *seen.grid_size)
        mask_token, presence_token, box_token = queries[:, :, 0], queries[:, :, 1], queries[:, :, 2]
        levels = [
            self._filter(head(mask_token), level, place)
            for head, level in zip(self.filters, seen.maps, strict=True)
        ]  # fmt: skip
        masks = self._prompted(levels[0], seen, prompts)
        # What fills any cell is there: the highest cells of the two coarsest answers speak beside the token.
        presence = self.presence(presence_token)[..., 0].float()
        for gain, logits in zip(self.presence_gain, (place, levels[-1]), strict=True):
            presence = presence + gain * logits.float().flatten(2).topk(min(4, logits[0, 0].numel()), 2).values.mean(2)
        return Answers(masks, [*levels[1:], place], presence, _corners(self.box(box_token)), mask_token)

    @staticmethod
    def _filter(weights: Tensor, level: Tensor, place: Tensor) -> Tensor:
        """Where the map answers to the filter, and where the prompt's own tokens say to look."""
        # Not divided by the root of the width: filters start small, and masks would start to form far later.
        logits = torch.einsum("bpc,bcxyz->bpxyz", weights[..., :-1], level)
        place = F.interpolate(place, size=level.shape[2:], mode="trilinear", align_corners=False)
        return logits + place + weights[..., -1, None, None, None]

    def _queries(self, seen: Seen, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Tokens of each prompt (studies · prompts, tokens, dim), and which of them are there."""
        studies, count = prompts.size()
        device = seen.tokens.device
        parts = [self.learned.weight.expand(studies, count, -1, -1)]
        there = [torch.ones(studies, count, 3, dtype=torch.bool, device=device)]
        if prompts.text is not None:
            parts.append((prompts.text + self.text_kind)[:, :, None])
            known = there[0][:, :, :1] if prompts.has_text is None else prompts.has_text[:, :, None]
            there.append(known)
        if prompts.points is not None:
            parts.append(self._points(prompts.points, prompts.point_labels.clamp_min(0), seen))
            there.append(prompts.point_labels >= 0)
        if prompts.boxes is not None:
            known = prompts.boxes.isfinite().all(-1, keepdim=True)
            corners = torch.where(known, prompts.boxes, 0).unflatten(-1, (2, 3))
            kinds = torch.tensor([2, 3], device=device).expand(studies, count, 2)
            parts.append(self._points(corners, kinds, seen))
            there.append(known.expand(-1, -1, 2))
        return torch.cat(parts, dim=2).flatten(0, 1), torch.cat(there, dim=2).flatten(0, 1)

    def _points(self, places: Tensor, kinds: Tensor, seen: Seen) -> Tensor:
        share = to_shares(places.flatten(1, 2), seen.affine, seen.shape).unflatten(1, places.shape[1:3])
        return self.position(waves(share.float())) + self.point_kind(kinds)

    def _dense(self, prompts: Prompts, grid_size: Triple) -> Tensor:
        """An earlier mask as tokens: the share of each token's patch that it fills, and whether there is one."""
        share = F.adaptive_avg_pool3d(prompts.mask.float(), grid_size).flatten(2)
        known = torch.ones_like(share[:, :, 0], dtype=torch.bool) if prompts.has_mask is None else prompts.has_mask
        dense = self.from_mask(torch.stack([share, share.sqrt()], dim=-1) * 4)
        return torch.where(known[..., None, None], dense, 0)

    def _prompted(self, masks: Tensor, seen: Seen, prompts: Prompts) -> Tensor:
        """The finest logits, leaning on an earlier mask and on clicks at the very voxels they lie on."""
        if prompts.mask is not None:
            leaning = self.mask_gain * (2 * prompts.mask - 1)
            known = prompts.has_mask
            masks = masks + (leaning if known is None else torch.where(known[..., None, None, None], leaning, 0))
        if prompts.points is not None:
            masks = masks + self.click_gain * self._clicks(seen, prompts).to(masks.dtype)
        return masks

    @staticmethod
    def _clicks(seen: Seen, prompts: Prompts) -> Tensor:
        """+1 at a click inside, −1 at one outside, fading over about half a token."""
        share = to_shares(prompts.points.flatten(1, 2), seen.affine, seen.shape).unflatten(1, prompts.points.shape[1:3])
        reach = [0.5 / size for size in seen.grid_size]
        sign = (2.0 * prompts.point_labels - 1) * (prompts.point_labels >= 0)
        bumps = []
        for axis, size in enumerate(seen.shape):
            centre = (torch.arange(size, device=share.device) + 0.5) / size
            bumps.append(torch.exp(-0.5 * ((share[..., axis, None] - centre) / reach[axis]) ** 2).float())
        return torch.einsum("bpn,bpnx,bpny,bpnz->bpxyz", sign.float(), *bumps)


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
        # Rectifiers and few norms: at the grid's resolution each pass over the map costs as much as a convolution.
        self.mix = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(math.gcd(8, width), width) if level else nn.Identity(),
                nn.ReLU(),
                nn.Conv3d(width, width, 3, padding=1),
                nn.ReLU(),
            )
            for level, width in enumerate(self.widths)
        )

    def forward(self, tokens: Tensor, grid_size: Triple, scales: Sequence[Tensor], image: Tensor) -> list[Tensor]:
        current = tokens.transpose(1, 2).unflatten(2, grid_size)
        sources = [*scales] if self.whole else [image, *scales]
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


class TwoWayBlock(nn.Module):
    """A prompt's tokens read each other and the volume, the volume's tokens read the prompt."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(5))
        self.among, self.look, self.told = (Attention(dim, num_heads) for _ in range(3))
        self.mlp = _mlp(dim, dim)

    def forward(self, queries: Tensor, tokens: Tensor, positions: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        own = self.norms[0](queries)
        queries = queries + self.among(own, own, own, keep)
        seen = self.norms[1](tokens)
        queries = queries + self.look(self.norms[2](queries), seen + positions, seen)
        queries = queries + self.mlp(self.norms[3](queries))
        said = self.norms[4](queries)
        return queries, tokens + self.told(seen + positions, said, said, keep)


class Attention(nn.Module):
    """Multi-head attention; `keep` (rows, keys) says which keys may be read."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None) -> Tensor:
        parts = ((self.query, query), (self.key, key), (self.value, value))
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer, x in parts)
        # One side is always a handful of prompt tokens, for which a fused kernel is slower than two products.
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        if keep is not None:
            scores = scores.masked_fill(~keep[:, None, None], -torch.inf)
        return self.out((scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2))


@torch.no_grad()
def finer_maps(encoder: Encoder) -> tuple[list[int], list[Triple]]:
    """Channels and strides of an encoder's `scales`, finest first, found on a volume of a few tokens."""
    device = next(encoder.parameters()).device
    shape = tuple(2 * size for size in encoder.patch_size)
    training = encoder.training
    encoder.eval()
    try:
        scales = encoder(torch.zeros(1, encoder.in_channels, *shape, device=device)).scales
    finally:
        encoder.train(training)
    strides = [tuple(a // b for a, b in zip(shape, scale.shape[2:], strict=True)) for scale in scales]
    return [scale.shape[1] for scale in scales], strides


def waves(shares: Tensor) -> Tensor:
    """Coordinates in shares of the grid (…, 3) → sines and cosines (…, 6 · BANDS)."""
    frequencies = math.pi * 2.0 ** torch.arange(BANDS, device=shares.device, dtype=shares.dtype)
    angles = (shares[..., None] * frequencies).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def to_shares(points: Tensor, affine: Affines, shape: Triple) -> Tensor:
    """RAS mm (batch, points, 3) → shares of the grid: 0 at its lower face, 1 at its upper face."""
    voxels = _apply(torch.linalg.inv(affine), points.to(affine.dtype))
    return (voxels + 0.5) / torch.tensor(shape, dtype=affine.dtype, device=affine.device)


def boxes_to_shares(boxes: Tensor, affine: Affines, shape: Triple) -> Tensor:
    """Boxes (batch, boxes, 6) in RAS mm → the boxes of the grid around their eight corners, in shares."""
    shares = to_shares(_eight(boxes).flatten(1, 2), affine, shape).unflatten(1, (-1, 8))
    return torch.cat([shares.amin(2), shares.amax(2)], dim=-1)


def boxes_to_mm(shares: Tensor, affine: Affines, shape: Triple) -> Tensor:
    """The way back: boxes of the grid in shares → boxes around their corners in RAS mm."""
    size = torch.tensor(shape, dtype=affine.dtype, device=affine.device)
    corners = _eight(shares.to(affine.dtype)) * size - 0.5
    points = _apply(affine, corners.flatten(1, 2)).unflatten(1, (-1, 8))
    return torch.cat([points.amin(2), points.amax(2)], dim=-1)


def _eight(boxes: Tensor) -> Tensor:
    """(batch, boxes, 6) → their corners (batch, boxes, 8, 3)."""
    ends = boxes.unflatten(-1, (2, 3))
    chosen = torch.tensor([[i >> axis & 1 for axis in range(3)] for i in range(8)], device=boxes.device)
    return torch.stack([ends[..., chosen[:, axis], axis] for axis in range(3)], dim=-1)


def _apply(affine: Tensor, points: Tensor) -> Tensor:
    return points @ affine[:, :3, :3].transpose(1, 2) + affine[:, None, :3, 3]


def _corners(raw: Tensor) -> Tensor:
    """Centre and size through a sigmoid → lower and upper corner, in shares."""
    centre, size = raw.float().sigmoid().split(3, dim=-1)
    return torch.cat([(centre - size / 2).clamp(0, 1), (centre + size / 2).clamp(0, 1)], dim=-1)


def _mlp(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, out))


def repeat_study(seen: Seen, rows: Tensor) -> Seen:
    """What was seen of some studies, in the order of `rows`."""
    return replace(
        seen,
        tokens=seen.tokens[rows],
        positions=seen.positions[rows],
        maps=[level[rows] for level in seen.maps],
        affine=seen.affine[rows],
    )
