"""Codes and findings given as probabilities: AUROC, AUPRC, F1 at a fixed threshold, calibration.

Truth has three values: 1 recorded, 0 explicitly absent, NaN unknown. Unknown enters no score, so that a code
nobody looked for is not held against the model (a negative it may not be).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from vol3d.evaluation.intervals import cluster_index, clustered_bootstrap, mean_defined, undefined
from vol3d.evaluation.metrics.baselines import blind
from vol3d.evaluation.metrics.ranking import Ranking

Table = Float[ndarray, "_studies _codes"]

DEFINITIONS = {
    "macro_auroc": "mean AUROC over the codes with enough known positive and negative studies (`min_positives`)",
    "macro_auprc": "mean average precision over the same codes (its chance level is the prevalence)",
    "macro_f1": "mean F1 over the same codes, each at its threshold fixed on validation studies",
    "ece": "expected calibration error: mean gap between probability and frequency over 15 bins of equal width, all "
    "known labels together",
    "brier": "mean squared difference between probability and label, all known labels together",
}
MIN_POSITIVES = 5
"""Of a code that `EHRCodes` scores, unless it is told otherwise."""
_PER_CODE = ("auroc", "auprc", "f1")


def score_codes(
    probabilities: Table,
    truths: Table,
    patients: Sequence[Hashable],
    codes: Sequence[str],
    *,
    thresholds: Float[ndarray, " _codes"] | None = None,
    min_positives: int = 1,
    bins: int = 15,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of code probabilities, each `{"value", "low", "high"}` with a 95 % patient-clustered interval.

    Args:
        probabilities: (studies, codes), 0 to 1.
        truths: (studies, codes), 1, 0 or NaN for unknown.
        thresholds: (codes,) from `choose_thresholds` on validation studies; without it no F1 is given, because a
            threshold chosen on the studies it is scored on flatters.
        min_positives: a code with fewer known positives, or fewer known negatives, is skipped: its area is noise.

    Returns:
        DEFINITIONS' scores, "per_code" {code: {"auroc", "auprc", "f1", "positives", "negatives"}}, "skipped" {code:
        why}, "reliability" (for a plot) and "baselines": {"blind": …}.

    Raises:
        ValueError: shapes that do not agree, a probability outside 0…1 or NaN, a truth other than 0, 1, NaN.
    """
    _check(probabilities, truths, patients, codes)
    known = ~np.isnan(truths)
    positive, negative = np.where(known, truths, 0.0), np.where(known, 1.0 - truths, 0.0)
    counts = positive.sum(0), negative.sum(0)
    kept = np.flatnonzero(np.minimum(*counts) >= max(1, min_positives)).tolist()
    names = _PER_CODE if thresholds is not None else _PER_CODE[:2]
    options = {"replicates": replicates, "seed": seed}
    result: dict[str, Any] = {}
    if len(kept):
        parts = CodeScores(probabilities[:, kept], positive[:, kept], negative[:, kept])
        cut = None if thresholds is None else thresholds[kept]
        rarer, every = _rarer(positive[:, kept], negative[:, kept], patients)  # what an area rests on
        trials = [every] * len(names) + rarer * len(names)
        estimates = clustered_bootstrap(
            lambda weights: parts.statistic(weights, cut), patients, trials=trials, **options
        )
        result |= dict(zip((f"macro_{name}" for name in names), estimates, strict=False))
        per_code = np.array(estimates[len(names) :], dtype=object).reshape(len(names), len(kept))
        result["per_code"] = {
            codes[i]: dict(zip(names, per_code[:, place], strict=True)) | _support(counts, i)
            for place, i in enumerate(kept)
        }
    else:
        why = f"no code has {max(1, min_positives)} positive and as many negative studies"
        result |= {f"macro_{name}": undefined(why) for name in names}
        result["per_code"] = {}
    result["skipped"] = {codes[i]: _why(counts, i, min_positives) for i in range(len(codes)) if i not in kept}
    result |= _calibration(probabilities, positive, negative, patients, bins, options)
    result["baselines"] = {"blind": _blind(probabilities, positive, negative, kept, thresholds, bins, patients, seed)}
    return result | {"definitions": DEFINITIONS}


