"""The evaluation as one self-contained HTML page that a radiologist can read on a desk, a phone or paper.

Nothing on the page is fetched from elsewhere: pictures are data URIs, the chart is inline SVG, there is no script.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from vol3d.evaluation.case import Case, case_view, choose_cases
from vol3d.evaluation.chart import curve_chart, loss_charts, reliability_chart
from vol3d.evaluation.faithfulness import DEFINITIONS as FAITHFULNESS_DEFINITIONS
from vol3d.evaluation.headline import headline_of
from vol3d.evaluation.metrics.findings import DEFINITIONS as FINDING_DEFINITIONS
from vol3d.evaluation.metrics.text import DEFINITIONS as TEXT_DEFINITIONS
from vol3d.evaluation.probes import DEFINITIONS as PROBE_DEFINITIONS
from vol3d.evaluation.probes import ROBUST
from vol3d.evaluation.probing import DEFINITIONS as PROBING_DEFINITIONS

__all__ = ["Case", "choose_cases", "render_page", "write_page"]

_TITLES = {
    "finding_f1": "Finding F1",
    "finding_precision": "Precision",
    "finding_recall": "Recall",
    "finding_f1_micro": "Finding F1, micro",
    "finding_precision_micro": "Precision, micro",
    "finding_recall_micro": "Recall, micro",
    "laterality_accuracy": "Side correct",
    "exact_match": "All findings right",
    "macro_f1": "Macro F1",
    "classes": "Findings scored",
    "m3d_bleu": "BLEU-1, M3D",
    "rouge_l": "ROUGE-L",
    "changed": "Changed finding changes",
    "unchanged": "Nothing else changes",
    "both": "Both at once",
    "sb": "Stubborn",
    "ig": "Ignorant",
    "id": "Indecisive",
    "image_dependence": "Dependence on the image",
    "invented_on_blank": "Findings on an empty volume",
    "sides_turned": "Sides turn with the mirror",
    "prior_mentions": "Compares with an exam that is not there",
    "blank": "Silent on an empty volume",
    "mirror": "Sides turn with the mirror",
    "erase": "Erased finding is gone",
    "same_findings": "Same findings",
    "f1_change": "Change of F1",
    "shift_hu": "HU shift",
    "hd95_mm": "HD95 (mm)",
    "nsd": "NSD",
    "c_index": "C-index",
    "mrr": "MRR",
    "shuffled": "Another patient's volume changes it",
    "claim": "Believes a false claim in the prompt",
    "confusable": "Tells look-alike studies apart",
    "same_answers": "Same answers",
    "same_codes": "Same codes",
    "thick_slices": "Thick slices",
}
TASKS = {
    "report": "Report",
    "retrieval": "Retrieval",
    "codes": "Codes",
    "segmentation": "Segmentation",
    "vqa_closed": "Closed questions",
    "vqa_open": "Open questions",
    "grounding": "Grounding",
    "outcomes": "Outcomes",
    "zero_shot": "Zero-shot findings",
    "vqa": "Questions",
}
LOWER_IS_BETTER = {"claim", "sb", "ig", "id", "invented_on_blank", "prior_mentions", "hd95_mm", "ece", "brier"}


def write_page(
    evaluation: Mapping[str, Any],
    cases: Sequence[Case] = (),
    history: Sequence[Mapping[str, Any]] | None = None,
    out: Path = Path("evaluation.html"),
) -> Path:
    """Write the page.

    Args:
        evaluation: what evaluation.json holds. Beyond the contract, "notes" (sentences for the reader), "title"
            and "data" (what the studies are) are shown when there.
        cases: studies to show, in the order to show them.
        history: rows of the run's metrics.csv; every column with "loss" in its name becomes a curve over "step".
        out: where to; written beside itself first, so that a half-written page never stands there.

    Raises:
        ValueError: a case has not three two-dimensional uint8 pictures (the study is named).
    """
    html = render_page(evaluation, cases, history)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(html, encoding="utf-8")
    return part.replace(out)


def render_page(
    evaluation: Mapping[str, Any], cases: Sequence[Case] = (), history: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """The page's text. Arguments as `write_page`."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["score"] = format_score
    template = environment.from_string(files("vol3d.evaluation").joinpath("page.html").read_text(encoding="utf-8"))
    tasks = evaluation.get("tasks") or {}
    report = tasks.get("report") or {}
    return template.render(
        evaluation=evaluation,
        written=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        headline=_headline(report, evaluation.get("faithfulness") or {}) or _any_headline(tasks),
        tables=[_table(name, block) for name, block in tasks.items() if block],
        findings=_findings(report.get("per_finding") or {}),
        not_in_truth=report.get("not_in_truth") or {},
        collapse=report.get("collapse") or {},
        faithfulness=_faithfulness(evaluation.get("faithfulness") or {}),
        leakage=_plain(evaluation.get("leakage") or {}),
        twins="changed" in str(evaluation.get("faithfulness") or {}),
        probed="caught" in str(evaluation.get("faithfulness") or {}),
        charts=loss_charts(history or []),
        subgroups=_subgroups(evaluation.get("subgroups") or {}),
        abstention=[
            {
                "title": TASKS.get(name, title_of(name)),
                "points": curve_chart([(p["coverage"], p["accuracy"]) for p in block["curve"]]),
            }
            | {"rows": [_row(key, score, {}) for key, score in block.items() if _is_score(score)], "kinds": []}
            for name, block in (evaluation.get("abstention") or {}).items()
        ],
        cases=[case_view(case) for case in cases],
        definitions=_definitions(tasks, evaluation.get("faithfulness") or {}),
    )


