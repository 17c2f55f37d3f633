"""Phrases as prompts: a small encoder that needs no language model, and the wordings a name may take."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from vol3d.model.interfaces import Features
from vol3d.model.language import VOLUME_TOKEN
from vol3d.model.likelihood import visual_rows
from vol3d.model.volume_lm import VolumeLM
from vol3d.text.ontology import FINDINGS, KEYS
from vol3d.text.parser import parse_mentions

_WORD = re.compile(r"[^\W_]+")
_SIDES = ("left", "right")


class PhraseEncoder(nn.Module):
    """Words, their letter triples and the findings they name → one vector a phrase.

    Every feature is hashed into a table that is learnt with the task, so that nothing is downloaded and every word is
    readable. A finding is recognised by the report parser: "fluid in the left pleural space" shares a feature with
    "left pleural effusion". The order of words does not matter ("kidney_left" is "left kidney"), the side does.

    Args:
        dim: width of the vector.
        buckets: rows of the table.

    Shape:
        phrases, as many for each study → (studies, phrases, dim)

    Source: hashed n-gram bags as in fastText (arXiv:1607.04606), with an MLP because "left" means nothing by itself.
    """

    def __init__(self, dim: int, *, buckets: int = 4096) -> None:
        super().__init__()
        self.buckets = buckets
        self.table = nn.EmbeddingBag(buckets, dim, mode="sum")
        self.mix = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, model: VolumeLM, features: Features, phrases: Sequence[Sequence[str]]) -> Tensor:
        vectors = self.embed(list(dict.fromkeys(phrase for row in phrases for phrase in row)))
        return torch.stack([torch.stack([vectors[phrase] for phrase in row]) for row in phrases])

    def embed(self, phrases: Sequence[str]) -> dict[str, Tensor]:
        """One vector a phrase, which does not depend on any volume."""
        rows = [phrase_features(phrase, self.buckets) for phrase in phrases]
        device = self.table.weight.device
        offsets = torch.tensor([0, *(len(row) for row in rows[:-1])], device=device).cumsum(0)
        indices = torch.tensor([index for row in rows for index in row], device=device)
        # Divided by the root of their number, so that a phrase's vector is as long as one word's and sides stay apart.
        shares = torch.tensor([len(row) ** -0.5 for row in rows for _ in row], device=device)
        bag = self.table(indices, offsets, shares.to(self.table.weight.dtype))
        return dict(zip(phrases, bag + self.mix(bag), strict=True))


class LanguagePrompt(nn.Module):
    """The language model's hidden state at a [SEG] token, after it has read the volume and the phrase.

    [SEG] is a learnt vector put behind the prompt's embeddings: the vocabulary keeps its size.

    Args:
        dim: width of the vector.
        prompt: with `<volume>` where the volume's tokens go and `{phrase}` for what is asked.

    Shape:
        phrases, as many for each study → (studies, phrases, dim)

    Raises:
        ValueError: the model has no language model.

    Source: LISA (arXiv:2308.00692) and M3D-LaMed (arXiv:2404.00578).
    """

    def __init__(self, model: VolumeLM, dim: int, prompt: str = f"{VOLUME_TOKEN}\nOutline: {{phrase}}\n") -> None:
        super().__init__()
        if model.language is None:
            raise ValueError('text="language" needs a model with a language model: give one, or use text="words"')
        self.prompt = prompt
        width = model.language.embed_dim
        self.seg = nn.Parameter(0.02 * torch.randn(width))
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, model: VolumeLM, features: Features, phrases: Sequence[Sequence[str]]) -> Tensor:
        count = len(phrases[0])
        prompts = [self.prompt.format(phrase=phrase) for row in phrases for phrase in row]
        each = visual_rows(model, features, [row for row in range(len(phrases)) for _ in range(count)])
        hidden = model.last_hidden(each, prompts, ending=self.seg)
        return self.project(hidden.to(self.seg.dtype)).unflatten(0, (len(phrases), count))


@lru_cache(maxsize=20_000)
def phrase_features(phrase: str, buckets: int) -> tuple[int, ...]:
    """Rows of the table that a phrase reads.

    Raises:
        ValueError: a phrase without a letter or a digit.
    """
    words = _WORD.findall(phrase.lower())
    if not words:
        raise ValueError(f"prompt {phrase!r} names nothing: write what to look for, such as 'left kidney'")
    found = [f"word {word}" for word in words] * 2  # words count more than their letters
    found += [f"side {side}" for side in _SIDES if side in words] * 2
    for word in words:
        padded = f"<{word.removesuffix('s')}>"
        found += [f"letters {padded[start : start + 4]}" for start in range(max(1, len(padded) - 3))]
    for mention in parse_mentions(phrase.replace("_", " ")):
        found += [f"finding {mention.finding.key}", f"finding {mention.finding.name}"] * 4
    return tuple(zlib.crc32(text.encode()) % buckets for text in found)


@lru_cache(maxsize=4096)
def wordings(name: str) -> tuple[str, ...]:
    """Phrases that mean what a label's name means, the plain name first.

    Example:
        >>> wordings("kidney_left")[:3]
        ('left kidney', 'kidney on the left', 'left-sided kidney')
    """
    words = _WORD.findall(name.lower())
    sides = [word for word in words if word in _SIDES]
    if len(sides) != 1:
        plain = name.replace("_", " ").lower()
        return (plain, *_synonyms(plain))
    side, rest = sides[0], " ".join(word for word in words if word not in _SIDES)
    phrases = [f"{side} {rest}", f"{rest} on the {side}", f"{side}-sided {rest}"]
    phrases += [form for other in _synonyms(rest) for form in (f"{side} {other}", f"{other} on the {side}")]
    return tuple(phrases)


def _synonyms(name: str) -> tuple[str, ...]:
    return FINDINGS[name].synonyms if name in FINDINGS else ()


def is_finding(name: str) -> bool:
    """Whether a label's name is one of the ontology's findings, with or without a side."""
    return name in KEYS or name in FINDINGS
