"""Scores as the rows and tables of a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vol3d.evaluation.chart import curve_chart, reliability_chart
from vol3d.evaluation.headline import headline_of, is_score
from vol3d.evaluation.titles import LOWER_IS_BETTER, TASKS, title_of


def number_of(value: object) -> float | None:
    """A baseline may be a number or a score."""
    if isinstance(value, Mapping):
        value = value.get("value")
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def row_of(name: str, score: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One score as a row: value, interval, whether lower is better, and the baselines of its name."""
    numbers = [score.get(part) for part in ("value", "low", "high")]
    known = [number for number in numbers if number is not None]
    return {
        "title": title_of(name),
        "value": score.get("value"),
        "low": score.get("low"),
        "high": score.get("high"),
        "note": score.get("note"),
        "lower": name in LOWER_IS_BETTER,
        "bar": bool(known) and 0 <= known[0] <= 1 and not name.endswith(("_mm", "_ml")),
        "span": [min(1.0, max(0.0, number)) for number in known[1:]],
        "baselines": [(kind, number_of(block.get(name))) for kind, block in baselines.items()],
    }


def table_of(task: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """One task's block of evaluation.json as a table, its wording scores apart, with its plots and bars."""
    baselines = {kind: values for kind, values in (block.get("baselines") or {}).items() if isinstance(values, Mapping)}
    scores = {name: score for name, score in block.items() if is_score(score)}
    rows = [row_of(name, score, baselines) | {"title": title_of(name, task)} for name, score in scores.items()]
    for row in rows:
        row["wording"] = row["title"].startswith(("BLEU", "ROUGE", "METEOR", "BERT"))
    facts = {title_of(k): v for k, v in block.items() if isinstance(v, (int, str)) and not isinstance(v, bool)}
    notes = [f"{title_of(kind)} baseline: {values['note']}" for kind, values in baselines.items() if values.get("note")]
    kinds = [title_of(kind) for kind in baselines]
    return {
        "title": TASKS.get(task, title_of(task)),
        "rows": [row for row in rows if not row["wording"]],
        "wording": [row for row in rows if row["wording"]],
        "facts": facts,
        "kinds": kinds,
        "notes": notes,
        "reliability": reliability_chart(block.get("reliability") or []),
        "curves": _curves(block.get("curves") or {}),
        "bars": [] if task == "report" else _bars(task, block),
        "note": block.get("note"),
    }


_CURVES = {
    "roc": ("ROC", "False positive rate to the right, true positive rate upwards."),
    "pr": ("Precision and recall", "Recall to the right, precision upwards."),
}


def _curves(curves: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"title": title, "meaning": meaning, "points": curve_chart(curves[name]), "diagonal": name == "roc"}
        for name, (title, meaning) in _CURVES.items()
        if curves.get(name)
    ]


def _bars(task: str, block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One list of bars for each `per_…` of a task, by the first score that any of its members has; a member without it
    has no bar."""
    from vol3d.text.phecodes import read_vocabulary

    names = read_vocabulary("merlin") | read_vocabulary("findings") if "per_code" in block else {}
    coded = "finding" if task in ("zero_shot", "regions") else "code"
    lists = []
    for name, members in block.items():
        if not name.startswith("per_") or not isinstance(members, Mapping):
            continue
        members = {member: scores for member, scores in members.items() if isinstance(scores, Mapping)}
        metrics = dict.fromkeys(metric for scores in members.values() for metric in scores)
        metric = next((m for m in metrics if any(_shown(scores.get(m)) for scores in members.values())), "")
        rows = []
        for member, scores in members.items():
            if _shown(scores.get(metric)):
                title = f"{member} {names[member]}" if name == "per_code" and member in names else str(member)
                rows.append(row_of(metric, scores[metric], {}) | {"title": title, "support": _support(scores)})
        if rows:
            rows.sort(key=lambda row: (-row["value"], row["title"]))
            title = title_of(name).replace("code", coded)
            lists.append({"title": title, "metric": title_of(metric, task), "rows": rows})
    return lists


def _shown(score: object) -> bool:
    """Whether a score is there and lies between 0 and 1, as a bar does."""
    return isinstance(score, Mapping) and score.get("value") is not None and 0 <= score["value"] <= 1


def _support(scores: Mapping[str, Any]) -> str:
    """How much a bar rests on."""
    counts = {name: value for name, value in scores.items() if isinstance(value, int)}
    if {"positives", "negatives"} <= counts.keys():
        return f"{counts['positives']} of {counts['positives'] + counts['negatives']} positive"
    if {"support", "predicted"} <= counts.keys():
        return f"{counts['support']} true, {counts['predicted']} reported"
    units = {name: "masks" if name == "support" else title_of(name).lower() for name in counts}
    return ", ".join(f"{value} {units[name]}" for name, value in list(counts.items())[:2])


def other_tiles(tasks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The headlines of a model that writes no report."""
    tiles = []
    for name, block in tasks.items():
        if found := headline_of(name, block):
            metric, score, blind = found
            row = row_of(metric, score, {} if blind is None else {"blind": {metric: blind}})
            tiles.append(row | {"meaning": TASKS.get(name, title_of(name)).lower()})
    return tiles[:4]


def subgroup_tables(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A table for each field and task of "subgroups", with the largest gap in words."""
    tables = []
    for field, tasks in block.items():
        for name, told in tasks.items():
            rows = [
                row_of(told["metric"], score, {}) | {"title": f"{group} ({score['studies']})"}
                for group, score in told["groups"].items()
            ]
            gap = told["largest_gap"]
            what = f"{TASKS.get(name, title_of(name))}, {title_of(told['metric'])}"
            tables.append(
                {
                    "title": f"By {title_of(field).lower()}: {what}",
                    "rows": rows,
                    "kinds": [],
                    "gap": None
                    if gap["value"] is None
                    else f"{gap['value']:.2f}, {gap['between'][0]} over {gap['between'][1]}",
                    "unknown": told["unknown"],
                }
            )
    return tables


def report_tiles(report: Mapping[str, Any], faithfulness: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The report's and the twins' first scores, for the tiles on top."""
    baselines = report.get("baselines") or {}
    twins = faithfulness.get("twins") or faithfulness
    asked = (
        ("finding_f1", report, "right findings on the right side"),
        ("laterality_accuracy", report, "of the findings named correctly"),
        ("changed", twins, "when one finding is taken away or moved"),
        ("unchanged", twins, "when one finding is taken away or moved"),
    )
    tiles = []
    for name, block, meaning in asked:
        if is_score(block.get(name)):
            tiles.append(row_of(name, block[name], baselines if block is report else {}) | {"meaning": meaning})
    return tiles


def finding_rows(per_finding: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each finding's F1, best first."""
    rows = [
        row_of(key, scores["f1"], {})
        | {"title": key, "support": scores.get("support"), "predicted": scores.get("predicted")}
        | {part: number_of(scores.get(part)) for part in ("precision", "recall")}
        for key, scores in per_finding.items()
    ]
    return sorted(rows, key=lambda row: (-(row["value"] or 0.0), row["title"]))
