"""`vol3d evaluate`: predict a manifest with a saved model, score, and write json, jsonl and the page."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vol3d import __version__
from vol3d.data.formats import atomic

if TYPE_CHECKING:
    from vol3d.data.batch import Sample
    from vol3d.data.manifest import Manifest
    from vol3d.data.study import Study
    from vol3d.evaluation.faithfulness import TwinPair
    from vol3d.model.inference import TrainedModel
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
    from vol3d.evaluation.metrics.report import score_reports
    from vol3d.model.inference import TrainedModel, load

    start = time.perf_counter()
    trained = model if isinstance(model, TrainedModel) else load(model)
    whole = manifest if isinstance(manifest, Manifest) else Manifest.read(manifest)
    studies = _choose(whole, split)
    if history is None and trained.folder is not None:
        history = trained.folder.parent / "metrics.csv"
    scored = [study for study in studies if "twin_of" not in study.meta]
    if not any(study.report for study in scored) or "report" not in trained.tasks:
        raise ValueError(
            f"{len(scored)} studies and the model's tasks ({', '.join(trained.tasks)}) share no label to score: add "
            "`report` to the manifest, or evaluate a model trained to write reports"
        )
    predictions = {row["study"]: row for row in _predict(trained, studies, batch_size, progress)}
    with_report = [study for study in scored if study.report and "report" in predictions[study.study]]
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
        "tasks": {
            "report": score_reports(
                [study.report for study in with_report],
                [predictions[study.study]["report"] for study in with_report],
                [study.patient for study in with_report],
                training=[study.report for study in whole.split("train") if study.report],
                replicates=replicates,
                seed=seed,
            )
        },
        "faithfulness": _twins(studies, predictions, replicates, seed),
        "leakage": check_leakage(whole),
    }
    result["seconds"] = round(time.perf_counter() - start, 1)
    _write(out / "evaluation.json", json.dumps(result, indent=1) + "\n")
    _page(result, trained, with_report, predictions, history, out / "evaluation.html")
    return result


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


def _predict(trained: TrainedModel, studies: list[Study], batch_size: int, progress: bool) -> Iterator[dict[str, Any]]:
    from tqdm import tqdm

    from vol3d.model.inference import batched

    with tqdm(total=len(studies), desc="predict", unit="study", disable=not progress) as bar:
        for samples in batched(_samples(trained, studies), batch_size):
            yield from trained.predict(samples)
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
