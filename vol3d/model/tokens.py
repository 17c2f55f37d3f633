"""Token ids: the volume's placeholder, prompts with their chat template, padding, and a tokenizer from reports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOLUME_TOKEN = "<volume>"
IGNORE = -100
# A prompt is a text, or a conversation for a model with a chat template: [{"role": "user", "content": "…"}, …].
Prompt = str | Sequence[Mapping[str, str]]
_TODAY = re.compile(r"""strftime_now\(\s*(["'])([^"'\n]*)\1\s*\)""")
_ANY_DAY = date(2024, 7, 26)
_SHAREGPT = {"user": "human", "assistant": "gpt"}


def prompt_text(prompt: Prompt) -> str:
    """All words of a prompt, one after the other."""
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


def num_volumes(prompt: Prompt) -> int:
    """How many `<volume>` placeholders a prompt holds."""
    return prompt_text(prompt).count(VOLUME_TOKEN)


def rendered(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text the model reads: the chat template's where there is one, else BOS and the prompt.

    A template finds each turn as {"role": "user", "content": …} and as ShareGPT's {"from": "human", "value": …}.

    Raises:
        ValueError: a conversation for a tokenizer without a chat template, one its template refuses, or a template that
            leaves out words with `<volume>`.
    """
    if tokenizer.chat_template:
        from jinja2 import TemplateError

        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        turns = [{"from": _SHAREGPT.get(turn["role"], turn["role"]), "value": turn["content"]} | turn for turn in turns]
        try:
            text = tokenizer.apply_chat_template(
                turns, chat_template=without_today(tokenizer.chat_template), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ValueError(
                f"the chat template refuses a conversation of {len(turns)} turns ({roles}): {error}; give roles it "
                "knows, or put everything into one user turn"
            ) from error
        if text.count(VOLUME_TOKEN) != num_volumes(prompt):
            raise ValueError(
                f"the prompt has {num_volumes(prompt)} {VOLUME_TOKEN} placeholders, its chat template left "
                f"{text.count(VOLUME_TOKEN)} of them in {text[:80]!r}: set tokenizer.chat_template to one that writes "
                "each turn's role and content once, or to None for the prompt as it is"
            )
        return text
    if not isinstance(prompt, str):
        raise ValueError(
            f"the prompt is a conversation of {len(prompt)} turns, the tokenizer has no chat template: give the prompt "
            "as one text, or set tokenizer.chat_template"
        )
    return (tokenizer.bos_token or "") + prompt


def without_today(template: Any) -> str | None:
    """A chat template that writes one date where it would write today's (Llama 3, SmolLM3): a model would read another
    prompt tomorrow than the one it was trained and judged with. The date is the one that Llama's falls back to.

    None, which leaves the choice to transformers, where a tokenizer has none or one for each purpose.
    """
    if not isinstance(template, str):
        return None
    return _TODAY.sub(lambda found: f'"{_ANY_DAY.strftime(found[2])}"', template)


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


def token_positions(attention_mask: Tensor) -> Tensor:
    """Each row's positions, counted from its first real token; 0 at the padding before it. Shape: (rows, length)."""
    return (attention_mask.cumsum(dim=1) - 1).clamp_min(0)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer trained on these texts; any text round-trips through it.

    Raises:
        ValueError: there is no text to train on.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    corpus = [text for text in texts if text]
    if not corpus:
        raise ValueError(
            "no text to train a tokenizer on: the training split has 0 rows with a report or questions; give it some "
            "(vol3d.data.questions.add_questions writes questions from labels), or take a trained model, which knows "
            "its own words, to these studies: --model.base RUN/model in place of --ckpt_path"
        )
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
