"""Prompt segmentation: a phrase, a click, a box or an earlier mask → the mask, from the shared encoder's features or,
when asked, from those of a second one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from numpy import ndarray
from torch import Tensor

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.asking import Ask, asks_of, correct, draw_asks, show, simulate, truth_of, truths_of
from vol3d.model.cross_entropy import is_sharded
from vol3d.model.interfaces import Encoder, Evidence, Features, Task, TaskOutput
from vol3d.model.mask_decoder import Answers, PromptDecoder, Prompts, Seen
from vol3d.model.text_prompt import LanguagePrompt, PhraseEncoder, is_finding, wordings
from vol3d.model.volume_lm import VolumeLM
from vol3d.training.losses import deep_mask_loss
from vol3d.volume.runs import decode_levels, decode_runs, encode_levels, encode_runs

CHUNK = 8
"""Prompts decoded at once at inference: full-resolution logits of a hundred would not fit."""


class PromptSegmentation(Task):
    """Dice and cross-entropy of the mask of each prompt, and whether it is there at all.

    Each step asks a study for several things at once: organs by name, findings by a referring phrase in one of many
    wordings, and things that are absent. A share of the prompts is asked by a click or a box instead, and a share of
    the steps goes a second round with the mask so far and a correcting click. A study without masks costs nothing.

    Args:
        model: the shared model. Its encoder's finer maps are used when it has them.
        names: labels to learn and to predict, of `mask_labels` and `finding_labels`; None for all a study names.
        prompts: asked of a study in a step. absent: share of them that is not there.
        interactive: share of the prompts shown by click or box, and of the steps with a second round.
        text: "words" reads phrases by a small encoder of its own; "language" lets the language model read the volume
            and the phrase, and takes its hidden state at a learnt [SEG] token.
        dim, depth, num_heads, pixel_dim: the decoder's.
        encoder: a second image encoder, for masks alone, which sees the same windows of the same grid; left out, masks
            are read from the shared one.
        presence_weight: of the cross-entropy of being there.
        finding_weight: of a finding that is there, beside an organ's 1: organs are in every study, findings in few.
        weight: of this loss in the sum over tasks.

    Raises:
        ValueError: text="language" without a language model, or a mask with a label that has no name.

    Source: SegVol (arXiv:2311.13385), SAT (arXiv:2312.17183), M3D-LaMed's [SEG] (arXiv:2404.00578).
    """

    kind = "segmentation"
    uses = frozenset({"scales"})

    def __init__(
        self,
        model: VolumeLM,
        *,
        names: Sequence[str] | None = None,
        prompts: int = 6,
        absent: float = 0.25,
        interactive: float = 0.25,
        text: Literal["words", "language"] = "words",
        dim: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        pixel_dim: int = 16,
        encoder: Encoder | None = None,
        presence_weight: float = 0.5,
        finding_weight: float = 4.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.names = None if names is None else frozenset(names)
        self.prompts, self.absent, self.interactive = prompts, absent, interactive
        self.presence_weight, self.finding_weight, self.weight = presence_weight, finding_weight, weight
        self.encoder = encoder
        if encoder is not None:
            self.uses = frozenset()
        self.decoder = PromptDecoder(
            encoder or model.encoder, dim=dim, depth=depth, num_heads=num_heads, pixel_dim=pixel_dim
        )
        self.text = PhraseEncoder(dim) if text == "words" else LanguagePrompt(model, dim)
        if text == "language":
            self.uses = self.uses | {"visual"}

    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> TaskOutput:
        asks = [draw_asks(self._asks(batch, row), self.prompts, self.absent) for row in range(len(batch))]
        rows = [row for row, wanted in enumerate(asks) if wanted]
        if not rows:
            return TaskOutput(None, 0)
        if len(rows) < len(batch):
            features, batch, asks = features[rows], batch.select(rows), [asks[row] for row in rows]
        truth = truth_of(batch, asks)
        counts = self._counts(asks, truth)
        seen = self.see(features, batch)
        prompts = self._texts(model, features, [[ask.phrase for ask in wanted] for wanted in asks])
        if self.interactive:
            prompts = simulate(prompts, truth, batch.affine, self.interactive)
        answers = self.decoder(seen, prompts)
        loss = self._loss(answers, truth, counts)
        if self.training and self.interactive:
            share = 0.5 if torch.rand(()) < self.interactive else 0.0
            # Processes draw apart, and divided weights are gathered by all at once: there each looks twice a step.
            if share or any(is_sharded(parameter) for parameter in self.decoder.parameters()):
                again = self.decoder(seen, correct(prompts, answers.masks, truth, batch.affine))
                loss = (1 - share) * loss + share * self._loss(again, truth, counts)
        return TaskOutput(loss, len(rows), {"dice": _mean_dice(answers.masks, truth)})

    def see(self, features: Features, batch: Batch) -> Seen:
        """The volumes as the decoder reads them, by the task's own encoder where it has one."""
        read = features if self.encoder is None else self.encoder(batch.image, batch.affine)
        return self.decoder.see(read, batch.image, batch.affine)

    def _counts(self, asks: list[list[Ask]], truth: Tensor) -> Tensor:
        """How much each prompt counts (batch, prompts): not at all where a study has fewer."""
        counts = torch.zeros(truth.shape[:2], device=truth.device)
        for row, wanted in enumerate(asks):
            for place, ask in enumerate(wanted):
                counts[row, place] = self.finding_weight if ask.finding and ask.present else 1.0
        return counts

    def _loss(self, answers: Answers, truth: Tensor, counts: Tensor) -> Tensor:
        masks = deep_mask_loss([answers.masks, *answers.coarse], truth, empty_dice=0.1, inside_weight=0.1)
        present = truth.flatten(2).any(-1).float()
        presence = F.binary_cross_entropy_with_logits(answers.presence, present, reduction="none")
        return ((masks + self.presence_weight * presence) * counts).sum() / counts.sum()

    def _asks(self, batch: Batch, row: int) -> list[Ask]:
        return asks_of(batch, row, self.names)

    def _texts(self, model: VolumeLM, features: Features, phrases: list[list[str]]) -> Prompts:
        """Prompts of these phrases, padded to as many a study; an empty phrase is no text."""
        count = max(map(len, phrases))
        padded = [[*row, *[""] * (count - len(row))] for row in phrases]
        known = torch.tensor([[bool(phrase) for phrase in row] for row in padded], device=features.tokens.device)
        text = self.text(model, features, [[phrase or "nothing" for phrase in row] for row in padded])
        return Prompts(text=text, has_text=known)

    def answers(
        self, model: VolumeLM, features: Features, seen: Seen, phrases: list[list[str]], shown: Prompts | None = None
    ) -> Answers:
        """The decoder's answers to phrases, and to what is shown beside them, about volumes it has seen."""
        prompts = self._texts(model, features, phrases)
        if shown is not None:
            prompts = replace(shown, text=prompts.text, has_text=prompts.has_text)
        return self.decoder(seen, prompts)

    def logits(
        self,
        model: VolumeLM,
        features: Features,
        batch: Batch,
        prompts: Sequence[str],
        shown: Prompts | None = None,
        *,
        presence: float = 0.5,
    ) -> Tensor:
        """Logits (batch, prompts, x, y, z) above 0 inside: those of the mask, or of being there where these are lower.

        Args:
            presence: least probability of being there; what is shown is there.
        """
        seen = self.see(features, batch)
        parts = []
        for start in range(0, len(prompts), CHUNK):
            some = list(prompts[start : start + CHUNK])
            found = self.answers(model, features, seen, [some] * len(batch), _part(shown, start))
            there = (found.presence - torch.logit(torch.tensor(presence)))[..., None, None, None]
            parts.append(found.masks if shown is not None else torch.minimum(found.masks, there))
        return torch.cat(parts, dim=1)

    def segment(
        self,
        model: VolumeLM,
        features: Features,
        batch: Batch,
        prompts: Sequence[str],
        *,
        points: Sequence[Sequence[float | int]] = (),
        negative_points: Sequence[Sequence[float | int]] = (),
        box: Sequence[float | int] | None = None,
        mask: Tensor | None = None,
        presence: float = 0.5,
    ) -> Bool[Tensor, "batch prompts x y z"]:
        """Masks of the prompts on the grid, empty where the model says that there is no such thing.

        Args:
            prompts: phrases; "" to ask by what is shown only.
            points, negative_points: (x, y, z) in RAS mm inside and outside of what is wanted.
            box: (x1, y1, z1, x2, y2, z2) in RAS mm around it.
            mask: (x, y, z) on the grid, an earlier mask to refine.
            presence: least probability of being there; what is shown is there.

        Raises:
            ValueError: nothing is asked, or a point or the box is none or lies outside the volume.
        """
        prompts = [prompt.strip() for prompt in prompts]
        shown = show(batch, len(prompts), points, negative_points, box, mask)
        if not prompts or (shown is None and not all(prompts)):
            raise ValueError(f"prompts are {prompts} and nothing is shown: give a phrase, points, a box or a mask")
        return self.logits(model, features, batch, prompts, shown, presence=presence) > 0

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        wanted = [sorted(self._predicted(study)) for study in batch.studies]
        phrases = [
            [_referring(study.study, name) for name in row] for study, row in zip(batch.studies, wanted, strict=True)
        ]
        rows: list[dict[str, Any]] = [{"segmentation": {}} for _ in wanted]
        seen = self.see(features, batch)
        voxel_ml = torch.linalg.det(batch.affine[:, :3, :3]).abs() / 1000
        for start in range(0, max(map(len, wanted)), CHUNK):
            found = self.answers(model, features, seen, [row[start : start + CHUNK] for row in phrases])
            present = found.presence.float().sigmoid()
            masks = ((found.masks > 0) & (present >= 0.5)[..., None, None, None]).cpu().numpy()
            soft = torch.minimum(found.masks.float().sigmoid(), present[..., None, None, None]).cpu().numpy()
            for row, names in enumerate(wanted):
                for place, name in enumerate(names[start : start + CHUNK]):
                    rows[row]["segmentation"][name] = {
                        "phrase": phrases[row][start + place],
                        "present": round(float(present[row, place]), 4),
                        "volume_ml": round(int(masks[row, place].sum()) * float(voxel_ml[row]), 2),
                        "runs": encode_runs(masks[row, place]),
                        "soft": encode_levels(soft[row, place]),
                    }
        return rows

    def reads(self, study: Study) -> list[str]:
        """The names that are asked for."""
        return sorted(self._predicted(study))

    def labelled(self, study: Study) -> bool:
        return bool((study.mask and study.mask_labels) or (study.finding_mask and study.finding_labels))

    def score(self, evidence: Evidence) -> dict[str, dict[str, Any]]:
        from vol3d.evaluation.metrics.prompts import Asked, score_prompts

        known = [study for study in evidence.studies if self.labelled(study)]
        if not known:
            return {}
        shape = evidence.sample(known[0]).hu.shape[1:]

        def predicted(study: str, name: str) -> ndarray | None:
            row = evidence.predictions[study]["segmentation"].get(name)
            return None if row is None else decode_runs(row["runs"], tuple(shape))

        def soft(study: str, name: str) -> ndarray | None:
            row = evidence.predictions[study]["segmentation"].get(name) or {}
            return decode_levels(row["soft"], tuple(shape)) if "soft" in row else None

        asked = (
            Asked(study.study, ask.name, ask.finding, truth, spacing)
            for study in known
            for ask, truth, spacing in truths_of(evidence.sample(study), self.names)
        )
        return {
            "segmentation": score_prompts(
                asked,
                predicted,
                [study.study for study in known],
                [study.patient for study in known],
                probabilities=soft,
                replicates=evidence.replicates,
                seed=evidence.seed,
            )
        }

    def _predicted(self, study: Study) -> set[str]:
        """The names to predict of a study: those the task was given, or else those the study's labels have."""
        named = {*study.mask_labels, *study.finding_labels}
        return named if self.names is None else (named & self.names) or set(self.names)


def _part(shown: Prompts | None, start: int) -> Prompts | None:
    """What is shown to the prompts of one chunk."""
    if shown is None:
        return None
    return Prompts(
        **{key: None if value is None else value[:, start : start + CHUNK] for key, value in vars(shown).items()}
    )


def _referring(study: str, name: str) -> str:
    """The plain name of an organ; for a finding one of its wordings, always the same one for the same study."""
    forms = wordings(name)
    return forms[zlib.crc32(f"{study} {name}".encode()) % len(forms)] if is_finding(name) else forms[0]


def _mean_dice(logits: Tensor, truth: Tensor) -> float:
    """Over the prompts that are there."""
    said, meant = (logits.detach() > 0).flatten(2).float(), truth.flatten(2)
    dice = 2 * (said * meant).sum(-1) / (said.sum(-1) + meant.sum(-1)).clamp_min(1)
    there = meant.any(-1)
    return float(dice[there].mean()) if there.any() else 0.0
