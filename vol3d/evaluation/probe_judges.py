"""What an output for a changed volume says of the model: how often it reacted, of how often it could."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from vol3d.data.study import TEXTS
from vol3d.evaluation.faithfulness import swap_side
from vol3d.evaluation.metrics.findings import split_side
from vol3d.evaluation.probes import ROBUST
from vol3d.model.interfaces import Evidence, Task
from vol3d.text.questions import answers_to

if TYPE_CHECKING:
    from vol3d.data.study import Study

Rows = Mapping[str, Mapping[str, Any]]
STAYS = (*ROBUST, "contrast_phase")
"""Probes after which the output should stay."""
_SIDES = {"left": "right", "right": "left"}


class Judge(ABC):
    """One task's outputs under probes.

    `kept` names the score of a probe after which the output should stay. `patients`: of each item that is judged.
    """

    kept: str
    patients: Sequence[Hashable]

    @abstractmethod
    def unfit(self, probe: str) -> str:
        """Why the truth of these studies gives `probe` nothing to ask for; empty where it does."""

    @abstractmethod
    def could(self, probe: str) -> ndarray:
        """(items,), how often the output as it is could react to the probe."""

    @abstractmethod
    def reacted(self, probe: str, rows: Rows) -> ndarray:
        """(items,), how often the outputs `rows` do, in places where they could."""


class TextJudge(Judge):
    """Reports by their findings: after "blank" each must be gone, after "mirror" each side must be the other, after
    "erase" the erased finding must be gone, after "shuffled" something else must be said."""

    kept = "same_findings"

    def __init__(self, task: Task, evidence: Evidence) -> None:
        self.field = task.kind
        self.studies = [study for study in evidence.studies if getattr(study, self.field)]
        self.patients = [study.patient for study in self.studies]
        self.truths = [_keys(getattr(study, self.field)) for study in self.studies]
        self.said = self.read(evidence.predictions)
        self.erased = [target(study) for study in self.studies]

    def read(self, rows: Rows) -> list[set[str]]:
        return [_keys(rows[study.study].get(self.field) or "") for study in self.studies]

    def unfit(self, probe: str) -> str:
        if probe == "blank" and not any(self.truths):
            return "no study has a finding"
        if probe == "mirror" and not any(map(one_sided, self.truths)):
            return "no study has a finding on one side only"
        if probe == "erase" and not any(self.erased):
            return "no finding has a mask"
        return ""

    def could(self, probe: str) -> ndarray:
        if probe == "blank":
            return np.array([float(len(keys)) for keys in self.said])
        if probe == "mirror":
            return np.array([float(len(one_sided(keys))) for keys in self.said])
        if probe == "erase":
            rows = zip(self.erased, self.truths, self.said, strict=True)
            return np.array([float(key is not None and key in truth & said) for key, truth, said in rows])
        return np.ones(len(self.studies))

    def reacted(self, probe: str, rows: Rows) -> ndarray:
        now = self.read(rows)
        pairs = list(zip(self.said, now, strict=True))
        if probe == "blank":
            hits = [float(len(said - after)) for said, after in pairs]
        elif probe == "mirror":
            hits = [float(len({swap_side(key) for key in one_sided(said)} & one_sided(after))) for said, after in pairs]
        elif probe == "erase":
            gone = [key not in after for key, after in zip(self.erased, now, strict=True)]
            hits = (self.could(probe) * gone).tolist()
        else:
            hits = [float((said == after) == (probe in STAYS)) for said, after in pairs]
        return np.array(hits)


class AnswerJudge(Judge):
    """Answers to questions: after "mirror" left must become right, after "erase" a yes to the erased finding a no,
    after the others that must change something else must be answered."""

    kept = "same_answers"

    def __init__(self, task: Any, evidence: Evidence) -> None:
        self.questions = {
            study.study: [question for question, _ in task.answered(study, evidence.predictions[study.study])]
            for study in evidence.studies
        }
        self.asked = [(study, question) for study in evidence.studies for question in self.questions[study.study]]
        self.patients = [study.patient for study, _ in self.asked]
        self.said = self.read(evidence.predictions)

    def read(self, rows: Rows) -> list[str]:
        given = [answers_to(asked, rows[study]["answers"]) for study, asked in self.questions.items() if asked]
        return [str(answer["answer"]).strip().lower() for answers in given for answer in answers]

    def _fits(self, probe: str, answers: Sequence[str]) -> list[bool]:
        """Questions whose answer, given or true, the probe must turn."""
        if probe == "mirror":
            return [answer in _SIDES for answer in answers]
        if probe == "erase":
            about = [question.get("finding") == target(study) is not None for study, question in self.asked]
            truly = [str(question.get("answer")).lower() == "yes" for _, question in self.asked]
            return [all(row) for row in zip(about, truly, (answer == "yes" for answer in answers), strict=True)]
        return [True] * len(answers)

    def unfit(self, probe: str) -> str:
        truths = [str(question.get("answer")).lower() for _, question in self.asked]
        return "" if any(self._fits(probe, truths)) else f"no question whose answer {probe} must turn"

    def could(self, probe: str) -> ndarray:
        return np.array(self._fits(probe, self.said), dtype=np.float64)

    def reacted(self, probe: str, rows: Rows) -> ndarray:
        now = self.read(rows)
        if probe == "mirror":
            turned = [after == _SIDES.get(said) for said, after in zip(self.said, now, strict=True)]
        elif probe == "erase":
            turned = [after == "no" for after in now]
        else:
            turned = [(said == after) == (probe in STAYS) for said, after in zip(self.said, now, strict=True)]
        return np.array(turned, dtype=np.float64) * self.could(probe)


class CodeJudge(Judge):
    """Probabilities of codes, by their mean change."""

    kept = "same_codes"

    def __init__(self, task: Task, evidence: Evidence) -> None:
        self.studies = [study for study in evidence.studies if evidence.predictions[study.study].get("codes")]
        self.patients = [study.patient for study in self.studies]
        self.said = [evidence.predictions[study.study]["codes"] for study in self.studies]

    def unfit(self, probe: str) -> str:
        return "no code has a side or a mask" if probe in ("mirror", "erase") else ""

    def could(self, probe: str) -> ndarray:
        return np.ones(len(self.studies))

    def reacted(self, probe: str, rows: Rows) -> ndarray:
        now = [rows[study.study]["codes"] for study in self.studies]
        moved = [
            np.mean([abs(said[code] - after[code]) for code in said])
            for said, after in zip(self.said, now, strict=True)
        ]
        return np.array([1 - change if probe in STAYS else change for change in moved])


def judge_of(task: Task, evidence: Evidence) -> Judge | None:
    """The judge of a task that writes texts, answers questions or gives codes; None of another, or without outputs."""
    field = {"vqa": "answers"}.get(task.kind, task.kind)
    kinds = {**dict.fromkeys(TEXTS, TextJudge), "answers": AnswerJudge, "codes": CodeJudge}
    if field not in kinds or not any(field in evidence.predictions[study.study] for study in evidence.studies):
        return None
    judge = kinds[field](task, evidence)
    return judge if judge.patients else None


def target(study: Study) -> str | None:
    """The finding erased from a study: of those that are there and have a mask, the one with the smallest box (a whole
    organ that is filled with its surroundings looks ill, too), or one drawn by the study's name."""
    there = {name for name, known in study.labels_known.items() if known == 1} | _keys(study.report or "")
    masked = sorted(there & study.finding_labels.keys()) if study.finding_mask else []
    sizes = {
        box["label"]: float(np.prod(np.subtract(box["max_mm"], box["min_mm"])))
        for box in study.boxes
        if box.get("label") in masked
    }
    if sizes:
        return min(sizes, key=sizes.__getitem__)
    return masked[zlib.crc32(study.study.encode()) % len(masked)] if masked else None


def one_sided(keys: AbstractSet[str]) -> set[str]:
    """Keys with a side whose mirror image is not among them: those that a mirror must turn."""
    return {key for key in keys if split_side(key)[0] and swap_side(key) not in keys}


def _keys(text: str) -> set[str]:
    from vol3d.text.parser import finding_keys

    return set(finding_keys(text))
