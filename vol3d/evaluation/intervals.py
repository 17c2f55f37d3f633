"""95 % intervals and paired tests by a bootstrap that resamples patients, not studies.

Two studies of one patient are not two independent observations, so whole patients are drawn with replacement.
A statistic is written once, as a function of study weights; the point value is the statistic at weight one, a
replicate is the statistic at the drawn weights. Nothing is resampled by copying, so that 1000 replicates of
10,000 studies are a few matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

Weights = Float[ndarray, "replicates studies"]
Statistic = Callable[[ndarray], ndarray]
"""Study weights (replicates, studies) → (replicates,) or (replicates, values); NaN where undefined."""

_CELLS = 5_000_000  # weights held in memory at once: 40 MB of float64


def cluster_index(clusters: Sequence[Hashable]) -> Int[ndarray, " studies"]:
    """Number the clusters (patients) from zero in order of appearance, one number a study."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)


def draw_weights(clusters: Sequence[Hashable], replicates: int, rng: np.random.Generator) -> Weights:
    """How often each study counts in each replicate, when as many clusters as there are get drawn with replacement.

    Shape:
        (replicates, studies) float64; studies of one cluster share their weight.
    """
    index = cluster_index(clusters)
    count = int(index.max()) + 1
    drawn = rng.integers(0, count, (replicates, count)) + count * np.arange(replicates)[:, None]
    times = np.bincount(drawn.ravel(), minlength=replicates * count).reshape(replicates, count)
    return np.take(times.astype(np.float64), index, axis=1)


