"""Two evaluations side by side in every task that can be judged from predictions and manifest alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from vol3d.evaluation.intervals import paired_bootstrap

if TYPE_CHECKING:
    from vol3d.data.study import Study

Rows = Mapping[str, Mapping[str, Any]]


def compare_answers(
    studies: Sequence[Study], first: Rows, second: Rows, *, replicates: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Closed questions that both models answered: difference of accuracy, and on how many questions each wins.

    The questions are those the first model was asked; the truth is the manifest's answer, or none.
    """
    right: list[tuple[float, float]] = []
    patients = []
    for study in studies:
        truth = {row["question"]: row for row in study.questions if row.get("choices")}
        said = [
            {row["question"]: row["answer"] for row in rows[study.study].get("answers") or []}
            for rows in (first, second)
        ]
        for question, row in truth.items():
            if question in said[0] and question in said[1]:
                right.append(tuple(float(one[question] == row["answer"]) for one in said))  # type: ignore[arg-type]
                patients.append(study.patient)
    if not right:
        return {}
    return {"accuracy": _difference(np.array(right), patients, replicates, seed)} | _counts(np.array(right))


def compare_codes(
    studies: Sequence[Study], first: Rows, second: Rows, *, replicates: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Codes that both predict and the manifest names as they are: difference of macro AUROC, of mean Brier score
    (lower is better), wins by study on the Brier score.

    Codes that the manifest has in another system are not mapped; then there is nothing to compare.
    """
    known = [study for study in studies if first[study.study].get("codes") and second[study.study].get("codes")]
    if not known:
        return {}
    both = set(first[known[0].study]["codes"]) & set(second[known[0].study]["codes"])
    codes = sorted(both & {code for study in known for code in (*study.codes, *study.codes_absent)})
    if not codes:
        return {}
    truth = np.array([[1.0 if c in s.codes else 0.0 if c in s.codes_absent else np.nan for c in codes] for s in known])
    said = [np.array([[rows[s.study]["codes"][c] for c in codes] for s in known]) for rows in (first, second)]
    patients = [study.patient for study in known]
    briers = np.stack([np.nanmean((one - truth) ** 2, axis=1) for one in said], axis=1)
    ranked = [partial(_macro_auroc, one, truth) for one in said]
    auroc = paired_bootstrap(ranked[0], ranked[1], patients, replicates=replicates, seed=seed)[0]
    keep = np.isfinite(briers).all(1)
    return {
        "macro_auroc": auroc,
        "brier": _difference(
            briers[keep], [p for p, known in zip(patients, keep, strict=True) if known], replicates, seed
        ),
    } | _counts(-briers[keep])


def _difference(pairs: ndarray, patients: Sequence[Any], replicates: int, seed: int) -> dict[str, Any]:
    def mean(column: int) -> Any:
        return lambda weights: weights @ pairs[:, column] / weights.sum(1)

    return paired_bootstrap(mean(0), mean(1), patients, replicates=replicates, seed=seed)[0] | {
        "first": float(pairs[:, 0].mean()),
        "second": float(pairs[:, 1].mean()),
    }


def _counts(pairs: ndarray) -> dict[str, int]:
    return {
        "wins": int((pairs[:, 0] > pairs[:, 1]).sum()),
        "ties": int((pairs[:, 0] == pairs[:, 1]).sum()),
        "losses": int((pairs[:, 0] < pairs[:, 1]).sum()),
    }


def _macro_auroc(said: ndarray, truth: ndarray, weights: ndarray) -> ndarray:
    """Mean over codes of the weighted share of (positive, negative) pairs in the right order; a tie counts half."""
    values = []
    for score, known in zip(said.T, truth.T, strict=True):
        positive, negative = known == 1, known == 0
        order = (score[positive][:, None] > score[negative]) + 0.5 * (score[positive][:, None] == score[negative])
        up, down = weights[:, positive], weights[:, negative]
        total = up.sum(1) * down.sum(1)
        hits = np.einsum("rp,pn,rn->r", up, order, down, optimize=True)
        values.append(np.divide(hits, total, out=np.full(len(weights), np.nan), where=total > 0))
    table = np.stack(values)
    known = np.isfinite(table)
    return np.divide(
        np.where(known, table, 0).sum(0), known.sum(0), out=np.full(len(weights), np.nan), where=known.any(0)
    )
