"""Questions: accuracy of choices, strictly read and as M3D-Bench reads them, and wording of open answers."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from vol3d.evaluation.intervals import share
from vol3d.evaluation.metrics.baselines import blind, most_common
from vol3d.evaluation.metrics.segmentation import mean_score
from vol3d.evaluation.metrics.text import score_text
from vol3d.text.questions import answers_to

DEFINITIONS = {
    "accuracy": "share of closed questions whose answer names the right choice and no other, by its letter or its "
    "words; an answer that cannot be read counts as wrong",
    "m3d_substring_accuracy": "M3D-Bench's accuracy: the right letter followed by a full stop occurs anywhere in the "
    "output (an output that lists every choice scores 1); one of the choices word for word counts with its letter",
    "readable": "share of answers that name exactly one choice",
    "exact_match": "open answers: share equal to the truth in lower case, without articles and punctuation",
    "token_f1": "open answers: mean F1 of their words",
    "blind": "baseline: the same questions answered with another patient's volume before the model",
    "text_prior": "baseline: each question answered as most often in training, without a volume; where training never "
    "answered it, by the most common right letter, and an open one by the most common true answer",
}
LETTERS = string.ascii_uppercase
_LEADING_LETTER = re.compile(
    r"^\W*(?i:(?:the\s+)?(?:(?:correct|right|best)\s+)?(?:answer|option|choice)?(?:\s+is)?)\W*([A-Z])(?:[.):,]|\s*$)"
)
_NOISE = re.compile(r"\b(?:a|an|the)\b|[^\w\s]", re.IGNORECASE)


def read_choice(output: str, choices: Sequence[str]) -> int | None:
    """Which of the choices an output names; None when it names none, or more than one.

    Read in this order: a choice word for word, its words as the whole answer ("the left kidney"), or behind its own
    letter ("C. Dissection (Stanford A)"); a letter at its start ("B", "B.", "(B)", "Answer: B") and no other; the words
    of exactly one choice within the answer.
    """
    output, words = output.strip(), plain(output)
    for said, given in ((output, [choice.strip() for choice in choices]), (words, [plain(c) for c in choices])):
        if given.count(said) == 1:
            return given.index(said)
    leading = _LEADING_LETTER.match(output)
    letters = {letter for letter in re.findall(r"\b([A-Z])[.)]", output) if letter in LETTERS[: len(choices)]}
    if leading and leading.group(1) in LETTERS[: len(choices)]:
        place = LETTERS.index(leading.group(1))
        if len(letters | {leading.group(1)}) == 1 or plain(output[leading.end() :]) == plain(choices[place]):
            return place
    if letters:
        return LETTERS.index(letters.pop()) if len(letters) == 1 else None
    named = [i for i, choice in enumerate(choices) if plain(choice) and f" {plain(choice)} " in f" {words} "]
    return named[0] if len(named) == 1 else None


def m3d_substring_correct(output: str, answer: int) -> bool:
    """Is the right letter with a full stop anywhere in the output? A choice behind the 26th has none.

    Source: BAAI-DCAI/M3D, Bench/eval/eval_vqa.py.
    """
    return answer < len(LETTERS) and f"{LETTERS[answer]}." in output


def score_closed(
    outputs: Sequence[str],
    choices: Sequence[Sequence[str]],
    answers: Sequence[int],
    patients: Sequence[Hashable],
    *,
    blind_outputs: Sequence[str] | None = None,
    prior: Sequence[int | None] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Closed questions: DEFINITIONS' accuracies with 95 % patient-clustered intervals, and three baselines.

    Args:
        outputs: what the model says: a choice word for word, its letter, or any text.
        choices: the choices of each question; answers: the index of the right one.
        blind_outputs: what the model says to the same questions before another patient's volume; without them the
            outputs are dealt to other patients' questions, which says little when these differ.
        prior: the choice of each question that training answers speak for; None for the most common right letter.

    Returns:
        "accuracy", "m3d_substring_accuracy", "readable", and "baselines": "blind", "text_prior" and "chance".
    """
    if not len(outputs) == len(choices) == len(answers) == len(patients):
        raise ValueError(
            f"{len(outputs)} outputs, {len(choices)} choices, {len(answers)} answers, {len(patients)} patients: "
            "give one of each a question"
        )
    options = {"replicates": replicates, "seed": seed}
    once = np.ones(len(outputs))
    read = [read_choice(output, given) for output, given in zip(outputs, choices, strict=True)]
    right = np.array([float(one == two) for one, two in zip(read, answers, strict=True)])
    lettered = [_lettered(*pair) for pair in zip(outputs, choices, strict=True)]
    loose = np.array([float(m3d_substring_correct(o, a)) for o, a in zip(lettered, answers, strict=True)])
    named = np.array([float(one is not None) for one in read])
    most = most_common(answers)
    guessed = [most if one is None else one for one in prior or [None] * len(answers)]
    baselines: dict[str, dict[str, Any]] = {
        "text_prior": {"accuracy": float(np.mean([one == two for one, two in zip(guessed, answers, strict=True)]))},
        "chance": {"accuracy": float(np.mean([1 / len(given) for given in choices]))},
    }
    try:
        dealt = blind(outputs, patients, seed) if blind_outputs is None else blind_outputs
        seen = [read_choice(output, given) for output, given in zip(dealt, choices, strict=True)]
        lettered = [_lettered(*pair) for pair in zip(dealt, choices, strict=True)]
        shuffled = {
            "accuracy": float(np.mean([one == two for one, two in zip(seen, answers, strict=True)])),
            "m3d_substring_accuracy": float(
                np.mean([m3d_substring_correct(*p) for p in zip(lettered, answers, strict=True)])
            ),
            "readable": float(np.mean([one is not None for one in seen])),
        }
        baselines = {"blind": shuffled} | baselines
    except ValueError as error:
        baselines = {"blind": {"accuracy": None, "note": str(error)}} | baselines
    return {
        "accuracy": share(right, once, patients, **options),
        "m3d_substring_accuracy": share(loose, once, patients, **options),
        "readable": share(named, once, patients, **options),
        "questions": len(outputs),
        "baselines": baselines,
    }


