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
        "first", "second", "studies", "left_out" (studies that only one of the two has), and "tasks": for "report",
        "vqa_closed" and "codes", as far as both predict them, {score: {"value", "low", "high", "p", "p_holm"}} with
        "wins", "ties" and "losses". `p_holm` is corrected for all the scores compared (Holm 1979).

    Raises:
        ValueError: a folder without predictions, or nothing in common that can be compared.
    """
    from vol3d.data.manifest import Manifest
    from vol3d.evaluation.compare_tasks import compare_answers, compare_codes
    from vol3d.evaluation.predictions import read_predictions

    folders = [Path(first), Path(second)]
    one, two = (read_predictions(folder) for folder in folders)
    rows = manifest if isinstance(manifest, Manifest) else Manifest.read(manifest or _manifest_of(folders[0]))
    both = [s for s in rows if s.study in one and s.study in two and "twin_of" not in s.meta]
    options = {"replicates": replicates, "seed": seed}
    told = [s for s in both if s.report and all(isinstance(side[s.study].get("report"), str) for side in (one, two))]
    tasks: dict[str, Any] = {}
    if told:
        texts = [[side[s.study]["report"] for s in told] for side in (one, two)]
        tasks["report"] = compare_reports([s.report or "" for s in told], *texts, [s.patient for s in told], **options)
    tasks["vqa_closed"] = compare_answers(both, one, two, **options)
    tasks["codes"] = compare_codes(both, one, two, **options)
    tasks = {name: block for name, block in tasks.items() if block}
    if not tasks:
        raise ValueError(
            f"{folders[0]} has {len(one)} studies, {folders[1]} has {len(two)}, {len(both)} of them are in both and "
            "none has a truth that both predict: evaluate the two models on the same manifest"
        )
    _correct(tasks)
    result = {
        "first": str(first),
        "second": str(second),
        "studies": len(both),
        "left_out": sorted(set(one) ^ set(two)),
        "tasks": tasks,
    }
    if out is not None:
        from vol3d.evaluation.compare_page import write_comparison

        write_comparison(result, Path(out))
    return result


def comparison_text(result: Mapping[str, Any]) -> str:
    """A comparison as lines for a terminal."""
    lines = [f"{result['first']} − {result['second']}, {result['studies']} studies"]
    for name, block in result["tasks"].items():
        lines.append(f"{name}: {block['wins']} wins, {block['ties']} ties, {block['losses']} losses")
        for metric, score in block.items():
            if isinstance(score, Mapping) and score.get("value") is not None:
                span = "" if score["low"] is None else f" ({score['low']:+.3f} to {score['high']:+.3f})"
                chance = "" if score.get("p") is None else f"  p {score['p']:.3f}, Holm {score['p_holm']:.3f}"
                lines.append(f"  {metric:24}{score['value']:+.3f}{span}{chance}")
    return "\n".join(lines)


def _correct(tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Holm's correction over every score of every task."""
    scores = {
        f"{name} {metric}": score
        for name, block in tasks.items()
        for metric, score in block.items()
        if isinstance(score, dict)
    }
    corrected = holm({name: score["p"] for name, score in scores.items() if score.get("p") is not None})
    for name, score in scores.items():
        score["p_holm"] = corrected.get(name)


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


def _manifest_of(folder: Path) -> Path:
    path = folder / "evaluation.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name the manifest with the true reports")
    return Path(json.loads(path.read_text(encoding="utf-8"))["manifest"])
