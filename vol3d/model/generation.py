"""Writing text: a lean greedy loop, transformers' generate for everything else, streaming and stop rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vol3d.model.decoding import CapturedDecoder, StaticDecoder, supports
from vol3d.model.tokens import token_positions

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from vol3d.model.language import LanguageModel

# Settings under which transformers' generate is plain greedy decoding.
_NEUTRAL = {
    "do_sample": (False, None),
    "num_beams": (1, None),
    "repetition_penalty": (1, None),
    "no_repeat_ngram_size": (0, None),
    "min_new_tokens": (0, None),
    "min_length": (0, None),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "bad_words_ids": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None,),
    "penalty_alpha": (None,),
    "num_return_sequences": (1, None),
}


def continue_rows(
    language: LanguageModel,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int,
    position_ids: Tensor | None = None,
    stop: str | Sequence[str] = (),
    lean: bool = True,
    **options: Any,
) -> list[str]:
    """Continue each row (left-padded) to its end of sequence; greedy unless options say otherwise.

    Args:
        position_ids: (batch, length) where rows have gaps; None counts from each row's first token.
        stop: texts that end an answer; they are not part of it.
        lean: use the lean loop where the options are plain greedy decoding; it writes the same tokens.
        options: for transformers' `generate` (num_beams, do_sample, temperature, streamer …); what they leave out is
            transformers' default, whatever the model's own generation_config said.
    """
    stop = stop_texts(stop)
    if lean and is_greedy(options):
        steps = greedy(language, inputs_embeds, attention_mask, max_new_tokens, position_ids)
        return texts_of(language, steps, stop)
    options = {"max_new_tokens": max_new_tokens, **options}
    rows = _by_transformers(language, inputs_embeds, attention_mask, position_ids, stop, options)
    return [cut(language.decode(row), stop).strip() for row in rows]


def is_greedy(options: dict[str, Any]) -> bool:
    """Whether the options ask for nothing but greedy decoding."""
    return all(value in _NEUTRAL.get(name, ()) for name, value in options.items())


def keep_only_ends(model: PreTrainedModel) -> None:
    """Of a model's own generation settings keep the special tokens alone.

    Many models bring a penalty or a way of sampling (Qwen2.5 a repetition_penalty of 1.05) made for chat. Here the task
    and the caller say how to write, so that all ways of writing agree, and a saved model with the one it was.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )


def stop_texts(stop: str | Sequence[str]) -> list[str]:
    """The texts that end an answer; an empty one, which stands everywhere, ends none."""
    return [word for word in ([stop] if isinstance(stop, str) else stop) if word]


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts."""
    return text[: min((at for word in stop if (at := text.find(word)) >= 0), default=len(text))]


@torch.no_grad()
def greedy(
    language: LanguageModel,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    position_ids: Tensor | None = None,
    cache: Cache | None = None,
) -> Iterator[Tensor]:
    """The likeliest next token of each row, step by step; rows that have ended get the pad token.

    Args:
        attention_mask: (batch, tokens in the cache and new ones).
        cache: what earlier tokens left; it grows.

    Shape:
        yields (batch,) token ids.
    """
    cache = language.new_cache() if cache is None else cache
    if position_ids is None:
        position_ids = token_positions(attention_mask)[:, -inputs_embeds.shape[1] :]
    table, head = language.causal_lm.get_input_embeddings(), language.causal_lm.get_output_embeddings()
    hidden = language.hidden(inputs_embeds, attention_mask, position_ids, cache)[:, -1]
    step = _stepper(language, cache, attention_mask, position_ids[:, -1] + 1, max_new_tokens)
    ends = torch.tensor(language.stop_ids, device=hidden.device)
    open_rows = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    pad = language.tokenizer.pad_token_id
    for index in range(max_new_tokens):
        tokens = head(hidden).argmax(dim=-1).where(open_rows, pad)
        yield tokens
        open_rows = open_rows & ~torch.isin(tokens, ends)
        if index + 1 == max_new_tokens or not open_rows.any():
            return
        hidden = step(table(tokens))


def _stepper(language: LanguageModel, cache: Cache, mask: Tensor, positions: Tensor, room: int) -> Any:
    """Embeddings (batch, width) → hidden states (batch, width) of the next token."""
    prefix = language.num_prefix_tokens
    if supports(language.causal_lm, cache):
        full = torch.cat([mask.new_ones(len(mask), prefix), mask], dim=1)
        kind = CapturedDecoder if language.cuda_graph and mask.device.type == "cuda" else StaticDecoder
        return kind(language.causal_lm, cache, room, full, positions + prefix)
    grown = torch.nn.functional.pad(mask, (0, room), value=1)
    done = 0

    def step(embeds: Tensor) -> Tensor:
        nonlocal done
        done += 1
        seen = grown[:, : mask.shape[1] + done]
        return language.hidden(embeds[:, None], seen, (positions + done - 1)[:, None], cache)[:, -1]

    return step


def texts_of(language: LanguageModel, steps: Iterator[Tensor], stop: list[str]) -> list[str]:
    """Run the steps and give each row's text, up to its end of sequence or the first stop text."""
    rows: list[list[int]] = []
    for tokens in steps:
        rows = rows or [[] for _ in range(len(tokens))]
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.append(token)
        if stop and all(row[-1] in language.stop_ids or _stopped(language, row, stop) for row in rows):
            break
    return [cut(language.decode(_until_end(row, language.stop_ids)), stop).strip() for row in rows]


