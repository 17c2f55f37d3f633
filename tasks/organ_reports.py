"""Organ by organ: one section of the report at a time, joined to a whole one."""

from __future__ import annotations

from typing import Any

import torch

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.interfaces import Features, TaskOutput
from vol3d.model.language import VOLUME_TOKEN
from vol3d.model.likelihood import visual_rows
from vol3d.model.volume_lm import VolumeLM
from vol3d.tasks.report_generation import ReportGeneration
from vol3d.text.prompts_report import IMPRESSION, ORGAN, join_organs
from vol3d.text.questions import stream
from vol3d.text.sections import MERLIN_ORGANS, split_organs


class OrganReports(ReportGeneration):
    """Each step learns one section of each study's report, asked for by the organ's name; a report is all of them.

    Sections are found by their headers ("Lungs and pleura", "Kidneys and ureters": `vol3d.text.sections`) and named
    as Merlin names them. Which section a step learns is drawn from seed, study and step, so that a resumed run goes
    on alike. A study whose report has no such header costs nothing.

    Args:
        model: the shared model; it must have a language model.
        organs: sections to learn and write; None for Merlin's thirteen. Name those your reports have: a section that
            was never learnt is written all the same.
        prompt: the instruction, with `<volume>` and `{organ}` (`vol3d.text.prompts_report.MERLIN` is Merlin's own).
        impression_prompt: likewise for the impression; None for no impression.
        prior, max_new_tokens (of one section), repetition_penalty, weight: see `ReportGeneration`.
        seed: of the draws.

    Raises:
        ValueError: no language model, an organ that is not one of Merlin's, a prompt without `{organ}`.

    Source: Merlin (arXiv:2406.06512) writes thirteen sections, each from its own prompt.
    """

    writes = ("report", "sections")

    def __init__(
        self,
        model: VolumeLM,
        *,
        organs: list[str] | None = None,
        prompt: str = f"{VOLUME_TOKEN}\n{ORGAN}\n",
        impression_prompt: str | None = f"{VOLUME_TOKEN}\n{IMPRESSION}\n",
        prior: bool = False,
        max_new_tokens: int = 128,
        repetition_penalty: float = 1.0,
        seed: int = 0,
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
        self.organs = list(MERLIN_ORGANS if organs is None else organs)
        if unknown := sorted(set(self.organs) - set(MERLIN_ORGANS)):
            raise ValueError(
                f"organs {unknown} are not among Merlin's {len(MERLIN_ORGANS)}: {', '.join(MERLIN_ORGANS)}"
            )
        if "{organ}" not in prompt:
            raise ValueError(f"the prompt has no {{organ}} in it: {prompt!r}")
        self.impression_prompt, self.seed = impression_prompt, seed
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def sections(self, study: Study) -> dict[str, str]:
        """The sections of a study's report that are learnt, by organ, "impression" among them."""
        found = split_organs(study.findings or "")
        found = {organ: found[organ] for organ in self.organs if organ in found}
        if self.impression_prompt is not None and study.impression:
            found["impression"] = study.impression
        return found

    def section_prompt(self, study: Study, organ: str) -> str:
        prompt = self.impression_prompt if organ == "impression" else self.prompt.replace("{organ}", organ)
        return self.asked(study, prompt)

    def lessons(self, study: Study) -> list[tuple[str, str]]:
        return [(self.section_prompt(study, organ), text) for organ, text in self.sections(study).items()]

    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> TaskOutput:
        step = int(self.step) if self.training else -1
        rows, prompts, texts = [], [], []
        for row, study in enumerate(batch.studies):
            if sections := self.sections(study):
                organ = stream(self.seed, "organ", study.study, step).choice(list(sections))
                rows.append(row)
                prompts.append(self.section_prompt(study, organ))
                texts.append(sections[organ])
        if self.training:
            self.step += 1
        if not rows:
            return TaskOutput(None, 0)
        return TaskOutput(model.language_loss(visual_rows(model, features, rows), prompts, texts), len(rows))

    def learns(self, study: Study) -> bool:
        return bool(self.sections(study))

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        features = visual_rows(model, features, range(len(features)))
        written: list[dict[str, str]] = [{} for _ in batch.studies]
        # Organ after organ: a batch of volumes fits the memory that one prompt each takes.
        for organ in [*self.organs, *(["impression"] if self.impression_prompt is not None else [])]:
            texts = self.write(model, features, [self.section_prompt(study, organ) for study in batch.studies])
            for sections, text in zip(written, texts, strict=True):
                sections[organ] = text
        rows = []
        for sections in written:
            impression = sections.pop("impression", "")
            rows.append({"report": join_organs(sections, impression), "sections": sections})
        return rows
