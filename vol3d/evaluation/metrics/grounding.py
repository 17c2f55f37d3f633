"""Boxes from phrases and names from boxes, beside what the wrong scan scores."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from vol3d.evaluation.intervals import share, undefined
from vol3d.evaluation.metrics.boxes import DEFINITIONS as BOX_DEFINITIONS
from vol3d.evaluation.metrics.boxes import score_boxes
from vol3d.evaluation.metrics.text import score_text

DEFINITIONS = {
    "region_accuracy": "share of boxes whose content is named rightly",
    "region_m3d_bleu": "M3D-Bench's BLEU-1 of the names, mean over boxes (region_rouge_1 likewise)",
    "absent_silent": "share of phrases for what is known to be absent (labels_known says 0) that are answered by no "
    "box (score below 0.5)",
}
Boxes = Mapping[str, Sequence[float | int]]


def score_grounding(
    truths: Sequence[Boxes],
    regions: Sequence[Sequence[Mapping[str, Any]]],
    predictions: Sequence[Mapping[str, Any]],
    patients: Sequence[Hashable],
    names: Collection[str],
    *,
    absent: Sequence[Collection[str]],
    blind: Sequence[Mapping[str, Any]] | None = None,
    threshold: float = 0.5,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """`score_boxes` over the phrases whose thing is there, and DEFINITIONS' scores.

    Args:
        truths: label → box (x1, y1, z1, x2, y2, z2) in RAS mm, one mapping a study.
        regions: the study's boxes with their "label", in the order of the prediction's "box_names".
        absent: labels that are known not to be there, one collection a study; any other without a box is unknown.
        names: labels that can be answered; a region of another label is not scored.
        predictions: {"boxes": [{"label", "min_mm", "max_mm", "score"}], "box_names": [{"answer"}]}.
        blind: the same for another patient's volume.
        threshold: a box with a lower score is not given.
    """
    options = {"replicates": replicates, "seed": seed}
    pairs = _pair(truths, predictions, threshold)
    who = [patients[study] for study, _, _ in pairs]
    result: dict[str, Any] = score_boxes([t for _, t, _ in pairs], [p for _, _, p in pairs], who, **options)
    right = [(study, r) for study, values in enumerate(_right(regions, predictions, names)) for r in values]
    result["region_accuracy"] = _share(right, patients, options)
    result |= _wording(regions, predictions, patients, names, options)
    result["absent_silent"] = _share(_silent(absent, predictions, threshold), patients, options)
    if blind is not None:
        pairs = _pair(truths, blind, threshold)
        dealt = score_boxes([t for _, t, _ in pairs], [p for _, _, p in pairs], who, replicates=2, seed=seed)
        named = [r for values in _right(regions, blind, names) for r in values]
        silent = [value for _, value in _silent(absent, blind, threshold)]
        dealt |= _wording(regions, blind, patients, names, {"replicates": 2, "seed": seed})
        shares = {"region_accuracy": named, "absent_silent": silent}
        result["baselines"] = {
            "blind": {name: value["value"] for name, value in dealt.items()}
            | {name: float(np.mean(values)) if values else None for name, values in shares.items()}
        }
    return result | {"definitions": BOX_DEFINITIONS | DEFINITIONS}


def _pair(
    truths: Sequence[Boxes], predictions: Sequence[Mapping[str, Any]], threshold: float
) -> list[tuple[int, list[float | int], list[float | int] | None]]:
    pairs = []
    for study, (boxes, prediction) in enumerate(zip(truths, predictions, strict=True)):
        given = {box["label"]: box for box in prediction["boxes"] if box["score"] >= threshold}
        for label, truth in boxes.items():
            box = given.get(label)
            pairs.append((study, list(truth), None if box is None else [*box["min_mm"], *box["max_mm"]]))
    return pairs


def _silent(
    absent: Sequence[Collection[str]], predictions: Sequence[Mapping[str, Any]], threshold: float
) -> list[tuple[int, float]]:
    return [
        (study, float(box["score"] < threshold))
        for study, (labels, prediction) in enumerate(zip(absent, predictions, strict=True))
        for box in prediction["boxes"]
        if box["label"] in labels
    ]


def _right(
    regions: Sequence[Sequence[Mapping[str, Any]]],
    predictions: Sequence[Mapping[str, Any]],
    names: Collection[str],
) -> list[list[float]]:
    pairs = [zip(boxes, row["box_names"], strict=True) for boxes, row in zip(regions, predictions, strict=True)]
    return [[float(box["label"] == said["answer"]) for box, said in row if box["label"] in names] for row in pairs]


def _wording(
    regions: Sequence[Sequence[Mapping[str, Any]]],
    predictions: Sequence[Mapping[str, Any]],
    patients: Sequence[Hashable],
    names: Collection[str],
    options: dict[str, int],
) -> dict[str, Any]:
    """How alike the names given to boxes are to the true ones, as M3D-Bench judges generated expressions."""
    rows = [
        (box["label"], said["answer"], patient)
        for boxes, row, patient in zip(regions, predictions, patients, strict=True)
        for box, said in zip(boxes, row["box_names"], strict=True)
        if box["label"] in names
    ]
    if not rows:
        return {}
    truths, said, who = zip(*rows, strict=True)
    scores = score_text(truths, said, who, **options)
    return {f"region_{name}": scores[name] for name in ("m3d_bleu", "rouge_1")}


def _share(
    values: Sequence[tuple[int, float]], patients: Sequence[Hashable], options: dict[str, int]
) -> dict[str, Any]:
    if not values:
        return undefined("nothing of the kind was asked")
    hits = np.array([value for _, value in values])
    return share(hits, np.ones(len(hits)), [patients[study] for study, _ in values], **options)
