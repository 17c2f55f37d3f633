"""Every task's comparison, by its block in evaluation.json; each judges by the manifest alone."""

from __future__ import annotations

from collections.abc import Callable

from vol3d.evaluation.compare_numbers import (
    compare_codes,
    compare_labels,
    compare_outcomes,
    compare_reconstruction,
    compare_retrieval,
)
from vol3d.evaluation.compare_places import compare_boxes, compare_masks
from vol3d.evaluation.compare_words import compare_closed, compare_open, compare_structured, compare_texts
from vol3d.evaluation.sides import Block, Sides

COMPARISONS: dict[str, Callable[[Sides], Block]] = {
    "report": compare_texts("report"),
    "findings": compare_texts("findings"),
    "impression": compare_texts("impression"),
    "structured": compare_structured,
    "vqa_closed": compare_closed,
    "vqa_open": compare_open,
    "retrieval": compare_retrieval,
    "zero_shot": compare_labels("zero_shot"),
    "regions": compare_labels("regions"),
    "codes": compare_codes,
    "outcomes": compare_outcomes,
    "segmentation": compare_masks,
    "grounding": compare_boxes,
    "masked_volume": compare_reconstruction,
}
"""Block of evaluation.json → its comparison."""
