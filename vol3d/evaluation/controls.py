"""Would a model that ignores the image score the same? Every probe stands beside a control that it cannot tell apart.

A probe shows a changed volume and asks for a reaction; no fixed bound tells whether a score shows that the model looks.
One that samples reports from training "reacts" to everything: a finding it names once is gone the next time in most
cases. So each score is taken twice, of the volume that the probe shows and of a control volume, with nothing else
changed. A model that ignores the image has the same chance of the reaction to both, whatever it does: always the same
text, always normal, sampled. The difference of the two scores is then 0 on average, by construction, and a paired
bootstrap of patients asks whether it is.

Where the output must change, the control is the same volume once more; where it must stay, the volume of another
patient.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy import ndarray

from vol3d.evaluation.intervals import Statistic, paired_bootstrap, share

CHANCE = 0.01
"""A model that ignores the image escapes one probe once in two hundred times."""
FEWEST = math.ceil(math.log2(2 / CHANCE))
"""Patients without whom no score could lie below `CHANCE`, even if all of them agreed."""
NOT_APPLICABLE = "not applicable: "

DEFINITIONS = {
    "over_control": "the score minus the same score of a control volume: the unchanged volume shown once more where "
    "the output must change, another patient's where it must stay. A model that ignores the image has 0, by "
    "construction",
    "caught": "probes in which the model shows no sign of looking: the score does not lie above that of the control "
    f"(paired bootstrap of patients, p < {CHANCE}), or the model never says what the probe could change",
}


def against_control(
    hits: Sequence[float | int] | ndarray,
    control: Sequence[float | int] | ndarray,
    totals: Sequence[float | int] | ndarray,
    patients: Sequence[Hashable],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Σ hits / Σ totals with its interval, "control", Σ control / Σ totals, and "over_control", their difference with
    interval and p.

    Where all patients with a difference agree on its sign, p is at least that of the sign test, so that three patients
    who agree prove nothing; and it is just that where the draws have no spread. Of fewer than `FEWEST` patients a note
    says that they cannot tell.
    """
    hits, control, totals = (np.asarray(values, dtype=np.float64) for values in (hits, control, totals))
    score = share(hits, totals, patients, replicates=replicates, seed=seed)
    if score["value"] is None:
        return score

    def ratio(values: ndarray) -> Statistic:
        def statistic(weights: ndarray) -> ndarray:
            counted = weights @ totals
            return np.divide(weights @ values, counted, out=np.full(len(weights), np.nan), where=counted > 0)

        return statistic

    over = paired_bootstrap(ratio(hits), ratio(control), patients, replicates=max(1000, replicates), seed=seed)[0]
    if over.get("p") is not None:
        agreed = _sign_test(hits - control, patients)
        over["p"] = agreed if over["low"] == over["high"] else max(over["p"], agreed)
    score |= {"control": float(control.sum() / totals.sum()), "over_control": over}
    shown = len({patient for patient, total in zip(patients, totals, strict=True) if total > 0})
    if shown < FEWEST:
        score["note"] = f"{NOT_APPLICABLE}too few patients to tell ({shown}, {FEWEST} could)"
    return score


def _sign_test(gaps: ndarray, patients: Sequence[Hashable]) -> float:
    """Two-sided p of the sign test over patients where all signs are equal, 0 where they are not, 1 without any."""
    sums: dict[Hashable, float] = {}
    for patient, gap in zip(patients, gaps.tolist(), strict=True):
        sums[patient] = sums.get(patient, 0.0) + gap
    signs = {gap > 0 for gap in sums.values() if gap}
    count = sum(gap != 0 for gap in sums.values())
    return 0.0 if len(signs) > 1 else min(1.0, 2 * 0.5**count)


def verdict(score: Mapping[str, Any]) -> Literal["looks", "caught", "not judged"]:
    """What a probe's score says of the model."""
    if (score.get("note") or "").startswith(NOT_APPLICABLE):
        return "not judged"
    if score["value"] is None:
        return "caught"
    over = score["over_control"]
    if over.get("p") is None:
        return "not judged"
    return "looks" if over["value"] > 0 and over["p"] < CHANCE else "caught"
