"""Two models' texts and answers on the same studies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy import ndarray

from vol3d.evaluation.metrics.findings import MACRO_MICRO, Counts
from vol3d.evaluation.metrics.text import TEXT_METRICS, TextCounts
from vol3d.evaluation.sides import Block, Sides, counts


def compare_texts(field: str) -> Callable[[Sides], Block]:
    """The comparison of written texts: findings (wins by the study's finding F1) and wording."""

    def compared(sides: Sides) -> Block:
        from vol3d.text.parser import finding_keys

        studies = [study for study in sides.both(field, str) if getattr(study, field)]
        if not studies:
            return {}
        truths, patients = [getattr(study, field) for study in studies], [study.patient for study in studies]
        texts = sides.values(studies, field)
        keys = [[set(finding_keys(text)) for text in group] for group in (truths, *texts)]
        classes = sorted(set().union(*(found for group in keys for found in group)))
        one, two = (Counts.of(keys[0], said, classes) for said in keys[1:])
        block = sides.difference(MACRO_MICRO, [one.statistic, two.statistic], patients)
        wording = [TextCounts(truths, said).statistic for said in texts]
        block |= sides.difference(TEXT_METRICS, wording, patients)
        return block | counts(np.stack([one.by_study(), two.by_study()], axis=1), "studies")

    return compared


def compare_closed(sides: Sides) -> Block:
    """Closed questions that both answered: accuracy, and wins by question; the truth is the manifest's."""
    right, patients = _answers(sides, True, lambda said, truth: float(said == truth))
    return sides.means("accuracy", right, patients) | counts(right, "questions") if len(right) else {}


def compare_open(sides: Sides) -> Block:
    """Open questions that both answered: exact match and word F1, wins by word F1."""
    from vol3d.evaluation.metrics.vqa import plain, token_f1

    alike, patients = _answers(sides, False, token_f1)
    if not len(alike):
        return {}
    equal, _ = _answers(sides, False, lambda said, truth: float(plain(said) == plain(truth)))
    return (
        sides.means("token_f1", alike, patients)
        | sides.means("exact_match", equal, patients)
        | counts(alike, "questions")
    )


def _answers(sides: Sides, closed: bool, score: Callable[[str, str], float]) -> tuple[ndarray, list[Any]]:
    """(questions, 2): the score of both sides' answer to each of the manifest's questions, and whose it is."""
    scores, patients = [], []
    for study in sides.both("answers", list):
        said = [{row["question"]: row["answer"] for row in rows[study.study]["answers"]} for rows in sides.rows]
        for row in study.questions:
            asked = row["question"]
            if bool(row.get("choices")) == closed and all(asked in answers for answers in said):
                scores.append([score(answers[asked], row["answer"]) for answers in said])
                patients.append(study.patient)
    return np.array(scores, dtype=np.float64).reshape(-1, 2), patients
