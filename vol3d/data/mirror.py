"""The mirrored study: a row's words, label names, boxes and questions turned as its voxels were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vol3d.data.boxes import mirror_box
from vol3d.data.study import TEXTS, Study
from vol3d.text.lexicon import swap_sides


def names_a_side(study: Study) -> bool:
    """Whether a code of the study may tell left from right: ICD-10-CM codes do (C34.11 and C34.12), others do not."""
    from vol3d.text.ontology import FINDINGS

    sideless = {kind.icd10cm for kind in FINDINGS.values()}
    return study.code_system == "icd10cm" and not sideless.issuperset([*study.codes, *study.codes_absent])


def mirror_study(study: Study, affine: NDArray[np.float64], width: int) -> Study:
    """The row of a study whose voxels were flipped along x: texts, the earlier report among them, label names, boxes
    and questions turned with it.

    Args:
        affine: (4, 4) voxel index → RAS mm of the grid that was flipped.
        width: its voxels along x.
    """
    changes: dict[str, Any] = {name: swap_sides(text) for name in TEXTS if (text := vars(study)[name])}
    for name in ("labels_known", "mask_labels", "finding_labels"):
        changes[name] = {swap_sides(key): value for key, value in getattr(study, name).items()}
    changes["boxes"] = [_mirror_box(box, affine, width) for box in study.boxes]
    changes["questions"] = [_mirror_texts(question) for question in study.questions]
    if earlier := study.meta.get("prior_report"):
        changes["meta"] = {**study.meta, "prior_report": swap_sides(earlier)}
    return replace(study, **changes)


def _mirror_texts(question: Mapping[str, Any]) -> dict[str, Any]:
    swap: Callable[[Any], Any] = lambda value: swap_sides(value) if isinstance(value, str) else value  # noqa: E731
    return {
        name: [swap(item) for item in value] if isinstance(value, list) else value if name == "kind" else swap(value)
        for name, value in question.items()
    }


def _mirror_box(box: Mapping[str, Any], affine: NDArray[np.float64], width: int) -> dict[str, Any]:
    low, high = mirror_box(box, affine, width)
    return {**box, "label": swap_sides(box["label"]), "min_mm": low, "max_mm": high}
