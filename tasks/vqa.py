"""Visual question answering: open questions are answered in words, closed ones by the likelihood of each choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from vol3d.data.batch import Batch
from vol3d.data.questions import asked_of
from vol3d.data.study import Study
from vol3d.model.interfaces import Evidence, Features, Task, TaskOutput
from vol3d.model.language import VOLUME_TOKEN
from vol3d.model.likelihood import answer_likelihoods, visual_rows
from vol3d.model.volume_lm import VolumeLM
from vol3d.text.questions import KINDS, answers_to, stream

Turn = tuple[str, str]


class VQA(Task):
    """Next-token cross-entropy on the answers to a study's questions, given the volume's tokens and the question.

    A volume is encoded and projected once for all its questions. A closed question is answered by the choice whose
    tokens are likeliest on average, never by searching a generated text for a choice.

    Args:
        model: the shared model; it must have a language model.
        questions: "manifest" asks the manifest's, "built" those written from labels, report, codes and meta
            (`vol3d.text.questions`), "either" the manifest's where a study has some.
        kinds: only questions of these kinds; None for all. closed_only: leave open questions out.
        findings: of built questions ("left pleural effusion", "ascites"); None for all that are known.
        choices: of a built question where their number is free.
        per_study: questions a training step asks of a study, another draw at each step; None for all.
        history: up to so many other questions of the study, answered, stand before a question in training, so that
            the model knows a conversation.
        show_choices: put the choices into the prompt.
        max_new_tokens: longest open answer. seed: of built questions and of the draws.
        weight: of this loss in the sum over tasks.

    Raises:
        ValueError: no language model; an unknown kind; a choice list without the answer (when it is read).

    Source: M3D-LaMed's open and closed questions (arXiv:2404.00578); its closed answers are read by substring, here
    they are scored by likelihood.
    """

    kind = "vqa"
    writes = ("answers",)
    uses = frozenset({"visual"})

    def __init__(
        self,
        model: VolumeLM,
        *,
        questions: Literal["manifest", "built", "either"] = "either",
        kinds: list[str] | None = None,
        closed_only: bool = False,
        findings: list[str] | None = None,
        choices: int = 4,
        per_study: int | None = 4,
        history: int = 0,
        show_choices: bool = True,
        max_new_tokens: int = 64,
        seed: int = 0,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if model.language is None:
            raise ValueError("VQA needs a model with a language model")
        if questions == "built" and (unknown := sorted(set(kinds or ()) - set(KINDS))):
            raise ValueError(f"kinds {unknown} are not built: use some of {', '.join(KINDS)}")
        self.source, self.kinds, self.closed_only = questions, kinds, closed_only
        self.findings, self.choices = findings, choices
        self.per_study, self.history, self.show_choices = per_study, history, show_choices
        self.max_new_tokens, self.seed, self.weight = max_new_tokens, seed, weight
        # Saved with the weights: a resumed run draws on where the killed one stopped.
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def questions(self, study: Study) -> list[dict[str, Any]]:
        """What is asked about a study, in a fixed order; each closed question checked."""
        return asked_of(
            study, questions=self.source, kinds=self.kinds, closed_only=self.closed_only, findings=self.findings,
            choices=self.choices, seed=self.seed,
        )  # fmt: skip

    def prompt(
        self, model: VolumeLM, question: str, choices: Sequence[str] | None, history: Sequence[Turn] = ()
    ) -> Any:
        """The text before the answer: a conversation for a model with a chat template, else one text."""
        asked = self._asked(question, choices)
        if history and model._language().tokenizer.chat_template:
            said = [text for turn in history for text in turn] + [asked]
            said[0] = f"{VOLUME_TOKEN}\n{said[0]}"
            return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
        return _lines(asked, history)

    def _asked(self, question: str, choices: Sequence[str] | None) -> str:
        return f"{question}\nChoices: {'; '.join(choices)}." if choices and self.show_choices else question

    def lessons(self, study: Study) -> list[tuple[str, str]]:
        """The longest that is learnt of the manifest's questions, earlier turns before it. Built ones are short, and to
        write them every report would have to be parsed."""
        rows = self.questions(study) if study.questions and self.source != "built" else []
        turns = sorted(((row["question"], row["answer"]) for row in rows), key=_letters, reverse=True)
        each = []
        for row in rows:
            own = (row["question"], row["answer"])
            before = [turn for turn in turns if turn != own][: self.history]
            each.append((_lines(self._asked(row["question"], row.get("choices")), before), row["answer"]))
        return sorted(each, key=_letters)[-1:]

    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> TaskOutput:
        rows, prompts, answers = [], [], []
        for row, study in enumerate(batch.studies):
            for question, history in self._drawn(study):
                rows.append(row)
                prompts.append(self.prompt(model, question["question"], question.get("choices"), history))
                answers.append(question["answer"])
        if self.training:
            self.step += 1
        if not rows:
            return TaskOutput(None, 0)
        loss = model.language_loss(visual_rows(model, features, rows), prompts, answers)
        return TaskOutput(loss, len(set(rows)), {"questions": float(len(rows))})

    def _drawn(self, study: Study) -> list[tuple[dict[str, Any], list[Turn]]]:
        """This step's questions of a study, each with the conversation before it."""
        questions = self.questions(study)
        draw = stream(self.seed, "ask", study.study, int(self.step) if self.training else -1)
        count = len(questions) if self.per_study is None else min(self.per_study, len(questions))
        drawn = []
        for place in draw.sample(range(len(questions)), count):
            others = [number for number in range(len(questions)) if number != place]
            before = draw.sample(others, min(len(others), draw.randint(0, self.history)))
            drawn.append((questions[place], [(questions[n]["question"], questions[n]["answer"]) for n in before]))
        return drawn

    def answer(
        self,
        model: VolumeLM,
        features: Features,
        questions: Sequence[str],
        choices: Sequence[Sequence[str] | None],
        history: Sequence[Turn] = (),
    ) -> list[dict[str, Any]]:
        """Answers to questions about one volume, or about one volume each when there are as many.

        Args:
            choices: of each question; None for an open one. history: (question, answer) pairs said before.

        Returns:
            {question, answer}, and for a closed question its choices and their scores: the mean log-likelihood of a
            choice's tokens.

        Raises:
            ValueError: volumes, questions and choices that do not pair, a question without words, or fewer than two
                choices.
        """
        if len(choices) != len(questions) or len(features) not in (1, len(questions)):
            raise ValueError(
                f"{len(features)} volumes, {len(questions)} questions, {len(choices)} choice lists: give one volume, "
                "or one a question, and one list of choices (or None) a question"
            )
        for question, given in zip(questions, choices, strict=True):
            if not question.strip():
                raise ValueError(f"the question is {question!r}: ask in words")
            if given is not None and (isinstance(given, str) or len(set(given)) < max(2, len(given))):
                said = repr(given) if isinstance(given, str) else list(given)  # a text would be a list of its letters
                raise ValueError(f"question {question!r} has the choices {said}: give two or more, each once")
        each = visual_rows(model, features, range(len(questions)) if len(features) > 1 else [0] * len(questions))
        prompts = [self.prompt(model, *asked, history) for asked in zip(questions, choices, strict=True)]
        found: list[dict[str, Any]] = [{"question": question} for question in questions]
        closed = [place for place, given in enumerate(choices) if given is not None]
        if closed:
            listed = [list(choices[place] or ()) for place in closed]
            asked = [prompts[place] for place in closed]
            scores = answer_likelihoods(model, visual_rows(model, each, closed), asked, listed)
            for place, given, score in zip(closed, listed, scores, strict=True):
                best = max(range(len(given)), key=score.__getitem__)
                rounded = [round(value, 4) for value in score]
                found[place] |= {"answer": given[best], "choices": given, "scores": rounded}
        if opened := [place for place, given in enumerate(choices) if given is None]:
            texts = model.generate(
                visual_rows(model, each, opened),
                [prompts[place] for place in opened],
                max_new_tokens=self.max_new_tokens,
            )
            for place, text in zip(opened, texts, strict=True):
                found[place]["answer"] = text
        return found

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        asked = [(row, question) for row, study in enumerate(batch.studies) for question in self.questions(study)]
        rows: list[dict[str, Any]] = [{"answers": []} for _ in batch.studies]
        if not asked:
            return rows
        given = self.answer(
            model,
            visual_rows(model, features, [row for row, _ in asked]),
            [question["question"] for _, question in asked],
            [question.get("choices") for _, question in asked],
        )
        for (row, _), answer in zip(asked, given, strict=True):
            rows[row]["answers"].append(answer)
        return rows

    def reads(self, study: Study) -> list[Any]:
        return [[question["question"], question.get("choices")] for question in self.questions(study)]

    def answered(self, study: Study, row: Mapping[str, Any]) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
        """A study's questions that a row of predictions answers, each with its answer."""
        asked = self.questions(study)
        given = answers_to(asked, row.get("answers") or [])
        return [(question, answer) for question, answer in zip(asked, given, strict=True) if answer is not None]

    def labelled(self, study: Study) -> bool:
        return bool(self.questions(study))

    def score(self, evidence: Evidence) -> dict[str, dict[str, Any]]:
        from vol3d.evaluation.metrics.vqa import score_questions

        asked = {study: rows for study in evidence.studies if (rows := self.questions(study))}
        if not asked:
            return {}
        blind = None if evidence.blind is None else evidence.blind()
        return score_questions(
            {study.study: rows for study, rows in asked.items()},
            {study.study: evidence.predictions[study.study]["answers"] for study in asked},
            {study.study: study.patient for study in asked},
            blind=None if blind is None else {study.study: blind[study.study]["answers"] for study in asked},
            training=[question for study in evidence.training for question in self.questions(study)],
            replicates=evidence.replicates,
            seed=evidence.seed,
        )


def _lines(asked: str, history: Sequence[Turn]) -> str:
    """A prompt without roles."""
    return "\n".join([VOLUME_TOKEN, *(f"{before}\n{answer}" for before, answer in history), f"{asked}\n"])


def _letters(texts: Turn) -> int:
    return sum(map(len, texts))
