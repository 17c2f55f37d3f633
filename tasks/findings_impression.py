"""Findings, then impression: the second is written from the volume and the first."""

from __future__ import annotations

from typing import Any

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.interfaces import Features, TaskOutput
from vol3d.model.language import VOLUME_TOKEN
from vol3d.model.likelihood import visual_rows
from vol3d.model.volume_lm import VolumeLM
from vol3d.tasks.report_generation import ReportGeneration
from vol3d.text.prompts_report import FINDINGS, FROM_FINDINGS, join_parts


class FindingsThenImpression(ReportGeneration):
    """Two texts a study: the findings from the volume, and the impression from the volume and the findings.

    In training the impression sees the radiologist's findings; at inference those the model has just written, so
    that the two parts of a report agree. A study without findings learns the impression alone, from the volume, and
    one without an impression the findings alone.

    Args:
        model: the shared model; it must have a language model.
        prompt: asks for the findings, with `<volume>`.
        impression_prompt: asks for the impression, with `<volume>` and `{findings}`.
        prior, max_new_tokens (of each text), repetition_penalty, weight: see `ReportGeneration`.

    Raises:
        ValueError: no language model, or an impression prompt without `{findings}`.

    Source: impressions summarised from findings as in Zhang et al. 2018 (arXiv:1809.04698), here beside the volume.
    """

    writes = ("report", "findings", "impression")

    def __init__(
        self,
        model: VolumeLM,
        *,
        prompt: str = f"{VOLUME_TOKEN}\n{FINDINGS}\n",
        impression_prompt: str = f"{VOLUME_TOKEN}\n{FROM_FINDINGS}\n",
        prior: bool = False,
        max_new_tokens: int = 384,
        repetition_penalty: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(
            model,
            prompt=prompt,
            prior=prior,
            max_new_tokens=max_new_tokens,
            repetition_penalty=repetition_penalty,
            weight=weight,
        )
        if "{findings}" not in impression_prompt:
            raise ValueError(f"the impression's prompt has no {{findings}} in it: {impression_prompt!r}")
        self.impression_prompt = impression_prompt

    def from_findings(self, study: Study, findings: str) -> str:
        """The impression's prompt."""
        said = findings.replace(VOLUME_TOKEN, "").strip() or "not described"
        return self.asked(study, self.impression_prompt.replace("{findings}", said))

    def lessons(self, study: Study) -> list[tuple[str, str]]:
        findings = [(self.asked(study), study.findings)] if study.findings else []
        if not study.impression:
            return findings
        return [*findings, (self.from_findings(study, study.findings or ""), study.impression)]

    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> TaskOutput:
        learnt = [(row, *lesson) for row, study in enumerate(batch.studies) for lesson in self.lessons(study)]
        if not learnt:
            return TaskOutput(None, 0)
        rows, prompts, texts = zip(*learnt, strict=True)
        return TaskOutput(model.language_loss(visual_rows(model, features, rows), prompts, texts), len(set(rows)))

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        features = visual_rows(model, features, range(len(features)))
        findings = self.write(model, features, [self.asked(study) for study in batch.studies])
        prompts = [self.from_findings(study, said) for study, said in zip(batch.studies, findings, strict=True)]
        impressions = self.write(model, features, prompts)
        return [
            {"report": join_parts(found, told), "findings": found, "impression": told}
            for found, told in zip(findings, impressions, strict=True)
        ]
