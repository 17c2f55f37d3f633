"""VolumeLM: an encoder, a projector and a language model, one after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vol3d.model.dropping import kept_tokens
from vol3d.model.generation import greedy, pieces, shared_length, stop_texts, texts_of
from vol3d.model.injection import Injects, check_layers, injecting
from vol3d.model.interfaces import Encoder, Features, Projector
from vol3d.model.interleave import Visual, positions_of, prompt_rows, splice, split, take
from vol3d.model.language import IGNORE, LanguageModel, pad
from vol3d.model.packing import pack as packed_rows
from vol3d.model.tokens import Prompt, num_volumes, token_positions
from vol3d.types import Affines, Volumes

if TYPE_CHECKING:
    from transformers import Cache


class VolumeLM(nn.Module):
    """The shared model every task stands around.

    A prompt holds `<volume>` once a volume it speaks of. The volumes of all prompts are the rows of `features`, in the
    order of the placeholders; where volumes differ in grid (a prior exam on another one), `features` is a list of
    Features whose rows are taken one after the other.

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
            if isinstance(self.projector, Injects):
                check_layers(self.projector, language)

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

    def injections(self, features: Features) -> Mapping[int, Tensor]:
        """What is added to the visual tokens inside the language model: what `features` carries, or the projector's.

        Shape:
            decoder layer → (batch, visual tokens, language width); empty for a projector that adds nothing.
        """
        if features.added is not None:
            return features.added
        return self.projector.injections(features) if isinstance(self.projector, Injects) else {}

    # --- learning -------------------------------------------------------------------------------------------

    def language_loss(
        self,
        features: Features | Sequence[Features],
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        *,
        pack: int | None = None,
    ) -> Tensor:
        """Mean cross-entropy of the answers' tokens, given each prompt and its volumes.

        Args:
            pack: lay several studies into rows of at most this many tokens, none of which sees another; the loss is
                the same, and no time goes into padding when answers differ in length.

        Raises:
            ValueError: prompts and volumes that do not match, rows longer than the language model holds, or packing
                with prefix tuning.
        """
        language = self._language()
        visual = self._visual(features)
        asked = prompt_rows(language, visual, prompts)
        rows = [ids + language.answer_ids(answer) for ids, answer in zip(asked, answers, strict=True)]
        longest = max(map(len, rows))
        if longest > language.max_length:
            raise ValueError(
                f"prompt and report take {longest} tokens, the language model holds {language.max_length}: use fewer "
                "visual tokens (projector), a longer max_length, or shorter reports"
            )
        language.check_device()
        starts = [len(ids) for ids in asked]
        if pack is not None:
            return self._packed_loss(visual, prompts, rows, starts, pack)
        input_ids, attention = pad(rows, language.tokenizer.pad_token_id, left=False, device=self.device)
        labels = torch.full_like(input_ids, IGNORE)
        for row, (start, tokens) in enumerate(zip(starts, rows, strict=True)):
            labels[row, start : len(tokens)] = input_ids[row, start : len(tokens)]
        embeds = splice(language, input_ids, visual)
        with self._injecting(visual, input_ids):
            return language.loss(embeds, attention, labels)

    def _packed_loss(
        self, visual: Visual, prompts: Sequence[Prompt], rows: list[list[int]], starts: list[int], capacity: int
    ) -> Tensor:
        language = self._language()
        if language.prefix is not None:
            raise ValueError(
                f"pack={capacity} with prefix tuning: the prefix of {language.prefix.num_tokens} tokens stands before "
                "a row's first study only; use lora, or no packing"
            )
        attention = str(language.causal_lm.config._attn_implementation)
        if attention.startswith("flash"):
            raise ValueError(
                f"pack={capacity} with attn_implementation={attention!r}: it is given no mask, and the studies of a "
                "row would see each other; use 'sdpa', or no packing"
            )
        packed = packed_rows(rows, starts, capacity, fill=language.tokenizer.pad_token_id)
        per_prompt = split(list(range(len(visual.volumes))), [num_volumes(prompt) for prompt in prompts])
        order = [volume for study in packed.order for volume in per_prompt[study]]
        visual = visual.in_order(order)
        ids = packed.input_ids.to(self.device)
        embeds = splice(language, ids, visual)
        with self._injecting(visual, ids):
            return language.loss(embeds, None, packed.labels.to(self.device), packed.position_ids.to(self.device))

    # --- reading --------------------------------------------------------------------------------------------

    def last_hidden(
        self, features: Features | Sequence[Features], prompts: Sequence[Prompt], *, ending: Tensor | None = None
    ) -> Tensor:
        """The language model's last hidden state behind each prompt and its volumes (prompts, language width).

        Args:
            ending: (language width,), a learnt vector that stands behind each prompt.
        """
        language, visual = self._language(), self._visual(features)
        embeds, attention, positions, input_ids = self._prompts(visual, prompts)
        if ending is not None:
            embeds = torch.cat([embeds, ending.to(embeds.dtype).expand(len(embeds), 1, -1)], dim=1)
            positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
            attention = F.pad(attention, (0, 1), value=1)
            input_ids = F.pad(input_ids, (0, 1), value=language.tokenizer.pad_token_id)
        with self._injecting(visual, input_ids):
            return language.hidden(embeds, attention, positions)[:, -1]

    # --- writing --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        features: Features | Sequence[Features],
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 256,
        keep: float | int = 1.0,
        **options: Any,
    ) -> list[str]:
        """One text a prompt; greedy unless options for transformers' `generate` say otherwise.

        Args:
            keep: share (float) or number (int) of each volume's visual tokens the language model sees; what it sees
                keeps its position (`vol3d.model.dropping`).
            options: stop="###"; num_beams, do_sample, temperature, repetition_penalty, streamer … as in transformers,
                whose defaults hold for the rest: the language model's own generation_config is left out.
        """
        return self._write(self._visual(features, keep), prompts, max_new_tokens, **options)

    def _write(self, visual: Visual, prompts: Sequence[Prompt], max_new_tokens: int, **options: Any) -> list[str]:
        embeds, attention, positions, input_ids = self._prompts(visual, prompts)
        rooms = self._rooms(positions, max_new_tokens)
        if len(set(rooms)) > 1:
            return self._write_apart(visual, prompts, rooms, **options)
        if visual.kept is not None:
            options["position_ids"] = positions
        with self._injecting(visual, input_ids):
            return self._language().generate(embeds, attention, max_new_tokens=rooms[0], **options)

    def _write_apart(self, visual: Visual, prompts: Sequence[Prompt], rooms: list[int], **options: Any) -> list[str]:
        """Those with as much room together: a long prompt shall not cut short what its neighbours say."""
        owned = split(range(len(visual.volumes)), [num_volumes(prompt) for prompt in prompts])
        found: dict[int, list[str]] = {}
        for rows in _alike(rooms):
            part = visual.in_order([volume for row in rows for volume in owned[row]])
            texts = self._write(part, [prompts[row] for row in rows], rooms[rows[0]], **options)
            found |= dict(zip(rows, split(texts, [len(texts) // len(rows)] * len(rows)), strict=True))
        return [text for row in range(len(prompts)) for text in found[row]]

    @torch.no_grad()
    def stream(
        self,
        features: Features | Sequence[Features],
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        keep: float | int = 1.0,
        stop: str | Sequence[str] = (),
    ) -> Iterator[str]:
        """The greedy answer to one prompt, in pieces as they are written; joined they are what `generate` gives.

        For sampling, give `generate` a `streamer` of transformers.
        """
        visual = self._visual(features, keep)
        embeds, attention, positions, input_ids = self._prompts(visual, [prompt])
        (room,) = self._rooms(positions, max_new_tokens)
        with self._injecting(visual, input_ids):
            steps = greedy(self._language(), embeds, attention, room, positions)
            yield from pieces(self._language(), steps, stop_texts(stop))

    @torch.no_grad()
    def generate_many(
        self,
        features: Features,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 256,
        keep: float | int = 1.0,
        stop: str | Sequence[str] = (),
    ) -> list[list[str]]:
        """The greedy answers to the same prompts for each volume: what all prompts share is read once a volume.

        The first tokens that all prompts have in common (system text, the visual tokens, the wording before they
        part) are passed through the language model once, and all answers are then written together. Put `<volume>`
        first and what differs last.

        Returns:
            One list of answers a volume, as `generate` gives them one by one.
        """
        language, stops = self._language(), stop_texts(stop)
        visual = self._visual(features, keep)
        several = [prompt for prompt in prompts if num_volumes(prompt) != 1]
        if several:
            raise ValueError(f"generate_many asks of one volume at a time, a prompt holds {num_volumes(several[0])}")
        rows = [language.prompt_ids(prompt, visual.counts[0]) for prompt in prompts]
        shared = shared_length(rows)
        volumes = len(visual.volumes)
        if language.volume_id in rows[0][shared:]:
            # They part before the volume: nothing worth sharing but the visual tokens.
            each = visual.in_order([volume for volume in range(volumes) for _ in prompts])
            texts = self._write(each, list(prompts) * volumes, max_new_tokens, stop=stop)
            return split(texts, [len(prompts)] * volumes)
        prefilled, after = self._prefill(visual, rows[0], shared)
        endings = [row[shared:] for row in rows]
        lasts = torch.tensor([[after + len(ending) - 1] for ending in endings])
        rooms = self._rooms(lasts, max_new_tokens)
        # A sliding window would count the padding of a shorter ending.
        lengths = [len(ending) if language.sliding else 0 for ending in endings]
        written: dict[int, list[list[str]]] = {}
        for group in _alike(list(zip(rooms, lengths, strict=True))):
            cache = copy.deepcopy(prefilled)
            cache.batch_repeat_interleave(len(group))
            texts = self._finish(cache, [endings[i] for i in group], shared, after, rooms[group[0]], stops)
            written |= dict(zip(group, zip(*split(texts, [len(group)] * volumes), strict=True), strict=True))
        return [[written[prompt][volume] for prompt in range(len(prompts))] for volume in range(volumes)]

    def _finish(
        self, cache: Cache, endings: list[list[int]], shared: int, after: int, room: int, stops: list[str]
    ) -> list[str]:
        """The answers to prompts whose first `shared` tokens lie in `cache`, each volume's prompts together."""
        language = self._language()
        ids, attention = pad(endings, language.tokenizer.pad_token_id, left=True, device=self.device)
        places = token_positions(attention) + after
        full = torch.cat([attention.new_ones(len(ids), shared), attention], dim=1)
        embeds = language.causal_lm.get_input_embeddings()(ids)
        volumes = len(cache.layers[0].keys) // len(ids)
        steps = greedy(
            language, embeds.repeat(volumes, 1, 1), full.repeat(volumes, 1), room, places.repeat(volumes, 1), cache
        )
        return texts_of(language, steps, stops)

    def _prefill(self, visual: Visual, ids: list[int], shared: int) -> tuple[Cache, int]:
        """Cache of the first `shared` tokens, a row a volume; and the position of the token after them."""
        language = self._language()
        cache = language.new_cache()
        rows = [ids] * len(visual.volumes)
        positions = positions_of(visual, rows, [1] * len(rows), language.volume_id, self.device)
        input_ids = torch.tensor(rows, device=self.device)[:, :shared]
        embeds = splice(language, input_ids, visual)
        with self._injecting(visual, input_ids):
            language.hidden(embeds, torch.ones_like(input_ids), positions[:, :shared], cache)
        return cache, int(positions[0, shared])

    # --- parts of both --------------------------------------------------------------------------------------

    def _visual(self, features: Features | Sequence[Features], keep: float | int = 1.0) -> Visual:
        self._language()
        groups = [features] if isinstance(features, Features) else list(features)
        found = Visual([], {}, None, [])
        for group in groups:
            tokens, added = self.project(group), self.injections(group)
            found.sizes += [tokens.shape[1]] * len(tokens)
            if keep != 1.0 or isinstance(keep, int):
                kept = kept_tokens(group, tokens, keep, self.projector)
                found.kept = (found.kept or []) + kept.tolist()
                tokens, added = take(tokens, kept), {layer: take(more, kept) for layer, more in added.items()}
            found.volumes += list(tokens)
            for layer, more in added.items():
                found.added.setdefault(layer, []).extend(more)
        return found

    def _prompts(self, visual: Visual, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings, attention mask, positions and ids of the prompts, left-padded."""
        language = self._language()
        rows = prompt_rows(language, visual, prompts)
        input_ids, attention = pad(rows, language.tokenizer.pad_token_id, left=True, device=self.device)
        volumes = [num_volumes(prompt) for prompt in prompts]
        positions = positions_of(visual, rows, volumes, language.volume_id, self.device)
        return splice(language, input_ids, visual), attention, positions, input_ids

    def _rooms(self, positions: Tensor, most: int) -> list[int]:
        """How many tokens may be written behind each prompt: `most`, or as many as the language model still holds.

        Args:
            positions: (prompts, length), those of the prompts' last tokens last.

        Raises:
            ValueError: a prompt that leaves no room (both numbers are told).
        """
        holds = self._language().max_length
        rooms = holds - 1 - positions[:, -1]
        if (least := int(rooms.min())) < 1:
            raise ValueError(
                f"the prompt takes {holds - least} tokens, the language model holds {holds}: use fewer visual tokens "
                "(projector), a shorter prompt, or a longer max_length"
            )
        return rooms.clamp_max(most).tolist()

    def _injecting(self, visual: Visual, input_ids: Tensor) -> AbstractContextManager[None]:
        if not visual.added:
            return nullcontext()
        language = self._language()
        added = {layer: torch.cat(tokens) for layer, tokens in visual.added.items()}
        return injecting(language, added, input_ids == language.volume_id)

    def _language(self) -> LanguageModel:
        if self.language is None:
            raise ValueError("this model has no language model: it encodes only")
        return self.language


def _alike(keys: Sequence[Hashable]) -> list[list[int]]:
    """The numbers of those with equal keys together."""
    return [[number for number, own in enumerate(keys) if own == key] for key in dict.fromkeys(keys)]
