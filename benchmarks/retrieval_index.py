"""Search over study vectors: `vol3d search`'s index against brute force in NumPy, in one run.

    python benchmarks/retrieval_index.py --json index.json     # 10⁴, 10⁵ and 2 · 10⁵ studies, minutes on a CPU
    python benchmarks/retrieval_index.py --tiny                # seconds, to see that it works

The vectors are clustered as those of a trained model are: studies of one kind lie near each other, and a query near a
study. Up to 10⁵ studies the index is exact, beyond it is a graph. `ratio` is our time a query over NumPy's, one query
at a time, as a user asks; `recall` the share of NumPy's first ten that ours gives; `build_s` the time to build.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vol3d.model.index import VolumeIndex

DIM, QUERIES, K = 256, 50, 10


def make(studies: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of studies around 1000 centres, and of queries near a study each."""
    centres = rng.normal(size=(min(1000, studies), DIM)).astype(np.float32)
    table = centres[rng.integers(0, len(centres), studies)] + 0.7 * rng.normal(size=(studies, DIM)).astype(np.float32)
    near = table[rng.choice(studies, QUERIES, replace=False)]
    queries = near + 0.5 * rng.normal(size=near.shape).astype(np.float32)
    return _unit(table), _unit(queries)


def _unit(table: np.ndarray) -> np.ndarray:
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)


def brute_force(table: np.ndarray, query: np.ndarray) -> list[int]:
    scores = table @ query
    best = np.argpartition(-scores, K)[:K]
    return best[np.argsort(-scores[best])].tolist()


def timed(search: Callable[[np.ndarray], list[int]], queries: np.ndarray) -> tuple[float, list[list[int]]]:
    """Median seconds a query, and what was found."""
    search(queries[0])
    seconds, found = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(search(query))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), found


def row(studies: int, seed: int) -> dict[str, object]:
    table, queries = make(studies, np.random.default_rng(seed))
    rows = [{"study": str(number), "image": f"{number}.nii.gz"} for number in range(studies)]
    start = time.perf_counter()
    index = VolumeIndex.build(table, rows)
    build = time.perf_counter() - start
    ours, found = timed(lambda query: [int(hit["study"]) for hit in index.search(query, K)], queries)
    peer, right = timed(lambda query: brute_force(table, query), queries)
    shared = sum(len({*one} & {*other}) for one, other in zip(found, right, strict=True))
    return {
        "work": f"search {studies} studies ({index.kind})",
        "peer": "NumPy brute force",
        "ours_s": ours,
        "peer_s": peer,
        "ratio": ours / peer,
        "memory_ratio": None,
        "recall": shared / (K * QUERIES),
        "build_s": round(build, 2),
        "dim": DIM,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--tiny", action="store_true", help="a thousand studies, in seconds")
    parser.add_argument("--studies", type=int, nargs="+", default=[10_000, 100_000, 200_000], metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = []
    for studies in [1000] if arguments.tiny else arguments.studies:
        rows.append(row(studies, arguments.seed))
        last = rows[-1]
        print(
            f"{last['work']:36} {1e3 * last['ours_s']:8.3f} ms a query, NumPy {1e3 * last['peer_s']:8.3f} ms, ratio "
            f"{last['ratio']:.2f}, recall@{K} {last['recall']:.3f}, built in {last['build_s']} s"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
