"""Regions: each organ's tokens and what the report says of that organ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.interfaces import Evidence, Features, TaskOutput
from vol3d.model.pooling import QueryPool
from vol3d.model.text_encoder import unit
from vol3d.model.volume_lm import VolumeLM
from vol3d.tasks.zero_shot import ZeroShot, score_findings
from vol3d.text.ontology import FINDINGS, SIDES
from vol3d.text.sections import MERLIN_ORGANS, header_organ

ORGANS: dict[str, list[str]] = {
    "lower thorax": ["lung"],
    "circulatory": ["heart", "aorta"],
    "liver": ["liver", "gallbladder"],
    "spleen": ["spleen", "pancreas"],
    "kidneys": ["kidney"],
    "bowel": ["bowel", "colon", "stomach", "duodenum", "bladder"],
    "musculoskeletal": ["spine", "vertebrae", "rib", "ribs", "pelvis", "hip", "sacrum", "sternum", "femur"],
}
"""Report section (by `vol3d.text.sections.split_organs`) → words that name its organs in a mask's labels."""

_WORD = re.compile(r"[a-z]+")


class Regions(ZeroShot):
    """Region–text contrast: an organ's vector is nearest to what its patient's report says of that organ.

    In training, queries of each organ attend to its own tokens where the study has a mask. They also learn to find them
    without one (the share of their free attention that falls inside is raised): predictions read no mask.
    Findings are then asked for of the organ they belong to, not of the whole volume.

    Args:
        model: the shared model.
        findings: as in `ZeroShot`; each is asked of the first organ whose section it is reported in.
        organs: section → words of mask labels; default `ORGANS`.
        queries: for each organ. attention_weight: of the term that makes free attention find the organ.
        others: `ZeroShot`'s and `Retrieval`'s, less `text`.

    Raises:
        ValueError: a section that reports do not have, or a finding of none of the organs.

    Source: fVLM (arXiv:2501.14548): organ tokens by mask, an organ's contrast, normal organs no negatives of each other
    (`equal="findings"`); region–attribute pairs as in ViLLA (arXiv:2308.11194). Free attention is this project's own.
    """

    kind = "regions"
    writes = ("regions",)

    def __init__(
        self,
        model: VolumeLM,
        *,
        findings: list[str],
        organs: dict[str, list[str]] | None = None,
        queries: int = 8,
        attention_weight: float = 0.1,
        equal: Literal["text", "findings"] = "findings",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, findings=findings, queries=queries, text="sections", equal=equal, **kwargs)
        self.organs = dict(organs or ORGANS)
        if unknown := sorted(set(self.organs) - set(MERLIN_ORGANS)):
            raise ValueError(f"reports have no section {unknown[0]!r}: the sections are {', '.join(MERLIN_ORGANS)}")
        if self.reads_with_language:
            raise ValueError('Regions cannot read with text_encoder="language": its volume side is a pool of organs')
        self.organ_of = torch.tensor([self._organ(name) for name in findings])
        self.attention_weight, self.queries = attention_weight, queries
        width, count = max(16, 2 * self.embed_dim // queries), len(self.organs)
        self.pool = QueryPool(model.encoder.embed_dim, queries=count * queries, width=width)
        self.head = nn.Linear(queries * width, self.embed_dim)
        self.organ_bias = nn.Parameter(torch.zeros(count, self.embed_dim))

    def _organ(self, finding: str) -> int:
        side, _, name = finding.partition(" ")
        kind = FINDINGS.get(name if side in SIDES else finding)
        for number, section in enumerate(self.organs):
            if kind is not None and header_organ(section) == kind.organ:
                return number
        raise ValueError(f"finding {finding!r} belongs to none of the organs {', '.join(self.organs)}: add its section")

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.organs)

    def of(self, study: Study) -> dict[str, str]:
        """The sections of a study's report about the organs; empty when it has none."""
        return {part: text for part, text in super().of(study).items() if part in self.organs}

    # --- vectors --------------------------------------------------------------------------------------------

    def embed_organs(self, features: Features, inside: Tensor | None = None) -> Tensor:
        """Unit vectors of organs (batch, organs, embed_dim); `inside` (batch, organs, tokens) where it is known."""
        allowed = None
        if inside is not None:
            # Where the organ is not in the mask, or there is no mask, attention is free.
            free = ~inside.any(dim=2, keepdim=True)
            allowed = (inside | free).repeat_interleave(self.queries, dim=1)
        found = self.pool(features.tokens, allowed).unflatten(1, (len(self.organs), self.queries)).flatten(2)
        return unit(self.head(found) + self.organ_bias)

    def embed_volume(self, model: VolumeLM, features: Features) -> Tensor:
        """The mean of a volume's organ vectors, as a unit vector (batch, embed_dim)."""
        return unit(self.embed_organs(features).mean(dim=1))

    def inside(self, features: Features, batch: Batch) -> Tensor | None:
        """Which tokens touch which organ (batch, organs, tokens), by the masks; None when the batch has none."""
        if batch.mask is None:
            return None
        organs = torch.zeros(len(batch), len(self.organs), *batch.mask.shape[1:], device=batch.mask.device)
        for row, study in enumerate(batch.studies):
            for number, words in enumerate(self.organs.values()):
                labels = [
                    label for name, label in study.mask_labels.items() if {*_WORD.findall(name.lower())} & {*words}
                ]
                own = torch.tensor(labels, dtype=batch.mask.dtype, device=organs.device)
                organs[row, number] = torch.isin(batch.mask[row], own)
        return F.adaptive_max_pool3d(organs, features.grid_size).flatten(2) > 0

    # --- learning and judging -------------------------------------------------------------------------------

    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> TaskOutput:
        inside = self.inside(features, batch)
        regions = self.embed_organs(features, inside)
        output = self.contrast_parts(model, regions.unbind(dim=1), [self.of(study) for study in batch.studies])
        if output.loss is None or inside is None or not inside.any():
            return output
        attention = self.pool.attention(features.tokens).float().log_softmax(dim=-1)
        attention = attention.unflatten(1, (len(self.organs), self.queries))
        mass = attention.masked_fill(~inside.unsqueeze(2), -torch.inf)[inside.any(dim=2)].logsumexp(dim=-1)
        finding = -mass.mean()
        log = {**output.log, "attention": float(finding.detach())}
        return TaskOutput(output.loss + self.attention_weight * finding, output.count, log)

    def logits(self, model: VolumeLM, features: Features) -> Tensor:
        """Shape: (batch, findings). Attention is free: a mask is a label, which a new study has not."""
        regions = self.embed_organs(features)
        chosen = regions[:, self.organ_of.to(regions.device)]
        return self.scale * (chosen * self.directions(model)).sum(dim=-1)

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        logits = self.logits(model, features).float()
        return [
            {"regions": {name: round(score, 4) for name, score in zip(self.findings, row, strict=True)}}
            for row in logits.tolist()
        ]

    def reads(self, study: Study) -> Any:
        return None  # the text's vector, which a retrieval keeps, is not kept here

    def score(self, evidence: Evidence) -> dict[str, dict[str, Any]]:
        rows: Mapping[str, Mapping[str, float]] = {
            name: row["regions"] for name, row in evidence.predictions.items() if "regions" in row
        }
        studies: Sequence[Any] = evidence.studies
        options = {"replicates": evidence.replicates, "seed": evidence.seed}
        scores = score_findings(self.findings, studies, evidence.validation, rows, **options)
        return {"regions": scores} if scores else {}
