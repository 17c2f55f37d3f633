"""Two models' texts, structured reports and answers on the same studies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy import ndarray

from vol3d.evaluation.metrics.findings import MACRO_MICRO, Counts
from vol3d.evaluation.metrics.text import TEXT_METRICS, TextCounts
from vol3d.evaluation.sides import Block, Sides, counts

_ASKED = ("questions", "kinds", "closed_only", "findings", "choices", "seed")
"""The arguments of VQA that decide what is asked."""


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
        wording = [TextCounts(truths, said).statistic for said in texts]
        return _findings(sides, keys, patients) | sides.difference(TEXT_METRICS, wording, patients)

    return compared


def compare_structured(sides: Sides) -> Block:
    """Structured reports: findings as of reports, and the sizes (mm) and certainties of the findings that both have
    right. Only findings that both models may write count."""
    from vol3d.evaluation.metrics.structured import key_of
    from vol3d.text.structured import structured

    studies = [study for study in sides.both("structured", list) if study.report]
    if not studies:
        return {}
    names = sides.shared("StructuredReport", "findings")
    lists = [[structured(study.report or "", names) for study in studies], *sides.values(studies, "structured")]
    groups = [
        [{key_of(row): row for row in rows if names is None or row["finding"] in names} for rows in group]
        for group in lists
    ]
    patients = [study.patient for study in studies]
    block = _findings(sides, [[set(rows) for rows in group] for group in groups], patients)
    errors, sure, whose, whose_sure = [], [], [], []
    for truth, one, two, patient in zip(*groups, patients, strict=True):
        for key in truth.keys() & one.keys() & two.keys():
            sure.append([float(rows[key]["certainty"] == truth[key]["certainty"]) for rows in (one, two)])
            whose_sure.append(patient)
            sizes = [rows[key]["size_mm"] for rows in (truth, one, two)]
            if None not in sizes:
                errors.append([abs(size - sizes[0]) for size in sizes[1:]])
                whose.append(patient)
    for name, pairs, patients in (("size_error_mm", errors, whose), ("certainty_accuracy", sure, whose_sure)):
        if pairs:
            block |= sides.means(name, np.array(pairs, dtype=np.float64), patients)
    return block


def _findings(sides: Sides, keys: Sequence[Sequence[AbstractSet[str]]], patients: Sequence[Any]) -> Block:
    """Finding scores of the keys of truth, first and second, and wins by the study's finding F1."""
    classes = sorted(set().union(*(found for group in keys for found in group)))
    one, two = (Counts.of(keys[0], said, classes) for said in keys[1:])
    block = sides.difference(MACRO_MICRO, [one.statistic, two.statistic], patients)
    return block | counts(np.stack([one.by_study(), two.by_study()], axis=1), "studies")


def compare_closed(sides: Sides) -> Block:
    """Closed questions that both answered: accuracy, and wins by question."""
    from vol3d.evaluation.metrics.vqa import read_choice

    def right(said: str, row: Mapping[str, Any]) -> float:
        choices = list(row["choices"])
        return float(read_choice(said, choices) == choices.index(row["answer"]))

    scores, patients = _answers(sides, True, right)
    return sides.means("accuracy", scores, patients) | counts(scores, "questions") if len(scores) else {}


def compare_open(sides: Sides) -> Block:
    """Open questions that both answered: exact match and word F1, wins by word F1."""
    from vol3d.evaluation.metrics.vqa import plain, token_f1

    alike, patients = _answers(sides, False, lambda said, row: token_f1(said, row["answer"]))
    if not len(alike):
        return {}
    equal, _ = _answers(sides, False, lambda said, row: float(plain(said) == plain(row["answer"])))
    return (
        sides.means("token_f1", alike, patients)
        | sides.means("exact_match", equal, patients)
        | counts(alike, "questions")
    )


def _answers(sides: Sides, closed: bool, score: Callable[[str, Mapping[str, Any]], float]) -> tuple[ndarray, list[Any]]:
    """(questions, 2): the score of both sides' answer to each question, and whose it is. What is asked is the
    manifest's or what the first model's task builds from a row."""
    from vol3d.data.questions import asked_of
    from vol3d.text.questions import answers_to

    settings = {name: value for name, value in sides.settings[0].get("VQA", {}).items() if name in _ASKED}
    scores, patients = [], []
    for study in sides.both("answers", list):
        asked = asked_of(study, **settings)
        given = [answers_to(asked, rows[study.study]["answers"]) for rows in sides.rows]
        for row, *said in zip(asked, *given, strict=True):
            if bool(row.get("choices")) == closed and None not in said:
                scores.append([score(answer["answer"], row) for answer in said])
                patients.append(study.patient)
    return np.array(scores, dtype=np.float64).reshape(-1, 2), patients
