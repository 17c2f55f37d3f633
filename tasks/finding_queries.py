"""Finding queries: the first visual tokens each answer for one finding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vol3d.data.batch import Batch
from vol3d.model.interfaces import Features, Task, TaskOutput
from vol3d.model.volume_lm import VolumeLM


class FindingQueries(Task):
    """Visual token i says whether finding i is present: supervision that reaches the projector before language does.

    A language model that is learning to write gets little signal about what to look at, because most tokens of a
    report are wording. Here the projector first learns to put each finding's answer in a known token, where the
    language model then finds it. Truth is `labels_known` of the manifest; a finding that is not in it, or null, is
    unknown and costs nothing.

    Args:
        model: the shared model; its projector must give at least as many tokens as there are findings.
        findings: names as in the manifest ("left pleural effusion", "ascites").

    Raises:
        ValueError: the model has no projector, or its projector too few tokens (when the loss is computed).

    Source: learned queries as in DETR (arXiv:2005.12872), each bound to one finding as in Query2Label
    (arXiv:2107.10834); here the queries are the perceiver's own latents.
    """

    uses = frozenset({"visual"})

    def __init__(self, model: VolumeLM, *, findings: list[str], weight: float = 1.0) -> None:
        super().__init__()
        if model.projector is None:
            raise ValueError("FindingQueries needs a model with a projector")
        if len(set(findings)) != len(findings) or not findings:
            raise ValueError(f"findings must be named once each and at least one, got {findings}")
        self.findings, self.weight = list(findings), weight
        self.head = nn.Linear(model.projector.out_dim, 1)

    def logits(self, model: VolumeLM, features: Features) -> Tensor:
        """Shape: (batch, findings)."""
        tokens = model.project(features)
        if tokens.shape[1] < len(self.findings):
            raise ValueError(
                f"{len(self.findings)} findings need as many visual tokens, the projector gives {tokens.shape[1]}: "
                "raise its num_latents"
            )
        return self.head(tokens[:, : len(self.findings)]).squeeze(-1)

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Presence (batch, findings) in {0, 1}, and where it is known."""
        rows = [[study.labels_known.get(name) for name in self.findings] for study in batch.studies]
        known = torch.tensor([[answer is not None for answer in row] for row in rows], device=batch.image.device)
        present = torch.tensor([[float(bool(answer)) for answer in row] for row in rows], device=batch.image.device)
        return present, known

    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> TaskOutput:
        present, known = self.targets(batch)
        if not known.any():
            return TaskOutput(None, 0)
        logits = self.logits(model, features).float()
        loss = F.binary_cross_entropy_with_logits(logits[known], present[known])
        return TaskOutput(loss, int(known.any(dim=1).sum()))

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        probability = self.logits(model, features).float().sigmoid()
        return [
            {"finding_queries": {name: round(float(p), 4) for name, p in zip(self.findings, row, strict=True)}}
            for row in probability
        ]
