"""The language model seat: any Hugging Face causal LM, a GGUF file, or a small decoder made from scratch."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

VOLUME_TOKEN = "<volume>"
IGNORE = -100
# Configurations whose CausalLM scales or caps its logits: their own forward must compute them.
_LOGIT_SCALES = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True)
class Lora:
    """LoRA adapters (Hu et al. 2021, arXiv:2106.09685) by peft.

    Args:
        rank: r. alpha: scaling numerator (the update is scaled by alpha / rank). dropout: on the adapter's input.
        targets: names of the linear layers, or "all-linear".
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"


@runtime_checkable
class LanguageSource(Protocol):
    """Says which language model to build; building happens later, when training or inference starts."""

    def build(self, texts: Iterable[str]) -> LanguageModel:
        """Make the model; `texts` are the training reports, which a scratch tokenizer is trained on."""
        ...


@dataclass(frozen=True)
class Scratch:
    """A small Llama-shaped decoder, randomly initialised, with a BPE tokenizer trained on the reports.

    Args:
        vocab_size: upper bound on the tokens. embed_dim, depth, num_heads, mlp_ratio: the decoder's.
        max_length: longest sequence, visual tokens included.
        attn_implementation: passed to transformers; on a CPU "eager" is faster than "sdpa" for a decoder this small.

    Source: that a small decoder trained from scratch can beat 7 B ones on CT reports: U-VLM (arXiv:2603.00479).
    """

    vocab_size: int = 1024
    embed_dim: int = 256
    depth: int = 3
    num_heads: int = 4
    mlp_ratio: float = 4.0
    max_length: int = 1024
    attn_implementation: str = "sdpa"

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
        return LanguageModel(LlamaForCausalLM(config), tokenizer)


@dataclass(frozen=True)
class Pretrained:
    """A Hugging Face causal LM by Hub name or folder.

    Args:
        name: Hub name, or a folder with config.json and weights.
        gguf_file: file inside `name` when the weights are GGUF; they are dequantised once.
        lora: train adapters only; None trains every weight.
        dtype: of the base weights ("float32", "bfloat16"); adapters stay float32.
        attn_implementation: passed to transformers.
    """

    name: str
    gguf_file: str | None = None
    lora: Lora | None = None
    dtype: str = "float32"
    attn_implementation: str = "sdpa"

    def build(self, texts: Iterable[str] = ()) -> LanguageModel:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = Path(self.name)
        if self.gguf_file is not None and not (folder / self.gguf_file).is_file():
            raise ValueError(f"{folder / self.gguf_file}: no such GGUF file; `name` is the folder that holds it")
        if self.gguf_file is not None and importlib.util.find_spec("gguf") is None:
            raise ImportError(f"{self.gguf_file} needs the package gguf: pip install 'vol3d[gguf]'")
        extra: dict[str, Any] = {} if self.gguf_file is None else {"gguf_file": self.gguf_file}
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.name, **extra)
            if self.gguf_file is not None:
                from transformers import GgufConfig

                # Without this the dense weights stay flagged as quantised and cannot be saved.
                extra["quantization_config"] = GgufConfig(dequantize=True)
            model = AutoModelForCausalLM.from_pretrained(
                self.name, dtype=getattr(torch, self.dtype), attn_implementation=self.attn_implementation, **extra
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"language model {self.name!r} could not be loaded ({_first_line(error)}): give a folder with "
                "config.json and weights, a Hub name that this machine can reach and you have access to, or use "
                "vol3d.model.language.Scratch"
            ) from error
        return LanguageModel(model, tokenizer, lora=self.lora)