def score_open(
    outputs: Sequence[str],
    answers: Sequence[str],
    patients: Sequence[Hashable],
    *,
    blind_outputs: Sequence[str] | None = None,
    prior: Sequence[str | None] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Open questions: exact match, word F1, BLEU and ROUGE, with 95 % patient-clustered intervals.

    Args:
        blind_outputs: what the model says to the same questions before another patient's volume.
        prior: the answer of each question that training speaks for; None for the most common of the truths.
    """
    options = {"replicates": replicates, "seed": seed}
    result: dict[str, Any] = score_text(answers, outputs, patients, **options)
    pairs = list(zip(outputs, answers, strict=True))
    equal = np.array([float(plain(output) == plain(answer)) for output, answer in pairs])
    result["exact_match"] = share(equal, np.ones(len(pairs)), patients, **options)
    result["token_f1"] = mean_score(np.array([token_f1(*pair) for pair in pairs]), patients, share=True, **options)
    said: dict[str, Sequence[str]] = {} if blind_outputs is None else {"blind": blind_outputs}
    most = most_common(answers)
    said["text_prior"] = [most if one is None else one for one in prior or [None] * len(answers)]
    result["baselines"] = {
        name: {
            "exact_match": float(np.mean([plain(one) == plain(two) for one, two in zip(texts, answers, strict=True)])),
            "token_f1": float(np.mean([token_f1(*pair) for pair in zip(texts, answers, strict=True)])),
        }
        | {metric: score["value"] for metric, score in score_text(answers, texts, patients, replicates=2).items()}
        for name, texts in said.items()
    }
    return result | {"questions": len(pairs)}


def score_questions(
    questions: Mapping[str, Sequence[Mapping[str, Any]]],
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
    patients: Mapping[str, Hashable],
    *,
    blind: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    training: Sequence[Mapping[str, Any]] = (),
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """The "vqa_closed" and "vqa_open" blocks of evaluation.json, whichever the questions allow.

    Args:
        questions: study → what it was asked, with the true "answer", "choices" when closed, and "kind".
        answers: study → {"answer"} of each question, known by the "question" and "choices" they repeat, else by their
            order. blind: likewise, from another's volume.
        patients: study → patient. training: questions of the training studies, for the text prior.

    Returns:
        the scores of `score_closed` and `score_open`; under "per_kind" each kind's accuracy or exact match and number.

    Raises:
        ValueError: a study with another number of answers than questions, or with answers to others.
    """
    answers = {study: _in_order(study, asked, answers[study]) for study, asked in questions.items()}
    if blind is not None:
        blind = {study: _in_order(study, asked, blind[study]) for study, asked in questions.items()}
    rows = [(study, place) for study, asked in questions.items() for place in range(len(asked))]
    prior = _Prior(training)
    result: dict[str, dict[str, Any]] = {}
    for name, closed in (("vqa_closed", True), ("vqa_open", False)):
        chosen = [(study, place) for study, place in rows if bool(questions[study][place].get("choices")) == closed]
        if not chosen:
            continue
        asked = [questions[study][place] for study, place in chosen]
        whose = [patients[study] for study, _ in chosen]
        said = [answers[study][place]["answer"] for study, place in chosen]
        other = None if blind is None else [blind[study][place]["answer"] for study, place in chosen]
        score = _score_closed_rows if closed else _score_open_rows
        options = {"replicates": replicates, "seed": seed}
        block = score(asked, said, other, prior, whose, **options)
        kinds = [str(row.get("kind", "other")) for row in asked]
        per_kind = {}
        for kind in dict.fromkeys(kinds):
            own = [place for place, found in enumerate(kinds) if found == kind]
            part = score(*(_take(given, own) for given in (asked, said, other)), prior, _take(whose, own), **options)
            metric = "accuracy" if closed else "exact_match"
            bases = {base: values.get(metric) for base, values in part["baselines"].items()}
            per_kind[kind] = {metric: part[metric], "questions": len(own), "baselines": bases}
        result[name] = block | {"per_kind": per_kind, "definitions": DEFINITIONS}
    return result


def _in_order(
    study: str, asked: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """A study's answers in the order of its questions."""
    if len(answers) != len(asked):
        raise ValueError(
            f"study {study!r} has {len(asked)} questions and {len(answers)} answers: predict it again with the "
            "manifest that is scored"
        )
    given = []
    for question, answer in zip(asked, answers_to(asked, answers), strict=True):
        if answer is None:
            raise ValueError(
                f"study {study!r}: none of its {len(answers)} answers is to {question['question']!r} with the choices "
                f"{question.get('choices')}: predict it again with the manifest that is scored"
            )
        given.append(answer)
    return given


class _Prior:
    """How often each answer was given to each question in training; None for one that it never answered."""

    def __init__(self, training: Sequence[Mapping[str, Any]]) -> None:
        self.answers: dict[str, Counter[str]] = {}
        for row in training:
            self.answers.setdefault(row["question"], Counter())[row["answer"]] += 1

    def choice(self, row: Mapping[str, Any]) -> int | None:
        counts = self.answers.get(row["question"], Counter())
        times = [counts[choice] for choice in row["choices"]]
        return times.index(max(times)) if any(times) else None

    def text(self, row: Mapping[str, Any]) -> str | None:
        counts = self.answers.get(row["question"])
        return most_common(counts.elements()) if counts else None


def _score_closed_rows(
    asked: Sequence[Mapping[str, Any]],
    said: Sequence[str],
    blind_said: Sequence[str] | None,
    prior: _Prior,
    patients: Sequence[Hashable],
    **options: int,
) -> dict[str, Any]:
    choices = [list(row["choices"]) for row in asked]
    return score_closed(
        said,
        choices,
        [given.index(row["answer"]) for given, row in zip(choices, asked, strict=True)],
        patients,
        blind_outputs=blind_said,
        prior=[prior.choice(row) for row in asked],
        **options,
    )


def _score_open_rows(
    asked: Sequence[Mapping[str, Any]],
    said: Sequence[str],
    blind_said: Sequence[str] | None,
    prior: _Prior,
    patients: Sequence[Hashable],
    **options: int,
) -> dict[str, Any]:
    guessed = [prior.text(row) for row in asked]
    truths = [row["answer"] for row in asked]
    return score_open(said, truths, patients, blind_outputs=blind_said, prior=guessed, **options)


def _lettered(answer: str, choices: Sequence[str]) -> str:
    """An answer that is one of the choices, word for word, with its letter, as M3D-Bench's models write it."""
    return f"{LETTERS[choices.index(answer)]}. {answer}" if answer in choices[: len(LETTERS)] else answer


def _take(values: Sequence[Any] | None, places: Sequence[int]) -> Any:
    return None if values is None else [values[place] for place in places]


def plain(text: str) -> str:
    """Lower case, without articles, punctuation and surplus spaces (SQuAD's normalisation)."""
    return " ".join(_NOISE.sub(" ", text.lower()).split())


def token_f1(output: str, answer: str) -> float:
    """F1 of words, each counted as often as it occurs; 1 when both are empty."""
    found, expected = Counter(plain(output).split()), Counter(plain(answer).split())
    total = found.total() + expected.total()
    return 2 * (found & expected).total() / total if total else 1.0
