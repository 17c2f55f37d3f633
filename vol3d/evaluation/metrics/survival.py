"""Outcomes over time: Harrell's and Uno's C-index, cumulative/dynamic AUC and Brier score at a horizon.

Censoring is corrected by its own Kaplan–Meier curve (inverse probability weights), estimated in each replicate.
Equal to scikit-survival on the tests' data.

Source: Harrell et al. 1982; Graf et al. 1999 (Brier); Uno et al. 2007 (AUC), 2011 (C).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.sparse import csr_array

from vol3d.evaluation.intervals import clustered_bootstrap, mean_defined
from vol3d.evaluation.metrics.baselines import blind
from vol3d.evaluation.metrics.ranking import Ranking

DEFINITIONS = {
    "c_index": "Harrell's C: of the pairs in which one surely had the event first, the share in which it had the "
    "higher risk; equal risks count half",
    "c_index_ipcw": "Uno's C: the same pairs, each weighted by 1 / (chance of not being censored by then)², so "
    "that it does not depend on how long patients were followed",
    "auc": "cumulative/dynamic AUC at a horizon: those with the event by then against those without, weighted for "
    "censoring",
    "brier": "mean squared error of the predicted chance of no event by the horizon, weighted for censoring",
}
NO_PAIR = "no pair of studies of which one surely had the event first"
Vector = Float[ndarray, " _studies"]
_BLOCK = 500


def score_outcome(
    days: Vector,
    events: Bool[ndarray, " _studies"],
    risk: Vector,
    patients: Sequence[Hashable],
    *,
    survival: Mapping[float | int, Vector] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of one outcome with 95 % patient-clustered intervals.

    Args:
        days: time to the event or to the end of follow-up.
        events: true when the event was seen, false when censored.
        risk: higher means sooner.
        survival: {horizon in days: predicted chance of no event by then}, for "auc" and "brier" at the horizon.

    Returns:
        "c_index", "c_index_ipcw", and "auc@365", "brier@365" for each horizon; "events", "studies"; "baselines":
        "constant", the same risk for everybody (C-index and AUC 0.5, Brier score of the best single chance), and
        "blind", each study with the prediction of another patient's.

    Raises:
        ValueError: lengths that differ, a negative or unknown time or risk.
    """
    if not len(days) == len(events) == len(risk) == len(patients):
        raise ValueError(
            f"{len(days)} times, {len(events)} events, {len(risk)} risks, {len(patients)} patients: one of each"
        )
    if not (np.isfinite(days).all() and (days >= 0).all() and np.isfinite(risk).all()):
        bad = int(np.flatnonzero(~(np.isfinite(days) & (days >= 0) & np.isfinite(risk)))[0])
        raise ValueError(f"study {bad}: time is {days[bad]}, risk is {risk[bad]}: leave out studies without either")
    options = {"replicates": replicates, "seed": seed}
    result: dict[str, Any] = {"events": int(events.sum()), "studies": len(days)}
    pairs = Concordance(days, events, risk)
    having = _patients(patients, events)
    estimates = clustered_bootstrap(pairs.both, patients, trials=having, **options)
    for name, estimate in zip(("c_index", "c_index_ipcw"), estimates, strict=True):
        result[name] = estimate
        if estimate["value"] is None:
            estimate["note"] = NO_PAIR
    baselines: dict[str, float | None] = {"c_index": 0.5, "c_index_ipcw": 0.5}
    for horizon, chance in (survival or {}).items():
        at = _Horizon(days, events, risk, chance, float(horizon))
        trials = [min(_patients(patients, side) for side in (at.case, at.control)), 0]
        auc, brier = clustered_bootstrap(at.statistic, patients, trials=trials, **options)
        result |= {f"auc@{horizon:g}": auc, f"brier@{horizon:g}": brier}
        baselines |= {f"auc@{horizon:g}": 0.5, f"brier@{horizon:g}": at.reference()}
    return result | {"baselines": {"constant": baselines, "blind": _blind(days, events, risk, patients, seed)}}


