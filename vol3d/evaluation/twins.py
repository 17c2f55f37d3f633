"""The twins of a manifest, read from the reports, or parts of them, that a model wrote of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vol3d.data.study import TEXTS
from vol3d.evaluation.faithfulness import DEFINITIONS, TwinPair, twin_consistency, twin_pairs

if TYPE_CHECKING:
    from vol3d.data.study import Study
    from vol3d.text.ontology import Finding


def twins_of(
    studies: Sequence[Study], predictions: Mapping[str, Mapping[str, Any]], replicates: int, seed: int
) -> dict[str, Any]:
    """Does the report follow the one thing that differs between a study and its twin? Empty without twins."""
    from vol3d.text.parser import parse_findings

    field = next((name for name in TEXTS if any(isinstance(row.get(name), str) for row in predictions.values())), None)
    if field is None:
        return {}
    told = {name: row[field] for name, row in predictions.items() if isinstance(row.get(field), str)}
    outputs = {name: parse_findings(text) for name, text in told.items()}
    studies = [study for study in studies if {study.study, study.meta.get("twin_of", study.study)} <= outputs.keys()]
    truths = {study.study: parse_findings(getattr(study, field) or "") for study in studies}
    pairs = twin_pairs(studies, {name: {finding.key for finding in said} for name, said in outputs.items()})
    if not pairs:
        return {}
    pairs = [
        replace(pair, sizes_mm=_sizes(outputs, pair), true_sizes_mm=_sizes(truths, pair))
        if pair.change == "resize"
        else pair
        for pair in pairs
    ]
    return {"twins": twin_consistency(pairs, replicates=replicates, seed=seed) | {"definitions": DEFINITIONS}}


def _sizes(findings: Mapping[str, list[Finding]], pair: TwinPair) -> tuple[float, float] | None:
    """Sizes in mm of the pair's finding before and after, None where either is not told."""
    sizes = [next((f.size_mm for f in findings[name] if f.key == pair.key), None) for name in (pair.study, pair.twin)]
    return None if None in sizes else (sizes[0], sizes[1])
