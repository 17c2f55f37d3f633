"""M3D-Bench and Merlin's evaluation by name, from those datasets' own files.

Each of their tasks is answered by our blocks of the same question, with the peer's own definition beside ours where
they differ. A task that the model was not trained for, or whose files are not there, says so.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vol3d.data.formats import atomic

if TYPE_CHECKING:
    from vol3d.data.manifest import Manifest
    from vol3d.data.study import Study
    from vol3d.model.inference import TrainedModel


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite: the block of evaluation.json that answers it, and the peer's own metrics in it."""

    block: str
    metrics: tuple[str, ...]


M3D_BENCH = {
    "image-text retrieval": SuiteTask("retrieval", ("recall@1", "recall@5", "recall@10")),
    "report generation": SuiteTask("report", ("m3d_bleu", "rouge_1", "meteor", "meteor_exact_stem", "bertscore_f1")),
    "closed VQA": SuiteTask("vqa_closed", ("m3d_substring_accuracy", "accuracy")),
    "open VQA": SuiteTask("vqa_open", ("m3d_bleu", "exact_match", "token_f1")),
    "referring expression comprehension": SuiteTask("grounding", ("m3d_hull_iou", "iou")),
    "referring expression generation": SuiteTask("regions", ("m3d_bleu", "rouge_1")),
    "semantic segmentation": SuiteTask("segmentation", ("m3d_soft_dice", "dice")),
    "referring expression segmentation": SuiteTask("segmentation", ("m3d_soft_dice", "finding_dice", "dice")),
}
MERLIN = {
    "zero-shot findings": SuiteTask("zero_shot", ("macro_f1", "macro_auroc")),
    "phenotypes": SuiteTask("codes", ("macro_auroc", "macro_auprc")),
    "cross-modal retrieval": SuiteTask("retrieval", ("recall@1", "recall@8", "recall@64")),
    "five-year disease prediction": SuiteTask("outcomes", ("c_index", "auc@1825d")),
    "report generation": SuiteTask("report", ("bleu_4", "rouge_2", "bertscore_f1", "finding_f1")),
    "segmentation": SuiteTask("segmentation", ("dice",)),
}
SUITES = {"m3d-bench": M3D_BENCH, "merlin": MERLIN}


def evaluate_suite(
    name: str, model: TrainedModel | str | Path, source: str | Path, *, out: str | Path, **options: Any
) -> dict[str, Any]:
    """`evaluate` on a suite's own files; evaluation.json also has "suite": what each of its tasks scored.

    Args:
        name: "m3d-bench" or "merlin".
        source: M3D-Cap's JSON or its folder (with VQA tables beside it), or the folder of the Merlin dataset.
        options: of `evaluate`.

    Raises:
        ValueError: an unknown suite, or a source without its files.
    """
    from vol3d.evaluation.run import evaluate

    if name not in SUITES:
        raise ValueError(f"suite {name!r}: choose from {', '.join(SUITES)}")
    manifest = read_m3d_bench(source, Path(out) / "volumes") if name == "m3d-bench" else read_merlin(source)
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


def read_m3d_bench(source: str | Path, out: str | Path) -> Manifest:
    """M3D-Cap's JSON, and the questions of every M3D-VQA table (`*vqa*.csv`) in its folder or below.

    A VQA table has the columns Image Path, Question, Choice A … D, Answer, Answer Choice, Question Type. Its rows are
    asked twice, as M3D-Bench does: closed, with choices, and open. A row whose image the JSON lacks is left out.

    Raises:
        ValueError: no JSON with captions, or a table without these columns.
    """
    from vol3d.data.manifest import Manifest

    source = Path(source)
    cards = [source] if source.is_file() else sorted(source.glob("*.json"))
    cards = [card for card in cards if _is_captions(card)]
    if not cards:
        raise ValueError(f"{source}: no JSON of {{split: [{{image, text}}]}} there: give M3D-Cap's JSON or its folder")
    manifest = Manifest.from_m3d(cards[0], out)
    asked: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for table in sorted(cards[0].parent.rglob("*.csv")):
        if "vqa" in table.name.lower():
            _read_vqa(table, asked)
    known = {_key(study.study): study for study in manifest}
    studies = [replace(study, questions=asked.get(_key(study.study), [])) for study in known.values()]
    return Manifest(studies, manifest.path)


def read_merlin(folder: str | Path) -> Manifest:
    """The Merlin dataset; its folder's `phenotypes` table ("study id", then one column a phecode) gives codes.

    1 is present, 0 absent, −1 and nothing unknown, as in its label tables.
    """
    from vol3d.data.manifest import Manifest

    manifest = Manifest.from_merlin(folder)
    tables = sorted(Path(folder).rglob("phenotypes*.csv"))
    codes: dict[str, dict[str, str]] = {}
    for table in tables:
        with table.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                if "study id" in row:
                    codes[row.pop("study id")] = row
    return Manifest([_with_codes(study, codes.get(study.study, {})) for study in manifest], manifest.path)


def _with_codes(study: Study, row: dict[str, str]) -> Study:
    if not row:
        return study
    found: dict[str, list[str]] = {"1": [], "0": []}
    for code, value in row.items():
        number = str(value or "").removesuffix(".0")
        if number in found:
            found[number].append(code)
    return replace(study, codes=found["1"], codes_absent=found["0"], code_system="phecode")


def _is_captions(path: Path) -> bool:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    lists = list(card.values()) if isinstance(card, dict) else []
    return any(isinstance(items, list) and items and {"image", "text"} <= set(items[0]) for items in lists)


def _read_vqa(table: Path, asked: dict[str, list[dict[str, Any]]]) -> None:
    choices = [f"Choice {letter}" for letter in "ABCD"]
    wanted = ("Image Path", "Question", *choices, "Answer")
    with table.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            if missing := [column for column in wanted if column not in row]:
                raise ValueError(f"{table.name} has no column {missing[0]!r}; it has {', '.join(map(repr, row))}")
            given = list(dict.fromkeys(row[column].strip() for column in choices if row[column].strip()))
            question = {
                "question": row["Question"].strip(),
                "answer": row["Answer"].strip(),
                "kind": (row.get("Question Type") or "other").strip(),
            }
            own = asked[_key(str(Path(row["Image Path"]).with_suffix("")))]
            if question["answer"] in given and len(given) > 1:
                own.append(question | {"choices": given})
            own.append(question)


def _key(name: str) -> str:
    """The same image is named from different folders in M3D's files: its last three parts tell it."""
    return "_".join(name.replace("/", "_").replace("-", "_").split("_")[-3:]).lower()
