"""Finding maps: where on the token grid each finding lies, supervised by voxel masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.interfaces import Features, Task, TaskOutput
from vol3d.model.volume_lm import VolumeLM


class FindingMaps(Task):
    """A heatmap a finding, from the tokens: dense supervision that teaches an encoder to see from few studies.

    Each token predicts `cells` sub-cells for each finding. The loss is binary cross-entropy on the cells, with the
    rare positive ones weighted up, plus binary cross-entropy of the finding's presence in the study, read from the
    heatmap's highest cells. Of a study with a finding mask, the findings that its `finding_labels` names are known,
    present or not; the others, and a study without a mask, cost nothing.

    Args:
        model: the shared model.
        findings: names as in the manifest's `finding_labels` ("left pleural effusion", "ascites").
        cells: sub-cells of a token along x, y, z.
        presence_weight: of the study-level term.
        top_cells: how many highest cells a study's presence is read from (their mean logit).

    Source: this project's own; segmentation before language as in RadGPT (arXiv:2501.04678) and U-VLM
    (arXiv:2603.00479), here on the token grid so that the encoder alone is trained.
    """

    def __init__(
        self,
        model: VolumeLM,
        *,
        findings: list[str],
        cells: Sequence[int] = (2, 2, 1),
        presence_weight: float = 1.0,
        top_cells: int = 4,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if len(set(findings)) != len(findings) or not findings:
            raise ValueError(f"findings must be named once each and at least one, got {findings}")
        self.findings, self.cells, self.weight = list(findings), tuple(cells), weight
        self.presence_weight, self.top_cells = presence_weight, top_cells
        count = len(findings) * cells[0] * cells[1] * cells[2]
        self.head = nn.Linear(model.encoder.embed_dim, count)
        # Start from "absent everywhere": with 1 % of positive cells a zero bias costs the first hundred steps.
        nn.init.constant_(self.head.bias, -4.0)

    @property
    def outputs(self) -> tuple[Any, ...]:
        return tuple(self.findings)

    def logits(self, features: Features) -> Tensor:
        """Shape: (batch, findings, gx * cx, gy * cy, gz * cz)."""
        (gx, gy, gz), (cx, cy, cz) = features.grid_size, self.cells
        return rearrange(
            self.head(features.tokens),
            "b (gx gy gz) (f cx cy cz) -> b f (gx cx) (gy cy) (gz cz)",
            gx=gx, gy=gy, gz=gz, cx=cx, cy=cy, cz=cz,
        )  # fmt: skip

    def targets(self, batch: Batch, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Cells that hold each finding, (batch, findings, *size) in {0, 1}; which are known, (batch, findings)."""
        mask = batch.finding_mask
        named = [[name in study.finding_labels for name in self.findings] for study in batch.studies]
        known = torch.tensor(named, device=mask.device) & (mask >= 0).flatten(1).all(dim=1, keepdim=True)
        target = torch.zeros(len(batch), len(self.findings), *size, device=mask.device)
        number = {name: index for index, name in enumerate(self.findings)}
        for row, study in enumerate(batch.studies):
            table = torch.full((int(mask[row].max().clamp_min(0)) + 1,), -1, device=mask.device)
            for name, label in study.finding_labels.items():
                if name in number and label < len(table):
                    table[label] = number[name]
            finding = table[mask[row].clamp_min(0).long()]
            voxels = (finding >= 0).nonzero()
            cell = [voxels[:, axis] * size[axis] // mask.shape[1 + axis] for axis in range(3)]
            target[row, finding[tuple(voxels.T)], cell[0], cell[1], cell[2]] = 1.0
        return target, known

    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> TaskOutput:
        if batch.finding_mask is None:
            return TaskOutput(None, 0)
        logits = self.logits(features).float()
        target, known = self.targets(batch, tuple(logits.shape[2:]))
        if not known.any():
            return TaskOutput(None, 0)
        presence = F.binary_cross_entropy_with_logits(self.presence(logits)[known], target.flatten(2).amax(2)[known])
        cells = self._balanced(logits[known], target[known])
        return TaskOutput(
            cells + self.presence_weight * presence,
            int(known.any(dim=1).sum()),
            {"cells": float(cells.detach()), "presence": float(presence.detach())},
        )

    def learns(self, study: Study) -> bool:
        return study.finding_mask is not None and not study.finding_labels.keys().isdisjoint(self.findings)

    @staticmethod
    def _balanced(logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy (maps, x, y, z) in which a finding's cells weigh as much as those without it, however few."""
        each = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1)
        target = target.flatten(1)
        inside = (each * target).sum(1) / target.sum(1).clamp_min(1)
        outside = (each * (1 - target)).sum(1) / (1 - target).sum(1).clamp_min(1)
        return (inside + outside).mean()

    def presence(self, logits: Tensor) -> Tensor:
        """Study-level logits (batch, findings): the mean of the highest cells."""
        return logits.flatten(2).topk(self.top_cells, dim=2).values.mean(dim=2)

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        probability = self.presence(self.logits(features).float()).sigmoid()
        return [
            {"finding_probabilities": {name: round(float(p), 4) for name, p in zip(self.findings, row, strict=True)}}
            for row in probability
        ]
