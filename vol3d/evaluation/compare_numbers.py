"""Two models' probabilities, risks, vectors and errors on the same studies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from vol3d.evaluation.intervals import Statistic, mean_defined, undefined
from vol3d.evaluation.metrics.codes import MIN_POSITIVES, CodeScores
from vol3d.evaluation.metrics.retrieval import PoolScores, pools_of, unit_rows
from vol3d.evaluation.metrics.survival import Concordance, note_left_out
from vol3d.evaluation.sides import Block, Sides, counts

if TYPE_CHECKING:
    from vol3d.data.study import Study


def compare_codes(sides: Sides) -> Block:
    """Codes that both predict, as the first model's task reads the manifest's (mapped to its system, with the codes
    above and below them; as they are where no system is known): areas over the codes with enough studies for that task,
    and the Brier score of all known labels. A study is won by its own."""
    from vol3d.text.phecodes import read_map, targets

    told = sides.both("codes", dict)
    said = [set(row) for rows in sides.values(told, "codes") for row in rows]
    names = sorted(set.intersection(*said)) if said else []
    settings = sides.settings[0].get("EHRCodes", {})
    code_map = read_map(settings.get("code_map", "auto"))

    def known(study: Study) -> Mapping[str, int]:
        system = study.code_system or settings.get("system")
        present, absent = study.codes, study.codes_absent
        if system is not None:
            present, absent = targets(names, settings.get("system", system), present, absent, system, code_map)
        return dict.fromkeys(absent, 0) | dict.fromkeys(present, 1)

    table = _Table.of(sides, "codes", known) if names else None
    if table is None:
        return {}
    least = settings.get("min_positives", MIN_POSITIVES) if settings else 1
    squares = np.stack([np.nansum((said - table.truth) ** 2, axis=1) for said in table.said], axis=1)
    labels = np.isfinite(table.truth).sum(1)
    statistics = [lambda weights, side=side: weights @ side / (weights @ labels) for side in squares.T]
    brier = sides.difference(["brier"], statistics, table.patients)
    return table.areas(sides, least) | brier | counts(-squares / labels[:, None], "studies")


def compare_labels(field: str) -> Callable[[Sides], Block]:
    """The comparison of scores of findings (zero-shot, by region): areas, and wins by the findings' AUROC."""

    def compared(sides: Sides) -> Block:
        table = _Table.of(sides, field, lambda study: study.labels_known)
        return {} if table is None else table.areas(sides) | counts(table.aurocs(), "findings")

    return compared


@dataclass(frozen=True)
class _Table:
    """Shape: truth and both of said (studies, names); truth is 1, 0 or NaN for unknown."""

    patients: list[Any]
    truth: ndarray
    said: tuple[ndarray, ndarray]

    @classmethod
    def of(cls, sides: Sides, field: str, known: Callable[[Study], Mapping[str, int | None]]) -> _Table | None:
        labels = {study.study: known(study) for study in sides.both(field, dict)}
        told = [study for study in sides.both(field, dict) if any(v is not None for v in labels[study.study].values())]
        names = {name for study in told for name in labels[study.study]}
        names = sorted(names.intersection(*(row for side in sides.values(told, field) for row in side)))
        truth = np.array([[_nan(labels[study.study].get(name)) for name in names] for study in told])
        there = np.isfinite(truth).any(1) if names else np.zeros(0, bool)
        if not there.any():
            return None
        said = [np.array([[row[name] for name in names] for row in side]) for side in sides.values(told, field)]
        patients = [study.patient for study, kept in zip(told, there, strict=True) if kept]
        return cls(patients, truth[there], (said[0][there], said[1][there]))

    def _scores(self, least: int = 1) -> tuple[ndarray, list[CodeScores]]:
        known = np.isfinite(self.truth)
        positive, negative = (np.where(known, self.truth == value, 0.0) for value in (1, 0))
        kept = np.flatnonzero(np.minimum(positive.sum(0), negative.sum(0)) >= max(1, least))
        return kept, [CodeScores(said[:, kept], positive[:, kept], negative[:, kept]) for said in self.said]

    def areas(self, sides: Sides, least: int = 1) -> Block:
        """Differences of macro AUROC and AUPRC over the names with `least` studies of either label."""
        kept, scores = self._scores(least)
        names = ["macro_auroc", "macro_auprc"]
        if not len(kept):
            few = (
                "both a positive and a negative study"
                if least < 2
                else f"{least} positive and as many negative studies"
            )
            return dict.fromkeys(names, undefined(f"no name has {few}"))
        statistics = [lambda weights, part=part: part.statistic(weights, None)[:, :2] for part in scores]
        return sides.difference(names, statistics, self.patients)

    def aurocs(self) -> ndarray:
        """(names, 2)."""
        kept, scores = self._scores()
        once = np.ones((1, len(self.truth)))
        return np.stack([part.statistic(once, None)[0, 2 : 2 + len(kept)] for part in scores], axis=1)


