"""Logits that became probabilities on other studies than those they are judged on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import minimize
from scipy.special import expit

from vol3d.evaluation.metrics.codes import choose_thresholds, score_codes

Table = Float[ndarray, "_studies _names"]


def score_calibrated(
    logits: Table,
    truths: Table,
    patients: Sequence[Hashable],
    names: Sequence[str],
    *,
    validation: tuple[Table, Table] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """`score_codes` of logits, calibrated and given their thresholds on `validation`, never on what is scored.

    Args:
        logits, truths: of the studies that are scored; truths are 1, 0 or NaN for unknown.
        validation: logits and truths of other studies. Without any there are no probabilities: only AUROC and AUPRC,
            which need none.

    Returns:
        what `score_codes` returns, and "calibrated_on", how many studies that was.
    """
    slope, offset, thresholds = np.ones(len(names)), np.zeros(len(names)), None
    fitted = 0 if validation is None else len(validation[0])
    if validation is not None and fitted:
        slope, offset = platt(*validation)
        thresholds = choose_thresholds(expit(slope * validation[0] + offset), validation[1])
    scores = score_codes(
        expit(slope * logits + offset),
        truths,
        patients,
        list(names),
        thresholds=thresholds,
        replicates=replicates,
        seed=seed,
    )
    if not fitted:
        for name in ("ece", "brier", "reliability"):
            scores.pop(name)
    return scores | {"calibrated_on": fitted}


def platt(logits: Table, truths: Table) -> tuple[Float[ndarray, " names"], Float[ndarray, " names"]]:
    """Slope and offset of each column that make sigmoid(slope · logit + offset) likeliest.

    A slope is kept positive, so that calibration never changes an order. A column without a known positive and a known
    negative study keeps slope 1 and offset 0. Truths are smoothed as Platt does.

    Source: Platt 1999, "Probabilistic outputs for support vector machines".
    """
    slopes, offsets = np.ones(logits.shape[1]), np.zeros(logits.shape[1])
    for column in range(logits.shape[1]):
        known = ~np.isnan(truths[:, column])
        score, true = logits[known, column], truths[known, column]
        positives, negatives = true.sum(), (1 - true).sum()
        if not positives or not negatives:
            continue
        target = np.where(true == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

        def cost(values: ndarray, score: ndarray = score, target: ndarray = target) -> float:
            logit = np.exp(values[0]) * score + values[1]
            return float(np.logaddexp(0, logit).sum() - (target * logit).sum())

        found = minimize(cost, [0.0, 0.0], method="L-BFGS-B", bounds=[(-6, 6), (None, None)])
        slopes[column], offsets[column] = np.exp(found.x[0]), found.x[1]
    return slopes, offsets