def clustered_bootstrap(
    statistic: Statistic,
    clusters: Sequence[Hashable],
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    trials: int | Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Value and interval of each number a statistic returns.

    The interval is Hesterberg's expanded percentile: the percentiles are taken a little further out, by the ratio
    of Student's t to the normal quantile, because the plain percentile interval is too narrow with few patients.

    Args:
        statistic: study weights (replicates, studies) → (replicates,) or (replicates, values).
        clusters: who each study belongs to (the patient).
        level: 0.95 for a 95 % interval.
        trials: of scores between 0 and 1, how many patients each rests on (one number for all). Where a score is 0 or 1
            in every replicate, a bootstrap sees no spread and would claim certainty; the exact binomial interval of so
            many trials is given instead, and the note says so.

    Returns:
        One `{"value", "low", "high"}` a value, with None where undefined and a "note" that says why.

    Raises:
        ValueError: no study, or a statistic of the wrong shape.

    Source: Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 3.3.
    """
    points, drawn = _replicates(statistic, clusters, replicates, seed)
    patients = len(set(clusters))
    estimates = [_estimate(point, column, patients, level) for point, column in zip(points, drawn.T, strict=True)]
    if trials is None:
        return estimates
    counts = [trials] * len(estimates) if isinstance(trials, int) else trials
    return [_exact(*pair, level) for pair in zip(estimates, counts, strict=True)]


def paired_bootstrap(
    first: Statistic,
    second: Statistic,
    clusters: Sequence[Hashable],
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """Is `first` better than `second` on the same studies? Difference, interval and two-sided p of each value.

    Both statistics see the same drawn patients, so what makes a study hard cancels. The p-value inverts the
    interval: it is below 0.05 exactly when the 95 % interval leaves zero out. Where no replicate reaches zero the draws
    cannot tell how small it is; then it is Student's, with the draws' spread as standard error, so that a correction
    for many scores has something to correct.

    Returns:
        One `{"value", "low", "high", "p"}` a value, where value = first − second.
    """

    def difference(weights: ndarray) -> ndarray:
        return _as_columns(first(weights), len(weights)) - _as_columns(second(weights), len(weights))

    points, drawn = _replicates(difference, clusters, replicates, seed)
    patients = len(set(clusters))
    results = []
    for point, column in zip(points, drawn.T, strict=True):
        estimate = _estimate(point, column, patients, level)
        finite = column[np.isfinite(column)]
        estimate["p"] = _p_value(finite, patients) if estimate["low"] is not None else None
        results.append(estimate)
    return results


def share(
    hits: Sequence[int | float] | ndarray,
    totals: Sequence[int | float] | ndarray,
    clusters: Sequence[Hashable],
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """A proportion Σ hits / Σ totals over studies, with its interval.

    When every patient agrees (0 % or 100 %) it is the exact binomial interval with as many trials as patients.
    """
    hits, totals = np.asarray(hits, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if not totals.sum():
        return undefined("nothing to count")

    def ratio(weights: ndarray) -> ndarray:
        counted = weights @ totals
        return np.divide(weights @ hits, counted, out=np.full(len(weights), np.nan), where=counted > 0)

    patients = len({cluster for cluster, total in zip(clusters, totals, strict=True) if total})
    options = {"replicates": replicates, "seed": seed, "level": level}
    return clustered_bootstrap(ratio, clusters, **options, trials=patients)[0]


def _exact(estimate: dict[str, Any], trials: int, level: float) -> dict[str, Any]:
    """The exact binomial interval of a score that is 0 or 1 in every replicate."""
    value, bound = estimate["value"], ((1 - level) / 2) ** (1 / max(1, trials))
    if value not in (0.0, 1.0) or not estimate["low"] == estimate["high"] == value or trials < 1:
        return estimate
    low, high = (bound, 1.0) if value else (0.0, 1 - bound)
    return estimate | {"low": low, "high": high, "note": f"all {trials} patients agree: exact binomial interval"}


def mean_defined(values: ndarray, axis: int) -> ndarray:
    """The mean over those that are defined, NaN where none is."""
    known = np.isfinite(values)
    count = known.sum(axis)
    total = np.where(known, values, 0).sum(axis)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def undefined(note: str) -> dict[str, Any]:
    """A score that does not exist, and why."""
    return {"value": None, "low": None, "high": None, "note": note}


def _replicates(
    statistic: Statistic, clusters: Sequence[Hashable], replicates: int, seed: int
) -> tuple[ndarray, ndarray]:
    """The statistic at weight one (values,) and in each replicate (replicates, values)."""
    studies = len(clusters)
    if not studies:
        raise ValueError("0 studies to score: check the split's name and that predictions were written")
    rng = np.random.default_rng(seed)
    points = _as_columns(statistic(np.ones((1, studies))), 1)[0]
    chunk = max(1, _CELLS // studies)
    parts = []
    for start in range(0, replicates, chunk):
        weights = draw_weights(clusters, min(chunk, replicates - start), rng)
        parts.append(_as_columns(statistic(weights), len(weights)))
    return points, np.concatenate(parts)


def _as_columns(values: ndarray, replicates: int) -> ndarray:
    columns = np.asarray(values, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.ndim != 2 or len(columns) != replicates:
        raise ValueError(
            f"statistic returned shape {np.shape(values)} for {replicates} rows of weights: "
            f"return ({replicates},) or ({replicates}, values)"
        )
    return columns


def _widening(patients: int) -> float:
    return math.sqrt(patients / (patients - 1))


def _estimate(point: float, drawn: ndarray, patients: int, level: float) -> dict[str, Any]:
    if not np.isfinite(point):
        return undefined("undefined on these studies")
    estimate: dict[str, Any] = {"value": float(point), "low": None, "high": None}
    finite = drawn[np.isfinite(drawn)]
    if patients < 2:
        return estimate | {"note": "one patient: no interval"}
    if len(finite) < 0.5 * len(drawn):
        return estimate | {"note": f"defined in only {len(finite)} of {len(drawn)} replicates: no interval"}
    tail = ndtr(_widening(patients) * stdtrit(patients - 1, (1 - level) / 2))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return estimate | {"low": float(min(low, point)), "high": float(max(high, point))}


def _p_value(drawn: ndarray, patients: int) -> float:
    """Two-sided: the level at which the expanded percentile interval just touches zero, and Student's beyond it."""
    beyond = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    tail = min((beyond + 1) / (len(drawn) + 1), 0.5)
    p = float(2 * stdtr(patients - 1, ndtri(tail) / _widening(patients)))
    spread = float(drawn.std())
    if beyond or not spread:
        return p
    return min(p, float(2 * stdtr(patients - 1, -abs(drawn.mean()) / (spread * _widening(patients)))))
