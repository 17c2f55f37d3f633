"""Are the right findings reported, on the right side? Scores over (side, name) keys of parsed reports.

A key is "left pleural effusion" or "ascites" (`vol3d.text.parser.finding_keys`). A study either has a key or has
not; bilateral disease is two keys. Truth and output go through the same parser.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from vol3d.evaluation.intervals import cluster_index, clustered_bootstrap, paired_bootstrap, share, undefined

Keys = Sequence[AbstractSet[str]]
"""One set of finding keys a study."""

DEFINITIONS = {
    "finding_f1": "mean over finding classes (side and name together) present in at least one truth report of "
    "F1 = 2TP / (2TP + FP + FN)",
    "finding_precision": "mean over the same classes of TP / (TP + FP); a class never reported counts 0",
    "finding_recall": "mean over the same classes of TP / (TP + FN)",
    "finding_f1_micro": "F1 of all (study, class) decisions together; classes never in truth count as invented",
    "finding_precision_micro": "share of reported findings that are true",
    "finding_recall_micro": "share of true findings that are reported",
    "laterality_accuracy": "of the reported findings with a side whose name is truly in that study, the share on a "
    "true side",
    "exact_match": "share of studies with no finding missed and none invented",
}


def split_side(key: str) -> tuple[str | None, str]:
    """("left", "pleural effusion") for "left pleural effusion"; (None, "ascites") for "ascites"."""
    side, _, name = key.partition(" ")
    return (side, name) if side in ("left", "right") and name else (None, key)


@dataclass(frozen=True)
class Counts:
    """Hits, inventions and misses of every study, from which all finding scores follow.

    Shape:
        true, predicted: (studies, classes) float64 of 0 and 1, classes in the order of `classes`.
    """

    classes: list[str]
    true: Float[ndarray, "studies classes"]
    predicted: Float[ndarray, "studies classes"]

    @classmethod
    def of(cls, truths: Keys, predicted: Keys, classes: Sequence[str] | None = None) -> Counts:
        """Raises:
        ValueError: different numbers of truths and predictions, or none.
        """
        if len(truths) != len(predicted):
            raise ValueError(
                f"{len(truths)} truths, {len(predicted)} predictions: give one set of keys a study to each"
            )
        if not truths:
            raise ValueError("0 studies to score: check the split's name and that predictions were written")
        names = sorted(set().union(*truths, *predicted)) if classes is None else list(dict.fromkeys(classes))
        column = {name: number for number, name in enumerate(names)}
        return cls(names, _matrix(truths, column), _matrix(predicted, column))

    @property
    def support(self) -> ndarray:
        return self.true.sum(0)

    def sums(self, weights: ndarray) -> tuple[ndarray, ndarray, ndarray]:
        """Weighted TP, reported and true, each (replicates, classes)."""
        return weights @ (self.true * self.predicted), weights @ self.predicted, weights @ self.true

    def statistic(self, weights: ndarray) -> ndarray:
        """The six macro and micro scores, (replicates, 6), in DEFINITIONS' order."""
        hit, reported, true = self.sums(weights)
        present = true > 0
        macro = (_ratio(2 * hit, reported + true), _ratio(hit, reported, empty=0.0), _ratio(hit, true))
        columns = [_ratio(np.where(present, score, 0.0).sum(1), present.sum(1)) for score in macro]
        hit, reported, true = hit.sum(1), reported.sum(1), true.sum(1)
        columns += [_ratio(2 * hit, reported + true), _ratio(hit, reported), _ratio(hit, true)]
        return np.stack(columns, axis=1)

    def by_study(self) -> ndarray:
        """(studies,), F1 of each study's keys; 1 where truth and output agree that there is none."""
        hit = (self.true * self.predicted).sum(1)
        return _ratio(2 * hit, self.true.sum(1) + self.predicted.sum(1), empty=1.0)


MACRO_MICRO = list(DEFINITIONS)[:6]


