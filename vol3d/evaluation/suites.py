"""M3D-Bench and Merlin's evaluation by name, from those datasets' own files.

Each of their tasks is answered by our blocks of the same question, with the peer's own definition beside ours where
they differ. A task that the model was not trained for, or whose files are not there, says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vol3d.data.formats import atomic
from vol3d.evaluation.suite_m3d import read_m3d_bench
from vol3d.evaluation.suite_merlin import read_merlin

if TYPE_CHECKING:
    from vol3d.model.inference import TrainedModel


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite: the block of evaluation.json that answers it, and the peer's own metrics in it."""

    block: str
    metrics: tuple[str, ...]


M3D_BENCH = {
    "image-text retrieval": SuiteTask("retrieval", ("recall@1", "recall@5", "recall@10", "by_pool")),
    "report generation": SuiteTask("report", ("m3d_bleu", "rouge_1", "meteor", "meteor_exact_stem", "bertscore_f1")),
    "closed VQA": SuiteTask("vqa_closed", ("m3d_substring_accuracy", "accuracy")),
    "open VQA": SuiteTask("vqa_open", ("m3d_bleu", "exact_match", "token_f1")),
    "referring expression comprehension": SuiteTask("grounding", ("m3d_hull_iou", "iou")),
    "referring expression generation": SuiteTask("grounding", ("region_m3d_bleu", "region_rouge_1", "region_accuracy")),
    "semantic segmentation": SuiteTask("segmentation", ("organ_m3d_soft_dice", "organ_dice")),
    "referring expression segmentation": SuiteTask("segmentation", ("finding_m3d_soft_dice", "finding_dice")),
}
MERLIN = {
    "zero-shot findings": SuiteTask("zero_shot", ("macro_f1", "macro_auroc")),
    "phenotypes": SuiteTask("codes", ("macro_auroc", "macro_auprc")),
    "cross-modal retrieval": SuiteTask("retrieval", ("recall@1", "recall@8", "by_pool")),
    "five-year disease prediction": SuiteTask("outcomes", ("c_index", "per_outcome")),
    "report generation": SuiteTask("report", ("bleu_4", "rouge_2", "bertscore_f1", "finding_f1")),
    "segmentation": SuiteTask("segmentation", ("organ_dice", "per_label")),
}
SUITES = {"m3d-bench": M3D_BENCH, "merlin": MERLIN}


def evaluate_suite(
    name: str, model: TrainedModel | str | Path, source: str | Path, *, out: str | Path, **options: Any
) -> dict[str, Any]:
    """`evaluate` on a suite's own files; evaluation.json also has "suite": what each of its tasks scored. Leaves
    `volumes/manifest.jsonl`, the suite's studies, in `out`.

    Args:
        name: "m3d-bench" or "merlin".
        source: M3D-Cap's JSON or the folder of M3D's data, or the folder of the Merlin dataset.
        options: of `evaluate`.

    Raises:
        ValueError: an unknown suite, or a source without its files.
    """
    from vol3d.data.manifest import Manifest
    from vol3d.evaluation.run import evaluate

    if name not in SUITES:
        raise ValueError(f"suite {name!r}: choose from {', '.join(SUITES)}")
    read = {"m3d-bench": read_m3d_bench, "merlin": read_merlin}[name]
    manifest = Manifest(read(source, Path(out) / "volumes"), Path(out) / "volumes" / "manifest.jsonl")
    manifest.write(Path(out) / "volumes" / "manifest.jsonl")  # for a later comparison
    result = evaluate(model, manifest, out=out, **options)
    result["suite"] = {"name": name, "tasks": suite_scores(name, result["tasks"])}
    with atomic(Path(out) / "evaluation.json") as part:
        part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def suite_scores(name: str, blocks: dict[str, Any]) -> dict[str, Any]:
    """Each task of the suite by its name: the scores it asks for, or why there are none."""
    told: dict[str, Any] = {}
    for task, what in SUITES[name].items():
        block = blocks.get(what.block)
        if not block:
            told[task] = {"note": f"not run: no labels for it were found, or the model has no task {what.block!r}"}
            continue
        scores = {metric: block[metric] for metric in what.metrics if metric in block}
        missing = [metric for metric in what.metrics if metric not in block]
        told[task] = scores | ({"note": f"not measured: {', '.join(missing)}"} if missing else {})
    return told
