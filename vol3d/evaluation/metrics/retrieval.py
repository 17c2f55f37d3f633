"""Volume ↔ report retrieval: R@k and MRR in pools of N, drawn repeatedly, with equal texts counted as one.

R@1 among 100 and among 5000 are different scores, so the pool's size is part of the result. Many reports are the
same text; finding another study's identical report is no mistake. A model that gives every pair the same similarity
gets what chance gives, not 100 %: ties are broken at random, in expectation.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray

from vol3d.evaluation.intervals import cluster_index, clustered_bootstrap, undefined

DEFINITIONS = {
    "recall@1": "share of queries whose own item (or one with the same text) comes first among the pool; ties broken "
    "at random, in expectation (recall@5, recall@10: among the first 5, 10)",
    "mrr": "mean of 1 / expected rank of the query's own item",
}
DIRECTIONS = ("image_to_text", "text_to_image")


def score_retrieval(
    images: Float[ndarray, "_studies width"],
    texts: Float[ndarray, "_studies width"],
    patients: Sequence[Hashable],
    *,
    reports: Sequence[str] | None = None,
    distinct: Sequence[Hashable] | None = None,
    pool: int = 100,
    pools: int = 20,
    ks: Sequence[int] = (1, 5, 8, 10),
    other_pools: Sequence[int] = (),
    asked: Bool[ndarray, " _studies"] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Both directions of retrieval by cosine similarity.

    Args:
        images, texts: embeddings, one row a study, in the same order.
        reports: the texts themselves, to count equal ones as one; without them only a study's own text is right.
        distinct: what each study's text says (itself, a set of findings): of the studies that say the same, one drawn
            at random takes part in a pool. Without it a pool may hold texts that say the same.
        pool: how many studies compete; pools: how often they are drawn.
        other_pools: further sizes, scored from volume to text under "by_pool" where there are that many texts.
        asked: whose queries are scored, such as a group's; the others only compete. None: everybody's.

    Returns:
        {"image_to_text": {"recall@1", …, "mrr"}, "text_to_image": {…}, "pool", "pools", "studies", "distinct" (how many
        different things are said), "duplicates", "baselines": {"chance": {"recall@1": …}}} and, at the top, image →
        text scores under their plain names. Intervals are clustered on the query's patient.

    Raises:
        ValueError: lengths that differ, or an embedding that is not finite (the study's number is given).
    """
    studies = len(patients)
    if not len(images) == len(texts) == studies or (reports is not None and len(reports) != studies):
        raise ValueError(f"{len(images)} image and {len(texts)} text embeddings, {studies} patients: give one of each")
    if distinct is not None and len(distinct) != studies:
        raise ValueError(f"{studies} studies, {len(distinct)} entries in `distinct`: give one a study")
    for name, table in (("image", images), ("text", texts)):
        bad = np.flatnonzero(~np.isfinite(table).all(1))
        if len(bad):
            raise ValueError(
                f"{name} embedding of study {bad[0]} is not finite ({len(bad)} of {studies}): score without it"
            )
    group = np.arange(studies) if distinct is None else cluster_index(distinct)
    groups = len(set(group.tolist()))
    size = min(pool, groups)
    result: dict[str, Any] = {"pool": size, "pools": pools if size < studies else 1, "studies": studies}
    result["distinct"] = groups
    if size < 2:
        return result | {f"recall@{k}": undefined("one text: nothing to choose from") for k in ks}
    same = np.arange(studies) if reports is None else text_numbers(reports)
    result["duplicates"] = int((np.bincount(same)[same] > 1).sum())
    sides = unit_rows(images), unit_rows(texts)
    rng = np.random.default_rng(seed)
    draws = [_draw(group, size, rng) for _ in range(result["pools"])]
    asked = np.ones(studies, dtype=bool) if asked is None else asked
    people = len({patient for patient, one in zip(patients, asked, strict=True) if one})
    names = [*(f"recall@{k}" for k in ks), "mrr"]

    def scored(pair: tuple[ndarray, ndarray], draws: Sequence[ndarray]) -> dict[str, Any]:
        statistic = PoolScores(*pair, same, draws, ks, asked).statistic
        estimates = clustered_bootstrap(statistic, patients, trials=people, replicates=replicates, seed=seed)
        return dict(zip(names, estimates, strict=True))

    result |= {one: scored(pair, draws) for one, pair in zip(DIRECTIONS, (sides, sides[::-1]), strict=True)}
    chance = np.zeros(len(names))
    for drawn in draws:
        own = same[drawn]
        chance += rank_scores(np.zeros((size, size)), own[:, None] == own, ks).mean(0) / len(draws)
    result["baselines"] = {"chance": dict(zip(names, chance.tolist(), strict=True))}
    result["by_pool"] = {}
    for other in sorted({size for size in other_pools if 2 <= size <= groups}):
        more = [_draw(group, other, rng) for _ in range(pools if other < studies else 1)]
        result["by_pool"][str(other)] = scored(sides, more)
    return result | result[DIRECTIONS[0]] | {"definitions": DEFINITIONS}


