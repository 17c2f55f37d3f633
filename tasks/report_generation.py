"""Report generation: the language model writes the report of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.interfaces import Evidence, Features, Task, TaskOutput
from vol3d.model.language import VOLUME_TOKEN
from vol3d.model.volume_lm import VolumeLM
from vol3d.text.prompts_report import NO_PRIOR, PRIOR, REPORT


class ReportGeneration(Task):
    """Next-token cross-entropy on the report, given the volume's tokens and an instruction.

    Args:
        model: the shared model; it must have a language model.
        target: which text is learnt: the whole report, its findings, or its impression.
        prompt: the instruction, with `<volume>` where the volume's tokens go.
        prior: put the earlier exam's report (the row's `meta.prior_report`) into the prompt, or that there is none.
        max_new_tokens: longest text written. repetition_penalty: 1 leaves the model's probabilities alone.
        keep: share (float) or number (int) of a volume's visual tokens that are read when writing; learning takes all.
        weight: of this loss in the sum over tasks.

    Raises:
        ValueError: the model has no language model.

    Source: the formulation of M3D-LaMed (arXiv:2404.00578) and Merlin (arXiv:2406.06512); here logits exist only
    at the report's own tokens.
    """

    uses = frozenset({"visual"})

    def __init__(
        self,
        model: VolumeLM,
        *,
        target: Literal["report", "findings", "impression"] = "report",
        prompt: str = f"{VOLUME_TOKEN}\n{REPORT}\n",
        prior: bool = False,
        max_new_tokens: int = 384,
        repetition_penalty: float = 1.0,
        keep: float | int = 1.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if model.language is None:
            raise ValueError(f"{type(self).__name__} needs a model with a language model")
        self.kind = self.target = target
        self.prompt, self.prior, self.weight = prompt, prior, weight
        self.max_new_tokens, self.repetition_penalty, self.keep = max_new_tokens, repetition_penalty, keep

    def text(self, study: Study) -> str | None:
        """The text of `study` that is learnt, None when it has none."""
        return getattr(study, self.target)

    def asked(self, study: Study, prompt: str | None = None) -> str:
        """The prompt of one study, the earlier exam's report in it where `prior` says so."""
        prompt = self.prompt if prompt is None else prompt
        if not self.prior:
            return prompt
        earlier = study.meta.get("prior_report")
        said = PRIOR.format(report=earlier.strip()) if earlier else NO_PRIOR
        return prompt.replace(VOLUME_TOKEN, f"{VOLUME_TOKEN}\n{said}", 1)

    def lessons(self, study: Study) -> list[tuple[str, str]]:
        text = self.text(study)
        return [(self.asked(study), text)] if text else []

    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> TaskOutput:
        texts = [self.text(study) for study in batch.studies]
        known = [row for row, text in enumerate(texts) if text]
        if not known:
            return TaskOutput(None, 0)
        if len(known) < len(texts):
            features = features[known]
        prompts = [self.asked(batch.studies[row]) for row in known]
        loss = model.language_loss(features, prompts, [texts[row] for row in known])
        return TaskOutput(loss, len(known))

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        texts = self.write(model, features, [self.asked(study) for study in batch.studies])
        return [{self.target: text} for text in texts]

    def write(self, model: VolumeLM, features: Features, prompts: Sequence[str]) -> list[str]:
        """One text a row of features."""
        return model.generate(
            features,
            prompts,
            max_new_tokens=self.max_new_tokens,
            repetition_penalty=self.repetition_penalty,
            keep=self.keep,
        )

    def reads(self, study: Study) -> str | None:
        """The earlier exam's report."""
        return study.meta.get("prior_report") if self.prior else None

    def labelled(self, study: Study) -> bool:
        return bool(self.text(study))

    def score(self, evidence: Evidence) -> dict[str, dict[str, Any]]:
        from vol3d.evaluation.metrics.report import score_reports

        studies = [study for study in evidence.studies if self.text(study)]
        if not studies:
            return {}
        dealt = evidence.blind() if self.prior and evidence.blind is not None else None
        scores = score_reports(
            [self.text(study) for study in studies],
            [evidence.predictions[study.study][self.target] for study in studies],
            [study.patient for study in studies],
            blind=None if dealt is None else [dealt[study.study][self.target] for study in studies],
            training=[text for study in evidence.training if (text := self.text(study))],
            replicates=evidence.replicates,
            seed=evidence.seed,
        )
        return {self.target: scores}
