"""Masks asked for by prompts: how well they lie, whether absent things stay unsaid, and what the wrong scan scores."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from vol3d.evaluation.intervals import share, undefined
from vol3d.evaluation.metrics.baselines import blind
from vol3d.evaluation.metrics.segmentation import DEFINITIONS as SEGMENTATION_DEFINITIONS
from vol3d.evaluation.metrics.segmentation import METRICS, mask_scores, mean_score, score_segmentation
from vol3d.types import Spacing

DEFINITIONS = {
    "organ_dice": "mean Dice over the organs that are there",
    "finding_dice": "mean Dice over the findings that are there",
    "organ_m3d_soft_dice": "M3D-Bench's soft Dice over the organs (finding_m3d_soft_dice: the findings), of the kept "
    "probabilities, which are in steps of 1/15",
    "absent_silent": "share of prompts for what is not there that are answered by an empty mask",
    "present_found": "share of prompts for what is there that are answered by any mask",
}


@dataclass(frozen=True)
class Asked:
    """One prompt with its truth.

    Args:
        label: what is asked for. finding: it is a finding, not an organ.
        truth: (x, y, z) bool. spacing: mm along x, y, z.
    """

    study: str
    label: str
    finding: bool
    truth: ndarray
    spacing: Spacing


def score_prompts(
    asked: Iterable[Asked],
    predicted: Callable[[str, str], ndarray | None],
    studies: Sequence[str],
    patients: Sequence[Hashable],
    *,
    probabilities: Callable[[str, str], ndarray | None] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """DEFINITIONS' scores and those of `score_segmentation` over the prompts whose truth is not empty.

    Args:
        predicted: (study, label) → its mask, None when it was not predicted.
        probabilities: (study, label) → of each voxel, for M3D-Bench's soft Dice; without them there is none.
        studies, patients: all that were predicted; "blind" scores another patient's masks of the same labels.

    Raises:
        ValueError: a prompt that was not predicted (study and label are named).
    """
    patient_of = dict(zip(studies, patients, strict=True))
    deal: dict[str, str] = {}
    if 2 * max(list(patients).count(patient) for patient in set(patients)) <= len(patients):
        deal = dict(zip(studies, blind(list(studies), patients, seed), strict=True))
    rows: list[dict[str, Any]] = []
    absent: list[dict[str, Any]] = []
    for ask in asked:
        mask = predicted(ask.study, ask.label)
        if mask is None:
            raise ValueError(
                f"study {ask.study!r}: {ask.label!r} is in its masks and was not predicted: give the task's `names` "
                "this label, or leave it out of the manifest"
            )
        other = predicted(deal[ask.study], ask.label) if deal else None
        other = None if other is None or other.shape != ask.truth.shape else other
        if not ask.truth.any():
            silent = {"silent": float(not mask.any()), "blind": None if other is None else float(not other.any())}
            absent.append(silent | {"patient": patient_of[ask.study]})
            continue
        soft = None if probabilities is None else probabilities(ask.study, ask.label)
        row: dict[str, Any] = _mask_scores(mask, ask, soft)
        if other is None:
            row["blind"] = None
        else:
            dealt = None if probabilities is None else probabilities(deal[ask.study], ask.label)
            row["blind"] = _mask_scores(other, ask, dealt) | {"finding": ask.finding}
        rows.append(row | {"label": ask.label, "finding": ask.finding, "study": ask.study})
    return _scores(rows, absent, [patient_of[row["study"]] for row in rows], {"replicates": replicates, "seed": seed})


_KINDS = {"": None, "organ_": False, "finding_": True}
"""Prefix of a score → whether it is of findings; None for all."""


def _mask_scores(mask: ndarray, ask: Asked, soft: ndarray | None) -> dict[str, Any]:
    scores = mask_scores(mask, ask.truth, ask.spacing, probabilities=soft) | {"found": float(mask.any())}
    return scores if soft is not None else scores | {"m3d_soft_dice": None}


def _scores(
    rows: list[dict[str, Any]], absent: list[dict[str, Any]], patients: list[Hashable], options: dict[str, int]
) -> dict[str, Any]:
    result = score_segmentation(rows, patients, **options) if rows else {}
    for kind, finding in _KINDS.items():
        some = [i for i, row in enumerate(rows) if finding is None or row["finding"] is finding]
        for metric in ("dice", "m3d_soft_dice"):
            known = [i for i in some if rows[i][metric] is not None]
            values, who = np.array([rows[i][metric] for i in known]), [patients[i] for i in known]
            why = "no such prompt" if metric == "dice" else "no probabilities were kept with the masks"
            result[kind + metric] = mean_score(values, who, share=True, **options) if known else undefined(why)
    found = np.array([row["found"] for row in rows])
    silent, others = np.array([row["silent"] for row in absent]), [row["patient"] for row in absent]
    result["present_found"] = share(found, np.ones(len(found)), patients, **options) if rows else undefined("no prompt")
    result["absent_silent"] = (
        share(silent, np.ones(len(silent)), others, **options) if absent else undefined("nothing absent was asked")
    )
    result["prompts"] = {"present": len(rows), "absent": len(absent)}
    return result | {
        "baselines": {"blind": _blind(rows, absent)},
        "definitions": SEGMENTATION_DEFINITIONS | DEFINITIONS,
    }


def _blind(rows: list[dict[str, Any]], absent: list[dict[str, Any]]) -> dict[str, float | None]:
    """What another patient's masks score, as far as they could be dealt."""
    dealt = [row["blind"] for row in rows if row["blind"] is not None]
    means = {name: _mean([row[name] for row in dealt]) for name in METRICS}
    for kind, finding in _KINDS.items():
        for name in ("dice", "m3d_soft_dice"):
            means[kind + name] = _mean([row[name] for row in dealt if finding in (None, row["finding"])])
    means["present_found"] = _mean([row["found"] for row in dealt])
    return means | {"absent_silent": _mean([row["blind"] for row in absent])}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
