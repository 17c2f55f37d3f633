"""`vol3d evaluate`: predict a manifest with a saved model, score, and write json, jsonl and the page."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vol3d import __version__
from vol3d.data.formats import atomic
from vol3d.model.interfaces import Evidence

if TYPE_CHECKING:
    from vol3d.data.batch import Sample
    from vol3d.data.manifest import Manifest
    from vol3d.data.study import Study
    from vol3d.evaluation.faithfulness import TwinPair
    from vol3d.model.inference import TrainedModel
    from vol3d.model.interfaces import Task
    from vol3d.text.ontology import Finding


def evaluate(
    model: TrainedModel | str | Path,
    manifest: Manifest | str | Path,
    *,
    out: str | Path,
    split: str | None = None,
    batch_size: int = 16,
    history: str | Path | None = None,
    replicates: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Run every task that model and manifest share and write `evaluation.json`, `predictions.jsonl`, `evaluation.html`.

    Rows whose meta says `twin_of` are counterfactuals: they are scored under "faithfulness" and nowhere else.

    Args:
        model: a loaded model or its folder.
        split: rows to score; None takes "test", or every row when the manifest has no split.
        history: a run's metrics.csv, for the loss curve on the page; None takes the one beside the model's folder.
        replicates: bootstrap draws for each interval. seed: of the bootstrap and of the blind baseline.

    Returns:
        what evaluation.json holds.

    Raises:
        ValueError: the split is empty, or model and manifest have no task in common.
    """
    from vol3d.data.manifest import Manifest
    from vol3d.evaluation.leakage import check_leakage
    from vol3d.model.inference import TrainedModel, load

    start = time.perf_counter()
    trained = model if isinstance(model, TrainedModel) else load(model)
    whole = manifest if isinstance(manifest, Manifest) else Manifest.read(manifest)
    studies = _choose(whole, split)
    if history is None and trained.folder is not None:
        history = trained.folder.parent / "metrics.csv"
    scored = [study for study in studies if "twin_of" not in study.meta]
    judged = _judged(trained, scored)
    validation = _validation(judged, whole, studies)
    rows = _predict(trained, judged, studies + validation, batch_size, progress)
    predictions = {row["study"]: row for row in rows}
    evidence = Evidence(
        scored,
        predictions,
        training=whole.split("train"),
        validation=validation,
        sample=trained.sample,
        replicates=replicates,
        seed=seed,
    )
    tasks: dict[str, Any] = {}
    for task in judged:
        tasks |= task.score(replace(evidence, blind=partial(_blind, trained, task, scored, batch_size, seed)))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in predictions.values()))
    result: dict[str, Any] = {
        "model": str(trained.folder or "model"),
        "manifest": str((whole.path or "manifest") if isinstance(manifest, Manifest) else manifest),
        "studies": len(scored),
        "patients": len({study.patient for study in scored}),
        "seconds": 0.0,
        "version": __version__,
        "tasks": tasks,
        "faithfulness": _twins(studies, predictions, replicates, seed),
        "leakage": check_leakage(whole),
    }
    result["seconds"] = round(time.perf_counter() - start, 1)
    _write(out / "evaluation.json", json.dumps(result, indent=1) + "\n")
    with_report = [study for study in scored if study.report and "report" in predictions[study.study]]
    _page(result, trained, with_report, predictions, history, out / "evaluation.html")
    return result


def _judged(trained: TrainedModel, studies: Sequence[Study]) -> list[Task]:
    """The tasks some study carries a label for."""
    judged = [task for task in trained.tasks.values() if any(task.labelled(study) for study in studies)]
    if not judged:
        raise ValueError(
            f"{len(studies)} studies and the model's tasks ({', '.join(trained.tasks)}) share no label to score: add "
            "the labels of one of these tasks to the manifest, or evaluate a model trained for another"
        )
    return judged


def _validation(tasks: Sequence[Task], manifest: Manifest, scored: Sequence[Study]) -> list[Study]:
    """Studies to fix thresholds on, when a task asks for them; never ones that are scored."""
    if not any(task.calibrates for task in tasks):
        return []
    names = {study.study for study in scored}
    return [study for study in manifest.split("val") if study.study not in names and "twin_of" not in study.meta]


def _blind(
    trained: TrainedModel, task: Task, studies: Sequence[Study], batch_size: int, seed: int
) -> dict[str, dict[str, Any]]:
    """What `task` predicts of each study when it is shown another patient's volume."""
    from vol3d.evaluation.metrics.baselines import blind
    from vol3d.model.inference import batched

    others = blind(list(studies), [study.patient for study in studies], seed)
    samples = (replace(sample, study=study) for study, sample in zip(studies, _samples(trained, others), strict=True))
    rows = [row for group in batched(samples, batch_size) for row in trained.predict(group, [task])]
    return {row["study"]: row for row in rows}


