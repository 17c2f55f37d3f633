"""Two models' masks and boxes on the same studies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vol3d.evaluation.sides import Block, Rows, Sides, counts

if TYPE_CHECKING:
    from vol3d.data.batch import Sample


def compare_masks(sides: Sides) -> Block:
    """Masks of the same prompts, each side on its own grid; wins by a mask's Dice. What is absent is left out."""
    if sides.samples is None:
        return {}
    scores, patients = [], []
    for study in sides.both("segmentation", dict):
        if not (study.mask or study.finding_mask):
            continue
        dice = [_dice_of(sample(study), rows) for sample, rows in zip(sides.samples, sides.rows, strict=True)]
        for name in sorted(dice[0].keys() & dice[1].keys()):
            scores.append((dice[0][name], dice[1][name]))
            patients.append(study.patient)
    pairs = np.array(scores, dtype=np.float64).reshape(-1, 2)
    return sides.means("dice", pairs, patients) | counts(pairs, "masks") if len(pairs) else {}


def _dice_of(sample: Sample, rows: Rows) -> dict[str, float]:
    """Dice of each predicted label that is there in truth."""
    from vol3d.model.asking import truths_of
    from vol3d.volume.runs import decode_runs

    said = rows[sample.study.study]["segmentation"]
    found = {}
    for ask, truth, _ in truths_of(sample):
        if ask.present and ask.name in said:
            mask = decode_runs(said[ask.name]["runs"], truth.shape)
            found[ask.name] = 2 * int((mask & truth).sum()) / (int(mask.sum()) + int(truth.sum()))
    return found


def compare_boxes(sides: Sides) -> Block:
    """Boxes of the same phrases that are there, and names of the same boxes; wins by a phrase's IoU."""
    from vol3d.evaluation.metrics.boxes import box_iou, m3d_hull_iou
    from vol3d.model.box_prompts import hulls

    names = sides.shared("Grounding", "names")
    pairs, named, whose, whose_named = [], [], [], []
    for study in sides.both("boxes", list):
        given = [{box["label"]: box for box in rows[study.study]["boxes"]} for rows in sides.rows]
        for name, truth in hulls(study.boxes).items():
            if all(name in side for side in given):
                shown = [[*s[name]["min_mm"], *s[name]["max_mm"]] if s[name]["score"] >= 0.5 else None for s in given]
                iou = [0.0 if box is None else box_iou(box, truth) for box in shown]
                pairs.append(iou + [-1.0 if box is None else m3d_hull_iou(box, truth) for box in shown])
                whose.append(study.patient)
        named_by = [rows[study.study].get("box_names") or [] for rows in sides.rows]
        for box, *said in zip(study.boxes, *named_by, strict=False):
            if names is not None and box["label"] not in names:
                continue  # neither could have named it, nor does its own evaluation ask
            named.append([float(answer["answer"] == box["label"]) for answer in said])
            whose_named.append(study.patient)
    block: Block = {}
    if pairs:
        table = np.array(pairs)
        block = sides.means("iou", table[:, :2], whose) | sides.means("m3d_hull_iou", table[:, 2:], whose)
        block |= counts(table[:, :2], "phrases")
    if named:
        block |= sides.means("region_accuracy", np.array(named), whose_named)
        block = block if pairs else block | counts(np.array(named), "boxes")
    return block
