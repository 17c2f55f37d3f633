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
    """Worst, median, best and random studies with three slices each, through the truth's findings where masked."""
    from vol3d.text.parser import finding_keys

    truths = [set(finding_keys(study.report)) for study in studies]
    outputs = [set(finding_keys(predictions[study.study]["report"])) for study in studies]
    return [
        _case(trained, studies[index], predictions[studies[index].study]["report"], truths[index], outputs[index], note)
        for index, note in choose_cases(truths, outputs, count=count)
    ]


def _case(
    trained: TrainedModel, study: Study, generated: str, truth_keys: set[str], predicted_keys: set[str], note: str
) -> Case:
    sample = trained.sample(study)
    hu = sample.hu[0].numpy()
    spacing = tuple(float(length) for length in np.linalg.norm(sample.affine.numpy()[:3, :3], axis=0))
    window = window_for(truth_keys | predicted_keys)
    mask = None if sample.finding_mask is None else _largest(sample.finding_mask.numpy())
    return Case(
        study=study.study,
        slices=slices(hu, spacing, WINDOWS[window], at=mask),
        truth=study.report or "",
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
