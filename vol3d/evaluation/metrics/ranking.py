"""Area under the ROC and the precision–recall curve for weighted studies, many weightings at once.

scikit-learn computes one weighting a call; a bootstrap needs a thousand. Equal to its `roc_auc_score` and
`average_precision_score` (tests).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.sparse import csr_array

Weights = Float[ndarray, "studies replicates"]
Areas = Float[ndarray, " replicates"]


class Ranking:
    """Studies sorted by score once, equal scores in one group.

    Both areas are sums over the positives, so weights are needed only at the groups that hold one: of the m groups'
    positives, and of the negatives in each of them and between them. Two sparse products give these for all replicates,
    and the rest works on m rows instead of one a study.
    """

    def __init__(
        self,
        scores: Float[ndarray, " studies"],
        positive: Bool[ndarray, " studies"],
        negative: Bool[ndarray, " studies"],
    ) -> None:
        order = np.argsort(scores, kind="stable")
        order = order[(positive | negative)[order]]
        steps = np.diff(scores[order], prepend=scores[order[:1]]) != 0
        group = np.cumsum(steps)
        marked = np.unique(group[positive[order]])
        # group k of the m is slot 2k + 1, what lies below it and above the one before is slot 2k
        slot = np.searchsorted(marked, group, "left") + np.searchsorted(marked, group, "right")
        self.positives = _sums(slot // 2, order, positive, (len(marked), len(scores)))
        self.negatives = _sums(slot, order, negative, (2 * len(marked) + 1, len(scores)))

    def areas(self, positive: Weights, negative: Weights) -> tuple[Areas, Areas]:
        """AUROC and average precision of each replicate.

        AUROC is the chance that a positive study scores above a negative one, ties counting half; NaN without either.
        Average precision is Σ (recall gained) · precision, going down the scores (no interpolation); NaN without a
        positive.

        Args:
            positive, negative: (studies, replicates), weight of each study as a positive and as a negative one.
        """
        hits, others = self.positives @ positive, np.cumsum(self.negatives @ negative, axis=0)
        below, through, total = others[:-1:2], others[1::2], others[-1]
        true = np.cumsum(hits[::-1], axis=0)[::-1]
        positives = hits.sum(0)
        pairs = positives * total
        won = np.einsum("gr,gr->r", hits, below + through) / 2
        reported = true + (total - below)
        precision = np.divide(true, reported, out=np.zeros_like(true), where=reported > 0)
        gained = np.einsum("gr,gr->r", hits, precision)
        return _ratio(won, pairs), _ratio(gained, positives)


def _sums(row: ndarray, study: ndarray, chosen: ndarray, shape: tuple[int, int]) -> csr_array:
    """The matrix that adds up the weights of the chosen studies, row by row."""
    kept = chosen[study]
    return csr_array((np.ones(int(kept.sum())), (row[kept], study[kept])), shape=shape)


def _ratio(over: ndarray, under: ndarray) -> ndarray:
    return np.divide(over, under, out=np.full(len(under), np.nan), where=under > 0)
