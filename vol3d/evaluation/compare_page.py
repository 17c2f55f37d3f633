"""A comparison of two evaluations as one small HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from vol3d.data.formats import atomic
from vol3d.evaluation.page import LOWER_IS_BETTER, TASKS, format_score, title_of


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
    environment.filters["score"] = format_score
    template = environment.from_string(
        files("vol3d.evaluation").joinpath("comparison.html").read_text(encoding="utf-8")
    )
    tasks = [
        {
            "title": TASKS.get(name, title_of(name)),
            "wins": block["wins"],
            "ties": block["ties"],
            "losses": block["losses"],
            "rows": [_row(metric, score) for metric, score in block.items() if isinstance(score, Mapping)],
        }
        for name, block in result["tasks"].items()
    ]
    return template.render(result=result, tasks=tasks)


def _row(metric: str, score: Mapping[str, Any]) -> dict[str, Any]:
    low, high, value = score.get("low"), score.get("high"), score.get("value")
    lower = metric in LOWER_IS_BETTER
    clear = "" if low is None or low <= 0 <= high else "better" if (low > 0) != lower else "worse"
    place = [None if number is None else 50 + 50 * max(-1.0, min(1.0, number)) for number in (low, value, high)]
    return {
        "title": title_of(metric),
        "lower": lower,
        "value": None if value is None else f"{value:+.3f}",
        "span": "" if low is None else f"{low:+.3f} to {high:+.3f}",
        "p": score.get("p"),
        "holm": score.get("p_holm"),
        "clear": clear,
        "place": place,
        "note": score.get("note"),
    }
