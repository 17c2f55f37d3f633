"""Questions for a whole manifest, from everything its rows carry, masks included, and evenly answered.

`vol3d.text.questions` writes them from what a row says; here masks are read too, for which the files are opened: how
many pieces a finding has, how large it is in millimetres, on which side and in which organ it lies.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer
from numpy import ndarray

from vol3d.data.manifest import Manifest
from vol3d.data.study import Study
from vol3d.text.facts import Fact, Facts, bare, row_facts
from vol3d.text.ontology import FINDINGS, SIDES
from vol3d.text.questions import KINDS, check_choices, stream, write_questions

log = logging.getLogger(__name__)

LEAST_VOXELS = 3
"""Smaller pieces are the edge of a larger one, not a second finding."""


def add_questions(
    manifest: Manifest,
    *,
    kinds: Iterable[str] = KINDS,
    choices: int = 4,
    masks: bool = True,
    overwrite: bool = False,
    most: float = 0.4,
    seed: int = 0,
) -> Manifest:
    """The manifest with questions in every study that had none.

    Args:
        kinds: some of `vol3d.text.questions.KINDS`. choices: of a question whose number of choices is free.
        masks: read the studies' masks too, which opens files. overwrite: replace the questions that are there.
        most: largest share that one answer may have among the answers to one question; of commoner ones some
            are left out. 1 keeps all.

    Raises:
        ValueError: a choice list without its answer, among the questions that stay.
    """
    kinds = list(kinds)
    written: dict[str, list[dict[str, Any]]] = {}
    for study in manifest:
        if study.questions and not overwrite:
            for row in study.questions:
                check_choices(row, study.study)
            continue
        written[study.study] = write_questions(
            study_facts(study, masks=masks), study.study, kinds=kinds, choices=choices, seed=seed
        )
    kept = balance(written, most=most, seed=seed)
    log.info("%d questions written for %d studies", sum(map(len, kept.values())), len(kept))
    studies = [replace(s, questions=kept[s.study]) if s.study in kept else s for s in manifest]
    return Manifest(studies, manifest.path)


def asked_of(
    study: Study,
    *,
    questions: str = "either",
    kinds: Collection[str] | None = None,
    closed_only: bool = False,
    findings: Collection[str] | None = None,
    choices: int = 4,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What a task asks about a study, in a fixed order, from its row alone. Arguments are those of `vol3d.tasks.VQA`.

    Raises:
        ValueError: a choice list without its answer.
    """
    rows = [] if questions == "built" else list(study.questions)
    if not rows and questions != "manifest":
        facts = study_facts(study)
        facts = facts if findings is None else facts.only(findings)
        built = KINDS if kinds is None else [kind for kind in kinds if kind in KINDS]
        rows = write_questions(facts, study.study, kinds=built, choices=choices, seed=seed)
    rows = [row for row in rows if kinds is None or row.get("kind") in kinds]
    rows = [row for row in rows if not closed_only or row.get("choices")]
    for row in rows:
        check_choices(row, study.study)
    return rows


def study_facts(study: Study, *, masks: bool = False) -> Facts:
    """What a study's row, and with `masks` its files, tell."""
    facts = row_facts(
        labels=study.labels_known, report=study.report, codes=study.codes, codes_absent=study.codes_absent,
        code_system=study.code_system, meta=study.meta,
    )  # fmt: skip
    if not masks or not (study.finding_mask and study.finding_labels):
        return facts
    from vol3d.volume.read import read_mask

    found = read_mask(study.finding_mask)
    organs, named = None, {}
    if study.mask and study.mask_labels:
        other = read_mask(study.mask)
        if other.shape == found.shape and np.allclose(other.affine, found.affine, atol=1e-3):
            organs, named = np.asarray(other[0]).astype(np.int64), study.mask_labels
    told = mask_facts(
        np.asarray(found[0]).astype(np.int64), np.asarray(found.affine, dtype=np.float64), study.finding_labels,
        organs=organs, organ_labels=named,
    )  # fmt: skip
    return merge_facts(facts, told)