def score_outcomes(
    outcomes: Mapping[str, tuple[Vector, Bool[ndarray, " _studies"], Vector, Mapping[float | int, Vector]]],
    patients: Mapping[str, Sequence[Hashable]],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of several outcomes, each of them known in its own studies.

    Args:
        outcomes: name → days, events, risk, survival, as `score_outcome` takes them.
        patients: name → the patient of each of its studies.

    Returns:
        The mean of "c_index" and "c_index_ipcw" over the outcomes that have one (those left out are told in its
        "note"), "per_outcome" and "baselines".
    """
    options = {"replicates": replicates, "seed": seed}
    scored = {
        name: score_outcome(days, events, risk, patients[name], survival=survival, **options)
        for name, (days, events, risk, survival) in outcomes.items()
    }
    everyone = [patient for name in outcomes for patient in patients[name]]
    ends = np.cumsum([len(patients[name]) for name in outcomes])
    tables = [Concordance(days, events, risk) for days, events, risk, _ in outcomes.values()]

    def statistic(weights: ndarray) -> ndarray:
        parts = np.split(weights, ends[:-1], axis=1)
        return mean_defined(np.stack([table.both(part) for table, part in zip(tables, parts, strict=True)]), 0)

    names = ("c_index", "c_index_ipcw")
    having = _patients(everyone, np.concatenate([events for _, events, _, _ in outcomes.values()]))
    means = dict(zip(names, clustered_bootstrap(statistic, everyone, trials=having, **options), strict=True))
    known = {name: one for name, one in scored.items() if one["c_index"]["value"] is not None}
    note_left_out(means.values(), [name for name in scored if name not in known])
    baselines = {
        kind: {name: _mean([one["baselines"][kind][name] for one in known.values()]) for name in means}
        for kind in ("constant", "blind")
    }
    return {**means, "per_outcome": scored, "baselines": baselines, "definitions": DEFINITIONS}


def note_left_out(scores: Iterable[dict[str, Any]], outcomes: Sequence[str]) -> None:
    """Tell in a mean's note which outcomes it is without."""
    for score in scores if outcomes else ():
        score["note"] = "; ".join(filter(None, (score.get("note"), f"without {', '.join(outcomes)}: {NO_PAIR}")))


def _patients(patients: Sequence[Hashable], chosen: Bool[ndarray, " _studies"]) -> int:
    """How many patients the chosen studies are of."""
    return len({patient for patient, one in zip(patients, chosen, strict=True) if one})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _blind(
    days: ndarray, events: ndarray, risk: ndarray, patients: Sequence[Hashable], seed: int
) -> dict[str, float | str | None]:
    """Mean over five deals of the risks to other patients' studies."""
    try:
        deals = [blind(range(len(patients)), patients, seed + deal) for deal in range(5)]
    except ValueError as error:
        return {"c_index": None, "c_index_ipcw": None, "note": str(error)}
    once = np.ones((1, len(days)))
    values = np.mean([Concordance(days, events, risk[deal]).both(once)[0] for deal in deals], axis=0)
    names = ("c_index", "c_index_ipcw")
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)}


def c_index_ipcw(days: Vector, events: Bool[ndarray, " _studies"], risk: Vector) -> float:
    """Uno's C-index over the whole follow-up, NaN without a comparable pair."""
    return float(Concordance(days, events, risk).both(np.ones((1, len(days))))[0, 1])


def c_index(days: Vector, events: Bool[ndarray, " _studies"], risk: Vector) -> float:
    """Harrell's C-index, NaN without a comparable pair."""
    return float(Concordance(days, events, risk).statistic(np.ones((1, len(days))))[0])


def censoring_curve(
    days: Vector, events: Bool[ndarray, " studies"], weights: Float[ndarray, "replicates studies"]
) -> Float[ndarray, "replicates studies"]:
    """Kaplan–Meier chance of not being censored up to and including each study's own time."""
    times, place = np.unique(days, return_inverse=True)
    at = csr_array((np.ones(len(days)), (place, np.arange(len(days)))), shape=(len(times), len(days)))
    by_study = np.ascontiguousarray(weights.T)
    gone, censored = at @ by_study, at @ (by_study * ~events[:, None])
    at_risk = np.cumsum(gone[::-1], axis=0)[::-1] - (gone - censored)  # events come before censoring at one time
    kept = 1 - np.divide(censored, at_risk, out=np.zeros_like(censored), where=at_risk > 0)
    return np.cumprod(kept, axis=0).T[:, place]


