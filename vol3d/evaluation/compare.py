"""Two finished evaluations on the studies they share: differences with intervals and p-values, task by task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vol3d.evaluation.compare_tasks import COMPARISONS
from vol3d.evaluation.predictions import read_predictions
from vol3d.evaluation.sides import Sides
from vol3d.evaluation.titles import format_p

if TYPE_CHECKING:
    from vol3d.data.batch import Sample
    from vol3d.data.manifest import Manifest
    from vol3d.data.study import Study


def compare(
    first: str | Path,
    second: str | Path,
    *,
    manifest: Manifest | str | Path | None = None,
    out: str | Path | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two finished evaluations on the studies they share: usually your model with the base it started from.

    Args:
        first, second: two folders that `vol3d evaluate` wrote; differences are first − second.
        manifest: where the truth is; default: the manifest named in the first folder's evaluation.json.
        out: a folder to write `comparison.json` and `comparison.html` to.

    Returns:
        "first", "second", "studies", "left_out" (studies that only one of the two has), "scores" (how many were
        compared), "notes", and "tasks": by their blocks in evaluation.json, as far as both predict them and the
        manifest tells the truth, {score: {"value", "low", "high", "p", "p_holm", "first", "second"}} with "wins",
        "ties" and "losses" of the first. `p_holm` is corrected for all the scores compared (Holm 1979).

    Raises:
        ValueError: a folder without predictions, or nothing in common that can be compared.
    """
    from vol3d.data.manifest import Manifest

    folders = [Path(first), Path(second)]
    one, two = (read_predictions(folder) for folder in folders)
    rows = manifest if isinstance(manifest, Manifest) else Manifest.read(manifest or _manifest_of(folders[0]))
    # Predictions of validation studies, kept for thresholds, are not what was scored.
    split = _evaluation(folders[0]).get("split")
    rows = (rows if split is None else rows.split(split)).by_name()
    both = [s for s in rows if s.study in one and s.study in two and "twin_of" not in s.meta]
    samples, settings = _samples(folders), (_settings(folders[0]), _settings(folders[1]))
    sides = Sides(both, one, two, samples, replicates, seed, settings)
    tasks = {name: block for name, compared in COMPARISONS.items() if (block := compared(sides))}
    if not tasks:
        raise ValueError(
            f"{folders[0]} has {len(one)} studies, {folders[1]} has {len(two)}, {len(both)} of them are in both and "
            "none has a truth that both predict: evaluate the two models on the same manifest"
        )
    notes = _told_otherwise(both, folders[1])
    if samples is None and sides.both("segmentation", dict):
        notes.append(
            "masks are not compared: a model's folder, which tells their grid, is not where evaluation.json says"
        )
    scored = [{name for name, block in _evaluation(f).get("tasks", {}).items() if block} for f in folders]
    notes += [
        f"{name} stands in both evaluations and is not compared: the two have no prediction in common that the "
        "manifest judges"
        for name in sorted(set.intersection(*scored) - tasks.keys() - {"segmentation"})
    ]
    result = {
        "first": str(first),
        "second": str(second),
        "studies": len(both),
        "left_out": sorted({s.study for s in rows if "twin_of" not in s.meta} & (set(one) ^ set(two))),
        "scores": _correct(tasks),
        "notes": notes,
        "tasks": tasks,
    }
    if out is not None:
        from vol3d.evaluation.compare_page import write_comparison

        write_comparison(result, Path(out))
    return result


_TRUTH = ("patient", "report", "codes", "codes_absent", "labels_known", "outcomes", "questions", "boxes")


def _told_otherwise(studies: Sequence[Study], second: Path) -> list[str]:
    """A note where the manifest that the second was evaluated on says something else of the same studies."""
    from vol3d.data.manifest import Manifest

    path = Path(_evaluation(second).get("manifest", ""))
    if not path.is_file():
        return []
    known = {study.study: study for study in Manifest.read(path)}
    pairs = [(study, known[study.study]) for study in studies if study.study in known]
    differ = [one.study for one, two in pairs if any(getattr(one, name) != getattr(two, name) for name in _TRUTH)]
    if not differ:
        return []
    return [
        f"{len(differ)} of {len(studies)} studies have another truth in {path}, on which the second was evaluated "
        f"({', '.join(differ[:3])}{', …' if len(differ) > 3 else ''}): both models are judged by one truth here, and a "
        "study of the same name must be the same exam"
    ]


def comparison_text(result: Mapping[str, Any]) -> str:
    """A comparison as lines for a terminal."""
    lines = [f"{result['first']} − {result['second']}, {result['studies']} studies, {result['scores']} scores"]
    for name, block in result["tasks"].items():
        lines.append(
            f"{name}: {block['wins']} wins, {block['ties']} ties, {block['losses']} losses by {block['counted']}"
        )
        for metric, score in block.items():
            if isinstance(score, Mapping) and score.get("value") is not None:
                span = "" if score["low"] is None else f" ({score['low']:+.3f} to {score['high']:+.3f})"
                p = [format_p(score[name]) for name in ("p", "p_holm") if score.get(name) is not None]
                lines.append(f"  {metric:24}{score['value']:+.3f}{span}" + (f"  p {p[0]}, Holm {p[1]}" if p else ""))
    return "\n".join([*lines, *result["notes"]])


def _correct(tasks: Mapping[str, Mapping[str, Any]]) -> int:
    """Holm's correction over every score of every task; returns how many these are."""
    scores = {
        (name, metric): score
        for name, block in tasks.items()
        for metric, score in block.items()
        if isinstance(score, dict)
    }
    corrected = holm({name: score["p"] for name, score in scores.items() if score.get("p") is not None})
    for name, score in scores.items():
        score["p_holm"] = corrected.get(name)
    return len(corrected)


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Holm's step-down correction: p-values that may be read together."""
    corrected, highest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = highest
    return corrected


def _samples(folders: Sequence[Path]) -> tuple[Callable[[Study], Sample], Callable[[Study], Sample]] | None:
    """Puts a study with its masks on the grid of either side's model; None where a model is not to be found."""
    from vol3d.data.cache import sample
    from vol3d.volume.grid import Grid

    grids = []
    for folder in folders:
        card = Path(_evaluation(folder).get("model", "")) / "grid.json"
        if not card.is_file():
            return None
        grids.append(Grid.load(card))

    def reader(grid: Grid) -> Callable[[Study], Sample]:
        last: dict[str, Sample] = {}

        def read(study: Study) -> Sample:
            if study.study not in last:
                last.clear()
                last[study.study] = sample(study, grid)
            return last[study.study]

        return read

    first = reader(grids[0])
    return first, first if grids[0].fingerprint == grids[1].fingerprint else reader(grids[1])


def _settings(folder: Path) -> dict[str, dict[str, Any]]:
    """How the tasks of a side's model ask, as far as its folder is to be found."""
    from vol3d.model.pretrained import task_settings

    model = Path(_evaluation(folder).get("model", ""))
    return task_settings(model) if (model / "config.yaml").is_file() else {}


def _manifest_of(folder: Path) -> Path:
    path = folder / "evaluation.json"
    if not (named := _evaluation(folder).get("manifest")):
        raise ValueError(f"{path}: no such file; name the manifest with the true reports")
    if not Path(named).exists():
        raise ValueError(
            f"{path} names the manifest {named!r}, which is no file here: give the one with the true labels as "
            "--manifest FILE (in Python manifest=; Manifest.write makes a file of one in memory)"
        )
    return Path(named)


def _evaluation(folder: Path) -> dict[str, Any]:
    path = folder / "evaluation.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