def mask_facts(
    mask: Integer[ndarray, "x y z"],
    affine: Float[ndarray, "4 4"],
    labels: Mapping[str, int],
    *,
    organs: Integer[ndarray, "x y z"] | None = None,
    organ_labels: Mapping[str, int] | None = None,
) -> Facts:
    """What label maps tell: a finding with a label but no voxel is absent.

    Args:
        mask: findings. affine: voxel → RAS mm. labels: finding → integer.
        organs, organ_labels: likewise, on the same grid; the organ that holds most of a finding is where it lies.
    """
    present: dict[str, bool] = {}
    facts: list[Fact] = []
    names = {number: organ for organ, number in (organ_labels or {}).items()}
    for name, label in labels.items():
        inside = mask == label
        present[name] = bool(inside.any())
        if not present[name]:
            continue
        side, _, rest = name.partition(" ")
        kind = FINDINGS.get(bare(name))
        held = [] if organs is None else _organs(inside, organs, names)
        facts.append(
            Fact(
                rest if side in SIDES else name,
                side if side in SIDES else None,
                size_mm=extent_mm(inside, affine) if kind is None or kind.measured else None,
                count=_pieces(inside) if kind is None or kind.countable else None,
                site=held[0] if held else None,
                # What holds a smaller part of it is no wrong answer.
                sites=(*held[:1], *(organ for organ in names.values() if organ not in held)),
            )
        )
    return Facts(present, facts)


def merge_facts(row: Facts, masks: Facts) -> Facts:
    """One study's facts of two sources: the row says what is there, masks add details that it lacks."""
    present = dict(masks.present) | dict(row.present)
    told = {fact.key: fact for fact in row.findings}
    for fact in masks.findings:
        if not present.get(fact.key, False):
            continue
        own = told.get(fact.key)
        if own is None:
            told[fact.key] = fact
            continue
        here = {"size_mm": own.size_mm or fact.size_mm, "count": own.count or fact.count}
        where = {"site": own.site, "sites": own.sites} if own.site else {"site": fact.site, "sites": fact.sites}
        told[fact.key] = replace(own, **here, **where)
    return Facts(present, list(told.values()), row.phase, row.modality)


def extent_mm(inside: Bool[ndarray, "x y z"], affine: Float[ndarray, "4 4"]) -> float:
    """Largest diameter of a mask's largest piece: its two farthest voxel centres and one voxel more.

    The farthest pair is looked for along thirteen directions, which finds it within 4 %.
    """
    from scipy.ndimage import label

    pieces, count = label(inside)
    if count > 1:
        inside = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    points = np.argwhere(inside) @ affine[:3, :3].T
    steps = [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) > (0, 0, 0)]
    directions = np.array(steps, float) / np.linalg.norm(steps, axis=1, keepdims=True)
    along = points @ directions.T
    ends = points[along.argmax(0)] - points[along.argmin(0)]
    return float(np.linalg.norm(ends, axis=1).max() + np.linalg.norm(affine[:3, :3], axis=0).min())


def _pieces(inside: Bool[ndarray, "x y z"]) -> int:
    """Connected pieces, by faces, edges and corners."""
    from scipy.ndimage import label

    pieces, count = label(inside, np.ones((3, 3, 3)))
    large = int((np.bincount(pieces.ravel(), minlength=count + 1)[1:] >= LEAST_VOXELS).sum())
    return max(1, large)


def _organs(inside: Bool[ndarray, "x y z"], organs: Integer[ndarray, "x y z"], names: Mapping[int, str]) -> list[str]:
    """The organs that hold some of a finding, that with most of it first."""
    counts = Counter(int(number) for number in organs[inside] if int(number) in names)
    return [names[number] for number, _ in counts.most_common()]


def balance(
    questions: Mapping[str, list[dict[str, Any]]], *, most: float = 0.4, seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Leave out closed questions until no answer to one wording has more than `most` of them.

    A wording that has one answer only is left alone; with fewer than 1 / `most` answers each may have an equal share.

    Args:
        questions: study → its questions.
    """
    if not 0 < most <= 1:
        raise ValueError(f"most is {most}: give a share above 0, up to 1")
    places: dict[str, dict[str, list[tuple[str, int]]]] = {}
    for study, rows in questions.items():
        for place, row in enumerate(rows):
            if "choices" in row:
                places.setdefault(row["question"], {}).setdefault(row["answer"], []).append((study, place))
    dropped: set[tuple[str, int]] = set()
    for question, answers in places.items():
        kept = _evened({answer: len(asked) for answer, asked in answers.items()}, most)
        for answer, asked in answers.items():
            order = stream(seed, "balance", question, answer).sample(asked, len(asked))
            dropped |= set(order[kept[answer] :])
    return {
        study: [row for place, row in enumerate(rows) if (study, place) not in dropped]
        for study, rows in questions.items()
    }


def _evened(counts: Mapping[str, int], most: float) -> dict[str, int]:
    """How many of each answer to keep, so that none has more than `most` of what is kept."""
    kept = dict(counts)
    share = max(most, 1 / len(kept))
    if len(kept) == 1 or share == 1:
        return kept
    changed = True
    while changed:
        changed = False
        for answer in sorted(kept, key=kept.__getitem__, reverse=True):
            allowed = math.ceil((sum(kept.values()) - kept[answer]) * share / (1 - share))
            changed |= kept[answer] > allowed
            kept[answer] = min(kept[answer], allowed)
    return kept
