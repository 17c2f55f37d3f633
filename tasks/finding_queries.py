"""Finding queries: which findings a study has, each answered by a query of its own."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.interfaces import Features, Task, TaskOutput
from vol3d.model.volume_lm import VolumeLM
from vol3d.tasks.pooling import PooledLogits


class FindingQueries(Task):
    """Whether each finding is present, from labels alone: supervision that comes before language does.

    A language model that is learning to write gets little signal about what to look at, because most tokens of a
    report are wording. Reading "visual", token i of the projector says whether finding i is present: the projector
    learns to put each finding's answer in a known token, where the language model then finds it. Reading "tokens", a
    learned query a finding looks at the encoder's tokens: a classification that trains the encoder, with no projector.
    Truth is `labels_known` of the manifest; a finding that is not in it, or null, is unknown and costs nothing.

    Args:
        model: the shared model; for "visual" its projector must give at least as many tokens as there are findings.
        findings: names as in the manifest ("left pleural effusion", "ascites").
        read: "visual", the projector's first tokens, one a finding; or "tokens", the encoder's.

    Raises:
        ValueError: "visual" without a projector, or with one of too few tokens (when the loss is computed).

    Source: learned queries as in DETR (arXiv:2005.12872), each bound to one finding as in Query2Label
    (arXiv:2107.10834); reading "visual" they are the perceiver's own latents, reading "tokens" this is the
    classification of U-VLM's second stage (arXiv:2603.00479), with one head and no layers of its own.
    """

    def __init__(
        self,
        model: VolumeLM,
        *,
        findings: list[str],
        read: Literal["visual", "tokens"] = "visual",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if len(set(findings)) != len(findings) or not findings:
            raise ValueError(f"findings must be named once each and at least one, got {findings}")
        self.findings, self.read, self.weight = list(findings), read, weight
        self.uses = frozenset({"visual"}) if read == "visual" else frozenset()
        if read == "tokens":
            self.head: nn.Module = PooledLogits(model.encoder.embed_dim, len(findings))
            return
        if model.projector is None:
            raise ValueError(
                "FindingQueries reads the projector's tokens and the model has no projector: give it one, or "
                'read="tokens"'
            )
        self.head = nn.Linear(model.projector.out_dim, 1)

    @property
    def outputs(self) -> tuple[Any, ...]:
        return tuple(self.findings)

    def logits(self, model: VolumeLM, features: Features) -> Tensor:
        """Shape: (batch, findings)."""
        if self.read == "tokens":
            return self.head(features)
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

    def learns(self, study: Study) -> bool:
        return any(study.labels_known.get(name) is not None for name in self.findings)

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        probability = self.logits(model, features).float().sigmoid()
        return [
            {"finding_queries": {name: round(float(p), 4) for name, p in zip(self.findings, row, strict=True)}}
            for row in probability
        ]
