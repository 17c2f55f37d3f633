"""The faithfulness suite as tables of a page, each probe beside its control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vol3d.evaluation.headline import is_score
from vol3d.evaluation.page_tables import row_of
from vol3d.evaluation.titles import TASKS, format_p, title_of


def faithfulness_groups(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One group of scores for the twins and for each task that was probed, with what each says of the model."""
    below = [(name, inner) for name, inner in block.items() if isinstance(inner, Mapping) and not is_score(inner)]
    groups = []
    for name, scores in [("", {k: v for k, v in block.items() if k not in dict(below)}), *below]:
        rows = [_probe_row(name, score) for name, score in scores.items() if is_score(score)]
        rows += _nested_rows(scores)
        if not rows:
            continue
        groups.append(
            {
                "title": TASKS.get(name, title_of(name)) if name else "",
                "rows": [row for row in rows if row["value"] is not None],
                "kinds": ["Control"] if any(row["baselines"] for row in rows) else [],
                "facts": {title_of(k): v for k, v in scores.items() if isinstance(v, int) and not isinstance(v, bool)},
                "caught": None if "caught" not in scores else [title_of(name).lower() for name in scores["caught"]],
                "judged": len(scores.get("judged", ())),
                "not_judged": scores["not_judged"] if isinstance(scores.get("not_judged"), Mapping) else {},
            }
        )
    return groups


_CHANGES = {
    "blank": "empty ones",
    "shuffled": "another patient's",
    "mirror": "mirrored ones",
    "erase": "ones with a finding erased",
}
_NO_CHANGES = {
    "noise": "a little noise",
    "shift_hu": "other HU",
    "thick_slices": "thick slices",
    "missing_slices": "missing slices",
    "contrast_phase": "another contrast phase",
}


def shown_volumes(block: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What changed volumes some task was shown, after which its output must change, and after which it should stay."""
    tasks = [scores for scores in block.values() if isinstance(scores, Mapping)]

    def shown(probe: str) -> bool:
        scores = [scores[probe] for scores in tasks if isinstance(scores.get(probe), Mapping)]
        parts = [[score] if is_score(score) else score.values() for score in scores]
        return any(part["value"] is not None for some in parts for part in some)

    must, stay = ([words for probe, words in kind.items() if shown(probe)] for kind in (_CHANGES, _NO_CHANGES))
    return must, stay


def _probe_row(name: str, score: Mapping[str, Any], of: str = "") -> dict[str, Any]:
    row = row_of(name, score, {"control": {name: score["control"]}} if "control" in score else {})
    over = score.get("over_control") or {}
    if over.get("p") is not None:
        told = f"over control {over['value']:+.2f} ({over['low']:+.2f} to {over['high']:+.2f}), p {format_p(over['p'])}"
        row["note"] = "; ".join(filter(None, (row["note"], told)))
    return row | ({"title": f"{row['title']} ({_of(of)})"} if of else {})


def _nested_rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores one level further down, told apart by what they are of: "Nothing else changes (swap)"."""
    inner = {name: part for name, part in scores.items() if isinstance(part, Mapping) and not is_score(part)}
    inner |= inner.pop("by_change", {})
    for words in ("definitions", "not_judged"):
        inner.pop(words, None)
    return [
        _probe_row(name, score, of) for of, part in inner.items() for name, score in part.items() if is_score(score)
    ]


def _of(name: str) -> str:
    title = title_of(name)
    return title if title[:2].isupper() else title.lower()
