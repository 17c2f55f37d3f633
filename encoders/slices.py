"""SliceEncoder: a 2D network over slices or slabs, and attention along the depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from vol3d.encoders.optional import optional
from vol3d.encoders.recompute import Recomputing, counting_once
from vol3d.encoders.vit3d import Block
from vol3d.model.interfaces import Features
from vol3d.model.positions import sincos_positions_3d
from vol3d.types import Affines, Volumes


class SliceEncoder(Recomputing):
    """Any of timm's image networks reads slabs of neighbouring slices; transformer blocks then let each column of
    tokens look along the depth.

    Nothing is downloaded: give pretrained 2D weights, a state dict as timm publishes it, to `load_backbone`.

    Args:
        backbone: a name timm knows; x is the image's first axis.
        in_channels: HU windows a volume comes with.
        slab: neighbouring slices that make one image, as channels.
        depth, num_heads, mlp_ratio: of the blocks along z.
        checkpointing: recompute the backbone and the blocks in the backward pass; less memory, same result.
        preset: name of the Grid this encoder was trained on.
        backbone_options: further arguments for timm.create_model.

    Shape:
        image: (batch, in_channels, x, y, z) → tokens (batch, gx * gy * z // slab, embed_dim), pooled their mean.

    Raises:
        ImportError: timm is not installed.

    Source: slabs as in 2.5D networks (Roth et al. 2014, arXiv:1406.2639).
    """

    def __init__(
        self,
        *,
        backbone: str = "vit_small_patch16_224",
        in_channels: int = 1,
        slab: int = 4,
        depth: int = 2,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        checkpointing: bool = False,
        preset: str | None = None,
        backbone_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        timm = optional("timm", asker="SliceEncoder", packages="timm", extra="timm")
        options = {"num_classes": 0, **({"dynamic_img_size": True} if "vit_" in backbone else {})}
        options.update(backbone_options or {})
        self.backbone = timm.create_model(backbone, pretrained=False, in_chans=in_channels * slab, **options)
        last = self.backbone.feature_info[-1]
        self.in_channels, self.embed_dim, self.slab = in_channels, last["num_chs"], slab
        self.patch_size = (last["reduction"], last["reduction"], slab)
        self.preset, self.checkpointing = preset, checkpointing
        if self.embed_dim % num_heads:
            raise ValueError(f"{backbone} gives {self.embed_dim} channels, not a multiple of num_heads {num_heads}")
        self.blocks = nn.ModuleList(Block(self.embed_dim, num_heads, mlp_ratio, True) for _ in range(depth))
        self.norm = nn.LayerNorm(self.embed_dim)
        for head in ("head", "fc_norm"):  # what timm keeps for its own classifier is never asked
            if isinstance(getattr(self.backbone, head, None), nn.Module):
                setattr(self.backbone, head, nn.Identity())

    def forward(self, image: Volumes, affine: Affines | None = None) -> Features:
        self.check_channels(image)
        grid_size = self.grid_size(tuple(image.shape[2:]))
        slabs = rearrange(image, "b c x y (z slab) -> (b z) (c slab) x y", slab=self.slab)
        maps = self.run(self._slices, slabs, keep=counting_once(self.backbone))
        tokens = rearrange(maps, "(b z) c x y -> b (x y z) c", z=grid_size[2])
        tokens = tokens + sincos_positions_3d(grid_size, self.embed_dim, tokens.device).to(tokens.dtype)
        columns = rearrange(tokens, "b (xy z) c -> (b xy) z c", z=grid_size[2])
        for block in self.blocks:
            columns = self.run(block, columns)
        tokens = self.norm(rearrange(columns, "(b xy) z c -> b (xy z) c", b=len(image)))
        return Features(tokens, grid_size, self.token_affine(affine), tokens.mean(1))

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Start from published 2D weights of the backbone, under timm's names.

        A first kernel made for other channels (three colours) is shared out evenly over a slab's: equal slices give
        what a gray picture gave. The classifier, which is not asked here, may be among them.

        Raises:
            ValueError: tensors missing or unexpected, or of another shape.
        """
        own, published = self.backbone.state_dict(), self.backbone.pretrained_cfg
        unasked = ("head.", "fc_norm.", f"{published.get('classifier')}.")
        state = {key: tensor for key, tensor in state.items() if key in own or not key.startswith(unasked)}
        first = f"{published.get('first_conv')}.weight"
        if first in state and first in own:
            channels = own[first].shape[1]
            if state[first].shape[1] != channels:
                state[first] = (state[first].sum(1, keepdim=True) / channels).repeat(1, channels, 1, 1)
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unexpected:
            raise ValueError(
                f"the weights are not this backbone's: {len(missing)} of {len(own)} tensors missing {missing[:3]}, "
                f"{len(unexpected)} unexpected {unexpected[:3]}; give the state dict of the timm model it names"
            )
        for key, tensor in state.items():
            if tensor.shape != own[key].shape:
                raise ValueError(
                    f"{key} comes as {tuple(tensor.shape)}, the backbone has {tuple(own[key].shape)}: give "
                    "backbone_options the sizes the weights were trained with"
                )
        self.backbone.load_state_dict(state)

    def _slices(self, slabs: Tensor) -> Tensor:
        return self.backbone.forward_intermediates(slabs, indices=1, norm=True, intermediates_only=True)[-1]


SLICE_CONFIGS: dict[str, dict[str, Any]] = {"slice-vit-small": {"preset": "merlin"}}
