"""Area under the ROC and the precision–recall curve for weighted studies, many weightings at once.

scikit-learn computes one weighting a call; a bootstrap needs a thousand. Equal to its `roc_auc_score` and
`average_precision_score` (tests).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

Weights = Float[ndarray, "replicates studies"]
Areas = Float[ndarray, " replicates"]


class Order:
    """Studies sorted by score, lowest first, with equal scores in one group."""

    def __init__(self, scores: Float[ndarray, " studies"]) -> None:
        self.by_score = np.argsort(scores, kind="stable")
        ordered = scores[self.by_score]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])

    def groups(self, weights: Weights) -> Float[ndarray, "replicates groups"]:
        """Weight of each group of equal scores."""
        return np.add.reduceat(weights[:, self.by_score], self.starts, axis=1)


def auroc(order: Order, positive: Weights, negative: Weights) -> Areas:
    """Chance that a positive study scores above a negative one, ties counting half; NaN without either.

    Args:
        positive, negative: weight of each study as a positive and as a negative one.
    """
    positives, negatives = order.groups(positive), order.groups(negative)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = positives.sum(1) * negatives.sum(1)
    return np.divide((positives * below).sum(1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def average_precision(order: Order, positive: Weights, negative: Weights) -> Areas:
    """Σ (recall gained) · precision, going down the scores (no interpolation); NaN without a positive."""
    hits = order.groups(positive)[:, ::-1]
    true = np.cumsum(hits, axis=1)
    reported = true + np.cumsum(order.groups(negative)[:, ::-1], axis=1)
    precision = np.divide(true, reported, out=np.zeros_like(true), where=reported > 0)
    total = true[:, -1]
    return np.divide((hits * precision).sum(1), total, out=np.full(len(total), np.nan), where=total > 0)
