"""Every CPU recipe trained from nothing on phantoms and judged on fresh ones.

    python benchmarks/tasks.py --json tasks.json
    python benchmarks/tasks.py --only retrieval codes --seed 1

Phantoms at 64 × 64 × 32 voxels with the demo's findings: 1,900 to learn from (one set for all recipes), 100 for
thresholds, and 300 of another seed to be judged on, which no recipe and no choice of its settings has seen. Each row
has the blind score beside it: the same model shown another patient's volume. `asked` is what the project wants.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
TRAINING, FRESH = 2000, 300


@dataclass(frozen=True)
class Row:
    """One number of one task, where it stands in evaluation.json, and how good it should be."""

    task: str
    recipe: str
    entry: str
    metric: str
    asked: float | None = None


ROWS = (
    Row("retrieval", "retrieval", "retrieval", "recall@1", 0.50),
    Row("retrieval", "retrieval", "retrieval", "recall@5", 0.85),
    Row("zero_shot", "zero_shot", "zero_shot", "macro_auroc", 0.85),
    Row("codes", "ehr_codes", "codes", "macro_auroc", 0.92),
    Row("outcomes", "outcomes", "outcomes", "c_index", 0.80),
    Row("vqa", "vqa", "vqa_closed", "accuracy", 0.80),
    Row("segmentation", "prompt_segmentation", "segmentation", "organ_dice", 0.80),
    Row("segmentation", "prompt_segmentation", "segmentation", "finding_dice", 0.50),
    Row("grounding", "grounding", "grounding", "iou", 0.50),
    Row("report", "report", "report", "finding_f1"),
    Row("multitask", "multitask", "report", "finding_f1"),
)


def phantoms(folder: Path, studies: int, seed: int, split: tuple[float, float, float]) -> Path:
    """A manifest of phantoms, made once."""
    from vol3d import demo, phantom

    if (folder / "manifest.jsonl").is_file():
        return folder / "manifest.jsonl"
    return phantom.write(
        folder,
        studies=studies,
        seed=seed,
        shape=demo.SHAPE,
        findings=demo.FINDINGS,
        prevalence=demo.PREVALENCE,
        split=split,
        progress=sys.stderr.isatty(),
    )


def train(recipe: str, out: Path, seed: int) -> float:
    """Train a recipe from nothing; gives the seconds it took."""
    from vol3d.training.cli import run

    manifest = phantoms(out / "train", TRAINING, seed, (0.95, 0.05, 0.0))
    options = {"data.manifest": manifest, "run": out / recipe, "seed_everything": seed}
    start = time.perf_counter()
    arguments = [f"--{key}={value}" for key, value in options.items()]
    run(["fit", "--config", f"cpu/{recipe}.yaml", *arguments, "--trainer.enable_progress_bar=false"])
    return round(time.perf_counter() - start, 1)


def judge(recipe: str, out: Path, seed: int) -> dict[str, Any]:
    """Evaluate a trained recipe on fresh phantoms; thresholds are fixed on its own validation split."""
    from vol3d.data.manifest import Manifest
    from vol3d.evaluation.run import evaluate

    known = Manifest.read(phantoms(out / "train", TRAINING, seed, (0.95, 0.05, 0.0))).split("val")
    fresh = Manifest.read(phantoms(out / "fresh", FRESH, seed + 100_000, (0.0, 0.0, 1.0)))
    both = [replace(study, study=f"val-{study.study}", patient=f"val-{study.patient}") for study in known]
    return evaluate(out / recipe / "model", Manifest([*both, *fresh]), out=out / recipe / "evaluation", split="test")


def score(result: dict[str, Any], row: Row) -> dict[str, Any]:
    """The row as it is written."""
    block = result["tasks"][row.entry]
    if row.entry == "outcomes" and row.metric not in block:
        block = next(value for value in block.values() if isinstance(value, dict) and row.metric in value)
    metric = block[row.metric]
    blind = block.get("baselines", {}).get("blind", {}).get(row.metric)
    return {
        "task": row.task,
        "metric": row.metric,
        "value": metric["value"],
        "low": metric.get("low"),
        "high": metric.get("high"),
        "blind": blind["value"] if isinstance(blind, dict) else blind,
        "asked": row.asked,
        "train_s": result["train_s"],
        "evaluate_s": result["seconds"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=sorted({row.task for row in ROWS}), metavar="TASK")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"))
    arguments = parser.parse_args()
    wanted = [row for row in ROWS if arguments.only is None or row.task in arguments.only]
    results: dict[str, dict[str, Any]] = {}
    rows = []
    for row in wanted:
        if row.recipe not in results:
            seconds = train(row.recipe, arguments.out, arguments.seed)
            results[row.recipe] = {"train_s": seconds} | judge(row.recipe, arguments.out, arguments.seed)
        rows.append(score(results[row.recipe], row))
        print(json.dumps(rows[-1]), flush=True)
        if arguments.json:  # after each, so that a stop loses nothing
            text = json.dumps({"rows": rows, "seed": arguments.seed, "recipes": [asdict(r) for r in wanted]}, indent=1)
            Path(arguments.json).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
