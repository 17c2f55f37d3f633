"""Questions: accuracy of choices, strictly read and as M3D-Bench reads them, and wording of open answers."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from vol3d.evaluation.intervals import share
from vol3d.evaluation.metrics.baselines import blind
from vol3d.evaluation.metrics.segmentation import mean_score
from vol3d.evaluation.metrics.text import score_text

DEFINITIONS = {
    "accuracy": "share of closed questions whose answer names the right choice and no other, by its letter or its "
    "words; an answer that cannot be read counts as wrong",
    "m3d_substring_accuracy": "M3D-Bench's accuracy: the right letter followed by a full stop occurs anywhere in the "
    "output (an output that lists every choice scores 1)",
    "readable": "share of answers that name exactly one choice",
    "exact_match": "open answers: share equal to the truth in lower case, without articles and punctuation",
    "token_f1": "open answers: mean F1 of their words",
}
LETTERS = string.ascii_uppercase
_LEADING_LETTER = re.compile(
    r"^\W*(?i:(?:the\s+)?(?:(?:correct|right|best)\s+)?(?:answer|option|choice)?(?:\s+is)?)\W*([A-Z])(?:[.):,]|\s*$)"
)
_NOISE = re.compile(r"\b(?:a|an|the)\b|[^\w\s]", re.IGNORECASE)


def read_choice(output: str, choices: Sequence[str]) -> int | None:
    """Which of the choices an output names; None when it names none, or more than one.

    Read in this order: the words of a choice as the whole answer ("the left kidney"), a letter at its start ("B",
    "B.", "(B)", "Answer: B"), the words of exactly one choice within the answer.
    """
    words = plain(output)
    whole = [number for number, choice in enumerate(choices) if plain(choice) == words]
    if len(whole) == 1:
        return whole[0]
    leading = _LEADING_LETTER.match(output.strip())
    letters = {letter for letter in re.findall(r"\b([A-Z])[.)]", output) if letter in LETTERS[: len(choices)]}
    if leading and leading.group(1) in LETTERS[: len(choices)] and len(letters | {leading.group(1)}) == 1:
        return LETTERS.index(leading.group(1))
    if letters:
        return LETTERS.index(letters.pop()) if len(letters) == 1 else None
    named = [i for i, choice in enumerate(choices) if plain(choice) and f" {plain(choice)} " in f" {words} "]
    return named[0] if len(named) == 1 else None


def m3d_substring_correct(output: str, answer: int) -> bool:
    """Is the right letter with a full stop anywhere in the output?

    Source: BAAI-DCAI/M3D, Bench/eval/eval_vqa.py.
    """
    return f"{LETTERS[answer]}." in output


def score_closed(
    outputs: Sequence[str],
    choices: Sequence[Sequence[str]],
    answers: Sequence[int],
    patients: Sequence[Hashable],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Closed questions: DEFINITIONS' accuracies with 95 % patient-clustered intervals, and two baselines.

    Args:
        choices: the choices of each question; answers: the index of the right one.

    Returns:
        "accuracy", "m3d_substring_accuracy", "readable", and "baselines": "blind" (outputs dealt to other patients'
        questions), "text_prior" (the most common right letter) and "chance".
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
    loose = np.array([float(m3d_substring_correct(o, a)) for o, a in zip(outputs, answers, strict=True)])
    named = np.array([float(one is not None) for one in read])
    most = Counter(answers).most_common(1)[0][0]
    baselines: dict[str, dict[str, Any]] = {
        "text_prior": {"accuracy": float(np.mean([answer == most for answer in answers]))},
        "chance": {"accuracy": float(np.mean([1 / len(given) for given in choices]))},
    }
    try:
        dealt = blind(outputs, patients, seed)
        seen = [read_choice(output, given) for output, given in zip(dealt, choices, strict=True)]
        shuffled = float(np.mean([one == two for one, two in zip(seen, answers, strict=True)]))
        baselines = {"blind": {"accuracy": shuffled}} | baselines
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
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Open questions: exact match, word F1, BLEU and ROUGE, with 95 % patient-clustered intervals."""
    options = {"replicates": replicates, "seed": seed}
    result: dict[str, Any] = score_text(answers, outputs, patients, **options)
    pairs = list(zip(outputs, answers, strict=True))
    equal = np.array([float(plain(output) == plain(answer)) for output, answer in pairs])
    result["exact_match"] = share(equal, np.ones(len(pairs)), patients, **options)
    result["token_f1"] = mean_score(np.array([token_f1(*pair) for pair in pairs]), patients, **options)
    most = Counter(answers).most_common(1)[0][0]
    prior = float(np.mean([plain(most) == plain(answer) for answer in answers]))
    return result | {"questions": len(pairs), "baselines": {"text_prior": {"exact_match": prior}}}


def plain(text: str) -> str:
    """Lower case, without articles, punctuation and surplus spaces (SQuAD's normalisation)."""
    return " ".join(_NOISE.sub(" ", text.lower()).split())


def token_f1(output: str, answer: str) -> float:
    """F1 of words, each counted as often as it occurs; 1 when both are empty."""
    found, expected = Counter(plain(output).split()), Counter(plain(answer).split())
    total = found.total() + expected.total()
    return 2 * (found & expected).total() / total if total else 1.0
