"""A comparison of two evaluations as one small HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from vol3d.data.formats import atomic
from vol3d.evaluation.headline import headline_of
from vol3d.evaluation.titles import LOWER_IS_BETTER, TASKS, format_p, format_score, title_of


def write_comparison(result: Mapping[str, Any], out: Path) -> Path:
    """Write `comparison.json` and `comparison.html` into the folder `out`; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("comparison.json", json.dumps(result, indent=1) + "\n"), ("comparison.html", render(result))):
        with atomic(out / name) as part:
            part.write_text(text, encoding="utf-8")
    return out / "comparison.html"


def render(result: Mapping[str, Any]) -> str:
    """The page's text: a forest of differences, zero in the middle of each bar."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"score": format_score, "p": format_p}
    template = environment.from_string(
        files("vol3d.evaluation").joinpath("comparison.html").read_text(encoding="utf-8")
    )
    tasks = [task_view(name, block) for name, block in result["tasks"].items()]
    return template.render(result=result, tasks=tasks, verdict=verdict(tasks))


def task_view(name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """One task's differences, drawn on one scale, the headline first."""
    scores = {metric: score for metric, score in block.items() if isinstance(score, Mapping)}
    first = headline_of(name, scores)
    order = sorted(scores, key=lambda metric: first is None or metric != first[0])
    ends = [abs(score[end]) for score in scores.values() for end in ("low", "high") if score.get(end) is not None]
    scale = next((size for size in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if size >= max(ends, default=1.0)), 1.0)
    return {
        "title": TASKS.get(name, title_of(name)),
        "scale": f"{scale:g}",
        "rows": [_row(metric, scores[metric], scale) | {"title": title_of(metric, name)} for metric in order],
    } | {part: block[part] for part in ("wins", "ties", "losses", "counted")}


def head_to_head(result: Mapping[str, Any]) -> dict[str, Any]:
    """Each task's headline, for the page of the first model's evaluation."""
    tasks = [task_view(name, block) for name, block in result["tasks"].items()]
    rows = [task["rows"][0] | task | {"task": task["title"], "title": task["rows"][0]["title"]} for task in tasks]
    told = {name: result[name] for name in ("second", "studies")}
    return {"rows": rows, "verdict": verdict(tasks, "this model")} | told


def verdict(tasks: Sequence[Mapping[str, Any]], first: str = "the first model") -> str:
    """The comparison in one sentence, by the corrected p-values."""
    rows = [row for task in tasks for row in task["rows"] if row["holm"] is not None]
    if not rows:
        return "No score of both has a p-value: one patient, or none whose truth allows a score."
    sure = [row["clear"] for row in rows if row["holm"] < 0.05]
    better, worse = sure.count("better"), sure.count("worse")
    return (
        f"Of {len(rows)} scores {first} is better in {better} and worse in {worse}; in the other "
        f"{len(rows) - better - worse} the two cannot be told apart (Holm's p ≥ 0.05)."
    )


def _row(metric: str, score: Mapping[str, Any], scale: float) -> dict[str, Any]:
    low, high, value = score.get("low"), score.get("high"), score.get("value")
    lower = metric in LOWER_IS_BETTER
    clear = "" if low is None or low <= 0 <= high else "better" if (low > 0) != lower else "worse"
    place = [None if number is None else 50 + 50 * max(-1.0, min(1.0, number / scale)) for number in (low, value, high)]
    return {
        "title": title_of(metric),
        "lower": lower,
        "first": score.get("first"),
        "second": score.get("second"),
        "value": None if value is None else f"{value:+.3f}",
        "span": "" if low is None else f"{low:+.3f} to {high:+.3f}",
        "p": score.get("p"),
        "holm": score.get("p_holm"),
        "clear": clear,
        "place": place,
        "note": score.get("note"),
    }
