"""The studies shown on the page, cut through what was found, and the loss history of the run."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vol3d.evaluation.case import Case, choose_cases
from vol3d.evaluation.slices import WINDOWS, mask_slices, slices, window_for

if TYPE_CHECKING:
    from vol3d.data.study import Study
    from vol3d.model.inference import TrainedModel


def show_cases(
    trained: TrainedModel, studies: Sequence[Study], predictions: Mapping[str, Mapping[str, Any]], count: int = 8
) -> list[Case]:
    """Worst, median, best and random studies with three slices each, through the truth's findings where masked.

    Reports are shown where the model writes them, else its answers, else its codes.
    """
    told = [
        (study, *texts) for study in studies if (texts := _texts(trained, study, predictions[study.study])) is not None
    ]
    truths, outputs = ([row[place] for row in told] for place in (3, 4))
    return [_case(trained, *told[index], note) for index, note in choose_cases(truths, outputs, count=count)]


Texts = tuple[str, str, set[str], set[str]]
"""Truth and output as text, and what either says, as keys that can be told apart."""


def _texts(trained: TrainedModel, study: Study, row: Mapping[str, Any]) -> Texts | None:
    from vol3d.text.parser import finding_keys

    if isinstance(row.get("report"), str):
        texts = study.report, row["report"]
        return None if not study.report else (*texts, *(set(finding_keys(text)) for text in texts))
    kinds = {task.kind: task for task in trained.tasks.values()}
    if row.get("answers") and "vqa" in kinds:
        asked: Any = kinds["vqa"]
        pairs = list(zip(asked.questions(study), row["answers"], strict=False))
        sides = [
            [f"{question['question']} {answer}" for (question, _), answer in zip(pairs, answers, strict=True)]
            for answers in ([q["answer"] for q, _ in pairs], [a["answer"] for _, a in pairs])
        ]
        return "\n".join(sides[0]), "\n".join(sides[1]), set(sides[0]), set(sides[1])
    if row.get("codes") and (study.codes or study.codes_absent):
        said = sorted((code for code, p in row["codes"].items() if p >= 0.5), key=lambda code: -row["codes"][code])
        known = {*study.codes, *study.codes_absent}
        shown = "\n".join(f"{code}: {row['codes'][code]:.2f}" for code in said)
        return "\n".join(study.codes), shown or "no code", set(study.codes), set(said) & known or set(said)
    return None


def _case(
    trained: TrainedModel,
    study: Study,
    truth: str,
    generated: str,
    truth_keys: set[str],
    predicted_keys: set[str],
    note: str,
) -> Case:
    sample = trained.sample(study)
    hu = sample.hu[0].numpy()
    spacing = tuple(float(length) for length in np.linalg.norm(sample.affine.numpy()[:3, :3], axis=0))
    window = window_for(truth_keys | predicted_keys)
    mask = None if sample.finding_mask is None else _largest(sample.finding_mask.numpy())
    return Case(
        study=study.study,
        slices=slices(hu, spacing, WINDOWS[window], at=mask),
        truth=truth,
        generated=generated,
        truth_keys=truth_keys,
        predicted_keys=predicted_keys,
        overlays=None if mask is None else mask_slices(mask, spacing, at=mask),
        note=note,
        window=window,
        meta={name: study.meta[name] for name in ("age", "sex", "contrast") if name in study.meta},
    )


def _largest(labels: np.ndarray) -> np.ndarray | None:
    """The label with most voxels as a boolean mask."""
    counts = np.bincount(labels.clip(min=0).ravel())
    counts[0] = 0
    return labels == counts.argmax() if counts.any() else None


def read_history(path: str | Path | None) -> list[dict[str, Any]] | None:
    """Rows of a run's metrics.csv, None when there is no such file."""
    if path is None or not Path(path).is_file():
        return None
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
