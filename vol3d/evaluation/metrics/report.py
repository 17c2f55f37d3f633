"""The report block of evaluation.json: findings, wording, baselines and collapse in one call."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from vol3d.evaluation.metrics import baselines
from vol3d.evaluation.metrics.findings import DEFINITIONS as FINDING_DEFINITIONS
from vol3d.evaluation.metrics.findings import MACRO_MICRO, score_findings
from vol3d.evaluation.metrics.text import DEFINITIONS as TEXT_DEFINITIONS
from vol3d.evaluation.metrics.text import Texts, score_text

_BASELINE_METRICS = (*MACRO_MICRO, "laterality_accuracy", "exact_match")


def score_reports(
    truths: Sequence[str],
    predicted: Sequence[str],
    patients: Sequence[Hashable],
    *,
    blind: Sequence[str] | None = None,
    training: Sequence[str] = (),
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything there is to say about generated reports without another model.

    Args:
        truths, predicted: whole reports, one a study.
        patients: who each study belongs to.
        blind: what is written of another patient's volume; without it the reports are dealt to other patients, which is
            the same where nothing but the volume was read.
        training: the reports the model was trained on, for the wording of the baselines; without them the text
            prior is the most common report of the truths, which flatters the baseline.

    Returns:
        evaluation.json's "report" block: the scores of `score_findings` and `score_text`, "baselines" with the same
        names for "blind", "always_normal" and "text_prior" (values only for findings and wording), "collapse", and
        "definitions".

    Raises:
        ValueError: the sequences differ in length, or are empty.
    """
    from vol3d.text.parser import finding_keys

    keys, outputs = ([finding_keys(text) for text in texts] for texts in (truths, predicted))
    source = list(training) or list(truths)
    read = [finding_keys(text) for text in source] if training else keys
    normal = baselines.always_normal(len(truths), source, read)
    constant = {"always_normal": normal, "text_prior": baselines.text_prior(source, len(truths))}
    known = Texts([*truths, *predicted, *(blind or ()), *(texts[0] for texts in constant.values())])

    result = score_findings(keys, outputs, patients, replicates=replicates, seed=seed)
    result |= score_text(truths, predicted, patients, known=known, replicates=replicates, seed=seed)
    result["baselines"] = {
        "blind": _blind(truths, predicted, keys, outputs, patients, known, seed)
        if blind is None
        else _finding_values(keys, [finding_keys(text) for text in blind], patients)
        | _text_values(truths, blind, patients, known)
    }
    for name, texts in constant.items():
        findings = _finding_values(keys, [finding_keys(texts[0])] * len(texts), patients)
        result["baselines"][name] = findings | _text_values(truths, texts, patients, known) | {"text": texts[0]}
    result["collapse"] = baselines.collapse(predicted, truths)
    result["definitions"] = FINDING_DEFINITIONS | TEXT_DEFINITIONS
    return result


def _blind(
    truths: Sequence[str],
    predicted: Sequence[str],
    keys: Sequence[set[str]],
    outputs: Sequence[set[str]],
    patients: Sequence[Hashable],
    known: Texts,
    seed: int,
) -> dict[str, Any]:
    """Mean finding scores over five deals of the outputs to other patients' studies, wording of the first deal."""
    try:
        deals = [baselines.blind(range(len(truths)), patients, seed + deal) for deal in range(5)]
    except ValueError as error:
        return {"finding_f1": None, "note": str(error)}
    scores = [_finding_values(keys, [outputs[i] for i in deal], patients) for deal in deals]
    means = {name: _mean([score[name] for score in scores]) for name in scores[0]}
    return means | _text_values(truths, [predicted[i] for i in deals[0]], patients, known)


def _finding_values(
    keys: Sequence[set[str]], outputs: Sequence[set[str]], patients: Sequence[Hashable]
) -> dict[str, float | None]:
    """Point values only: a baseline is drawn beside the interval of the model's own score."""
    scores = score_findings(keys, outputs, patients, replicates=1)
    return {name: scores[name]["value"] for name in _BASELINE_METRICS}


def _text_values(
    truths: Sequence[str], texts: Sequence[str], patients: Sequence[Hashable], known: Texts
) -> dict[str, float | None]:
    scores = score_text(truths, texts, patients, known=known, replicates=1)
    return {name: score["value"] for name, score in scores.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
