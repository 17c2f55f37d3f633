"""A report as a JSON list of findings: the truth parsed from text, the schema, and reading it back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vol3d.text.ontology import FINDINGS, SIDES, Finding, Side
from vol3d.text.parser import parse_findings, parse_mentions

CERTAINTIES = ("present", "possible")
FIELDS = ("finding", "side", "size_mm", "certainty")
MAX_SIZE_MM = 999


def structured(report: str, names: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """The findings a report says are there: {finding, side, size_mm, certainty}, in report order.

    `side` is null for a finding without sides and where the text does not tell; `size_mm` is a whole number or null;
    `certainty` is "possible" when every mention doubts.

    Args:
        names: findings to keep; None for all that the parser knows.
    """
    kept = set(FINDINGS if names is None else names)
    sure = {mention.finding.key for mention in parse_mentions(report) if mention.status == "present"}
    return [
        {
            "finding": finding.name,
            "side": finding.side,
            "size_mm": None if finding.size_mm is None else min(MAX_SIZE_MM, max(1, round(finding.size_mm))),
            "certainty": "present" if {finding.key, finding.name} & sure else "possible",
        }
        for finding in parse_findings(report)
        if finding.name in kept
    ]


def to_json(rows: Sequence[dict[str, Any]]) -> str:
    """The one way these rows are written."""
    return json.dumps([{name: row[name] for name in FIELDS} for row in rows])


def in_words(row: Mapping[str, Any]) -> str:
    """A row as a line to read.

    Example:
        >>> in_words({"finding": "pleural effusion", "side": "left", "size_mm": 12, "certainty": "possible"})
        'Possible left pleural effusion, 12 mm.'
    """
    possible = "possible" if row["certainty"] == "possible" else ""
    said = " ".join(filter(None, (possible, row["side"], row["finding"])))
    size = "" if row["size_mm"] is None else f", {row['size_mm']} mm"
    return f"{said[0].upper()}{said[1:]}{size}."


def from_json(text: str) -> list[dict[str, Any]]:
    """Rows read back, each finding and side once.

    Raises:
        ValueError: it is no JSON, or not by the schema (what is wrong is named).
    """
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}): {text[:80]!r}; write it with constrained decoding") from error
    if not isinstance(rows, list):
        raise ValueError(f"a structured report is a list of findings, got {type(rows).__name__}: {text[:80]!r}")
    kept: dict[tuple[str, Side | None], dict[str, Any]] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or set(row) != set(FIELDS):
            raise ValueError(f"row {number} is {row!r}: it needs {', '.join(FIELDS)} and nothing else")
        if row["certainty"] not in CERTAINTIES:
            raise ValueError(f"row {number} has the certainty {row['certainty']!r}: use {' or '.join(CERTAINTIES)}")
        finding = Finding(row["finding"], side=row["side"], size_mm=row["size_mm"])
        kept.setdefault((finding.name, finding.side), row)
    return list(kept.values())


def allowed_sides(name: str) -> tuple[str | None, ...]:
    """What a finding's side may be."""
    return (*SIDES, None) if FINDINGS[name].sided else (None,)
