"""Every CPU recipe trained from nothing on phantoms and judged on fresh ones.

    python benchmarks/tasks.py --json tasks.json
    python benchmarks/tasks.py --only retrieval codes --seed 1
    python benchmarks/tasks.py --workers 1  # one recipe at a time instead of one a core

Phantoms at 64 × 64 × 32 voxels with the demo's findings: 1,900 to learn from (one set for all recipes), 100 for
thresholds, and 300 of another seed to be judged on, which no recipe and no choice of its settings has seen. Each row
has the blind score beside it: the same model shown another patient's volume (for hidden voxels, saying their mean).
`asked` is what the project wants. CPU seconds stand beside the seconds by the clock, which mean little on a busy
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
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
    beside: str = "blind"


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
    Row("impression", "report_forms", "report", "finding_f1"),
    Row("structured", "report_forms", "structured", "finding_f1"),
    Row("regions", "regions", "regions", "macro_auroc"),
    Row("masked_volume", "masked_volume", "masked_volume", "error", beside="constant"),
)
RECIPES = (
    "grounding",
    "prompt_segmentation",
    "multitask",
    "report_forms",
    "report",
    "zero_shot",
    "retrieval",
    "vqa",
    "ehr_codes",
    "outcomes",
    "regions",
    "masked_volume",
)
"""The longest first, so that the workers end together."""


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


def train(recipe: str, out: Path, seed: int) -> None:
    """Train a recipe from nothing."""
    from vol3d.training.cli import run

    manifest = phantoms(out / "train", TRAINING, seed, (0.95, 0.05, 0.0))
    options = {"data.manifest": manifest, "run": out / recipe, "seed_everything": seed}
    arguments = [f"--{key}={value}" for key, value in options.items()]
    run(["fit", "--config", f"cpu/{recipe}.yaml", *arguments, "--trainer.enable_progress_bar=false"])


def judge(recipe: str, out: Path, seed: int) -> dict[str, Any]:
    """Evaluate a trained recipe on fresh phantoms; thresholds are fixed on its own validation split."""
    from vol3d.data.manifest import Manifest
    from vol3d.evaluation.run import evaluate

    known = Manifest.read(phantoms(out / "train", TRAINING, seed, (0.95, 0.05, 0.0))).split("val")
    fresh = Manifest.read(phantoms(out / "fresh", FRESH, seed + 100_000, (0.0, 0.0, 1.0)))
    both = [replace(study, study=f"val-{study.study}", patient=f"val-{study.patient}") for study in known]
    return evaluate(out / recipe / "model", Manifest([*both, *fresh]), out=out / recipe / "evaluation", split="test")


def measure(recipe: str, out: Path, seed: int) -> dict[str, Any]:
    """Train and judge a recipe; its evaluation, with the seconds of both by the clock and of the CPU."""
    began = time.perf_counter(), time.process_time()
    train(recipe, out, seed)
    trained = time.perf_counter(), time.process_time()
    result = judge(recipe, out, seed)
    ended = time.perf_counter(), time.process_time()
    names = ("train_s", "train_cpu_s", "evaluate_s", "evaluate_cpu_s")
    return result | dict(zip(names, (*spent(began, trained), *spent(trained, ended)), strict=True))


def results(recipes: list[str], out: Path, seed: int, workers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each recipe with what `measure` gives, as they are done; several at a time have a process each."""
    if workers == 1:
        yield from ((recipe, measure(recipe, out, seed)) for recipe in recipes)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), max_tasks_per_child=1) as pool:
        running = {pool.submit(measure, recipe, out, seed): recipe for recipe in recipes}
        yield from ((running[future], future.result()) for future in as_completed(running))


def spent(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """Seconds between two readings of both clocks."""
    return round(end[0] - start[0], 1), round(end[1] - start[1], 1)


def score(result: dict[str, Any], row: Row) -> dict[str, Any]:
    """The row as it is written."""
    block = result["tasks"][row.entry]
    if row.entry == "outcomes" and row.metric not in block:
        block = next(value for value in block.values() if isinstance(value, dict) and row.metric in value)
    metric = block[row.metric]
    blind = block.get("baselines", {}).get(row.beside, {}).get(row.metric)
    return {
        "task": row.task,
        "metric": row.metric,
        "value": metric["value"],
        "low": metric.get("low"),
        "high": metric.get("high"),
        "blind": blind["value"] if isinstance(blind, dict) else blind,
        "asked": row.asked,
    } | {name: result[name] for name in ("train_s", "train_cpu_s", "evaluate_s", "evaluate_cpu_s")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=sorted({row.task for row in ROWS}), metavar="TASK")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="recipes trained at once")
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"))
    arguments = parser.parse_args()
    wanted = [row for row in ROWS if arguments.only is None or row.task in arguments.only]
    phantoms(arguments.out / "train", TRAINING, arguments.seed, (0.95, 0.05, 0.0))
    phantoms(arguments.out / "fresh", FRESH, arguments.seed + 100_000, (0.0, 0.0, 1.0))
    scores: dict[Row, dict[str, Any]] = {}
    needed = {row.recipe for row in wanted}
    recipes = [recipe for recipe in RECIPES if recipe in needed]
    for recipe, result in results(recipes, arguments.out, arguments.seed, arguments.workers):
        for row in (row for row in wanted if row.recipe == recipe):
            scores[row] = score(result, row)
            print(json.dumps(scores[row]), flush=True)
        if arguments.json:  # after each, so that a stop loses nothing
            write(Path(arguments.json), scores, arguments.seed)
    if {"report", "multitask"} <= needed:
        pair = difference("multitask", "report", arguments.out)
        print(json.dumps(pair), flush=True)
        if arguments.json:
            write(Path(arguments.json), scores, arguments.seed, [pair])
    return 0


def difference(first: str, second: str, out: Path) -> dict[str, Any]:
    """How much better the reports of the first recipe are than the second's, over the same fresh phantoms."""
    from vol3d.evaluation.compare import compare

    folders = (out / recipe / "evaluation" for recipe in (first, second))
    found = compare(*folders, manifest=out / "fresh" / "manifest.jsonl")["tasks"]["report"]["finding_f1"]
    return {
        "task": f"{first} − {second}",
        "metric": "finding_f1",
        **{name: found[name] for name in ("value", "low", "high", "p")},
        "blind": None,
    }


def write(path: Path, scores: dict[Row, dict[str, Any]], seed: int, more: Sequence[dict[str, Any]] = ()) -> None:
    """The table so far in the order of ROWS, with where each number was found."""
    rows = [row for row in ROWS if row in scores]
    table = {"rows": [*(scores[row] for row in rows), *more], "seed": seed, "recipes": [asdict(row) for row in rows]}
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