class PoolScores:
    """What each query scored in the pools it took part in; only a pool's similarities are in memory at once.

    Args:
        queries, items: unit vectors, one row a study. same: a number for each study's text, equal for equal texts.
        draws: the studies of each pool. asked: whose queries are scored; None for all.

    Shape:
        sums: (studies, scores), summed over pools. times: (studies,), how many pools.
    """

    def __init__(
        self,
        queries: ndarray,
        items: ndarray,
        same: ndarray,
        draws: Sequence[ndarray],
        ks: Sequence[int],
        asked: ndarray | None = None,
    ) -> None:
        self.sums, self.times = np.zeros((len(queries), len(ks) + 1)), np.zeros(len(queries))
        for drawn in draws:
            right = same[drawn][:, None] == same[drawn]
            self.sums[drawn] += rank_scores(queries[drawn] @ items[drawn].T, right, ks)
            self.times[drawn] += 1
        if asked is not None:
            self.sums[~asked] = self.times[~asked] = 0

    def statistic(self, weights: ndarray) -> ndarray:
        """(replicates, scores): the mean over queries, each counted as often as it was drawn."""
        total = (weights @ self.times)[:, None]
        sums = weights @ self.sums
        return np.divide(sums, total, out=np.full(sums.shape, np.nan), where=total > 0)


def pools_of(
    reports: Sequence[str], distinct: Sequence[Hashable], *, pool: int = 100, pools: int = 20, seed: int = 0
) -> tuple[ndarray, list[ndarray]]:
    """A number for each text, equal for equal ones, and the pools of `score_retrieval`."""
    group = cluster_index(distinct)
    size = min(pool, len(set(group.tolist())))
    rng = np.random.default_rng(seed)
    draws = [_draw(group, size, rng) for _ in range(pools if size < len(reports) else 1)]
    return text_numbers(reports), draws


def _draw(group: ndarray, size: int, rng: np.random.Generator) -> ndarray:
    """`size` studies of different groups; every group is as likely as another, and so is each study of a group."""
    shuffled = rng.permutation(len(group))
    _, first = np.unique(group[shuffled], return_index=True)
    return rng.permutation(shuffled[first])[:size]


def rank_scores(
    similarity: Float[ndarray, "queries items"], right: Bool[ndarray, "queries items"], ks: Sequence[int]
) -> Float[ndarray, "queries scores"]:
    """Chance of a right item among the first k, for each k, and 1 / expected rank of the first right item.

    With b wrong items above the best right one, and t wrong and m right ones tied with it, the first right item is
    the (t + 1) / (m + 1)-th of the tie on average, and is missed by the first j of it with chance C(t, j) / C(t+m, j).
    """
    best = np.where(right, similarity, -np.inf).max(1, keepdims=True)
    above = ((similarity > best) & ~right).sum(1)
    tied = ((similarity == best) & ~right).sum(1)
    matches = ((similarity == best) & right).sum(1)
    columns = []
    for k in ks:
        seen = np.clip(k - above, 0, tied + matches)
        columns.append(1.0 - _all_wrong(tied, matches, seen))
    rank = above + (tied + matches + 1) / (matches + 1)
    return np.stack([*columns, 1.0 / rank], axis=1)


def _all_wrong(tied: ndarray, matches: ndarray, seen: ndarray) -> ndarray:
    """C(t, j) / C(t + m, j), the chance that j items drawn from a tie are all wrong."""
    chance = np.ones(len(tied))
    for step in range(int(seen.max(initial=0))):
        active = step < seen
        left = tied + matches - step
        factor = np.divide(np.maximum(tied - step, 0), left, out=np.zeros(len(tied)), where=left > 0)
        chance = np.where(active, chance * factor, chance)
    return chance


def text_numbers(reports: Sequence[str]) -> Shaped[ndarray, " studies"]:
    """A number for each text, equal where they differ in nothing but case and spaces."""
    return cluster_index([" ".join(text.lower().split()) for text in reports])


def unit_rows(table: ndarray) -> ndarray:
    """Each row at length 1; a row of zeros stays."""
    length = np.linalg.norm(table, axis=1, keepdims=True)
    return np.divide(table, length, out=np.zeros_like(table), where=length > 0)
