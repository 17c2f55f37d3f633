"""Structured reports: findings with their sides, sizes in mm, and how sure the report is."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from vol3d.evaluation.intervals import share, undefined
from vol3d.evaluation.metrics import baselines
from vol3d.evaluation.metrics.findings import DEFINITIONS as FINDING_DEFINITIONS
from vol3d.evaluation.metrics.findings import score_findings
from vol3d.evaluation.metrics.segmentation import mean_score

DEFINITIONS = FINDING_DEFINITIONS | {
    "size_error_mm": "mean absolute difference of sizes, of findings that are right and measured in both",
    "certainty_accuracy": "share of findings that are right whose certainty is right too",
}
Rows = Sequence[Mapping[str, Any]]


def score_structured(
    truths: Sequence[Rows],
    predicted: Sequence[Rows],
    patients: Sequence[Hashable],
    *,
    blind: Sequence[Rows] | None = None,
    training: Sequence[Rows] = (),
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Finding scores by side and name, sizes and certainty, with 95 % patient-clustered intervals.

    Args:
        truths, predicted: one list of {finding, side, size_mm, certainty} a study.
        blind: what is written of another patient's volume; without it the predictions are dealt to other patients,
            which is the same where nothing but the volume was read.
        training: those of the training studies, for the text prior.

    Returns:
        the scores of `score_findings`, "size_error_mm", "certainty_accuracy", and "baselines" with their values.
    """
    result = _scores(truths, predicted, patients, replicates=replicates, seed=seed)
    sets = [{key_of(row): row for row in rows} for rows in training or truths]
    (common,) = baselines.key_prior([set(rows) for rows in sets], 1)
    told = (sorted(rows.values(), key=key_of) for rows in sets if rows.keys() == common)
    usual = json.loads(baselines.most_common(json.dumps(rows, sort_keys=True) for rows in told))
    result["baselines"] = {}
    try:
        dealt = baselines.blind(list(predicted), patients, seed) if blind is None else blind
        result["baselines"]["blind"] = _values(truths, dealt, patients)
    except ValueError as error:
        result["baselines"]["blind"] = {"finding_f1": None, "note": str(error)}
    for name, rows in (("always_normal", []), ("text_prior", usual)):
        result["baselines"][name] = _values(truths, [rows] * len(truths), patients)
    return result | {"definitions": DEFINITIONS}


def _scores(
    truths: Sequence[Rows], predicted: Sequence[Rows], patients: Sequence[Hashable], **options: int
) -> dict[str, Any]:
    wanted, said = ([{key_of(row): row for row in rows} for rows in group] for group in (truths, predicted))
    result = score_findings([set(rows) for rows in wanted], [set(rows) for rows in said], patients, **options)
    errors, whose, sure, sure_whose = [], [], [], []
    for one, two, patient in zip(wanted, said, patients, strict=True):
        for key in one.keys() & two.keys():
            sure.append(float(one[key]["certainty"] == two[key]["certainty"]))
            sure_whose.append(patient)
            sizes = one[key]["size_mm"], two[key]["size_mm"]
            if None not in sizes:
                errors.append(abs(sizes[0] - sizes[1]))
                whose.append(patient)
    nothing = undefined("no finding that is right is measured in both")
    result["size_error_mm"] = mean_score(np.array(errors, float), whose, **options) if errors else nothing
    result["certainty_accuracy"] = share(sure, np.ones(len(sure)), sure_whose, **options) if sure else nothing
    return result


def _values(truths: Sequence[Rows], said: Sequence[Rows], patients: Sequence[Hashable]) -> dict[str, Any]:
    scores = _scores(truths, said, patients, replicates=1)
    return {name: score["value"] for name, score in scores.items() if isinstance(score, dict) and "value" in score}


def key_of(row: Mapping[str, Any]) -> str:
    """The finding key of a row, as of parsed reports: side and name."""
    return f"{row['side']} {row['finding']}" if row["side"] else str(row["finding"])