def choose_thresholds(probabilities: Table, truths: Table) -> Float[ndarray, " codes"]:
    """For each code the probability at which validation F1 is highest; 0.5 for a code without a known positive.

    Use it on validation studies and hand the result to `score_codes` for the test studies.
    """
    chosen = np.full(probabilities.shape[1], 0.5)
    for code in range(probabilities.shape[1]):
        known = ~np.isnan(truths[:, code])
        score, true = probabilities[known, code], truths[known, code]
        if not true.sum():
            continue
        order = np.argsort(-score, kind="stable")
        last = np.r_[score[order][1:] != score[order][:-1], True]  # a threshold cannot part equal scores
        hits = np.cumsum(true[order])
        f1 = np.where(last, 2 * hits / (np.arange(1, len(order) + 1) + true.sum()), -1)
        chosen[code] = score[order][f1.argmax()]
    return chosen


def reliability(
    probabilities: Float[ndarray, " labels"],
    truths: Float[ndarray, " labels"],
    bins: int = 15,
) -> list[dict[str, float]]:
    """Mean probability, observed frequency and number of labels of each filled bin, for a reliability plot."""
    place = _bin(probabilities, bins)
    rows = []
    for number in np.unique(place):
        inside = place == number
        rows.append(
            {
                "probability": float(probabilities[inside].mean()),
                "frequency": float(truths[inside].mean()),
                "labels": int(inside.sum()),
            }
        )
    return rows


class CodeScores:
    """The statistic of all codes that can be scored."""

    def __init__(self, probabilities: ndarray, positive: ndarray, negative: ndarray) -> None:
        self.probabilities, self.positive, self.negative = probabilities, positive, negative
        columns = zip(probabilities.T, positive.T > 0, negative.T > 0, strict=True)
        self.rankings = [Ranking(*column) for column in columns]

    def statistic(self, weights: ndarray, thresholds: ndarray | None) -> ndarray:
        """(replicates, metrics + metrics · codes): the macro means, then each metric's codes."""
        by_study = np.ascontiguousarray(weights.T)
        areas = np.empty((2, len(weights), len(self.rankings)))
        for code, ranking in enumerate(self.rankings):
            areas[:, :, code] = ranking.areas(by_study, by_study)
        blocks = list(areas)
        if thresholds is not None:
            said = (self.probabilities >= thresholds).astype(np.float64)
            hit = weights @ (said * self.positive)
            total = weights @ (said * (self.positive + self.negative)) + weights @ self.positive
            blocks.append(np.divide(2 * hit, total, out=np.full(hit.shape, np.nan), where=total > 0))
        means = [mean_defined(block, 1) for block in blocks]  # over the codes that are defined in that replicate
        return np.concatenate([np.stack(means, axis=1), *blocks], axis=1)


def _bin(probabilities: ndarray, bins: int) -> ndarray:
    """Bins (low, high], the lowest closed below, as torchmetrics has them."""
    return np.clip(np.ceil(probabilities * bins).astype(int) - 1, 0, bins - 1)


def _calibration(
    probabilities: ndarray,
    positive: ndarray,
    negative: ndarray,
    patients: Sequence[Hashable],
    bins: int,
    options: dict[str, int],
) -> dict[str, Any]:
    known = (positive + negative) > 0
    if not known.any():
        return {"ece": undefined("no known label"), "brier": undefined("no known label"), "reliability": []}
    statistic = _calibration_of(probabilities, positive, known, bins)
    ece, brier = clustered_bootstrap(statistic, patients, **options)
    return {"ece": ece, "brier": brier, "reliability": reliability(probabilities[known], positive[known], bins)}


