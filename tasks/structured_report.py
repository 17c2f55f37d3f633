"""Structured reports: a list of findings as JSON, written under a grammar so that it always parses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.interfaces import Evidence, Features
from vol3d.model.language import VOLUME_TOKEN
from vol3d.model.likelihood import visual_rows
from vol3d.model.volume_lm import VolumeLM
from vol3d.tasks.report_generation import ReportGeneration
from vol3d.text.ontology import FINDINGS
from vol3d.text.prompts_report import STRUCTURED
from vol3d.text.structured import CERTAINTIES, allowed_sides, from_json, structured, to_json

if TYPE_CHECKING:
    from vol3d.model.constrained import Grammar, TokenGrammar


class StructuredReport(ReportGeneration):
    """The report's findings as JSON: `[{"finding": …, "side": …, "size_mm": …, "certainty": …}, …]`.

    The truth is parsed from the report by rules (`vol3d.text.structured`). At inference every token is one that the
    schema allows, a side only where the finding has one, a size only where it is measured: even an untrained model
    writes valid JSON.

    Args:
        model: the shared model; it must have a language model.
        findings: names that may be written; None for all of `vol3d.text.ontology`.
        prompt: the instruction, with `<volume>`.
        prior, max_new_tokens, weight: see `ReportGeneration`.

    Raises:
        ValueError: no language model, or an unknown finding.

    Source: guided decoding of Willard & Louf 2023 (arXiv:2307.09702); the fields are those of the findings parser.
    """

    def __init__(
        self,
        model: VolumeLM,
        *,
        findings: list[str] | None = None,
        prompt: str = f"{VOLUME_TOKEN}\n{STRUCTURED}\n",
        prior: bool = False,
        max_new_tokens: int = 384,
        weight: float = 1.0,
    ) -> None:
        super().__init__(model, prompt=prompt, prior=prior, max_new_tokens=max_new_tokens, weight=weight)
        self.kind = "structured"
        if unknown := sorted(set(findings or ()) - set(FINDINGS)):
            raise ValueError(f"findings {unknown} are unknown: use some of {', '.join(FINDINGS)}")
        self.findings = list(FINDINGS if findings is None else findings)
        self._tokens: tuple[Any, TokenGrammar] | None = None

    def text(self, study: Study) -> str | None:
        """The JSON that is learnt; a report without a finding is an empty list."""
        return to_json(structured(study.report, self.findings)) if study.report else None

    def lessons(self, study: Study) -> list[tuple[str, str]]:
        return []  # a list of findings is short, and to measure it every report would have to be parsed

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        from vol3d.model.constrained import GrammarProcessor

        language = model._language()
        features = visual_rows(model, features, range(len(features)))
        prompts, count = [self.asked(study) for study in batch.studies], features.visual.shape[1]
        taken = [len(language.prompt_ids(prompt, count)) for prompt in prompts]
        rooms = [min(self.max_new_tokens, language.max_length - length) for length in taken]
        texts: dict[int, str] = {}
        # A list closes within its own room, not within that of a neighbour with a longer prompt.
        for room in dict.fromkeys(rooms):
            rows = [row for row, own in enumerate(rooms) if own == room]
            processor = GrammarProcessor(self.tokens(language.tokenizer), [language.tokenizer.eos_token_id], room)
            asked = [prompts[row] for row in rows]
            said = model.generate(features[rows], asked, max_new_tokens=room, logits_processor=[processor])
            texts |= dict(zip(rows, said, strict=True))
        return [{"structured": from_json(texts[row])} for row in range(len(prompts))]

    def tokens(self, tokenizer: Any) -> TokenGrammar:
        """The schema over a tokenizer's tokens, made once."""
        from vol3d.model.constrained import TokenGrammar

        if self._tokens is None or self._tokens[0] is not tokenizer:
            self._tokens = (tokenizer, TokenGrammar(self.grammar(), tokenizer))
        return self._tokens[1]

    def grammar(self) -> Grammar:
        from vol3d.model.constrained import Either, Literal, Repeat, Sequence, whole_number, words

        certainty = words(f'"{word}"' for word in CERTAINTIES)
        rows = []
        for name in self.findings:
            sides = words("null" if side is None else f'"{side}"' for side in allowed_sides(name))
            null = Literal("null")
            size = Either((null, whole_number(3))) if FINDINGS[name].measured else null
            rows.append(
                Sequence(
                    (
                        *(Literal(f'{{"finding": "{name}", "side": '), sides, Literal(', "size_mm": '), size),
                        *(Literal(', "certainty": '), certainty, Literal("}")),
                    )
                )
            )
        return Sequence((Literal("["), Repeat(Either(tuple(rows)), Literal(", ")), Literal("]")))

    def score(self, evidence: Evidence) -> dict[str, dict[str, Any]]:
        from vol3d.evaluation.metrics.structured import score_structured

        studies = [study for study in evidence.studies if study.report]
        if not studies:
            return {}
        # As in `ReportGeneration`: what is written of another's volume keeps the study's own earlier report.
        dealt = evidence.blind() if self.prior and evidence.blind is not None else None
        scores = score_structured(
            [structured(study.report or "", self.findings) for study in studies],
            [evidence.predictions[study.study]["structured"] for study in studies],
            [study.patient for study in studies],
            blind=None if dealt is None else [dealt[study.study]["structured"] for study in studies],
            training=[structured(study.report, self.findings) for study in evidence.training if study.report],
            replicates=evidence.replicates,
            seed=evidence.seed,
        )
        return {"structured": scores}