def summary(result: Mapping[str, Any]) -> str:
    """The scores as a few lines for a terminal, baselines beside them."""
    report = result["tasks"]["report"]
    lines = [f"{result['studies']} studies of {result['patients']} patients, {result['seconds']} s"]
    lines.append(f"{'':24}{'model':>22}{'blind':>10}{'always normal':>16}")
    for name in ("finding_f1", "finding_precision", "finding_recall", "laterality_accuracy", "rouge_l"):
        if name in report:
            baselines = [report["baselines"][kind].get(name) for kind in ("blind", "always_normal")]
            lines.append(
                f"{name:24}{_interval(report[name]):>22}{_number(baselines[0]):>10}{_number(baselines[1]):>16}"
            )
    if twins := result["faithfulness"].get("twins"):
        lines.append(
            f"{twins['pairs']} twin pairs: the changed finding follows in {_interval(twins['changed'])}, "
            f"nothing else changes in {_interval(twins['unchanged'])}"
        )
    return "\n".join(lines)


def _interval(metric: Mapping[str, Any]) -> str:
    value = _number(metric["value"])
    return value if metric.get("low") is None else f"{value} ({metric['low']:.2f}–{metric['high']:.2f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _choose(manifest: Manifest, split: str | None) -> list[Study]:
    splits = {study.split for study in manifest}
    if split is None:
        split = "test" if "test" in splits else None
    studies = list(manifest) if split is None and splits <= {None} else list(manifest.split(split or "test"))
    if not studies:
        raise ValueError(
            f"{manifest.path}: no row has split {split or 'test'!r}, the splits are "
            f"{sorted(name for name in splits if name)}: choose one with --split"
        )
    return studies


def _samples(trained: TrainedModel, studies: Iterable[Study]) -> Iterator[Sample]:
    """The images on the model's grid; a prediction reads no mask, so none is loaded."""
    for study in studies:
        yield trained.sample(replace(study, mask=None, finding_mask=None))


def _predict(
    trained: TrainedModel, tasks: Sequence[Task], studies: Sequence[Study], batch_size: int, progress: bool
) -> Iterator[dict[str, Any]]:
    from tqdm import tqdm

    from vol3d.model.inference import batched

    with tqdm(total=len(studies), desc="predict", unit="study", disable=not progress) as bar:
        for samples in batched(_samples(trained, studies), batch_size):
            yield from trained.predict(samples, tasks)
            bar.update(len(samples))


def _twins(
    studies: list[Study], predictions: Mapping[str, Mapping[str, Any]], replicates: int, seed: int
) -> dict[str, Any]:
    """Does the report follow the one thing that differs between a study and its twin? Empty without twins."""
    from vol3d.evaluation.faithfulness import twin_consistency, twin_pairs
    from vol3d.text.parser import parse_findings

    outputs = {name: parse_findings(row["report"]) for name, row in predictions.items() if "report" in row}
    truths = {study.study: parse_findings(study.report or "") for study in studies}
    pairs = twin_pairs(studies, {name: {finding.key for finding in said} for name, said in outputs.items()})
    if not pairs:
        return {}
    pairs = [
        replace(pair, sizes_mm=_sizes(outputs, pair), true_sizes_mm=_sizes(truths, pair))
        if pair.change == "resize"
        else pair
        for pair in pairs
    ]
    return {"twins": twin_consistency(pairs, replicates=replicates, seed=seed)}


def _sizes(findings: Mapping[str, list[Finding]], pair: TwinPair) -> tuple[float, float] | None:
    """Sizes in mm of the pair's finding before and after, None where either is not told."""
    sizes = [next((f.size_mm for f in findings[name] if f.key == pair.key), None) for name in (pair.study, pair.twin)]
    return None if None in sizes else (sizes[0], sizes[1])


def _page(
    result: dict[str, Any],
    trained: TrainedModel,
    studies: list[Study],
    predictions: Mapping[str, Mapping[str, Any]],
    history: str | Path | None,
    path: Path,
) -> None:
    from vol3d.evaluation.cases import read_history, show_cases
    from vol3d.evaluation.page import write_page

    cases = show_cases(trained, studies, predictions)
    write_page(result, cases, read_history(history), path)


def _write(path: Path, text: str) -> None:
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")
