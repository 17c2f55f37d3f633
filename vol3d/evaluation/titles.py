"""How the pages name scores and write numbers."""

from __future__ import annotations

import math
import re

TITLES = {
    "finding_f1": "Finding F1",
    "finding_precision": "Precision",
    "finding_recall": "Recall",
    "finding_f1_micro": "Finding F1, micro",
    "finding_precision_micro": "Precision, micro",
    "finding_recall_micro": "Recall, micro",
    "laterality_accuracy": "Side correct",
    "exact_match": "All findings right",
    "macro_f1": "Macro F1",
    "classes": "Findings scored",
    "m3d_bleu": "BLEU-1, M3D",
    "rouge_l": "ROUGE-L",
    "changed": "Changed finding changes",
    "unchanged": "Nothing else changes",
    "both": "Both at once",
    "sb": "Stubborn",
    "ig": "Ignorant",
    "id": "Indecisive",
    "image_dependence": "Dependence on the image",
    "prior_mentions": "Compares with an exam that is not there",
    "blank": "Findings are gone from an empty volume",
    "blank_claims": "Reports findings of an empty volume",
    "mirror": "Sides turn with the mirror",
    "erase": "Erased finding is gone",
    "same_findings": "Same findings",
    "f1_change": "Change of F1",
    "shift_hu": "HU shift",
    "hd95_mm": "HD95 (mm)",
    "volume_error_ml": "Volume error (ml)",
    "size_error_mm": "Size error (mm)",
    "certainty_accuracy": "Certainty right",
    "nsd": "NSD",
    "organ_dice": "Dice, organs",
    "finding_dice": "Dice, findings",
    "m3d_soft_dice": "Soft Dice, M3D",
    "organ_m3d_soft_dice": "Soft Dice, organs, M3D",
    "finding_m3d_soft_dice": "Soft Dice, findings, M3D",
    "present_found": "Drawn where it is there",
    "absent_silent": "Nothing where it is not",
    "found@0.25": "IoU of at least 0.25",
    "found@0.5": "IoU of at least 0.5",
    "m3d_hull_iou": "Hull IoU, M3D",
    "region_accuracy": "Content of a box named",
    "region_m3d_bleu": "Names of boxes, BLEU-1, M3D",
    "region_rouge_1": "Names of boxes, ROUGE-1",
    "m3d_substring_accuracy": "Substring accuracy, M3D",
    "token_f1": "F1 of words",
    "c_index": "C-index",
    "c_index_ipcw": "C-index, Uno's",
    "mrr": "MRR",
    "shuffled": "Another patient's volume changes it",
    "claim": "Keeps to the image against the prompt",
    "confusable": "Tells look-alike studies apart",
    "same_answers": "Same answers",
    "same_codes": "Same codes",
    "thick_slices": "Thick slices",
    "contrast_phase": "Other contrast phase",
}
TASKS = {
    "report": "Report",
    "retrieval": "Retrieval",
    "codes": "Codes",
    "segmentation": "Segmentation",
    "vqa_closed": "Closed questions",
    "vqa_open": "Open questions",
    "grounding": "Grounding",
    "outcomes": "Outcomes",
    "zero_shot": "Zero-shot findings",
    "regions": "Findings by organ",
    "structured": "Structured report",
    "masked_volume": "Hidden voxels",
    "vqa": "Questions",
}
LOWER_IS_BETTER = {
    *("sb", "ig", "id", "prior_mentions", "blank_claims", "hd95_mm", "volume_error_ml", "ece", "brier"),
    *("size_error_mm", "error"),
}


def format_score(value: float | int | None, digits: int = 2) -> str:
    """Two decimals, as a radiologist would say it; "–" for what is not known; enough digits for big numbers."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:,.0f}"


def format_p(p: float) -> str:
    """A p-value to three digits; one that would round to nothing is told by its bound."""
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"


def title_of(name: str, task: str = "") -> str:
    """A metric's name as the page shows it ("recall@1" → "R@1"), of a block of evaluation.json where it tells more."""
    if name == "exact_match" and task.startswith("vqa"):
        return "Exact match"
    if name in TITLES:
        return TITLES[name]
    if name.startswith("text_to_image "):
        return f"{title_of(name.removeprefix('text_to_image '))}, text to image"
    text = name.replace("_", " ").replace("recall@", "R@")
    for short in ("bleu", "rouge", "auroc", "auprc", "auc", "iou", "ece", "m3d"):
        text = re.sub(rf"\b{short}\b", short.upper(), text)
    text = text.replace("IOU", "IoU")
    text = re.sub(r"\b(BLEU|ROUGE) (\w)\b", r"\1-\2", text)
    return text[:1].upper() + text[1:]
