"""The one score of each task by which models, groups and changed volumes are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADLINES = {
    "report": "finding_f1",
    "findings": "finding_f1",
    "impression": "finding_f1",
    "structured": "finding_f1",
    "vqa_closed": "accuracy",
    "vqa_open": "token_f1",
    "codes": "macro_auroc",
    "outcomes": "c_index",
    "retrieval": "recall@1",
    "zero_shot": "macro_auroc",
    "regions": "macro_auroc",
    "masked_volume": "error",
    "segmentation": "dice",
    "grounding": "iou",
}


def is_score(value: object) -> bool:
    """Whether a value of evaluation.json is a score with its interval."""
    return isinstance(value, Mapping) and "value" in value


def headline_of(task: str, block: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], float | None] | None:
    """Name, score and blind baseline of the task's headline; the first score of a task that is not known here."""
    name = HEADLINES.get(task, "")
    if not is_score(block.get(name)):
        name = next((key for key, value in block.items() if is_score(value)), "")
    if not name:
        return None
    blind = ((block.get("baselines") or {}).get("blind") or {}).get(name)
    return name, block[name], blind["value"] if isinstance(blind, Mapping) else blind
