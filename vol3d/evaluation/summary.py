"""An evaluation as a few lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vol3d.evaluation.controls import NOT_APPLICABLE
from vol3d.evaluation.headline import headline_of


def summary(result: Mapping[str, Any]) -> str:
    """The scores as a few lines for a terminal, baselines beside them."""
    lines = [f"{result['studies']} studies of {result['patients']} patients, {result['seconds']} s"]
    if "report" in result["tasks"] and "baselines" in result["tasks"]["report"]:
        lines += _report_lines(result["tasks"]["report"])
    for name, block in result["tasks"].items():
        if name == "report" and "baselines" in block:
            continue
        if (found := headline_of(name, block)) is None:
            lines.append(f"{name:24}{block.get('note', 'no score')}")
            continue
        metric, score, baseline = found
        beside = "" if baseline is None else f"   blind {_number(baseline)}"
        lines.append(f"{f'{name} {metric}':32}{_interval(score)}{beside}")
    if twins := result["faithfulness"].get("twins"):
        lines.append(
            f"{twins['pairs']} twin pairs: the changed finding follows in {_interval(twins['changed'])}, "
            f"nothing else changes in {_interval(twins['unchanged'])}"
        )
    for name, block in result["faithfulness"].items():
        if isinstance(block, Mapping) and "caught" in block:
            said = f"no sign of looking in {', '.join(block['caught'])}" if block["caught"] else "looks at the image"
            if not block.get("judged", True):
                left = {"": block["changed"].get("note") or "no interval"} if name == "twins" else block["not_judged"]
                said = f"not judged: {'; '.join(dict.fromkeys(left.values()))}".replace(NOT_APPLICABLE, "")
            lines.append(f"{name if name == 'twins' else f'probes, {name}'}: {said}")
    if "tasks" in result.get("base", {}):
        from vol3d.evaluation.compare import comparison_text

        lines += ["against the base model:", comparison_text(result["base"])]
    return "\n".join([*lines, *result.get("notes", [])])


def _report_lines(report: Mapping[str, Any]) -> list[str]:
    lines = [f"{'':24}{'model':>22}{'blind':>10}{'always normal':>16}"]
    for name in ("finding_f1", "finding_precision", "finding_recall", "laterality_accuracy", "rouge_l"):
        if name in report:
            blind, normal = (report["baselines"].get(kind, {}).get(name) for kind in ("blind", "always_normal"))
            lines.append(f"{name:24}{_interval(report[name]):>22}{_number(blind):>10}{_number(normal):>16}")
    return lines


def _interval(metric: Mapping[str, Any]) -> str:
    value = _number(metric["value"])
    return value if metric.get("low") is None else f"{value} ({metric['low']:.2f}–{metric['high']:.2f})"


def _number(value: float | int | None) -> str:
    return "–" if value is None else f"{value:.3f}"
