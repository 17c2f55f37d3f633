"""Selective accuracy: how right is a model when it may leave out what it is least sure of?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from vol3d.evaluation.intervals import share
from vol3d.model.interfaces import Evidence, Task

COVERAGES = (0.5, 0.8, 1.0)


def abstention(tasks: Sequence[Task], evidence: Evidence) -> dict[str, Any]:
    """Curves and scores of the tasks whose predictions carry a confidence.

    Closed answers: the softmax of their choices' scores. Codes: the larger of p and 1 − p, right at a threshold of
    0.5.

    Returns:
        {"vqa_closed": {"curve": [{"coverage", "accuracy"}], "accuracy@50%": score, …}, "codes": …}
    """
    result = {}
    for task in tasks:
        rows = {"vqa": _answers, "codes": _codes}.get(task.kind, lambda *_: [])(task, evidence)
        if rows:
            confidence, right, patients = zip(*rows, strict=True)
            result[{"vqa": "vqa_closed"}.get(task.kind, task.kind)] = _curve(confidence, right, patients, evidence)
    return result


def selective_accuracy(confidence: Sequence[float], right: Sequence[float], points: int = 20) -> list[dict[str, float]]:
    """Accuracy among the most confident share of answers, for a curve of coverage against accuracy."""
    hits, answers = np.asarray(right, dtype=np.float64), len(right)
    counts = sorted({math.ceil(answers * part / points) for part in range(1, points + 1)} - {0})
    accuracies = [float(chances(confidence, count) @ hits / count) for count in counts]
    return [
        {"coverage": count / answers, "accuracy": accuracy} for count, accuracy in zip(counts, accuracies, strict=True)
    ]


def chances(confidence: Sequence[float], count: int) -> Float[ndarray, " answers"]:
    """Of each answer, the chance to be among the `count` most confident: equal ones are drawn, whatever their order."""
    sure = np.asarray(confidence, dtype=np.float64)
    last = np.sort(sure)[-count]
    above, tied = sure > last, sure == last
    return above + tied * (count - above.sum()) / tied.sum()


def _curve(
    confidence: Sequence[float], right: Sequence[float], patients: Sequence[Any], evidence: Evidence
) -> dict[str, Any]:
    block: dict[str, Any] = {"curve": selective_accuracy(confidence, right), "answers": len(right)}
    for coverage in COVERAGES:
        kept = chances(confidence, math.ceil(coverage * len(right)))
        block[f"accuracy@{coverage:.0%}"] = share(
            np.asarray(right) * kept, kept, patients, replicates=evidence.replicates, seed=evidence.seed
        )
    return block


def _answers(task: Any, evidence: Evidence) -> list[tuple[float, float, Any]]:
    rows = []
    for study in evidence.studies:
        for question, answer in task.answered(study, evidence.predictions[study.study]):
            if question.get("choices") and answer.get("scores"):
                scores = np.exp(np.array(answer["scores"]) - max(answer["scores"]))
                right = float(answer["answer"] == question["answer"])
                rows.append((float(scores.max() / scores.sum()), right, study.patient))
    return rows


def _codes(task: Any, evidence: Evidence) -> list[tuple[float, float, Any]]:
    rows = []
    for study in evidence.studies:
        said = evidence.predictions[study.study].get("codes") or {}
        truth = task.truth(study) if said and task.labelled(study) else []
        for code, known in zip(task.codes, truth, strict=True) if len(truth) else []:
            if not math.isnan(known):
                probability = said[code]
                rows.append(
                    (max(probability, 1 - probability), float((probability >= 0.5) == bool(known)), study.patient)
                )
    return rows
