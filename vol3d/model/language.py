"""The language model seat: any Hugging Face causal LM, a GGUF file, or a small decoder made from scratch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vol3d.model.adapters import Lora, Prefix, PrefixStates, freeze, with_lora
from vol3d.model.cross_entropy import Method, check_liger, linear_cross_entropy
from vol3d.model.generation import continue_rows, keep_only_ends
from vol3d.model.rebuilding import rebuild_gates
from vol3d.model.tokens import IGNORE, VOLUME_TOKEN, Prompt, num_volumes, pad, rendered, train_tokenizer

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "IGNORE",
    "VOLUME_TOKEN",
    "LanguageModel",
    "LanguageSource",
    "Lora",
    "Prefix",
    "Pretrained",
    "Scratch",
    "pad",
    "train_tokenizer",
]

logger = logging.getLogger(__name__)


@runtime_checkable
class LanguageSource(Protocol):
    """Says which language model to build; building happens later, when training or inference starts."""

    def build(self, texts: Iterable[str]) -> LanguageModel:
        """Make the model; `texts` are those of training (reports, or questions), for a scratch tokenizer to learn."""
        ...


@dataclass(frozen=True)
class Scratch:
    """A small Llama-shaped decoder, randomly initialised, with a BPE tokenizer trained on the reports.

    Args:
        vocab_size: upper bound on the tokens. embed_dim, depth, num_heads, mlp_ratio: the decoder's.
        max_length: longest sequence, visual tokens included.
        attn_implementation: passed to transformers; on a CPU "eager" is faster than "sdpa" for a decoder this small.
        special_tokens: new tokens such as "[SEG]", each written and read as one.

    Source: that a small decoder trained from scratch can beat 7 B ones on CT reports: U-VLM (arXiv:2603.00479).
    """

    vocab_size: int = 1024
    embed_dim: int = 256
    depth: int = 3
    num_heads: int = 4
    mlp_ratio: float = 4.0
    max_length: int = 1024
    attn_implementation: str = "sdpa"
    special_tokens: list[str] = field(default_factory=list)

    def build(self, texts: Iterable[str]) -> LanguageModel:
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = train_tokenizer(texts, self.vocab_size)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.embed_dim,
            intermediate_size=int(self.embed_dim * self.mlp_ratio),
            num_hidden_layers=self.depth,
            num_attention_heads=self.num_heads,
            max_position_embeddings=self.max_length,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation=self.attn_implementation,
        )
        return LanguageModel(LlamaForCausalLM(config), tokenizer, special_tokens=self.special_tokens)


@dataclass(frozen=True)
class Pretrained:
    """A Hugging Face causal LM by Hub name or folder. Nothing is read or downloaded before `build`.

    Args:
        name: Hub name, or a folder with config.json and weights.
        gguf_file: file inside `name` when the weights are GGUF; they are dequantised once.
        lora: LoRA or DoRA adapters on a frozen base. prefix: learned keys and values on a frozen base.
        train: what learns, names joined by "+" as in `vol3d.model.adapters.freeze` ("last:2+norms"); None for the
            adapters where there are any, else everything.
        dtype: of the base weights ("float32", "bfloat16"); adapters stay float32.
        quantization: "4bit" holds the base in NF4 by bitsandbytes (QLoRA, arXiv:2305.14314): a GPU and `lora` needed.
        attn_implementation: passed to transformers.
        special_tokens: new tokens such as "[SEG]"; only their own rows of the tables learn.
        cross_entropy: "chunked", or "liger" for liger-kernel on a GPU.
        checkpointing: recompute each layer in the backward pass; far less memory, about a third more time.
    """

    name: str
    gguf_file: str | None = None
    lora: Lora | None = None
    dtype: str = "float32"
    attn_implementation: str = "sdpa"
    prefix: Prefix | None = None
    train: str | None = None
    quantization: str | None = None
    special_tokens: list[str] = field(default_factory=list)
    cross_entropy: Method = "chunked"
    checkpointing: bool = False

    def build(self, texts: Iterable[str] = ()) -> LanguageModel:
        from vol3d.model.hub import load_causal_lm

        model, tokenizer = load_causal_lm(
            self.name,
            dtype=self.dtype,
            attn_implementation=self.attn_implementation,
            gguf_file=self.gguf_file,
            quantization=self.quantization,
            adapted=self.lora is not None,
        )
        return self.around(model, tokenizer)

    def around(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
        """The language model of these settings around a transformers model that is there already."""
        if self.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return LanguageModel(
            model,
            tokenizer,
            lora=self.lora,
            prefix=self.prefix,
            train=self.train,
            special_tokens=self.special_tokens,
            cross_entropy=self.cross_entropy,
        )


class LanguageModel(nn.Module):
    """A causal language model with the one extra token that stands for a volume's visual tokens.

    The extra token has no row in the embedding table: its positions are always overwritten by visual tokens, so
    the vocabulary keeps its size and the weights stay loadable elsewhere.

    Args:
        model: a transformers causal LM; of its generation_config only the ends of a text stay. tokenizer: its own.
        lora: wrap the model in LoRA adapters and freeze the base.
        prefix: learned keys and values before the first token; freezes the base.
        train: what learns (`vol3d.model.adapters.freeze`); None for the adapters where there are any, else everything.
        special_tokens: new tokens with trainable rows of their own; the tables do not change.
        cross_entropy: how the loss is computed: "chunked", or "liger" on a GPU.

    Raises:
        ValueError: the tokenizer has no end-of-sequence token, or an unknown name in `train`.

    Example:
        >>> from vol3d import LanguageModel
        >>> language = LanguageModel.scratch(["The liver is normal."], embed_dim=32, depth=1, num_heads=2)
        >>> language.embed_dim
        32
    """

    cuda_graph = False  # on a GPU, for long answers: a token replays one graph (`decoding.CapturedDecoder`)

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        lora: Lora | None = None,
        prefix: Prefix | None = None,
        train: str | None = None,
        special_tokens: Sequence[str] = (),
        cross_entropy: Method = "chunked",
    ) -> None:
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise ValueError(f"tokenizer of {model.config.model_type} has no eos token: set tokenizer.eos_token")
        if tokenizer.pad_token_id is None:
            logger.info("the tokenizer has no pad token; padding uses %r, masked", tokenizer.eos_token)
            tokenizer.pad_token = tokenizer.eos_token
        new = [VOLUME_TOKEN, *special_tokens]
        tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
        self.tokenizer, self.lora, self.prefix, self.cross_entropy = tokenizer, lora, prefix, cross_entropy
        self.special_tokens = list(dict.fromkeys(special_tokens))
        rebuild_gates(model)
        keep_only_ends(model)
        self.model = model if lora is None else with_lora(model, lora)
        self.prefix_states = None if prefix is None else PrefixStates(prefix, model.config.get_text_config())
        self.volume_id: int = tokenizer.convert_tokens_to_ids(VOLUME_TOKEN)
        if self.special_tokens:
            from vol3d.model.vocabulary import extend

            extend(self.causal_lm, tokenizer.convert_tokens_to_ids(self.special_tokens))
        if train is not None or prefix is not None or (lora is not None and special_tokens):
            freeze(self, train or "adapters")

    @classmethod
    def scratch(cls, texts: Iterable[str], **settings: Any) -> LanguageModel:
        """A small decoder whose tokenizer is trained on `texts`; settings are those of `Scratch`."""
        return Scratch(**settings).build(texts)

    @classmethod
    def pretrained(cls, name: str, **settings: Any) -> LanguageModel:
        """A Hugging Face causal LM by Hub name or folder; settings are those of `Pretrained`."""
        return Pretrained(name, **settings).build()

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model under the adapters."""
        return self.model if self.lora is None else self.model.get_base_model()

    @property
    def embed_dim(self) -> int:
        return self.causal_lm.get_input_embeddings().embedding_dim

    @property
    def max_length(self) -> int:
        """Positions left for prompt, visual tokens and answer."""
        config = self.causal_lm.config.get_text_config()
        return getattr(config, "max_position_embeddings", 1 << 20) - self.num_prefix_tokens

    @property
    def num_prefix_tokens(self) -> int:
        return 0 if self.prefix is None else self.prefix.num_tokens

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's end of sequence, and what the model's own settings name."""
        named = getattr(self.causal_lm.generation_config, "eos_token_id", None)
        named = named if isinstance(named, (list, tuple)) else [named]
        return list(dict.fromkeys(i for i in (self.tokenizer.eos_token_id, *named) if i is not None))

    def prompt_ids(self, prompt: Prompt, num_volume_tokens: int | Sequence[int]) -> list[int]:
        """Token ids of one prompt, in the model's chat template when it has one, each `<volume>` repeated.

        Args:
            prompt: a text, or a conversation for a model with a chat template.
            num_volume_tokens: visual tokens of the prompt's volume, or of each of its volumes in their order.

        Raises:
            ValueError: the prompt does not hold `<volume>` exactly once a volume.
        """
        counts = [num_volume_tokens] if isinstance(num_volume_tokens, int) else list(num_volume_tokens)
        if num_volumes(prompt) != len(counts):
            raise ValueError(
                f"prompt has {num_volumes(prompt)} {VOLUME_TOKEN} placeholders, needs {len(counts)}: {prompt!r}"
            )
        first, *pieces = rendered(prompt, self.tokenizer).split(VOLUME_TOKEN)
        ids = self.encode(first)
        for count, piece in zip(counts, pieces, strict=True):
            ids += [self.volume_id] * count + self.encode(piece)
        return ids

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer with the end-of-sequence token."""
        return [*self.encode(answer), self.tokenizer.eos_token_id]

    def splice(self, input_ids: Tensor, visual: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Embed the ids and put the visual tokens where the placeholders are.

        Args:
            counts: visual tokens of each row, when rows hold different numbers; `visual` is then (tokens, embed_dim),
                the rows' tokens laid end to end.

        Shape:
            input_ids (batch, length), visual (batch, tokens, embed_dim) → (batch, length, embed_dim).

        Raises:
            ValueError: a row's placeholders are not as many as its visual tokens (both numbers given).
        """
        places = input_ids == self.volume_id
        counts = [visual.shape[1]] * len(input_ids) if counts is None else counts
        for row, (found, wanted) in enumerate(zip(places.sum(dim=1).tolist(), counts, strict=True)):
            if found != wanted:
                raise ValueError(
                    f"row {row} has {found} {VOLUME_TOKEN} placeholders for {wanted} visual tokens: "
                    "build the prompt with prompt_ids(prompt, projector.num_tokens(grid_size)), and keep "
                    f"{VOLUME_TOKEN} out of the reports"
                )
        embeds = self.causal_lm.get_input_embeddings()(input_ids.masked_fill(places, 0))
        return embeds.masked_scatter(places.unsqueeze(-1), visual.to(embeds.dtype))

    def hidden(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states, the learned prefix in front where there is one; with `cache`, which then grows.

        Shape:
            inputs_embeds (batch, length, width) → (batch, length, width).

        Raises:
            ValueError: prefix tuning under gradient checkpointing, or in packed rows.
        """
        decoder, fresh = self.causal_lm.get_decoder(), cache is None or cache.get_seq_length() == 0
        if self.prefix_states is not None and fresh:
            prefix = self.prefix_cache(inputs_embeds)
            if cache is None:
                cache = prefix
            else:
                for index, layer in enumerate(prefix.layers):
                    cache.update(layer.keys, layer.values, index)
        if attention_mask is not None and self.num_prefix_tokens:
            ones = attention_mask.new_ones(len(attention_mask), self.num_prefix_tokens)
            attention_mask = torch.cat([ones, attention_mask], dim=1)
        if position_ids is not None:
            position_ids = position_ids + self.num_prefix_tokens
        output = decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def new_cache(self) -> Cache:
        """An empty key-value cache of the model's own kind of layers."""
        from transformers import DynamicCache

        return DynamicCache(config=self.causal_lm.config.get_text_config())

    @property
    def sliding(self) -> bool:
        """Whether some layers see only a window of the last tokens."""
        return any(self.new_cache().is_sliding)

    def prefix_cache(self, inputs_embeds: Tensor) -> Cache:
        """A cache that holds the learned prefix, for as many rows as `inputs_embeds` has."""
        if self.training and getattr(self.causal_lm.get_decoder(), "gradient_checkpointing", False):
            raise ValueError("prefix tuning needs the key-value cache, gradient checkpointing drops it: switch one off")
        kind = inputs_embeds.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs_embeds.dtype
        return self.prefix_states.cache(len(inputs_embeds), dtype)

    def loss(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy of the next token over the supervised positions (labels other than -100).

        Logits exist only at those positions and only a chunk at a time, so (batch, length, vocabulary) is never held.

        Args:
            attention_mask: None with `position_ids` that begin anew where a packed row's next study begins.
        """
        targets = labels[:, 1:]
        chosen = targets != IGNORE
        hidden = self.hidden(inputs_embeds, attention_mask, position_ids)[:, :-1][chosen]
        head = self.causal_lm.get_output_embeddings()
        return linear_cross_entropy(
            hidden, head, targets[chosen], transform=self.logit_transform, method=self.cross_entropy
        )

    @property
    def logit_transform(self) -> Callable[[Tensor], Tensor] | None:
        """What this architecture does to its logits after the head (Gemma caps, Granite divides, Cohere multiplies)."""
        config = self.causal_lm.config.get_text_config()
        cap = getattr(config, "final_logit_softcapping", None)
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        if cap is None and scale == 1.0:
            return None
        return lambda logits: logits * scale if cap is None else torch.tanh(logits * scale / cap) * cap

    def check_device(self) -> None:
        """Refuse settings that the model's device cannot run, before the first step."""
        if self.cross_entropy == "liger":
            check_liger(self.causal_lm.device)

    @torch.no_grad()
    def generate(
        self, inputs_embeds: Tensor, attention_mask: Tensor, *, max_new_tokens: int, **options: Any
    ) -> list[str]:
        """Continue each row (left-padded); greedy unless `options` for transformers' generate say otherwise.

        `stop="###"` (or several) ends an answer before that text. See `vol3d.model.generation.continue_rows`.
        """
        return continue_rows(self, inputs_embeds, attention_mask, max_new_tokens=max_new_tokens, **options)
