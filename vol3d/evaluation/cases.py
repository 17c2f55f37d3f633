"""The studies shown on the page, cut through what was found or drawn, and the loss history of the run."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vol3d.data.study import TEXTS
from vol3d.evaluation.case import Case, choose_cases
from vol3d.evaluation.slices import WINDOWS, mask_slices, slices, window_for
from vol3d.volume.runs import decode_runs

if TYPE_CHECKING:
    from vol3d.data.batch import Sample
    from vol3d.data.study import Study
    from vol3d.model.inference import TrainedModel

MOST_DRAWN = 100
"""Studies whose masks are read to find the best and the worst, where no text tells."""


def show_cases(
    trained: TrainedModel, studies: Sequence[Study], predictions: Mapping[str, Mapping[str, Any]], count: int = 8
) -> list[Case]:
    """Worst, median, best and random studies with three slices each, through the truth's findings where masked.

    Reports or parts of them are shown where the model writes them, else their findings, its answers, its codes, its
    masks, its boxes.
    """
    told = [
        (study, *texts) for study in studies if (texts := _texts(trained, study, predictions[study.study])) is not None
    ]
    scores = None
    if not told:
        told, scores = _masked(trained, studies, predictions)
    truths, outputs = ([row[place] for row in told] for place in (3, 4))
    chosen = choose_cases(truths, outputs, count=count, scores=scores)
    return [_case(trained, *told[index], predictions[told[index][0].study], note) for index, note in chosen]


Texts = tuple[str, str, set[str], set[str]]
"""Truth and output as text, and what either says, as keys that can be told apart."""


def _texts(trained: TrainedModel, study: Study, row: Mapping[str, Any]) -> Texts | None:
    from vol3d.evaluation.metrics.structured import key_of
    from vol3d.text.parser import finding_keys
    from vol3d.text.structured import in_words, structured

    if field := written(row):
        texts = getattr(study, field) or "", row[field]
        return None if not texts[0] else (*texts, *(set(finding_keys(text)) for text in texts))
    kinds = {task.kind: task for task in trained.tasks.values()}
    if isinstance(row.get("structured"), list) and study.report and "structured" in kinds:
        rows = structured(study.report, kinds["structured"].findings), row["structured"]
        texts = ["\n".join(map(in_words, found)) or "no finding" for found in rows]
        return texts[0], texts[1], *({key_of(finding) for finding in found} for found in rows)
    if row.get("answers") and "vqa" in kinds:
        asked: Any = kinds["vqa"]
        pairs = asked.answered(study, row)
        sides = [
            [f"{question['question']} {answer}" for (question, _), answer in zip(pairs, answers, strict=True)]
            for answers in ([q["answer"] for q, _ in pairs], [a["answer"] for _, a in pairs])
        ]
        return "\n".join(sides[0]), "\n".join(sides[1]), set(sides[0]), set(sides[1])
    if row.get("codes") and "codes" in kinds and kinds["codes"].labelled(study):
        judged: Any = kinds["codes"]  # its truth: mapped to its system, with the codes above and below
        known = {code: label for code, label in zip(judged.codes, judged.truth(study), strict=True) if label in (0, 1)}
        true = [code for code, label in known.items() if label]
        said = sorted((code for code, p in row["codes"].items() if p >= 0.5), key=lambda code: -row["codes"][code])
        shown = "\n".join(f"{code}: {row['codes'][code]:.2f}" for code in said)
        return "\n".join(true) or "no code", shown or "no code", set(true), set(said) & known.keys()
    if row.get("boxes") and not row.get("segmentation"):
        shown = [(box["label"], box) for box in row["boxes"] if box["score"] >= 0.5]
        texts = [
            "\n".join(f"{name}: {_corners(box)}" for name, box in boxes)
            for boxes in ([(box["label"], box) for box in study.boxes], shown)
        ]
        asked = {box["label"] for box in row["boxes"]}
        return texts[0] or "nothing", texts[1] or "nothing", {b["label"] for b in study.boxes} & asked, set(dict(shown))
    return None


def written(row: Mapping[str, Any]) -> str | None:
    """The field of a row that holds the text a model wrote, the whole report before its parts."""
    return next((name for name in TEXTS if isinstance(row.get(name), str)), None)


def _corners(box: Mapping[str, Any]) -> str:
    low, high = ([round(value) for value in box[end]] for end in ("min_mm", "max_mm"))
    return " × ".join(f"{a} to {b}" for a, b in zip(low, high, strict=True)) + " mm"


def _masked(
    trained: TrainedModel, studies: Sequence[Study], predictions: Mapping[str, Mapping[str, Any]]
) -> tuple[list[tuple[Study, str, str, set[str], set[str]]], list[float]]:
    """Studies of a model that draws and does not write, told by the volumes of what is drawn, and their mean Dice."""
    told, scores = [], []
    for study in studies[:MOST_DRAWN]:
        said = predictions[study.study].get("segmentation")
        if not said or not (study.mask or study.finding_mask):
            continue
        sample = trained.sample(study)
        masks = _masks(sample)
        voxel_ml = abs(float(np.linalg.det(sample.affine.numpy()[:3, :3]))) / 1000
        drawn = {name: decode_runs(row["runs"], tuple(sample.hu.shape[1:])) for name, row in said.items()}
        sizes = [
            {name: mask.sum() * voxel_ml for name, mask in group.items() if mask.any()} for group in (masks, drawn)
        ]
        texts = ["\n".join(f"{name}: {size:.0f} ml" for name, size in sorted(group.items())) for group in sizes]
        told.append((study, texts[0], texts[1] or "nothing", set(sizes[0]) & set(said), set(sizes[1])))
        scores.append(float(np.mean([_dice(masks[name], drawn[name]) for name in set(sizes[0]) & set(said)] or [0.0])))
    return told, scores


def _case(
    trained: TrainedModel,
    study: Study,
    truth: str,
    generated: str,
    truth_keys: set[str],
    predicted_keys: set[str],
    row: Mapping[str, Any],
    note: str,
) -> Case:
    sample = trained.sample(study)
    spacing = tuple(float(length) for length in np.linalg.norm(sample.affine.numpy()[:3, :3], axis=0))
    name, true, said = _outlined(sample, row)
    field = written(row)
    window = window_for({name} if name else truth_keys | predicted_keys)
    at = next((mask for mask in (true, said) if mask is not None), None)
    alike = f", Dice {_dice(true, said):.2f}" if true is not None and said is not None else ""
    return Case(
        study=study.study,
        slices=slices(sample.hu[0].numpy(), spacing, WINDOWS[window], at=at),
        truth=truth,
        generated=generated,
        truth_keys=truth_keys,
        predicted_keys=predicted_keys,
        heads=(f"TRUE {field.upper()}", f"GENERATED {field.upper()}") if field else ("TRUTH", "OUTPUT"),
        overlays=None if true is None else mask_slices(true, spacing, at=at),
        predicted_overlays=None if said is None else mask_slices(said, spacing, at=at),
        outlined=f"{name}{alike}" if name else "",
        note=note,
        window=window,
        meta={name: study.meta[name] for name in ("age", "sex", "contrast") if name in study.meta},
    )


def _outlined(sample: Sample, row: Mapping[str, Any]) -> tuple[str, np.ndarray | None, np.ndarray | None]:
    """Name, true and predicted mask of what is outlined: the largest finding there is, else what the model drew of the
    largest organ; a predicted box where no mask was drawn."""
    shape = tuple(sample.hu.shape[1:])
    drawn = {name: decode_runs(found["runs"], shape) for name, found in (row.get("segmentation") or {}).items()}
    boxes = {box["label"]: box for box in row.get("boxes") or [] if box["score"] >= 0.5}
    drawn |= {name: _box_mask(box, sample) for name, box in boxes.items() if name not in drawn}
    drawn = {name: mask for name, mask in drawn.items() if mask.any()}
    masks = _masks(sample)
    findings = {name: masks[name] for name in sample.study.finding_labels if name in masks and masks[name].any()}
    shown = findings or {name: mask for name, mask in masks.items() if name in drawn and mask.any()} or drawn
    if not shown:
        return "", None, None
    # What the model drew comes first: there is something to compare.
    name = max(shown, key=lambda name: (name in drawn, int(shown[name].sum())))
    return name, masks[name] if name in masks and masks[name].any() else None, drawn.get(name)


def _masks(sample: Sample) -> dict[str, np.ndarray]:
    """Everything that the study's label maps name, as boolean masks on the grid."""
    found = {}
    for labels, names in ((sample.mask, sample.study.mask_labels), (sample.finding_mask, sample.study.finding_labels)):
        if labels is not None:
            array = labels.numpy()
            found |= {name: array == number for name, number in names.items()}
    return found


def _box_mask(box: Mapping[str, Any], sample: Sample) -> np.ndarray:
    """The voxels inside a box in RAS mm."""
    corners = np.array([box["min_mm"], box["max_mm"]])
    inverse = np.linalg.inv(sample.affine.numpy())
    low, high = np.sort(corners @ inverse[:3, :3].T + inverse[:3, 3], axis=0)
    mask = np.zeros(tuple(sample.hu.shape[1:]), dtype=bool)
    mask[tuple(slice(max(0, round(a + 0.5)), max(0, round(b + 0.5))) for a, b in zip(low, high, strict=True))] = True
    return mask


def _dice(one: np.ndarray, two: np.ndarray) -> float:
    return 2 * int((one & two).sum()) / max(1, int(one.sum()) + int(two.sum()))


def read_history(path: str | Path | None) -> list[dict[str, Any]] | None:
    """Rows of a run's metrics.csv, None when there is no such file."""
    if path is None or not Path(path).is_file():
        return None
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
