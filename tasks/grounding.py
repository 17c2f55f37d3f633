"""Grounding: a phrase → its box, a box → what it holds, and a report whose every finding has its place."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.asking import check_box, mask_boxes
from vol3d.model.box_prompts import (
    BoxAsk,
    absent_of,
    boxes_of,
    draw_boxes,
    hulls,
    jitter_boxes,
    main_parts,
    masks_of,
    stack_boxes,
)
from vol3d.model.interfaces import Evidence, Features, Task, TaskOutput
from vol3d.model.mask_decoder import Answers, PromptDecoder, Prompts, Seen
from vol3d.model.places import boxes_to_mm, boxes_to_shares
from vol3d.model.text_prompt import PhraseEncoder, wordings
from vol3d.model.volume_lm import VolumeLM
from vol3d.text.parser import parse_mentions
from vol3d.training.losses import box_loss, deep_mask_loss
from vol3d.volume.runs import encode_runs

Box = Sequence[float | int]


class Grounding(Task):
    """Boxes of phrases (L1 and generalised IoU), their presence, and the name of what a box holds.

    Where the study's finding mask knows the label, the mask is learnt too: the box around it is the sharper answer
    (`box="mask"`), and a grounded report shows it. Boxes are in RAS millimetres in and out. A label with several boxes
    in one study is answered by the box around them all. A study costs nothing that has no box and of which
    `labels_known` says of none of the names that it is absent.

    Args:
        model: the shared model.
        names: labels to learn, to predict, and to name a box's content by.
        prompts: asked of a study in a step. absent: share of them that is not there (`labels_known` says 0).
        box: "mask" reads the box off the predicted mask, "head" off the decoder's box token.
        mask_weight, box_weight, presence_weight, name_weight: of the parts of the loss.
        dim, depth, num_heads, pixel_dim: the decoder's. weight: of this loss in the sum over tasks.

    Raises:
        ValueError: no name, or a box that lies outside the volume (study, box and volume are told).

    Source: tasks REC and REG of M3D (arXiv:2404.00578), there as numbers written by the language model; here by the
    prompt decoder, and judged by a true IoU.
    """

    kind = "grounding"
    writes = ("boxes", "box_names")
    uses = frozenset({"scales"})

    def __init__(
        self,
        model: VolumeLM,
        *,
        names: Sequence[str],
        prompts: int = 4,
        absent: float = 0.25,
        box: Literal["mask", "head"] = "mask",
        mask_weight: float = 1.0,
        box_weight: float = 0.5,
        presence_weight: float = 0.5,
        name_weight: float = 0.25,
        dim: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        pixel_dim: int = 16,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not names or len(set(names)) != len(names):
            raise ValueError(f"names must be given once each and at least one, got {list(names)}")
        self.names, self.prompts, self.absent = list(names), prompts, absent
        self.box, self.weight, self.mask_weight, self.box_weight = box, weight, mask_weight, box_weight
        self.presence_weight, self.name_weight = presence_weight, name_weight
        self.decoder = PromptDecoder(model.encoder, dim=dim, depth=depth, num_heads=num_heads, pixel_dim=pixel_dim)
        self.text = PhraseEncoder(dim)
        self.name = nn.Linear(dim, dim)

    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> TaskOutput:
        every = [boxes_of(batch, row, self.names) for row in range(len(batch))]
        rows = [row for row, asks in enumerate(every) if asks]
        if not rows:
            return TaskOutput(None, 0)
        if len(rows) < len(batch):
            features, batch = features[rows], batch.select(rows)
        asks = [draw_boxes(every[row], self.prompts, self.absent) for row in rows]
        asked, truth = stack_boxes(asks, batch)
        seen = self.decoder.see(features, batch.image, batch.affine)
        answers = self.decoder(seen, self._texts(model, features, [[ask.phrase for ask in some] for some in asks]))
        there = ~truth.isnan().any(-1)
        presence = F.binary_cross_entropy_with_logits(answers.presence.float(), there.float(), reduction="none")
        parts = {"presence": self.presence_weight * (presence * asked).sum() / asked.sum()}
        if there.any():
            shares = boxes_to_shares(truth.nan_to_num(0), batch.affine, seen.shape).clamp(0, 1)
            parts["box"] = self.box_weight * box_loss(answers.boxes[there], shares[there].float()).mean()
            parts["name"] = self.name_weight * self._name_loss(seen, truth, asks, there)
        masks, known = masks_of(asks, batch)
        if known.any():
            each = deep_mask_loss([answers.masks, *answers.coarse], masks, empty_dice=0.1, inside_weight=0.1)
            parts["mask"] = self.mask_weight * (each * known).sum() / known.sum()
        log = {name: float(part.detach()) for name, part in parts.items()}
        return TaskOutput(sum(parts.values(), torch.zeros((), device=truth.device)), len(rows), log)

    def _name_loss(self, seen: Seen, truth: Tensor, asks: Sequence[Sequence[BoxAsk]], there: Tensor) -> Tensor:
        target = torch.zeros(there.shape, dtype=torch.long, device=truth.device)
        for row, some in enumerate(asks):
            for place, ask in enumerate(some):
                target[row, place] = self.names.index(ask.name)
        return F.cross_entropy(self._named(seen, jitter_boxes(truth), self.names)[there].float(), target[there])

    def _named(self, seen: Seen, boxes: Tensor, names: Sequence[str]) -> Tensor:
        """Logits (batch, boxes, names) of what each box (RAS mm) holds."""
        tokens = self.name(self.decoder.ask(seen, Prompts(boxes=boxes))[0][:, :, 0])
        vectors = self.text.embed([wordings(name)[0] for name in names])
        return tokens @ torch.stack(list(vectors.values())).T / tokens.shape[-1] ** 0.5

    def _texts(self, model: VolumeLM, features: Features, phrases: Sequence[Sequence[str]]) -> Prompts:
        count = max(map(len, phrases))
        return Prompts(text=self.text(model, features, [[*row, *["nothing"] * (count - len(row))] for row in phrases]))

    def _boxes(self, answers: Answers, seen: Seen) -> Tensor:
        shares = answers.boxes
        if self.box == "mask":
            around = mask_boxes(main_parts(answers.masks > 0))
            shares = torch.where(around.isnan(), shares, around)
        return boxes_to_mm(shares, seen.affine, seen.shape)

    def locate(
        self, model: VolumeLM, features: Features, batch: Batch, phrases: Sequence[Sequence[str]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where the thing of each phrase lies; as many phrases for each study.

        Shape:
            boxes (batch, phrases, 6) in RAS mm, probability of being there (batch, phrases), masks (batch, phrases, x,
            y, z) bool. The box of an empty mask is the box token's.
        """
        seen = self.decoder.see(features, batch.image, batch.affine)
        answers = self.decoder(seen, self._texts(model, features, phrases))
        return self._boxes(answers, seen), answers.presence.float().sigmoid(), answers.masks > 0

    def describe(
        self,
        model: VolumeLM,
        features: Features,
        batch: Batch,
        boxes: Sequence[Sequence[Box]],
        names: Sequence[str] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """What boxes hold: a list a study of {"answer": name, "scores": {name: probability}}.

        Args:
            boxes: of each study, (x1, y1, z1, x2, y2, z2) in RAS mm.
            names: what to choose from; None for those the task has learnt.

        Raises:
            ValueError: a box outside the volume.
        """
        names = self.names if names is None else list(names)
        asked = torch.full((len(batch), max(map(len, boxes)), 6), torch.nan, dtype=batch.affine.dtype)
        for row, some in enumerate(boxes):
            for place, box in enumerate(some):
                check_box(batch, row, box, f"region {place}")
                asked[row, place] = torch.tensor(list(box), dtype=asked.dtype)
        seen = self.decoder.see(features, batch.image, batch.affine)
        scores = self._named(seen, asked.to(batch.affine.device), names).float().softmax(-1).tolist()
        return [[_best(names, s) for s in row[: len(some)]] for row, some in zip(scores, boxes, strict=True)]

    def ground(
        self, model: VolumeLM, features: Features, batch: Batch, reports: Sequence[str], *, presence: float = 0.5
    ) -> list[list[dict[str, Any]]]:
        """Each finding that a report says is there, with its place in the volume.

        Args:
            reports: one a study.
            presence: a finding the volume shows with less probability gets no place: the sentence is not borne out.

        Returns:
            a list a study of {"sentence", "label", "present", "min_mm", "max_mm", "volume_ml", "runs"}, with only the
            first three for a finding without a place.
        """
        said = [[m for m in parse_mentions(text) if m.status in ("present", "possible")] for text in reports]
        count = max(map(len, said), default=0)
        if not count:
            return [[] for _ in reports]
        phrases = [[m.finding.key for m in row] + ["nothing"] * (count - len(row)) for row in said]
        boxes, there, masks = self.locate(model, features, batch, phrases)
        voxel_ml = torch.linalg.det(batch.affine[:, :3, :3]).abs() / 1000
        found: list[list[dict[str, Any]]] = [[] for _ in reports]
        for row, mentions in enumerate(said):
            for place, mention in enumerate(mentions):
                entry: dict[str, Any] = {"sentence": mention.sentence, "label": mention.finding.key}
                entry["present"] = round(float(there[row, place]), 4)
                if entry["present"] >= presence:
                    mask = masks[row, place].cpu().numpy()
                    entry |= _corners(boxes[row, place])
                    entry |= {"volume_ml": round(mask.sum() * float(voxel_ml[row]), 2), "runs": encode_runs(mask)}
                found[row].append(entry)
        return found

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        phrases = [[_referring(study.study, name) for name in self.names] for study in batch.studies]
        boxes, there, _ = self.locate(model, features, batch, phrases)
        rows: list[dict[str, Any]] = [
            {
                "boxes": [
                    {"label": name, "phrase": phrase, **_corners(box), "score": round(float(p), 4)}
                    for name, phrase, box, p in zip(self.names, phrases[row], boxes[row], there[row], strict=True)
                ],
                "box_names": [],
            }
            for row in range(len(batch))
        ]
        regions = [[[*box["min_mm"], *box["max_mm"]] for box in study.boxes] for study in batch.studies]
        if any(regions):
            for row, answers in zip(rows, self.describe(model, features, batch, regions), strict=True):
                row["box_names"] = [{"answer": found["answer"]} for found in answers]
        return rows

    def reads(self, study: Study) -> list[Any]:
        """The boxes that are named, without their names."""
        return [[box["min_mm"], box["max_mm"]] for box in study.boxes]

    def labelled(self, study: Study) -> bool:
        return any(box["label"] in self.names for box in study.boxes)

    def learns(self, study: Study) -> bool:
        """What is known to be absent is learnt, and judged, in studies without a box too."""
        return self.labelled(study) or not set(self.names).isdisjoint(absent_of(study))

    def score(self, evidence: Evidence) -> dict[str, dict[str, Any]]:
        from vol3d.evaluation.metrics.grounding import score_grounding

        if not any(map(self.labelled, evidence.studies)):
            return {}
        studies = [study for study in evidence.studies if self.learns(study)]
        dealt = None if evidence.blind is None else evidence.blind()
        scores = score_grounding(
            [{name: box for name, box in hulls(study.boxes).items() if name in self.names} for study in studies],
            [study.boxes for study in studies],
            [evidence.predictions[study.study] for study in studies],
            [study.patient for study in studies],
            self.names,
            absent=[absent_of(study) for study in studies],
            blind=None if dealt is None else [dealt[study.study] for study in studies],
            replicates=evidence.replicates,
            seed=evidence.seed,
        )
        return {"grounding": scores}


def _best(names: Sequence[str], scores: Sequence[float]) -> dict[str, Any]:
    found = {name: round(score, 4) for name, score in zip(names, scores, strict=True)}
    return {"answer": max(found, key=found.__getitem__), "scores": found}


def _corners(box: Tensor) -> dict[str, list[float]]:
    low, high = ([round(value, 2) for value in end.tolist()] for end in box.split(3))
    return {"min_mm": low, "max_mm": high}


def _referring(study: str, name: str) -> str:
    """One of the wordings, always the same one for the same study."""
    forms = wordings(name)
    return forms[zlib.crc32(f"{study} {name}".encode()) % len(forms)]
