"""Words and volumes in one row: where the visual tokens of each volume stand, and at which positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vol3d.model.tokens import Prompt, num_volumes

if TYPE_CHECKING:
    from vol3d.model.language import LanguageModel


@dataclass
class Visual:
    """The visual tokens of volumes laid end to end, and what is added to them inside the language model.

    Args:
        volumes: (tokens, width) of each volume. added: decoder layer → the same shapes.
        kept: which of a volume's tokens are left, None when all are.
        sizes: how many tokens each volume had before any was dropped.
    """

    volumes: list[Tensor]
    added: dict[int, list[Tensor]]
    kept: list[list[int]] | None
    sizes: list[int]

    @property
    def counts(self) -> list[int]:
        return [len(tokens) for tokens in self.volumes]

    def in_order(self, order: Sequence[int]) -> Visual:
        """The same volumes in another order."""
        return replace(
            self,
            volumes=[self.volumes[i] for i in order],
            added={layer: [tokens[i] for i in order] for layer, tokens in self.added.items()},
            kept=None if self.kept is None else [self.kept[i] for i in order],
            sizes=[self.sizes[i] for i in order],
        )


def prompt_rows(language: LanguageModel, visual: Visual, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of each prompt, its placeholders as many as its volumes' tokens.

    Raises:
        ValueError: the prompts hold more or fewer placeholders than there are volumes.
    """
    volumes = [num_volumes(prompt) for prompt in prompts]
    matched = sum(volumes) == len(visual.volumes)
    if not matched and (len(prompts) != len(visual.volumes) or set(volumes) == {1}):
        raise ValueError(
            f"{len(prompts)} prompts for {len(visual.volumes)} volumes: the prompts hold {sum(volumes)} <volume> "
            "placeholders, one a volume is needed"
        )
    # Not matched, but a prompt a volume: prompt_ids names the prompt that holds none or too many.
    per_prompt = split(visual.counts, volumes if matched else [1] * len(prompts))
    ids: dict[Any, list[int]] = {}
    keys = [(str(prompt), *counts) for prompt, counts in zip(prompts, per_prompt, strict=True)]
    for key, prompt, counts in zip(keys, prompts, per_prompt, strict=True):
        if key not in ids:
            ids[key] = language.prompt_ids(prompt, counts)
    return [ids[key] for key in keys]


def positions_of(
    visual: Visual, rows: Sequence[Sequence[int]], volumes: Sequence[int], volume_id: int, device: torch.device
) -> Tensor:
    """Each token's position; a volume of which tokens were dropped still takes as many as it had.

    Args:
        volumes: how many volumes each row holds.

    Shape:
        (rows, longest), left-padded with 0.
    """
    longest = max(map(len, rows))
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    kept = [list(range(size)) for size in visual.sizes] if visual.kept is None else visual.kept
    owned = split(list(zip(kept, visual.sizes, strict=True)), volumes)
    for number, (row, own) in enumerate(zip(rows, owned, strict=True)):
        places: list[int] = []
        at, left = 0, iter(own)
        while len(places) < len(row):
            if row[len(places)] == volume_id:
                tokens, size = next(left)
                places += [at + token for token in tokens]
                at += size
            else:
                places.append(at)
                at += 1
        positions[number, longest - len(row) :] = torch.tensor(places)
    return positions.to(device)


def splice(language: LanguageModel, input_ids: Tensor, visual: Visual) -> Tensor:
    """Embeddings of the ids with each row's volumes in their places."""
    counts = (input_ids == language.volume_id).sum(dim=1).tolist()
    if sum(counts) != sum(visual.counts):
        raise ValueError(
            f"{sum(counts)} <volume> placeholders for {sum(visual.counts)} visual tokens: keep <volume> out of the "
            "reports"
        )
    return language.splice(input_ids, torch.cat(visual.volumes), counts)


def take(tokens: Tensor, kept: Tensor) -> Tensor:
    """Of each row (batch, tokens, width) the tokens at `kept` (batch, fewer)."""
    return tokens.gather(1, kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def split(items: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """Items laid end to end, cut into lists of `counts`."""
    found, at = [], 0
    for count in counts:
        found.append(list(items[at : at + count]))
        at += count
    return found