class LanguageModel(nn.Module):
    """A causal language model with the one extra token that stands for a volume's visual tokens.

    The extra token has no row in the embedding table: its positions are always overwritten by visual tokens, so
    the vocabulary keeps its size and the weights stay loadable elsewhere.

    Args:
        model: a transformers causal LM.
        tokenizer: its tokenizer.
        lora: wrap the model in LoRA adapters and freeze the base.

    Raises:
        ValueError: the tokenizer has no end-of-sequence token.

    Example:
        >>> from vol3d import LanguageModel
        >>> language = LanguageModel.scratch(["The liver is normal."], embed_dim=32, depth=1, num_heads=2)
        >>> language.embed_dim
        32
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, lora: Lora | None = None) -> None:
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise ValueError(f"tokenizer of {model.config.model_type} has no eos token: set tokenizer.eos_token")
        if tokenizer.pad_token_id is None:
            logger.info("the tokenizer has no pad token; padding uses %r, masked", tokenizer.eos_token)
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.add_special_tokens({"additional_special_tokens": [VOLUME_TOKEN]}, replace_extra_special_tokens=False)
        self.tokenizer, self.lora = tokenizer, lora
        self.model = model if lora is None else _with_lora(model, lora)
        self.volume_id: int = tokenizer.convert_tokens_to_ids(VOLUME_TOKEN)

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
        return self.model.get_input_embeddings().embedding_dim

    @property
    def max_length(self) -> int:
        return getattr(self.causal_lm.config, "max_position_embeddings", 1 << 20)

    def prompt_ids(self, prompt: str, num_volume_tokens: int) -> list[int]:
        """Token ids of one prompt, in the model's chat template when it has one, its `<volume>` repeated.

        Raises:
            ValueError: the prompt does not hold `<volume>` exactly once.
        """
        if prompt.count(VOLUME_TOKEN) != 1:
            raise ValueError(
                f"prompt has {prompt.count(VOLUME_TOKEN)} {VOLUME_TOKEN} placeholders, needs 1: {prompt!r}"
            )
        special = ""
        if self.tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}]
            prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        elif self.tokenizer.bos_token:
            special = self.tokenizer.bos_token
        before, after = prompt.split(VOLUME_TOKEN)
        placeholders = [self.volume_id] * num_volume_tokens
        return [*self.encode(special + before), *placeholders, *self.encode(after)]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer with the end-of-sequence token."""
        return [*self.encode(answer), self.tokenizer.eos_token_id]

    def splice(self, input_ids: Tensor, visual: Tensor) -> Tensor:
        """Embed the ids and put the visual tokens where the placeholders are.

        Shape:
            input_ids (batch, length), visual (batch, tokens, embed_dim) → (batch, length, embed_dim).

        Raises:
            ValueError: a row's placeholders are not as many as its visual tokens (both numbers given).
        """
        places = input_ids == self.volume_id
        counts = places.sum(dim=1)
        if (counts != visual.shape[1]).any():
            row = int((counts != visual.shape[1]).nonzero()[0])
            raise ValueError(
                f"row {row} has {int(counts[row])} {VOLUME_TOKEN} placeholders for {visual.shape[1]} visual tokens: "
                "build the prompt with prompt_ids(prompt, projector.num_tokens(grid_size)), and keep "
                f"{VOLUME_TOKEN} out of the reports"
            )
        embeds = self.model.get_input_embeddings()(input_ids.masked_fill(places, 0))
        return embeds.masked_scatter(places.unsqueeze(-1), visual.to(embeds.dtype))

    def loss(self, inputs_embeds: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the next token over the supervised positions (labels other than -100).

        Logits exist only at those positions, so (batch, length, vocabulary) is never held.
        """
        targets = labels[:, 1:]
        chosen = targets != IGNORE
        logits = self._logits_at(inputs_embeds, attention_mask, chosen)
        return F.cross_entropy(logits.float(), targets[chosen])

    def _logits_at(self, inputs_embeds: Tensor, attention_mask: Tensor, chosen: Tensor) -> Tensor:
        causal_lm = self.causal_lm
        if any(getattr(causal_lm.config, name, None) is not None for name in _LOGIT_SCALES):
            output = causal_lm(inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False)
            return output.logits[:, :-1][chosen]
        decoder = causal_lm.get_decoder()
        hidden = decoder(inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False)
        return causal_lm.get_output_embeddings()(hidden.last_hidden_state[:, :-1][chosen])

    @torch.no_grad()
    def generate(
        self, inputs_embeds: Tensor, attention_mask: Tensor, *, max_new_tokens: int, **options: Any
    ) -> list[str]:
        """Continue each row (left-padded); greedy unless `options` for transformers' generate say otherwise."""
        ids = self.model.generate(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            **{"do_sample": False, **options},
        )
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _with_lora(model: PreTrainedModel, lora: Lora) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer trained on the reports; any text round-trips through it.

    Raises:
        ValueError: there is no text to train on.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    corpus = [text for text in texts if text]
    if not corpus:
        raise ValueError("no reports to train a tokenizer on: the training split has 0 rows with a report")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids → (ids, attention mask), both (batch, longest)."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), value, dtype=torch.long)
    attention = torch.zeros(len(rows), longest, dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(longest - len(tokens), None) if left else slice(0, len(tokens))
        ids[row, place] = torch.tensor(tokens, dtype=torch.long)
        attention[row, place] = 1
    return ids.to(device), attention.to(device)