def _calibration_of(
    probabilities: ndarray, positive: ndarray, known: ndarray, bins: int
) -> Callable[[ndarray], ndarray]:
    """Weights (draws, studies) → ECE and Brier score (draws, 2)."""
    place = _bin(probabilities, bins)
    gaps = np.stack([((probabilities - positive) * known * (place == number)).sum(1) for number in range(bins)], axis=1)
    squares = ((probabilities - positive) ** 2 * known).sum(1)
    labels = known.sum(1).astype(np.float64)

    def statistic(weights: ndarray) -> ndarray:
        total = weights @ labels
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack([np.abs(weights @ gaps).sum(1) / total, (weights @ squares) / total], axis=1)

    return statistic


def _blind(
    probabilities: ndarray,
    positive: ndarray,
    negative: ndarray,
    kept: list[int],
    thresholds: ndarray | None,
    bins: int,
    patients: Sequence[Hashable],
    seed: int,
) -> dict[str, Any]:
    """Means over five deals of the probabilities to other patients' studies."""
    try:
        deals = [blind(range(len(patients)), patients, seed + deal) for deal in range(5)]
    except ValueError as error:
        return {"macro_auroc": None, "note": str(error)}
    known = (positive + negative) > 0
    names = _PER_CODE if thresholds is not None else _PER_CODE[:2]
    cut = None if thresholds is None else thresholds[kept]
    once = np.ones((1, len(patients)))
    result: dict[str, Any] = {f"macro_{name}": None for name in names}
    if kept:
        sides = positive[:, kept], negative[:, kept]
        values = [CodeScores(probabilities[deal][:, kept], *sides).statistic(once, cut)[0] for deal in deals]
        result = dict(zip(result, np.mean(values, axis=0)[: len(names)].tolist(), strict=True))
    if known.any():
        values = [_calibration_of(probabilities[deal], positive, known, bins)(once)[0] for deal in deals]
        result |= dict(zip(("ece", "brier"), np.mean(values, axis=0).tolist(), strict=True))
    return result


def _rarer(positive: ndarray, negative: ndarray, patients: Sequence[Hashable]) -> tuple[list[int], int]:
    """How many patients have the rarer label of each code, and of any code."""
    who = cluster_index(patients)
    sides = [[set(who[column > 0].tolist()) for column in side.T] for side in (positive, negative)]
    rarer = [min(pair, key=len) for pair in zip(*sides, strict=True)]
    return list(map(len, rarer)), len(set().union(*rarer))


def _support(counts: tuple[ndarray, ndarray], code: int) -> dict[str, int]:
    return {"positives": int(counts[0][code]), "negatives": int(counts[1][code])}


def _why(counts: tuple[ndarray, ndarray], code: int, least: int) -> str:
    if not counts[0][code] + counts[1][code]:
        return "no known label"
    one = not counts[0][code] * counts[1][code]
    return ("one label only" if one else f"fewer than {least}") + f": {_support(counts, code)}"


def _check(probabilities: ndarray, truths: ndarray, patients: Sequence[Hashable], codes: Sequence[str]) -> None:
    if probabilities.shape != truths.shape or probabilities.shape != (len(patients), len(codes)):
        raise ValueError(
            f"probabilities are {probabilities.shape}, truths {truths.shape}, with {len(patients)} patients and "
            f"{len(codes)} codes: give (studies, codes) tables and one patient a study"
        )
    wrong = ~((probabilities >= 0) & (probabilities <= 1))
    if wrong.any():
        study, code = np.argwhere(wrong)[0]
        raise ValueError(
            f"code {codes[code]!r} of study {study} has probability {probabilities[study, code]}, not between 0 and 1: "
            "give sigmoid outputs, not logits"
        )
    odd = truths[~np.isnan(truths) & (truths != 0) & (truths != 1)]
    if len(odd):
        raise ValueError(f"a truth is {odd[0]:g}: use 1 for recorded, 0 for absent, NaN for unknown (not -1)")
