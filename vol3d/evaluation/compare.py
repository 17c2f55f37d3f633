"""Two models on the same studies, and one model on groups of studies: differences with intervals and p-values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vol3d.evaluation.intervals import undefined
from vol3d.evaluation.metrics.findings import compare_findings
from vol3d.evaluation.metrics.text import compare_text

if TYPE_CHECKING:
    from vol3d.data.manifest import Manifest


def compare(
    first: str | Path,
    second: str | Path,
    *,
    manifest: Manifest | str | Path | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the reports of two finished evaluations.

    Args:
        first, second: two folders that `vol3d evaluate` wrote.
        manifest: where the true reports are; default: the manifest named in the first folder's evaluation.json.

    Returns:
        `compare_reports`' dictionary, with "first", "second", "studies", and "left_out" (studies that only one of
        the two has).

    Raises:
        ValueError: a folder without predictions, or no study with a true report in common.
    """
    from vol3d.data.manifest import Manifest

    folders = [Path(first), Path(second)]
    said = [_read_reports(folder) for folder in folders]
    rows = manifest if isinstance(manifest, Manifest) else Manifest.read(manifest or _manifest_of(folders[0]))
    both = [
        study
        for study in rows
        if study.study in said[0] and study.study in said[1] and study.report and "twin_of" not in (study.meta or {})
    ]
    if not both:
        raise ValueError(
            f"{folders[0]} has {len(said[0])} reports, {folders[1]} has {len(said[1])}, and no study of "
            f"{rows.path} has both and a true report: evaluate the two models on the same manifest"
        )
    result = compare_reports(
        [study.report or "" for study in both],
        [said[0][study.study] for study in both],
        [said[1][study.study] for study in both],
        [study.patient for study in both],
        replicates=replicates,
        seed=seed,
    )
    left_out = sorted(set(said[0]) ^ set(said[1]))
    return {"first": str(first), "second": str(second), "studies": len(both), "left_out": left_out} | result


def compare_reports(
    truths: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    patients: Sequence[Hashable],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Difference first − second of every report score, paired by study.

    Returns:
        {score: {"value", "low", "high", "p", "p_holm"}}, "wins", "losses", "ties" (studies on which the first has the
        higher, lower, same finding F1). `p_holm` is corrected for the number of scores compared (Holm 1979).
    """
    from vol3d.text.parser import finding_keys

    true, one, two = ([set(finding_keys(text)) for text in side] for side in (truths, first, second))
    result = compare_findings(true, one, two, patients, replicates=replicates, seed=seed)
    counts = {name: result.pop(name) for name in ("wins", "losses", "ties")}
    result |= compare_text(truths, first, second, patients, replicates=replicates, seed=seed)
    corrected = holm({name: score["p"] for name, score in result.items() if score.get("p") is not None})
    for name, score in result.items():
        score["p_holm"] = corrected.get(name)
    return result | counts


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: p-values that may be read together."""
    corrected, highest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = highest
    return corrected


def by_subgroup(
    score: Callable[[list[int]], Mapping[str, Any]], groups: Sequence[Hashable | None], *, least: int = 10
) -> dict[str, Any]:
    """One score for each group of studies, and the largest gap between groups.

    Args:
        score: indices of studies → {"value", "low", "high"}.
        groups: the group of each study (`meta["sex"]`), None where unknown.
        least: groups with fewer studies are counted but not scored.

    Returns:
        "groups" {group: score + "studies"}, "largest_gap" (value, and between which), "unknown" (studies without a
        group).
    """
    members: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        if group is not None:
            members.setdefault(group, []).append(number)
    scores: dict[str, dict[str, Any]] = {}
    for group in sorted(members, key=str):
        few = len(members[group]) < least
        own = undefined(f"fewer than {least} studies") if few else dict(score(members[group]))
        scores[str(group)] = own | {"studies": len(members[group])}
    known = {group: own["value"] for group, own in scores.items() if own["value"] is not None}
    gap: dict[str, Any] = {"value": None, "between": []}
    if len(known) > 1:
        best, worst = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
        gap = {"value": known[best] - known[worst], "between": [best, worst]}
    return {"groups": scores, "largest_gap": gap, "unknown": sum(group is None for group in groups)}


def selective_accuracy(confidence: Sequence[float], right: Sequence[float], points: int = 20) -> list[dict[str, float]]:
    """Accuracy among the most confident share of answers, for a curve of coverage against accuracy."""
    order = np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")
    hits = np.cumsum(np.asarray(right, dtype=np.float64)[order])
    counts = sorted({math.ceil(len(order) * part / points) for part in range(1, points + 1)} - {0})
    return [{"coverage": count / len(order), "accuracy": float(hits[count - 1] / count)} for count in counts]


def _read_reports(folder: Path) -> dict[str, str]:
    path = folder / "predictions.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; write it with `vol3d evaluate MODEL MANIFEST --out {folder}`")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    reports = {row["study"]: row["report"] for row in rows if "report" in row}
    if not reports:
        raise ValueError(f"{path}: {len(rows)} rows, none with a report: compare needs a model that writes reports")
    return reports


def _manifest_of(folder: Path) -> Path:
    path = folder / "evaluation.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name the manifest with the true reports")
    return Path(json.loads(path.read_text(encoding="utf-8"))["manifest"])