def _stopped(language: LanguageModel, row: list[int], stop: list[str]) -> bool:
    text = language.decode(row)
    return any(word in text for word in stop)


def _until_end(row: list[int], ends: list[int]) -> list[int]:
    return row[: next((at for at, token in enumerate(row) if token in ends), len(row))]


def _by_transformers(
    language: LanguageModel,
    embeds: Tensor,
    mask: Tensor,
    positions: Tensor | None,
    stop: list[str],
    options: dict[str, Any],
) -> list[list[int]]:
    extra: dict[str, Any] = {"stop_strings": stop, "tokenizer": language.tokenizer} if stop else {}
    if prefix := language.num_prefix_tokens:
        beams = max(options.get("num_beams") or 1, options.get("num_return_sequences") or 1)
        if beams > 1:
            raise ValueError(f"a learned prefix stands before one text a row, {beams} are asked for: drop num_beams")
        # transformers takes the first tokens as already in the cache and drops their embeddings.
        extra["past_key_values"] = language.prefix_cache(embeds)
        embeds = torch.cat([embeds.new_zeros(len(embeds), prefix, embeds.shape[-1]), embeds], dim=1)
        mask = torch.cat([mask.new_ones(len(mask), prefix), mask], dim=1)
        if positions is not None:
            front = torch.arange(prefix, device=positions.device).expand(len(positions), -1)
            positions = torch.cat([front, positions + prefix], dim=1)
    if positions is not None:
        extra["position_ids"] = positions
    ids = language.causal_lm.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        pad_token_id=language.tokenizer.pad_token_id,
        eos_token_id=language.stop_ids,
        **extra,
        **{"do_sample": False, **_own_penalty(options)},
    )
    return [_until_end(row, language.stop_ids) for row in ids.tolist()]


def _own_penalty(options: dict[str, Any]) -> dict[str, Any]:
    """The options with a repetition_penalty as a processor of ours: transformers' own spares as many of a row's first
    new tokens as padding stands before its prompt."""
    from transformers import RepetitionPenaltyLogitsProcessor

    others = {name: value for name, value in options.items() if name != "repetition_penalty"}
    penalty = float(options.get("repetition_penalty") or 1)
    if penalty == 1:
        return others
    given = others.get("logits_processor") or []
    return others | {"logits_processor": [RepetitionPenaltyLogitsProcessor(penalty), *given]}


def pieces(language: LanguageModel, steps: Iterator[Tensor], stop: Sequence[str] = ()) -> Iterator[str]:
    """The text of one row as it is written, in pieces that end at whole characters; joined they are the answer."""
    row: list[int] = []
    given = ""
    for tokens in steps:
        row.append(int(tokens[0]))
        ended = row[-1] in language.stop_ids
        text = language.decode(_until_end(row, language.stop_ids)).lstrip()
        whole = cut(text, stop)
        # A stop text may be half written, and a character half decoded: hold back what may still change.
        safe = (whole if ended else whole[: len(whole) - _undecided(whole, stop)]).rstrip().rstrip("\ufffd")
        if len(safe) > len(given):
            yield safe[len(given) :]
            given = safe
        if len(whole) < len(text):
            return
    rest = cut(language.decode(_until_end(row, language.stop_ids)), stop).strip()
    if len(rest) > len(given):
        yield rest[len(given) :]


def _undecided(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a stop text."""
    return max((n for word in stop for n in range(1, len(word)) if text.endswith(word[:n])), default=0)


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens all rows share, leaving each at least one of its own."""
    shortest = min(map(len, rows)) - 1
    first = rows[0]
    return next((at for at in range(shortest) if any(row[at] != first[at] for row in rows)), shortest)
