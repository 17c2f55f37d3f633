"""Zero-shot findings: is a finding there? Asked in words, of a model that has learnt from reports alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.interfaces import Evidence, Features
from vol3d.model.volume_lm import VolumeLM
from vol3d.tasks.retrieval import Retrieval
from vol3d.text.prompts import prompt_bank

if TYPE_CHECKING:
    from numpy import ndarray


class ZeroShot(Retrieval):
    """Retrieval that also answers for findings, each by its prompt bank; learning is Retrieval's alone.

    A finding's score is the mean cosine of the volume with the bank's positive sentences minus that with its negative
    ones, over the temperature: a logit of two classes. Scores become probabilities by one slope and one offset a
    finding, fitted on the validation split; the test split's labels are used for nothing but the judgement.

    Args:
        model: the shared model.
        findings: keys or names ("left pleural effusion", "ascites"); other words are asked for in general wordings.
        prompts: {"finding": {"positive": […], "negative": […]}} in place of the bank's own wordings.
        synonyms, attributes: further positive sentences: other names; severities, places and sizes. A text encoder
            from scratch knows no name but those of its reports.
        others: `Retrieval`'s.

    Source: CLIP (arXiv:2103.00020) with several prompts a class; positive and negative ones of a finding, averaged, as
    Merlin (arXiv:2406.06512). Platt's calibration, on validation studies only, is added here.
    """

    calibrates = True
    writes = ("retrieval", "zero_shot")

    def __init__(
        self,
        model: VolumeLM,
        *,
        findings: list[str],
        prompts: dict[str, dict[str, list[str]]] | None = None,
        synonyms: bool = True,
        attributes: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        if len(set(findings)) != len(findings) or not findings:
            raise ValueError(f"findings must be named once each and at least one, got {findings}")
        self.findings = list(findings)
        self.banks = {
            name: _sentences(name, prompts or {}, synonyms=synonyms, attributes=attributes) for name in findings
        }
        self._asked: tuple[tuple[int, str, bool], Tensor] | None = None

    def train(self, mode: bool = True) -> ZeroShot:
        """As any module's. What was asked is asked anew: weights may have learnt in between, or will, and an optimizer
        that writes to their memory (ZeRO) changes no version."""
        self._asked = None
        return super().train(mode)

    def logits(self, model: VolumeLM, features: Features) -> Tensor:
        """Shape: (batch, findings)."""
        return self.scale * self.embed_volume(model, features) @ self.directions(model).T

    def directions(self, model: VolumeLM) -> Tensor:
        """Mean positive minus mean negative vector of each finding (findings, embed_dim); once for fixed weights."""
        version = sum(parameter._version for parameter in [*self.parameters(), *model.parameters()])
        # A tensor made in inference mode cannot be used outside of it.
        state = (version, str(model.device), torch.is_inference_mode_enabled())
        if self.training or self._asked is None or self._asked[0] != state:
            texts = list(dict.fromkeys(text for bank in self.banks.values() for side in bank for text in side))
            vectors = dict(zip(texts, self.embed_text(model, texts), strict=True))
            sides = [
                [torch.stack([vectors[text] for text in side]).mean(dim=0) for side in bank]
                for bank in self.banks.values()
            ]
            self._asked = (state, torch.stack([positive - negative for positive, negative in sides]))
        return self._asked[1]

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        rows = super().predict(model, features, batch)
        for row, scores in zip(rows, self.logits(model, features).float().tolist(), strict=True):
            row["zero_shot"] = {name: round(score, 4) for name, score in zip(self.findings, scores, strict=True)}
        return rows

    def score(self, evidence: Evidence) -> dict[str, dict[str, Any]]:
        scores = score_findings(
            self.findings,
            evidence.studies,
            evidence.validation,
            {name: row["zero_shot"] for name, row in evidence.predictions.items() if "zero_shot" in row},
            replicates=evidence.replicates,
            seed=evidence.seed,
        )
        return super().score(evidence) | ({"zero_shot": scores} if scores else {})


def score_findings(
    findings: Sequence[str],
    studies: Sequence[Study],
    validation: Sequence[Study],
    logits: Mapping[str, Mapping[str, float]],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Findings' scores on `studies`, calibrated on `validation`; empty when no study knows any of them."""
    from vol3d.evaluation.metrics.calibration import score_calibrated

    studies = [study for study in studies if any(study.labels_known.get(name) is not None for name in findings)]
    if not studies:
        return {}
    fitted = [study for study in validation if study.study in logits]
    return score_calibrated(
        *_table(findings, studies, logits),
        [study.patient for study in studies],
        findings,
        validation=_table(findings, fitted, logits) if fitted else None,
        replicates=replicates,
        seed=seed,
    )


def _table(
    findings: Sequence[str], studies: Sequence[Study], logits: Mapping[str, Mapping[str, float]]
) -> tuple[ndarray, ndarray]:
    """Logits and truths (studies, findings), NaN where the truth is unknown."""
    import numpy as np

    scores = [[logits[study.study][name] for name in findings] for study in studies]
    labels = [[study.labels_known.get(name) for name in findings] for study in studies]
    truth = [[np.nan if label is None else float(label) for label in row] for row in labels]
    return np.array(scores, dtype=np.float64), np.array(truth, dtype=np.float64)


def _sentences(
    name: str, given: Mapping[str, Mapping[str, Sequence[str]]], *, synonyms: bool, attributes: bool
) -> tuple[Sequence[str], Sequence[str]]:
    """Positive and negative sentences of a finding."""
    if name not in given:
        bank = prompt_bank(name)
        more = (bank.synonyms if synonyms else ()) + (bank.attributes if attributes else ())
        return bank.positive + more, bank.negative
    own = given[name]
    if not own.get("positive") or not own.get("negative"):
        raise ValueError(
            f"prompts of {name!r} have {len(own.get('positive', ()))} positive and {len(own.get('negative', ()))} "
            "negative sentences: give at least one of each"
        )
    return own["positive"], own["negative"]