def format_score(value: float | int | None, digits: int = 2) -> str:
    """Two decimals, as a radiologist would say it; "–" for what is not known; enough digits for big numbers."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:,.0f}"


def title_of(name: str) -> str:
    """A metric's name as the page shows it ("recall@1" → "R@1")."""
    if name in _TITLES:
        return _TITLES[name]
    text = name.replace("_", " ").replace("recall@", "R@")
    for short in ("bleu", "rouge", "auroc", "auprc", "iou", "ece", "m3d"):
        text = re.sub(rf"\b{short}\b", short.upper(), text)
    text = re.sub(r"\b(BLEU|ROUGE) (\w)\b", r"\1-\2", text)
    return text[:1].upper() + text[1:]


def _is_score(value: object) -> bool:
    return isinstance(value, Mapping) and "value" in value


def _number(value: object) -> float | None:
    """A baseline may be a number or a score."""
    if isinstance(value, Mapping):
        value = value.get("value")
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _row(name: str, score: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    numbers = [score.get(part) for part in ("value", "low", "high")]
    known = [number for number in numbers if number is not None]
    return {
        "title": title_of(name),
        "value": score.get("value"),
        "low": score.get("low"),
        "high": score.get("high"),
        "note": score.get("note"),
        "lower": name in LOWER_IS_BETTER,
        "bar": bool(known) and all(0 <= number <= 1 for number in known),
        "baselines": [(kind, _number(block.get(name))) for kind, block in baselines.items()],
    }


def _table(task: str, block: Mapping[str, Any]) -> dict[str, Any]:
    baselines = {kind: values for kind, values in (block.get("baselines") or {}).items() if isinstance(values, Mapping)}
    rows = [_row(name, score, baselines) for name, score in block.items() if _is_score(score)]
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
        "bars": [] if task == "report" else _bars(block),
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


def _bars(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One list of bars for each `per_…` of a task, by the first score of its members."""
    lists = []
    for name, members in block.items():
        if not name.startswith("per_") or not isinstance(members, Mapping):
            continue
        rows = []
        for member, scores in members.items():
            found = {} if not isinstance(scores, Mapping) else {k: v for k, v in scores.items() if _is_score(v)}
            metric = next((k for k, v in found.items() if v["value"] is not None), "")
            if metric and 0 <= found[metric]["value"] <= 1:
                counts = [f"{v} {title_of(k).lower()}" for k, v in scores.items() if isinstance(v, int)]
                rows.append(
                    _row(metric, found[metric], {})
                    | {"title": str(member), "support": ", ".join(counts[:2]), "metric": metric}
                )
        if rows:
            rows.sort(key=lambda row: (-row["value"], row["title"]))
            lists.append({"title": title_of(name), "metric": title_of(rows[0]["metric"]), "rows": rows})
    return lists


def _any_headline(tasks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The headlines of a model that writes no report."""
    tiles = []
    for name, block in tasks.items():
        if found := headline_of(name, block):
            metric, score, blind = found
            row = _row(metric, score, {} if blind is None else {"blind": {metric: blind}})
            tiles.append(row | {"meaning": TASKS.get(name, title_of(name)).lower()})
    return tiles[:4]


def _subgroups(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    tables = []
    for field, tasks in block.items():
        for name, told in tasks.items():
            rows = [
                _row(told["metric"], score, {}) | {"title": f"{group} ({score['studies']})"}
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


def _headline(report: Mapping[str, Any], faithfulness: Mapping[str, Any]) -> list[dict[str, Any]]:
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
        if _is_score(block.get(name)):
            tiles.append(_row(name, block[name], baselines if block is report else {}) | {"meaning": meaning})
    return tiles


def _findings(per_finding: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = [
        _row(key, scores["f1"], {})
        | {"title": key, "support": scores.get("support"), "predicted": scores.get("predicted")}
        | {part: _number(scores.get(part)) for part in ("precision", "recall")}
        for key, scores in per_finding.items()
    ]
    return sorted(rows, key=lambda row: (-(row["value"] or 0.0), row["title"]))


def _faithfulness(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores of the block itself, then one group for each dictionary below it ("twins", "probes")."""
    below = [(name, inner) for name, inner in block.items() if isinstance(inner, Mapping) and not _is_score(inner)]
    groups = []
    for title, scores in [("", {k: v for k, v in block.items() if k not in dict(below)}), *below]:
        rows = [_row(name, score, {}) for name, score in scores.items() if _is_score(score)]
        rows += _nested_rows(scores)
        facts = {title_of(k): v for k, v in scores.items() if isinstance(v, int) and not isinstance(v, bool)}
        if rows:
            caught = [title_of(name).lower() for name in scores["caught"]] if "caught" in scores else None
            groups.append({"title": title_of(title) if title else "", "rows": rows, "facts": facts, "caught": caught})
    return groups


def _nested_rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores one level further down, told apart by what they are of: "Nothing else changes (swap)"."""
    inner = {name: part for name, part in scores.items() if isinstance(part, Mapping) and not _is_score(part)}
    inner |= inner.pop("by_change", {})
    inner.pop("definitions", None)
    return [
        _row(name, score, {}) | {"title": f"{title_of(name)} ({_of(of)})"}
        for of, part in inner.items()
        for name, score in part.items()
        if _is_score(score)
    ]


def _of(name: str) -> str:
    title = title_of(name)
    return title if title[:2].isupper() else title.lower()


def _plain(block: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Counts and sentences as (name, text) lines; lists are counted, with the first few named."""
    lines = []
    for name, value in block.items():
        if isinstance(value, (list, tuple)):
            first = ", ".join(str(item) for item in value[:3])
            value = f"{len(value)}" + (f" ({first}{', …' if len(value) > 3 else ''})" if value else "")
        elif isinstance(value, Mapping):
            value = (
                format_score(value["value"]) if _is_score(value) else "; ".join(f"{k}: {v}" for k, v in value.items())
            )
        lines.append((title_of(name), "none" if value in (None, "0", 0) else str(value)))
    return lines


def _definitions(tasks: Mapping[str, Any], faithfulness: Mapping[str, Any]) -> list[tuple[str, str]]:
    known: dict[str, str] = {}
    if "report" in tasks:
        known |= FINDING_DEFINITIONS | (TEXT_DEFINITIONS if "bleu_1" in tasks["report"] else {})
    for block in tasks.values():
        known |= (block or {}).get("definitions") or {}
    if faithfulness:
        said = set(faithfulness).union(*(block for block in faithfulness.values() if isinstance(block, Mapping)))
        if said & set(ROBUST):
            said |= {"same_findings", "f1_change"}
        defined = FAITHFULNESS_DEFINITIONS | PROBE_DEFINITIONS | PROBING_DEFINITIONS
        known |= {name: text for name, text in defined.items() if name in said}
        known |= faithfulness.get("definitions") or {}
    return [(title_of(name), text) for name, text in known.items()]
