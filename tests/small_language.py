"""Tiny random language models of every family, and a small VolumeLM around them, for the tests of vol3d.model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)  # fmt: skip

import vol3d
from vol3d.model.interfaces import Projector
from vol3d.model.language import LanguageModel, train_tokenizer
from vol3d.model.volume_lm import VolumeLM

REPORTS = ["The liver is normal.", "There is a left pleural effusion.", "No pneumothorax."]
PROMPTS = ["<volume>Report:", "<volume>There is a left pleural effusion. Report:"]
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": partial(Qwen3Config, head_dim=8),
    "phi3": partial(Phi3Config, pad_token_id=0),
    "gemma2": partial(Gemma2Config, head_dim=8, query_pre_attn_scalar=8, sliding_window=6, final_logit_softcapping=2.0),
    "gemma3": partial(Gemma3TextConfig, tie_word_embeddings=False, head_dim=8,
                      query_pre_attn_scalar=8, sliding_window=6,
                      layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "smollm3": partial(SmolLM3Config, pad_token_id=0, no_rope_layers=[1, 0, 1]),
    "mistral": partial(MistralConfig, sliding_window=7),
    "mistral-wide": partial(MistralConfig, sliding_window=None),
}  # fmt: skip
_TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
TEMPLATE = _TURNS + "{% if add_generation_prompt %}[assistant]{% endif %}"


@cache
def _tokenizer() -> str:
    return train_tokenizer(REPORTS, 300).backend_tokenizer.to_str()


def tokenizer(*, template: bool = False) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer()), pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    made.chat_template = TEMPLATE if template else None
    return made


def language(family: str = "llama", *, template: bool = False, **settings: object) -> LanguageModel:
    """Random weights wide enough that what is written depends on what is read."""
    words = tokenizer(template=template)
    config = FAMILIES[family](vocab_size=len(words), **SIZES)
    return LanguageModel(AutoModelForCausalLM.from_config(config).float(), words, **settings).eval()


def volume_lm(
    family: str = "llama", *, projector: Callable[[int, int], Projector] | None = None, **settings: object
) -> VolumeLM:
    """A one-layer ViT on 8 × 8 × 8 voxels (2 × 2 × 2 tokens), a projector and a language model of `family`."""
    return vol3d.VolumeLM(
        vol3d.encoders.create("vit3d-tiny", embed_dim=24, depth=1, num_heads=2, patch_size=(4, 4, 4)),
        projector or partial(vol3d.PerceiverProjector, num_latents=4, num_heads=2),
        language(family, **settings),
    ).eval()
