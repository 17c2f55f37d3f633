"""ROC and precision-recall curves of a task that gives probabilities, averaged over its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from vol3d.model.interfaces import Evidence, Task

GRID = np.linspace(0, 1, 51)


def curves_of(tasks: Sequence[Task], evidence: Evidence) -> dict[str, dict[str, Any]]:
    """{"codes": {"roc": [[x, y], …], "pr": …}}: the mean over labels that have both positives and negatives."""
    result = {}
    for task in tasks:
        if task.kind != "codes":
            continue
        judged: Any = task
        studies = [s for s in evidence.studies if evidence.predictions[s.study].get("codes") and task.labelled(s)]
        if not studies:
            continue
        said = np.array([[evidence.predictions[s.study]["codes"][code] for code in judged.codes] for s in studies])
        truth = np.stack([np.asarray(judged.truth(s), dtype=np.float64) for s in studies])
        if curves := macro_curves(said, truth):
            result["codes"] = curves
    return result


def macro_curves(said: ndarray, truth: ndarray) -> dict[str, list[list[float]]]:
    """Mean true positive rate at each false positive rate, and mean precision at each recall, over labels.

    Args:
        said, truth: (studies, labels); truth is 1, 0 or NaN for unknown.
    """
    roc, pr = [], []
    for score, known in zip(said.T, truth.T, strict=True):
        there = np.isfinite(known)
        if not {0.0, 1.0} <= set(known[there]):
            continue
        order = np.argsort(-score[there], kind="stable")
        ranked, right = score[there][order], known[there][order]
        ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
        hits = np.cumsum(right)[ends]
        found = hits / right.sum()
        false = (ends + 1 - hits) / (len(right) - right.sum())
        precision = hits / (ends + 1)
        roc.append(np.interp(GRID, np.append(0, false), np.append(0, found)))
        # The best precision still reachable at this recall or more: a step, as average precision sums it.
        best = np.maximum.accumulate(precision[::-1])[::-1]
        pr.append(best[np.minimum(np.searchsorted(found, GRID - 1e-12), len(best) - 1)])
    if not roc:
        return {}
    return {
        name: [[round(float(x), 4), round(float(y), 4)] for x, y in zip(GRID, np.mean(lines, axis=0), strict=True)]
        for name, lines in (("roc", roc), ("pr", pr))
    }
