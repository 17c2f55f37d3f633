"""Two probes that need a second study: look-alikes told apart, and claims of the prompt weighed against the image."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from vol3d.evaluation.controls import NOT_APPLICABLE, against_control
from vol3d.evaluation.intervals import undefined
from vol3d.evaluation.metrics.findings import study_f1
from vol3d.evaluation.probe_judges import TextJudge
from vol3d.model.interfaces import Evidence, Features, Task

if TYPE_CHECKING:
    from vol3d.data.batch import Batch
    from vol3d.data.study import Study
    from vol3d.evaluation.predictions import Looker
    from vol3d.model.volume_lm import VolumeLM


def confusable(judge: TextJudge, evidence: Evidence) -> dict[str, Any]:
    """Pairs of studies of two patients that look alike and have other findings: does either output fit its own study
    better? The control are the same two outputs exchanged. No patient is in two pairs, so that an output counts once: a
    pair that were taken from either end would be two patients who always agree.

    Source: after the pairs of MediConfusion (Sepehri et al. 2024, arXiv:2409.15477), there of images that an encoder
    confuses.
    """
    studies, truths, said = judge.studies, judge.truths, judge.said
    if evidence.sample is None or len(studies) < 2:
        return undefined(f"{NOT_APPLICABLE}fewer than two studies to look at")
    shown = [evidence.sample(replace(study, mask=None, finding_mask=None)) for study in studies]
    looks = np.stack([thumbnail(sample.hu[0].numpy()) for sample in shown])
    right, crossed, who = [], [], []
    for pair in look_alikes(looks, truths, [study.patient for study in studies]):
        # How much better each of the two outputs fits its own study than the other's.
        fits = [study_f1(truths[one], said[one]) - study_f1(truths[two], said[one]) for one, two in (pair, pair[::-1])]
        right.append(float(min(fits) > 0))
        crossed.append(float(max(fits) < 0))
        who.append(studies[pair[0]].patient)
    if not right:
        return undefined(f"{NOT_APPLICABLE}no two patients differ in findings")
    return against_control(right, crossed, [1.0] * len(right), who, replicates=evidence.replicates, seed=evidence.seed)


def look_alikes(
    looks: ndarray, truths: Sequence[AbstractSet[str]], patients: Sequence[Hashable]
) -> list[tuple[int, int]]:
    """Pairs of studies that differ in findings, the most alike first, each patient in one pair at most."""
    alike = looks @ looks.T
    first, second = np.triu_indices(len(looks), 1)
    pairs: list[tuple[int, int]] = []
    taken: set[Hashable] = set()
    for place in np.argsort(-alike[first, second], kind="stable"):
        one, two = int(first[place]), int(second[place])
        both = {patients[one], patients[two]}
        if len(both) == 2 and truths[one] != truths[two] and not both & taken:
            pairs.append((one, two))
            taken |= both
    return pairs


def thumbnail(hu: ndarray, size: int = 16) -> ndarray:
    """The volume as a unit vector of size³ mean grey values in a soft-tissue window, mean removed."""
    for axis in range(3):
        edges = np.linspace(0, hu.shape[axis], min(size, hu.shape[axis]), endpoint=False).astype(int)
        counts = np.diff(np.append(edges, hu.shape[axis]))
        shape = [-1 if place == axis else 1 for place in range(3)]
        hu = np.add.reduceat(hu.astype(np.float32).clip(-1000, 400), edges, axis=axis) / counts.reshape(shape)
    vector = hu.ravel() - hu.mean()
    return vector / (np.linalg.norm(vector) + 1e-6)


def writes(task: Task) -> bool:
    """Whether a task's prompt can be made to claim something."""
    return all(hasattr(task, name) for name in ("asked", "write", "prompt"))


def claim(task: Task, judge: TextJudge, evidence: Evidence, look: Looker) -> dict[str, Any]:
    """Does the output keep to the image where the prompt claims an absent finding?

    Score: share of studies that stay without a finding that only the prompt claims, of those that were without it
    unasked. Control: the same prompt over a volume that truly has the finding. A model that believes the prompt, or
    ignores both, says the same to either.
    """
    from vol3d.text.parser import finding_keys

    claims, volumes = _claims(judge)
    studies = [study for study in judge.studies if study.study in claims]
    if not studies:
        return undefined(f"{NOT_APPLICABLE}no finding is there in one patient and absent in another")
    asked = [_Claiming(task, claims)]
    rows = look(f"probe-claim-{task.kind}", asked, studies, about=claims)
    having = {study.study: volumes[study.study] for study in studies}
    about = {name: f"{claims[name]} of {other.study}" for name, other in having.items()}
    true = look(f"probe-claim-true-{task.kind}", asked, studies, volumes=list(having.values()), about=about)
    if rows is None or true is None:
        return undefined(f"{NOT_APPLICABLE}this probe was not kept with the predictions")

    def silent(outputs: Mapping[str, Mapping[str, Any]]) -> ndarray:
        said = [finding_keys(outputs[study.study].get(task.kind) or "") for study in studies]
        return np.array([float(claims[s.study] not in keys) for s, keys in zip(studies, said, strict=True)])

    before = silent(evidence.predictions)
    return against_control(
        before * silent(rows), before * silent(true), before, [study.patient for study in studies],
        replicates=evidence.replicates, seed=evidence.seed,
    )  # fmt: skip


def _claims(judge: TextJudge) -> tuple[dict[str, str], dict[str, Study]]:
    """For each study a finding that it has not, drawn by its name, and a study of another patient that has it."""
    having: dict[str, list[Study]] = {}
    for study, truth in zip(judge.studies, judge.truths, strict=True):
        for key in truth:
            having.setdefault(key, []).append(study)
    claims: dict[str, str] = {}
    volumes: dict[str, Study] = {}
    for study, truth in zip(judge.studies, judge.truths, strict=True):
        known = {key: [one for one in found if one.patient != study.patient] for key, found in having.items()}
        absent = sorted(key for key, found in known.items() if key not in truth and found)
        if absent:
            draw = zlib.crc32(study.study.encode())
            key = absent[draw % len(absent)]
            claims[study.study], volumes[study.study] = key, known[key][draw // 7 % len(known[key])]
    return claims, volumes


class _Claiming(Task):
    """A report task whose prompt claims, of each study, a finding that is not there."""

    def __init__(self, task: Task, claims: dict[str, str]) -> None:
        super().__init__()
        self.task, self.claims, self.kind, self.uses = task, claims, task.kind, task.uses

    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> Any:
        raise NotImplementedError("a probe is not trained")

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        return [{self.kind: text} for text in self._write(model, features, batch.studies)]

    def _write(self, model: VolumeLM, features: Features, studies: Sequence[Study]) -> list[str]:
        from vol3d.model.language import VOLUME_TOKEN

        task: Any = self.task
        prompts = []
        for study in studies:
            said = f"{VOLUME_TOKEN}\nHistory: there is a {self.claims[study.study]}.\n"
            prompts.append(task.asked(study, task.prompt.replace(f"{VOLUME_TOKEN}\n", said, 1)))
        return task.write(model, features, prompts)