def score_findings(
    truths: Keys,
    predicted: Keys,
    patients: Sequence[Hashable],
    *,
    classes: Sequence[str] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Finding-level scores of reports, each `{"value", "low", "high"}` with a 95 % patient-clustered interval.

    Args:
        truths, predicted: one set of finding keys a study.
        patients: who each study belongs to.
        classes: score these keys only; default: every key seen in truth or prediction.

    Returns:
        The scores of DEFINITIONS, and "per_finding" {key: {"f1", "precision", "recall", "support", "predicted"}}
        for keys in truth, "classes" (how many enter the macro mean), "not_in_truth" {key: times reported} for keys
        that were only invented (they lower micro precision, and cannot enter the macro mean), "side_not_given".

    Raises:
        ValueError: the three sequences differ in length, or are empty.
    """
    counts = Counts.of(truths, predicted, classes)
    if len(patients) != len(truths):
        raise ValueError(f"{len(truths)} studies, {len(patients)} patients: give one patient a study")
    options = {"replicates": replicates, "seed": seed}
    who = cluster_index(patients)
    ill, told = (len(set(who[table.any(1)].tolist())) for table in (counts.true, counts.predicted))
    trials = [ill, told or ill, ill] * 2  # a precision rests on those of whom a finding is reported
    scores: dict[str, Any] = dict(
        zip(MACRO_MICRO, clustered_bootstrap(counts.statistic, patients, trials=trials, **options), strict=True)
    )
    if not counts.support.any():
        for name in MACRO_MICRO:
            scores[name] |= {"note": "no study has a finding in truth"}
    silent = int(((counts.support > 0) & (counts.predicted.sum(0) == 0)).sum())
    if silent:
        scores["finding_precision"]["note"] = f"{silent} classes were never reported: their precision counts 0"
    right, sided = _sides(truths, predicted)
    scores["laterality_accuracy"] = (
        share(right, sided, patients, **options)
        if sided.any()
        else undefined("no finding with a side was reported where truth has it")
    )
    same = (counts.true == counts.predicted).all(1).astype(np.float64)
    scores["exact_match"] = share(same, np.ones(len(same)), patients, **options)
    scores["per_finding"] = _per_finding(counts, patients, options)
    scores["classes"] = len(scores["per_finding"])
    invented = counts.predicted.sum(0)
    scores["not_in_truth"] = {
        name: int(invented[i]) for i, name in enumerate(counts.classes) if not counts.support[i] and invented[i]
    }
    scores["side_not_given"] = _side_not_given(truths, predicted)
    return scores


def compare_findings(
    truths: Keys,
    first: Keys,
    second: Keys,
    patients: Sequence[Hashable],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Two models on the same studies: difference first − second of each macro and micro score, interval and p, and
    on how many studies each has the higher F1 ("wins", "losses", "ties")."""
    classes = sorted(set().union(*truths, *first, *second))
    one, two = Counts.of(truths, first, classes), Counts.of(truths, second, classes)
    differences = paired_bootstrap(one.statistic, two.statistic, patients, replicates=replicates, seed=seed)
    result: dict[str, Any] = dict(zip(MACRO_MICRO, differences, strict=True))
    gap = one.by_study() - two.by_study()
    return result | {"wins": int((gap > 0).sum()), "losses": int((gap < 0).sum()), "ties": int((gap == 0).sum())}


def study_f1(truth: AbstractSet[str], predicted: AbstractSet[str]) -> float:
    """F1 of one study's keys, for ranking cases; 1 when truth and output agree that there is none."""
    if not truth and not predicted:
        return 1.0
    return 2 * len(truth & predicted) / (len(truth) + len(predicted))


def _matrix(keys: Keys, column: dict[str, int]) -> ndarray:
    matrix = np.zeros((len(keys), len(column)))
    for row, present in enumerate(keys):
        for key in present:
            if key in column:
                matrix[row, column[key]] = 1.0
    return matrix


def _ratio(over: ndarray, under: ndarray, empty: float = np.nan) -> ndarray:
    return np.divide(over, under, out=np.full(np.shape(under), empty), where=np.asarray(under) > 0)


def _per_finding(counts: Counts, patients: Sequence[Hashable], options: dict[str, int]) -> dict[str, Any]:
    kept = np.flatnonzero(counts.support)

    def statistic(weights: ndarray) -> ndarray:
        hit, reported, true = counts.sums(weights)
        f1 = np.where(true > 0, _ratio(2 * hit, reported + true), np.nan)
        return np.concatenate([part[:, kept] for part in (f1, _ratio(hit, reported), _ratio(hit, true))], axis=1)

    who = cluster_index(patients)
    true, said = ([len(set(who[table[:, i] > 0].tolist())) for i in kept] for table in (counts.true, counts.predicted))
    estimates = clustered_bootstrap(statistic, patients, trials=[*true, *said, *true], **options)
    result = {}
    for place, i in enumerate(kept):
        f1, precision, recall = (estimates[place + part * len(kept)] for part in range(3))
        reported = int(counts.predicted[:, i].sum())
        if not reported:
            precision["note"] = "never reported"
        support = {"support": int(counts.support[i]), "predicted": reported}
        result[counts.classes[i]] = {"f1": f1, "precision": precision, "recall": recall, **support}
    return result


def _sides(truths: Keys, predicted: Keys) -> tuple[ndarray, ndarray]:
    """Per study: how many sided findings are reported where truth has the name, and how many on a true side."""
    right, sided = np.zeros(len(truths)), np.zeros(len(truths))
    for row, (truth, output) in enumerate(zip(truths, predicted, strict=True)):
        names = {name for side, name in map(split_side, truth) if side}
        judged = [key for key in output if (pair := split_side(key))[0] and pair[1] in names]
        sided[row] = len(judged)
        right[row] = sum(key in truth for key in judged)
    return right, sided


def _side_not_given(truths: Keys, predicted: Keys) -> dict[str, int]:
    """Findings reported without a side where truth has one: missed by the F1, not counted for laterality."""
    missing: Counter[str] = Counter()
    for truth, output in zip(truths, predicted, strict=True):
        names = {name for side, name in map(split_side, truth) if side}
        missing.update(key for key in output if key in names)
    return dict(missing)