class Concordance:
    """Pairs of studies of which one surely had the event first.

    Studies are sorted by time, so that each block of those with the event is compared with those from its time on only,
    and 10,000 studies need no table of 100 million.
    """

    def __init__(self, days: ndarray, events: ndarray, risk: ndarray) -> None:
        self.order = np.argsort(days, kind="stable")
        self.days, self.events, self.risk = days[self.order], events[self.order], risk[self.order]

    def statistic(self, weights: ndarray) -> ndarray:
        """(replicates,), Harrell's."""
        return self.both(weights)[:, 0]

    def both(self, weights: ndarray) -> ndarray:
        """(replicates, 2), Harrell's and Uno's."""
        weights = np.take(weights, self.order, axis=1)
        kept = censoring_curve(self.days, self.events, weights)
        uno = np.divide(weights, kept**2, out=np.zeros_like(kept), where=self.events & (kept > 0))
        light = weights.astype(np.float32)
        good, total = np.zeros((2, len(weights))), np.zeros((2, len(weights)))
        for first, start, comparable, right in self._blocks():
            later = light[:, start:]
            wins, pairs = later @ right.T, later @ comparable.T
            for row, own in enumerate((light[:, first], uno[:, first])):
                good[row] += (own * wins).sum(1, dtype=np.float64)
                total[row] += (own * pairs).sum(1, dtype=np.float64)
        return np.divide(good, total, out=np.full(total.shape, np.nan), where=total > 0).T

    def by_study(self) -> ndarray:
        """(studies,), the share of each study's comparable pairs that are in the right order; NaN without a pair."""
        good, total = np.zeros((2, len(self.days)))
        for first, start, comparable, right in self._blocks():
            for sums, table in ((good, right), (total, comparable)):
                sums[first] += table.sum(1)
                sums[start:] += table.sum(0)
        share = np.full(len(good), np.nan)
        share[self.order] = np.divide(good, total, out=np.full(len(good), np.nan), where=total > 0)
        return share

    def _blocks(self) -> Iterator[tuple[ndarray, int, ndarray, ndarray]]:
        """Those with the event, block by block; from where on others are compared with them; and two float32 tables
        (block, others): which pairs are comparable, and how right each of them is."""
        having = np.flatnonzero(self.events)
        for first in np.split(having, range(_BLOCK, len(having), _BLOCK)) if len(having) else ():
            start = int(np.searchsorted(self.days, self.days[first[0]]))
            days, risk = self.days[first, None], self.risk[first, None]
            comparable = (days < self.days[start:]) | ((days == self.days[start:]) & ~self.events[start:])
            right = (risk > self.risk[start:]) + np.float32(0.5) * (risk == self.risk[start:])
            yield first, start, comparable.astype(np.float32), comparable * right


class _Horizon:
    """AUC and Brier score at one time."""

    def __init__(self, days: ndarray, events: ndarray, risk: ndarray, chance: ndarray, horizon: float) -> None:
        self.days, self.events, self.chance, self.horizon = days, events, chance, horizon
        self.case, self.control = (days <= horizon) & events, days > horizon
        self.ranking = Ranking(risk, self.case, self.control)

    def weights(self, weights: ndarray) -> tuple[ndarray, ndarray]:
        """Weights of cases and controls, corrected for censoring."""
        own = censoring_curve(self.days, self.events, weights)
        before = self.days <= self.horizon
        at = own[:, np.flatnonzero(before)[self.days[before].argmax()]] if before.any() else np.ones(len(weights))
        with np.errstate(divide="ignore", invalid="ignore"):
            case = np.where(self.case & (weights > 0), weights / own, 0.0)
            control = np.where(self.control & (weights > 0), weights / at[:, None], 0.0)
        return case, control

    def statistic(self, weights: ndarray) -> ndarray:
        case, control = self.weights(weights)
        brier = (case @ self.chance**2 + control @ (1 - self.chance) ** 2) / weights.sum(1)
        return np.stack([self.ranking.areas(case.T, control.T)[0], brier], axis=1)

    def reference(self) -> float:
        """Brier score when everybody gets the same chance, the one that is best."""
        once = np.ones((1, len(self.days)))
        case, control = (part.sum() for part in self.weights(once))
        same = control / (case + control) if case + control else 0.5
        return float((case * same**2 + control * (1 - same) ** 2) / len(self.days))
