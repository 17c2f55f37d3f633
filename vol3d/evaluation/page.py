"""The evaluation as one self-contained HTML page that a radiologist can read on a desk, a phone or paper.

Nothing on the page is fetched from elsewhere: pictures are data URIs, the chart is inline SVG, there is no script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from vol3d.evaluation.case import Case, case_view, choose_cases
from vol3d.evaluation.chart import curve_chart, loss_charts
from vol3d.evaluation.compare_page import head_to_head
from vol3d.evaluation.headline import is_score
from vol3d.evaluation.metrics.findings import DEFINITIONS as FINDING_DEFINITIONS
from vol3d.evaluation.metrics.text import DEFINITIONS as TEXT_DEFINITIONS
from vol3d.evaluation.page_faithfulness import faithfulness_groups, shown_volumes
from vol3d.evaluation.page_tables import finding_rows, other_tiles, report_tiles, row_of, subgroup_tables, table_of
from vol3d.evaluation.titles import TASKS, format_p, format_score, title_of

__all__ = ["Case", "choose_cases", "render_page", "write_page"]


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
    environment.filters |= {"score": format_score, "p": format_p, "title_of": title_of}
    template = environment.from_string(files("vol3d.evaluation").joinpath("page.html").read_text(encoding="utf-8"))
    tasks = evaluation.get("tasks") or {}
    report = tasks.get("report") or {}
    return template.render(
        evaluation=evaluation,
        written=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        headline=report_tiles(report, evaluation.get("faithfulness") or {}) or other_tiles(tasks),
        base=head_to_head(evaluation["base"]) if "tasks" in evaluation.get("base", {}) else None,
        tables=[table_of(name, block) for name, block in tasks.items() if block],
        findings=finding_rows(report.get("per_finding") or {}),
        not_in_truth=report.get("not_in_truth") or {},
        collapse=report.get("collapse") or {},
        faithfulness=faithfulness_groups(evaluation.get("faithfulness") or {}),
        leakage=_leakage(evaluation.get("leakage") or {}),
        twins="changed" in ((evaluation.get("faithfulness") or {}).get("twins") or {}),
        probed=bool(set(evaluation.get("faithfulness") or {}) - {"twins"}),
        shown=shown_volumes(evaluation.get("faithfulness") or {}),
        charts=loss_charts(history or []),
        subgroups=subgroup_tables(evaluation.get("subgroups") or {}),
        abstention=[
            {
                "title": TASKS.get(name, title_of(name)),
                "points": curve_chart([(p["coverage"], p["accuracy"]) for p in block["curve"]]),
            }
            | {"rows": [row_of(key, score, {}) for key, score in block.items() if is_score(score)], "kinds": []}
            for name, block in (evaluation.get("abstention") or {}).items()
        ],
        cases=[case_view(case) for case in cases],
        definitions=_definitions(tasks, evaluation.get("faithfulness") or {}),
    )


def _leakage(block: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was found as (name, text) lines; lists are counted, with the first few named."""
    if block.get("other_studies") == 0:
        return [("Not looked for", "the manifest holds no study of another split: give one with the training studies")]
    lines = []
    for name, value in block.items():
        if name in ("clean", "test_reports", "other_studies", "definitions"):
            continue
        if isinstance(value, (list, tuple)):
            of = f" of {block['test_reports']}" if "reports" in name and block.get("test_reports") else ""
            first = f" ({', '.join(map(str, value[:3]))}{', …' if len(value) > 3 else ''})" if value else ""
            value = f"{len(value) or 'none'}{of}{first}"
        lines.append((title_of(name), "not compared (--duplicates does)" if value == "not compared" else str(value)))
    return lines


def _definitions(tasks: Mapping[str, Any], faithfulness: Mapping[str, Any]) -> list[tuple[str, str]]:
    known: dict[str, str] = {}
    if "report" in tasks:
        known |= FINDING_DEFINITIONS | (TEXT_DEFINITIONS if "bleu_1" in tasks["report"] else {})
    for task, block in tasks.items():
        for metric, text in ((block or {}).get("definitions") or {}).items():
            titled = title_of(metric, task)
            name = metric if titled == title_of(metric) else titled
            # One name may mean two things: the Brier score of codes and that of outcomes.
            own = name if known.get(name, text) == text else f"{title_of(name)} ({TASKS.get(task, title_of(task))})"
            known[own] = text
    for block in faithfulness.values():
        told = block.get("definitions") or {} if isinstance(block, Mapping) else {}
        parts = (
            [part for key, part in block.items() if isinstance(part, Mapping) and key != "definitions"] if told else ()
        )
        scored = set(block if told else ()).union(*parts)
        known |= {name: text for name, text in told.items() if name in scored}
    return [(title_of(name), text) for name, text in known.items()]
