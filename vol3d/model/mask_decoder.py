"""From prompts to masks: text, points, boxes and earlier masks ask, shared encoder features answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vol3d.model.interfaces import Encoder, Features
from vol3d.model.pixel_decoder import PixelDecoder
from vol3d.model.places import apply_affine, to_shares
from vol3d.model.positions import BANDS, grid_coordinates, waves
from vol3d.model.two_way import TwoWayBlock, mlp
from vol3d.types import Affines, Triple, Volumes


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
    a prompt has three tokens (mask, presence, box), which carry its text, and one more a click or corner; a two-way
    transformer lets them and the volume's tokens read each other, and the mask token becomes a filter over the maps.
    Prompts do not see one another: many at once give what one by one gives.

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
        self.from_mask = nn.Linear(2, dim)
        self.blocks = nn.ModuleList(TwoWayBlock(dim, num_heads) for _ in range(depth))
        self.norm, self.norm_tokens = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.filters = nn.ModuleList(mlp(dim, width + 1) for width in self.pixels.widths)
        self.where = nn.Linear(dim, 1)
        self.click_gain, self.mask_gain = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))
        self.presence = nn.Linear(dim, 1)
        self.presence_gain = nn.Parameter(torch.tensor([0.25, 0.25]))
        self.box = mlp(dim, 6)
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
            share = to_shares(apply_affine(features.affine, centres.to(features.affine.dtype)), affine, shape)
        positions = self.position(waves(share.to(torch.float32)))
        maps = self.pixels(tokens, features.grid_size, features.scales, image)
        return Seen(tokens, positions.expand(len(tokens), -1, -1), features.grid_size, maps, affine, shape)

    def ask(self, seen: Seen, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """What each prompt's tokens became after reading the volume, and the volume's after reading them.

        Shape:
            (batch, prompts, prompt tokens, dim), of which the first three are mask, presence and box; (batch, prompts,
            tokens, dim).
        """
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
        return tuple(x.unflatten(0, (studies, count)) for x in (self.norm(queries), self.norm_tokens(tokens)))

    def forward(self, seen: Seen, prompts: Prompts) -> Answers:
        queries, tokens = self.ask(seen, prompts)
        place = self.where(tokens)[..., 0].unflatten(2, seen.grid_size)
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
        own = self.learned.weight.expand(studies, count, -1, -1)
        if prompts.text is not None:
            text = prompts.text
            if prompts.has_text is not None:
                text = torch.where(prompts.has_text[..., None], text, 0)
            own = own + text[:, :, None]
        parts = [own]
        there = [torch.ones(studies, count, 3, dtype=torch.bool, device=device)]
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


def _corners(raw: Tensor) -> Tensor:
    """Centre and size through a sigmoid → lower and upper corner, in shares."""
    centre, size = raw.float().sigmoid().split(3, dim=-1)
    return torch.cat([(centre - size / 2).clamp(0, 1), (centre + size / 2).clamp(0, 1)], dim=-1)
