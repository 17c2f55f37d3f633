"""What training and test studies share that they must not: patients, images, reports.

Near-duplicate reports are found without comparing every pair: each report becomes 64 minima of hashed word triples,
and only reports that agree in a whole band of four are compared (MinHash with banding; Broder 1997).
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt64
from numpy import ndarray

if TYPE_CHECKING:
    from vol3d.data.study import Study

_WORD = re.compile(r"\w+")
_HASHES, _BAND, _WORDS = 64, 4, 3
_PRIME = np.uint64(2**31 - 1)

DEFINITIONS = {
    "patients_across_splits": "patients with studies in more than one split",
    "images_across_splits": "image files, or equal image fingerprints, in more than one split",
    "volumes_across_splits": "pairs of studies in two splits whose volumes look the same (16³ pictures correlate above "
    "0.9985), even under another name or format",
    "other_studies": "studies of other splits in the manifest, with which those of the scored one were compared",
    "reports_seen_in_training": "studies of the scored split whose report is word for word one of another split "
    "(short and normal reports repeat by nature)",
    "near_duplicate_reports": "reports of the scored split whose word triples overlap with one of another split by at "
    "least 90 % (Jaccard), apart from those seen word for word",
}


def check_leakage(
    studies: Iterable[Study],
    *,
    test: str = "test",
    fingerprints: Mapping[str, str] | None = None,
    looks: Mapping[str, ndarray] | None = None,
    similarity: float = 0.9,
) -> dict[str, Any]:
    """Look for what a test score must not rest on.

    Args:
        studies: every row of the manifest. Rows of twins (`meta["twin_of"]`) are left out: they are alike on purpose.
        test: the split that is scored; all others count as training.
        fingerprints: study name → hash of its image, where known; otherwise image paths are compared.
        looks: study name → unit vector of its small picture (see `looks`); without them no volume is compared.
        similarity: Jaccard overlap of word triples from which two reports are near duplicates.

    Returns:
        "patients_across_splits" and "images_across_splits" (sorted names), "reports_seen_in_training" and
        "near_duplicate_reports" (test study names), "test_reports", "other_studies" (how many there were to compare
        with), "clean": true when no patient and no image is shared, null without any other study, and "definitions".
    """
    rows = [study for study in studies if study.split and "twin_of" not in (study.meta or {})]
    reports = {study.study: _normal(study.report) for study in rows if study.report}
    marks = fingerprints or {}
    patients = _across((study.patient, str(study.split)) for study in rows)
    images = _across((marks.get(study.study, str(study.image)), str(study.split)) for study in rows)
    seen = {reports[study.study] for study in rows if study.split != test and study.study in reports}
    tested = [study.study for study in rows if study.split == test and study.study in reports]
    fresh = [study for study in tested if reports[study] not in seen]
    near = near_duplicates([reports[study] for study in fresh], sorted(seen), similarity=similarity)
    alike = [] if looks is None else _alike(rows, looks)
    others = sum(study.split != test for study in rows)
    return {
        "patients_across_splits": patients,
        "images_across_splits": images,
        "volumes_across_splits": "not compared" if looks is None else alike,
        "reports_seen_in_training": [study for study in tested if reports[study] in seen],
        "near_duplicate_reports": [fresh[i] for i in sorted({i for i, _, _ in near})],
        "test_reports": len(tested),
        "other_studies": others,
        "clean": not patients and not images and not alike if others else None,
        "definitions": DEFINITIONS,
    }


def looks(studies: Iterable[Study], *, progress: bool = False) -> dict[str, Float32[ndarray, " _"]]:
    """Small pictures (16³ grey values as a unit vector) by which volumes are found to be the same, whatever the file's
    name, format or rescaling; every volume is read once. One that cannot be read has none.
    """
    from tqdm import tqdm

    from vol3d.data.doctor_volume import probe

    found = {}
    for study in tqdm(list(studies), desc="compare volumes", unit="study", disable=not progress):
        seen = probe(replace(study, mask=None, finding_mask=None))
        if seen.look:
            vector = seen.pixels().astype(np.float32)
            vector = vector - vector.mean()
            found[study.study] = vector / (np.linalg.norm(vector) + np.float32(1e-6))
    return found


def _alike(rows: Sequence[Study], marks: Mapping[str, ndarray]) -> list[str]:
    """Pairs of studies in two splits whose pictures are the same, as "one = other"."""
    from vol3d.data.doctor_studies import ALIKE

    known = [study for study in rows if study.study in marks]
    if len(known) < 2:
        return []
    table = np.stack([marks[study.study] for study in known])
    pairs = []
    for start in range(0, len(known), 512):
        close = np.argwhere(np.triu(table[start : start + 512] @ table.T, k=start + 1) > ALIKE)
        found = [(known[start + row], known[column]) for row, column in close]
        pairs += [f"{one.study} = {other.study}" for one, other in found if one.split != other.split]
    return pairs


def near_duplicates(
    texts: Sequence[str], others: Sequence[str], *, similarity: float = 0.9, seed: int = 0
) -> list[tuple[int, int, float]]:
    """Pairs (index in texts, index in others, Jaccard overlap) at or above `similarity`.

    The banding misses a pair at 0.9 once in 10⁷, one at 0.7 once in 80.
    """
    first, second = ([_triples(text) for text in side] for side in (texts, others))
    rng = np.random.default_rng(seed)
    multiply = rng.integers(1, 2**31 - 1, _HASHES, dtype=np.uint64)
    add = rng.integers(0, 2**31 - 1, _HASHES, dtype=np.uint64)
    bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for number, triples in enumerate(second):
        for key in _bands(triples, multiply, add):
            bands[key].append(number)
    found = []
    for number, triples in enumerate(first):
        candidates = {other for key in _bands(triples, multiply, add) for other in bands.get(key, ())}
        for other in sorted(candidates):
            overlap = len(triples & second[other]) / len(triples | second[other])
            if overlap >= similarity:
                found.append((number, other, overlap))
    return found


def _across(pairs: Iterable[tuple[str, str]]) -> list[str]:
    splits: dict[str, set[str]] = defaultdict(set)
    for name, split in pairs:
        splits[name].add(split)
    return sorted(name for name, where in splits.items() if len(where) > 1)


def _normal(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))


def _triples(text: str) -> set[int]:
    """Hashes of every three words in a row (of all words, when there are fewer)."""
    words = _WORD.findall(text.lower())
    if not words:
        return set()
    grams = [words[i : i + _WORDS] for i in range(max(1, len(words) - _WORDS + 1))]
    return {zlib.crc32(" ".join(gram).encode()) for gram in grams}


def _bands(triples: set[int], multiply: UInt64[ndarray, " _"], add: UInt64[ndarray, " _"]) -> list[tuple[int, bytes]]:
    if not triples:
        return []
    values = np.fromiter(triples, dtype=np.uint64, count=len(triples)) % _PRIME
    minima = ((values[:, None] * multiply + add) % _PRIME).min(0)
    return [(start, minima[start : start + _BAND].tobytes()) for start in range(0, _HASHES, _BAND)]
