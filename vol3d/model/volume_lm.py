"""VolumeLM: an encoder, a projector and a language model, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vol3d.model.interfaces import Encoder, Features, Projector
from vol3d.model.language import IGNORE, LanguageModel, pad
from vol3d.types import Affines, Volumes


class VolumeLM(nn.Module):
    """The shared model every task stands around.

    Args:
        encoder: image → Features.
        projector: a Projector, or a callable (in_dim, out_dim) → Projector so that no width is written twice
            (`functools.partial(PerceiverProjector, num_latents=32)`).
        language: None for a model that only encodes (contrastive or code pre-training).

    Raises:
        ValueError: a projector whose widths do not meet the encoder's and the language model's.

    Example:
        >>> from functools import partial
        >>> import torch, vol3d
        >>> model = vol3d.VolumeLM(
        ...     vol3d.encoders.create("vit3d-tiny", depth=1),
        ...     partial(vol3d.PerceiverProjector, num_latents=8, num_heads=2),
        ...     vol3d.LanguageModel.scratch(["The liver is normal."], embed_dim=32, depth=1, num_heads=2),
        ... )
        >>> features = model.encode(torch.zeros(1, 1, 32, 32, 16))
        >>> model.language_loss(features, ["<volume>Report:"], ["The liver is normal."]).ndim
        0
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: Projector | Callable[[int, int], Projector] | None = None,
        language: LanguageModel | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.language = language
        self.projector: Projector | None = None
        if language is not None:
            if projector is None:
                raise ValueError("a language model needs a projector between the encoder and itself, none was given")
            built = isinstance(projector, Projector)
            self.projector = projector if built else projector(encoder.embed_dim, language.embed_dim)
            widths, wanted = (self.projector.in_dim, self.projector.out_dim), (encoder.embed_dim, language.embed_dim)
            if widths != wanted:
                raise ValueError(
                    f"projector maps {widths[0]} → {widths[1]}, encoder and language model need {wanted[0]} → "
                    f"{wanted[1]}: pass functools.partial(Projector, …) and let VolumeLM fill the widths"
                )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode(self, image: Volumes, affine: Affines | None = None) -> Features:
        return self.encoder(image, affine)

    def project(self, features: Features) -> Tensor:
        """The visual tokens of `features`: those it carries, or the projector's."""
        if self.projector is None:
            raise ValueError("this model has no projector: it encodes only")
        return self.projector(features) if features.visual is None else features.visual

    def language_loss(self, features: Features, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Mean cross-entropy of the answers' tokens, given each volume and prompt (with one `<volume>`)."""
        language = self._language()
        prompt_rows = self._prompt_rows(features, prompts)
        answer_rows = [language.answer_ids(answer) for answer in answers]
        rows = [prompt + answer for prompt, answer in zip(prompt_rows, answer_rows, strict=True)]
        longest = max(map(len, rows))
        if longest > language.max_length:
            raise ValueError(
                f"prompt and report take {longest} tokens, the language model holds {language.max_length}: use fewer "
                "visual tokens (projector), a longer max_length, or shorter reports"
            )
        input_ids, attention = pad(rows, language.tokenizer.pad_token_id, left=False, device=self.device)
        labels = torch.full_like(input_ids, IGNORE)
        for row, (prompt, tokens) in enumerate(zip(prompt_rows, rows, strict=True)):
            labels[row, len(prompt) : len(tokens)] = input_ids[row, len(prompt) : len(tokens)]
        embeds = language.splice(input_ids, self.project(features))
        return language.loss(embeds, attention, labels)

    @torch.no_grad()
    def generate(
        self, features: Features, prompts: Sequence[str], *, max_new_tokens: int = 256, **options: Any
    ) -> list[str]:
        """One text a study; greedy unless options for transformers' `generate` say otherwise."""
        language = self._language()
        rows = self._prompt_rows(features, prompts)
        input_ids, attention = pad(rows, language.tokenizer.pad_token_id, left=True, device=self.device)
        room = language.max_length - input_ids.shape[1]
        if room <= 0:
            raise ValueError(f"the prompt takes {input_ids.shape[1]} tokens, the language model {language.max_length}")
        embeds = language.splice(input_ids, self.project(features))
        return language.generate(embeds, attention, max_new_tokens=min(max_new_tokens, room), **options)

    def _prompt_rows(self, features: Features, prompts: Sequence[str]) -> list[list[int]]:
        if len(prompts) != len(features):
            raise ValueError(f"{len(prompts)} prompts for {len(features)} volumes")
        count = self.projector.num_tokens(features.grid_size)
        language = self._language()
        ids = {prompt: language.prompt_ids(prompt, count) for prompt in dict.fromkeys(prompts)}
        return [ids[prompt] for prompt in prompts]

    def _language(self) -> LanguageModel:
        if self.language is None:
            raise ValueError("this model has no language model: it encodes only")
        return self.language
