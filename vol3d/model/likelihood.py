"""How likely a language model finds given answers: the way to choose among them without reading what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from vol3d.model.interfaces import Features
from vol3d.model.interleave import Visual, splice
from vol3d.model.language import LanguageModel, pad
from vol3d.model.tokens import token_positions
from vol3d.model.volume_lm import VolumeLM

CHUNK_MIB = 256
"""Memory that one chunk of rows may take, guessed as sixteen activations a token."""


def visual_rows(model: VolumeLM, features: Features, rows: Sequence[int]) -> Features:
    """What the language model reads of these rows, each as often as it is named, for many prompts about one volume.

    The volumes are projected once; what the encoder saw is left behind, because repeated it would be many times larger
    than the visual tokens and what is added to them.
    """
    visual, added = model.project(features), model.injections(features)
    alone = Features(features.tokens[:, :0], features.grid_size, visual=visual, added=added)
    return alone[torch.tensor(list(rows), device=visual.device)]


@torch.no_grad()
def answer_likelihoods(
    model: VolumeLM, features: Features, prompts: Sequence[Any], answers: Sequence[Sequence[str]]
) -> list[list[float]]:
    """Mean log-likelihood of a token of each answer, given its volume and prompt; the end of the text is a token too.

    The mean, not the sum, so that a long answer is not held unlikely for its length alone. Volume and prompt are read
    once for all answers to them.

    Args:
        features: one row a prompt (`visual_rows` repeats a volume).
        answers: any number for each prompt.

    Raises:
        ValueError: not one list of answers a prompt and a volume (the numbers given), or a row too long.

    Source: length-normalised scoring of choices as in the LM Evaluation Harness ("acc_norm"), here by tokens.
    """
    if not len(prompts) == len(answers) == len(features):
        raise ValueError(
            f"{len(features)} volumes, {len(prompts)} prompts, {len(answers)} lists of answers: give one of each a row"
        )
    language = model._language()
    visual = model._visual(features)
    each = zip(prompts, visual.counts, answers, strict=True)
    rows = [_Row(language, prompt, count, given) for prompt, count, given in each]
    longest = max((row.length for row in rows), default=0)
    if longest > language.max_length:
        raise ValueError(f"question and answer take {longest} tokens, the language model holds {language.max_length}")
    # Rows of like length stand together, so that little is computed on padding.
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].prompt))
    most = max((len(given) for given in answers), default=1)
    step = max(1, int(CHUNK_MIB * 2**20 / 4 / max(1, longest * language.embed_dim * (16 + 2 * most))))
    found: dict[int, list[float]] = {}
    for start in range(0, len(order), step):
        places = order[start : start + step]
        values = _score(model, visual.in_order(places), [rows[place] for place in places])
        found |= dict(zip(places, values, strict=True))
    return [found[place] for place in range(len(rows))]


class _Row:
    """One prompt and its answers as token ids."""

    def __init__(self, language: LanguageModel, prompt: Any, count: int, answers: Sequence[str]) -> None:
        self.prompt = language.prompt_ids(prompt, count)
        self.answers = [language.answer_ids(answer) for answer in answers]
        self.length = len(self.prompt) + max(map(len, self.answers), default=0)


def _score(model: VolumeLM, visual: Visual, rows: Sequence[_Row]) -> list[list[float]]:
    """Read the prompts into a cache, lay it out once an answer, and read the answers behind it."""
    language, device = model._language(), model.device
    empty, cache = language.tokenizer.pad_token_id, language.new_cache()
    asked, seen = pad([row.prompt for row in rows], empty, left=True, device=device)
    with model._injecting(visual, asked):
        hidden = language.hidden(splice(language, asked, visual), seen, token_positions(seen), cache)[:, -1:]
    owner = torch.tensor([place for place, row in enumerate(rows) for _ in row.answers], device=device)
    cache.reorder_cache(owner)
    told, real = pad([ids for row in rows for ids in row.answers], empty, left=False, device=device)
    # The last token of an answer is only predicted, never read.
    read = torch.cat([seen[owner], real[:, :-1]], dim=1)
    embeds = language.causal_lm.get_input_embeddings()(told[:, :-1])
    after = language.hidden(embeds, read, token_positions(read)[:, seen.shape[1] :], cache)
    chosen = real.bool()
    logits = language.causal_lm.get_output_embeddings()(torch.cat([hidden[owner], after], dim=1)[chosen])
    if language.logit_transform is not None:
        logits = language.logit_transform(logits)
    values = -F.cross_entropy(logits.float(), told[chosen], reduction="none")
    means = iter(float(part.mean()) for part in values.split(real.sum(dim=1).tolist()))
    return [[next(means) for _ in row.answers] for row in rows]
