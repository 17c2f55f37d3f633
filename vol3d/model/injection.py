"""Multi-layer injection: stages of the encoder enter chosen layers of the language model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vol3d.model.adapters import decoder_layers
from vol3d.model.interfaces import Features, Projector
from vol3d.model.language import LanguageModel
from vol3d.model.projectors import blocks_of
from vol3d.types import Tokens, Triple


@runtime_checkable
class Injects(Protocol):
    """A projector that also gives what is added inside the language model."""

    layers: tuple[int, ...]

    def injections(self, features: Features) -> dict[int, Tensor]:
        """Decoder layer → (batch, visual tokens, width), added to the hidden states of the visual tokens there."""
        ...


class MultiLayerProjector(Projector):
    """Visual tokens from the encoder's last tokens, and its finer stages added inside the language model.

    Each chosen decoder layer receives one stage, pooled to the grid of the visual tokens, normalised, mapped to the
    language model's width, and scaled by a gate that begins at zero: training starts from the plain model. Stages
    are taken finest last, so that early layers read coarse and late layers read fine maps; an encoder without
    `scales` gives its tokens to every layer.

    Args:
        layers: decoder layers, counted from 0; the stage is added to that layer's input.
        scale_dims: channels of the encoder's scales (`Features.scales`), finest first, one a layer; empty for an
            encoder without scales.
        pooling: tokens along x, y, z that become one visual token.

    Shape:
        (batch, gx * gy * gz, in_dim) → (batch, gx // px * gy // py * gz // pz, out_dim).

    Raises:
        ValueError: as many layers as scales are needed; a grid the block does not divide; scales of other widths.

    Source: U-VLM (arXiv:2603.00479), which injects the stages of a U-Net's encoder. Differs: any encoder with scales,
    and a zero-initialised gate a channel.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        layers: Sequence[int],
        scale_dims: Sequence[int] = (),
        pooling: Sequence[int] = (1, 1, 1),
    ) -> None:
        super().__init__(in_dim, out_dim)
        if len(set(layers)) != len(layers) or not layers or min(layers) < 0:
            raise ValueError(f"layers {list(layers)}: name at least one decoder layer, each once, counted from 0")
        if scale_dims and len(scale_dims) != len(layers):
            raise ValueError(f"{len(scale_dims)} scales for {len(layers)} layers: name one layer a scale")
        self.layers, self.scale_dims, self.pooling = tuple(layers), tuple(scale_dims), tuple(pooling)
        self.uses = frozenset({"scales"}) if scale_dims else frozenset()
        self.mlp = nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))
        widths = list(reversed(scale_dims)) if scale_dims else [in_dim] * len(layers)
        self.maps = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out_dim)) for width in widths)
        self.gates = nn.ParameterList(nn.Parameter(torch.zeros(out_dim)) for _ in widths)

    def num_tokens(self, grid_size: Triple) -> int:
        return math.prod(blocks_of(grid_size, self.pooling))

    def forward(self, features: Features) -> Tokens:
        return self.mlp(self._pooled(features))

    def injections(self, features: Features) -> dict[int, Tensor]:
        """Decoder layer → (batch, visual tokens, out_dim).

        Raises:
            ValueError: the features' scales are not those this projector was made for.
        """
        if not self.scale_dims:
            stages = [self._pooled(features)] * len(self.layers)
        else:
            found = tuple(scale.shape[1] for scale in features.scales)
            if found != self.scale_dims:
                raise ValueError(
                    f"the encoder gives scales of {found} channels, this projector is made for {self.scale_dims}: set "
                    "scale_dims to the encoder's, and do not cache features without their scales"
                )
            grid = blocks_of(features.grid_size, self.pooling)
            stages = [_to_grid(scale, grid) for scale in reversed(features.scales)]
        each = zip(self.layers, self.maps, self.gates, stages, strict=True)
        return {layer: project(stage) * gate for layer, project, gate, stage in each}

    def _pooled(self, features: Features) -> Tensor:
        gx, gy, gz = blocks_of(features.grid_size, self.pooling)
        px, py, pz = self.pooling
        cells = features.tokens.reshape(-1, gx, px, gy, py, gz, pz, self.in_dim)
        return cells.mean(dim=(2, 4, 6)).flatten(1, 3)


def _to_grid(scale: Tensor, grid: Triple) -> Tensor:
    """A map (batch, channels, x, y, z) as tokens (batch, tokens, channels) of a coarser grid, by means over cells."""
    if all(size % cells == 0 for size, cells in zip(scale.shape[2:], grid, strict=True)):
        x, y, z = grid
        return rearrange(scale, "b c (x p) (y q) (z r) -> b (x y z) (p q r) c", x=x, y=y, z=z).mean(dim=2)
    # Not a multiple: adaptive cells overlap. In fp32, as the pooling has no bf16 kernel on the CPU.
    return F.adaptive_avg_pool3d(scale.float(), grid).to(scale.dtype).flatten(2).transpose(1, 2)


def check_layers(projector: Injects, language: LanguageModel) -> None:
    """Refuse layers that the language model does not have.

    Raises:
        ValueError: both numbers are given.
    """
    depth = len(decoder_layers(language.causal_lm))
    if max(projector.layers) >= depth:
        raise ValueError(
            f"the projector injects into layer {max(projector.layers)}, the language model has layers 0 to "
            f"{depth - 1}: choose others"
        )


@contextmanager
def injecting(language: LanguageModel, added: Mapping[int, Tensor], places: Tensor) -> Iterator[None]:
    """Within it, the first pass through the decoder adds `added` to the hidden states at `places`.

    Later passes (the decode steps of a generation) are left alone.

    Args:
        added: decoder layer → (visual tokens of all rows, width), in the order of the placeholders.
        places: (batch, length), true where a visual token stands; rows may come repeated (beams).
    """
    layers = decoder_layers(language.causal_lm)
    _refuse_old_checkpointing(language, layers)
    with ExitStack() as stack:
        for index, tokens in added.items():
            hook = _once(tokens, places)
            stack.callback(layers[index].register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _once(tokens: Tensor, places: Tensor) -> Any:
    done = False

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal done
        if done:
            return args, kwargs
        done = True
        hidden = args[0] if args else kwargs["hidden_states"]
        more = hidden.new_zeros(*places.shape, hidden.shape[-1])
        more = more.masked_scatter(places.unsqueeze(-1), tokens.to(hidden.dtype))
        hidden = hidden + more.repeat_interleave(len(hidden) // len(more), dim=0)
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    return hook


def _refuse_old_checkpointing(language: LanguageModel, layers: nn.ModuleList) -> None:
    """Before transformers wrapped a layer's `forward`, its checkpoint ran the hooks again, after they were gone."""
    checkpointed = language.training and getattr(layers[0], "gradient_checkpointing", False)
    if checkpointed and any("__call__" in vars(kind) for kind in type(layers[0]).__mro__[:-1] if kind is not nn.Module):
        import transformers

        raise ValueError(
            f"transformers {transformers.__version__} runs hooks inside gradient checkpoints: multi-layer injection "
            "with checkpointing needs a newer one, or gradient checkpointing off"
        )
