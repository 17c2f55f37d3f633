"""One decode step of a Llama-shaped model without the host's overhead: static key-value buffers, no wrappers.

At small sizes most of a decode step is Python around tiny tensors. Here a step is the model's own linear layers
(adapters included) and little else; everything that can be known beforehand (rotary angles, masks) is made once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vol3d.model.cross_entropy import is_sharded

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

# Same block: RMS norm, rotary halves, grouped heads, gated MLP; Qwen3 also norms its queries and keys.
FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM")
# Rotary embeddings whose angles do not depend on how long the sequence has become.
_FIXED_ROPES = ("default", "linear", "llama3", "yarn")


def supports(model: PreTrainedModel, cache: Cache) -> bool:
    """Whether `StaticDecoder` computes what this model computes."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    return (
        type(model).__name__ in FAMILIES
        and rope.get("rope_type", "default") in _FIXED_ROPES
        and not any(cache.is_sliding)
        and not getattr(model, "is_quantized", False)
        and not is_sharded(next(model.parameters()))
    )


class StaticDecoder:
    """Decode steps after a prefill.

    Args:
        model: a causal LM that `supports` names.
        cache: what the prefill left; copied into buffers that hold `room` tokens more.
        mask: (batch, tokens in the cache), 0 where padding stands; None when there is none.
        positions: (batch,) position of the next token of each row.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, room: int, mask: Tensor | None, positions: Tensor) -> None:
        self.decoder, self.step = model.get_decoder(), 0
        self.length = cache.get_seq_length()
        self.keys, self.values = [], []
        for layer in cache.layers:
            for held, found in ((self.keys, layer.keys), (self.values, layer.values)):
                buffer = found.new_empty(*found.shape[:2], self.length + room, found.shape[-1])
                buffer[:, :, : self.length] = found
                held.append(buffer)
        steps = positions[:, None] + torch.arange(room, device=positions.device)
        sample = torch.empty(0, dtype=model.dtype, device=positions.device)
        cos, sin = self.decoder.rotary_emb(sample, position_ids=steps)
        half = sin.shape[-1] // 2
        # The sign of the rotation's first half is folded in, so that a turn is two products and one roll.
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        self.cos, self.sin = cos.transpose(0, 1)[:, :, None], sin.transpose(0, 1)[:, :, None]
        self.mask = None
        if mask is not None and not bool(mask.all()):
            self.mask = F.pad(mask.bool(), (0, room), value=True)[:, None, None]
        self.norms = [(layer.input_layernorm, layer.post_attention_layernorm) for layer in self.decoder.layers]

    def __call__(self, embeds: Tensor) -> Tensor:
        """Shape: (batch, width) → the last hidden state (batch, width)."""
        end = self.length + 1
        mask = None if self.mask is None else self.mask[..., :end]
        hidden = self._layers(embeds, self.cos[self.step], self.sin[self.step], mask)
        self.length, self.step = end, self.step + 1
        return hidden

    def _layers(self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        for index, layer in enumerate(self.decoder.layers):
            first, second = self.norms[index]
            hidden = hidden + self._attention(layer.self_attn, _norm(first, hidden), index, cos, sin, mask)
            hidden = hidden + layer.mlp(_norm(second, hidden))
        return _norm(self.decoder.norm, hidden)

    def _write(self, buffer: Tensor, new: Tensor) -> Tensor:
        """Put the new token's keys or values in their place; what attention reads."""
        buffer[:, :, self.length] = new
        return buffer[:, :, : self.length + 1]

    def _attention(
        self, attention: nn.Module, hidden: Tensor, index: int, cos: Tensor, sin: Tensor, mask: Tensor | None
    ) -> Tensor:
        keys, values = self.keys[index], self.values[index]
        batch, heads, _, width = keys.shape
        query = attention.q_proj(hidden).view(batch, -1, width)
        key = attention.k_proj(hidden).view(batch, heads, width)
        if hasattr(attention, "q_norm"):
            query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
        if getattr(attention, "use_rope", True):
            query, key = _turn(query, cos, sin), _turn(key, cos, sin)
        value = attention.v_proj(hidden).view(batch, heads, width)
        # With one new token the heads of a group are queries to the same keys: no key is repeated.
        seen = F.scaled_dot_product_attention(
            query.view(batch, heads, -1, width).to(keys.dtype),
            self._write(keys, key),
            self._write(values, value),
            attn_mask=mask,
            scale=attention.scaling,
        )
        return attention.o_proj(seen.reshape(batch, -1))


class CapturedDecoder(StaticDecoder):
    """The same steps as one CUDA graph, captured at the first: a token starts one graph and not some hundred kernels.

    Every step does the same to the same buffers. Attention reads all of them and a mask hides what is not written yet,
    so a step costs what the last one costs; where a token stands is a tensor. Capturing costs about five steps.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, room: int, mask: Tensor | None, positions: Tensor) -> None:
        super().__init__(model, cache, room, mask, positions)
        device = positions.device
        for buffer in (*self.keys, *self.values):
            buffer[:, :, self.length :] = 0  # hidden, but no number times nothing is none
        seen = torch.ones(len(positions), self.length, device=device) if mask is None else mask
        self.mask = F.pad(seen.bool(), (0, room), value=False)[:, None, None]
        self.place = torch.tensor([self.length], device=device)
        self.turn = torch.tensor([0], device=device)
        self.replay: Callable[[], None] | None = None

    def __call__(self, embeds: Tensor) -> Tensor:
        """Shape: (batch, width) → the last hidden state (batch, width)."""
        if self.replay is None:
            self.embeds = embeds.clone()
            self.replay = self._capture()
        self.embeds.copy_(embeds)
        self.replay()
        self.place += 1
        self.turn += 1
        return self.hidden.clone()

    def _capture(self) -> Callable[[], None]:
        aside, now = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(now)
        with torch.cuda.stream(aside):
            for _ in range(3):  # libraries make their workspaces; a step taken twice leaves what it left once
                self._same_step()
        now.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.hidden = self._same_step()
        return graph.replay

    def _same_step(self) -> Tensor:
        self.mask.index_fill_(-1, self.place, True)
        cos, sin = (angles.index_select(0, self.turn)[0] for angles in (self.cos, self.sin))
        kind = self.embeds.device.type
        # Autocast keeps the weights it has cast; kept inside a graph they would be written over.
        with torch.autocast(kind, enabled=torch.is_autocast_enabled(kind), cache_enabled=False):
            return self._layers(self.embeds, cos, sin, self.mask)

    def _write(self, buffer: Tensor, new: Tensor) -> Tensor:
        return buffer.index_copy_(2, self.place, new.unsqueeze(2).to(buffer.dtype))


def _turn(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return heads * cos + heads.roll(heads.shape[-1] // 2, dims=-1) * sin


def _norm(norm: nn.Module, hidden: Tensor) -> Tensor:
    # In half precision the module's own order of casts counts; in fp32 the fused form gives the same.
    if hidden.dtype != torch.float32:
        return norm(hidden)
    return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