def compare_outcomes(sides: Sides) -> Block:
    """C-index (Harrell's, Uno's), mean over the outcomes that both predict and that have one; wins by the share of a
    study's pairs that are in the right order."""
    tables, patients, shares, left = [], [], [], []
    studies = sides.both("outcomes", dict)
    for name in sorted({name for study in studies for name in study.outcomes}):
        own = [s for s in studies if name in s.outcomes and all(name in r[s.study]["outcomes"] for r in sides.rows)]
        if not own:
            continue
        days = np.array([study.outcomes[name]["time"] for study in own], dtype=np.float64)
        events = np.array([study.outcomes[name]["event"] for study in own], dtype=bool)
        risks = [np.array([_risk(row[name]) for row in side]) for side in sides.values(own, "outcomes")]
        tables.append([Concordance(days, events, risk) for risk in risks])
        shares.append(np.stack([pairs.by_study() for pairs in tables[-1]], axis=1))
        patients.append([study.patient for study in own])
        left += [] if np.isfinite(shares[-1]).any() else [name]
    if not tables:
        return {}
    ends = np.cumsum([len(group) for group in patients])[:-1]

    def mean(side: int) -> Statistic:
        def statistic(weights: ndarray) -> ndarray:
            parts = np.split(weights, ends, axis=1)
            each = [pair[side].both(part) for pair, part in zip(tables, parts, strict=True)]
            return mean_defined(np.stack(each), 0)

        return statistic

    everyone = [patient for group in patients for patient in group]
    block = sides.difference(["c_index", "c_index_ipcw"], [mean(0), mean(1)], everyone)
    note_left_out(block.values(), left)
    return block | counts(np.concatenate(shares), "studies")


def _risk(told: Mapping[str, Any]) -> float:
    """The days without the event that are lost, as the task ranks; the risk itself where no days are told."""
    if not told.get("cumulative"):
        return float(told["risk"])
    return float(np.dot(told["cumulative"], np.diff([0, *told["days"]])))


def compare_retrieval(sides: Sides) -> Block:
    """Both directions in the same pools, of texts as the first model's task matches them; wins by a volume's mean
    reciprocal rank of its own text."""
    from vol3d.text.matching import matched, says

    told = sides.both("retrieval", dict)
    told = [s for s in told if all(rows[s.study]["retrieval"].get("text") for rows in sides.rows)]
    kinds = (sides.settings[0].get(name, {}) for name in ("Retrieval", "ZeroShot"))
    settings = next(filter(None, kinds), {})
    if settings:
        words = ["\n".join(matched(study, settings.get("text", "report")).values()) for study in told]
    else:
        words = [study.report or "\n".join(filter(None, (study.findings, study.impression))) for study in told]
    distinct = [says(text, settings.get("equal", "text")) for text in words]
    if len(set(distinct)) < 2:
        return {}
    same, draws = pools_of(words, distinct, seed=sides.seed)
    patients = [study.patient for study in told]
    vectors = [
        [unit_rows(np.array([row[part] for row in side])) for part in ("volume", "text")]
        for side in sides.values(told, "retrieval")
    ]
    ks = (1, 5, 10)
    names = [*(f"recall@{k}" for k in ks), "mrr"]
    pools = [PoolScores(volumes, texts, same, draws, ks) for volumes, texts in vectors]
    back = [PoolScores(texts, volumes, same, draws, ks) for volumes, texts in vectors]
    block = sides.difference(names, [part.statistic for part in pools], patients)
    turned = sides.difference(names, [part.statistic for part in back], patients)
    block |= {f"text_to_image {name}": score for name, score in turned.items()}
    drawn = pools[0].times > 0
    return block | counts(np.stack([part.sums[drawn, -1] for part in pools], axis=1), "studies")


def compare_reconstruction(sides: Sides) -> Block:
    """Errors of hidden voxels, where both hid the same parts: their errors when a volume's mean is said everywhere are
    then the same."""
    told = sides.both("masked_volume", dict)
    errors, constant = (
        np.array([[row[name] for row in side] for side in sides.values(told, "masked_volume")]).T
        for name in ("error", "constant_error")
    )
    if not told or not np.allclose(*constant.T, rtol=0, atol=1e-4):
        return {}
    return sides.means("error", errors, [study.patient for study in told]) | counts(-errors, "studies")


def _nan(value: float | int | None) -> float:
    return np.nan if value is None else float(value)
