"""Questions about a study, written from what is known of it: presence, side, count, size, place, phase, modality.

Facts come from anywhere (labels, codes, a report, masks; see `vol3d.data.questions`); here they become words. Three
rules keep the answers from being guessed without looking:

- **As much absent as present.** A finding that is there is asked about, and so is one that is not.
- **Distractors that could be true.** Choices are findings of the same data set, sites of the same organ, sizes a
  ladder of factor 1.5 apart with the truth on a random rung.
- **Random order.** Choices without an order of their own are shuffled.

Every draw comes from the seed and the study's name: the same study gets the same questions in any process.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vol3d.text.facts import Facts, bare
from vol3d.text.ontology import FINDINGS, SIDES

KINDS = ("presence", "which", "side", "severity", "count", "size", "location", "phase", "modality")
"""The kinds of question that are written, in the order in which a study's questions stand."""
PHASES = ("without contrast", "arterial", "portal venous", "delayed")
MODALITIES = ("CT", "MRI", "PET", "X-ray")
RUNGS = 1.5
"""Factor between two neighbouring choices of a size."""

_PHASE_WORDS = {
    "none": "without contrast", "no": "without contrast", "native": "without contrast", "plain": "without contrast",
    "non-contrast": "without contrast", "unenhanced": "without contrast", "without contrast": "without contrast",
    "arterial": "arterial", "late arterial": "arterial", "portal venous": "portal venous", "venous": "portal venous",
    "portal": "portal venous", "portovenous": "portal venous", "delayed": "delayed", "excretory": "delayed",
}  # fmt: skip
_MODALITY_WORDS = {"ct": "CT", "mr": "MRI", "mri": "MRI", "pet": "PET", "pt": "PET", "xr": "X-ray", "cr": "X-ray"}
_AN = re.compile(r"\b([Aa]) (?=[aeio])")
_MASS = {
    "consolidation", "emphysema", "atelectasis", "cardiomegaly", "hepatic steatosis", "splenomegaly",
    "hydronephrosis", "ascites", "coronary artery calcification", "gallstones",
}  # fmt: skip
_PLURALS = {"bone metastasis": "bone metastases", "gallstones": "gallstones"}


def write_questions(
    facts: Facts, study: str, *, kinds: Iterable[str] = KINDS, choices: int = 4, seed: int = 0
) -> list[dict[str, Any]]:
    """The questions that `facts` can answer, as rows of the manifest's `questions`.

    Args:
        study: its name, from which every draw comes.
        kinds: some of KINDS.
        choices: how many a closed question has where the number is free ("which", "location", "size").

    Returns:
        {question, answer, kind, choices?}: "presence" and "side", "severity", "count", "phase", "modality" have the
        choices their kind has; "size" comes once closed and once open.

    Raises:
        ValueError: an unknown kind, or fewer than two choices.
    """
    kinds = list(kinds)
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"kinds of question {unknown} are unknown: use some of {', '.join(KINDS)}")
    if choices < 2:
        raise ValueError(f"choices is {choices}: a closed question needs at least 2")
    writer = _Writer(facts, study, choices, seed)
    return [row for kind in KINDS if kind in kinds for row in getattr(writer, f"_{kind}")()]


def check_choices(question: Mapping[str, Any], study: str) -> None:
    """Refuse a closed question that cannot be answered.

    Raises:
        ValueError: the answer is not among the choices, or there are fewer than two (study, question, remedy named).
    """
    choices = question.get("choices")
    if choices is None:
        return
    said = f"study {study!r}, question {question['question']!r}"
    if question["answer"] not in choices:
        raise ValueError(
            f"{said}: the answer {question['answer']!r} is not among its {len(choices)} choices {list(choices)}: add "
            "it, spelt alike, or leave `choices` out for an open question"
        )
    if len(set(choices)) < max(2, len(choices)):
        raise ValueError(
            f"{said}: {len(choices)} choices, {len(set(choices))} of them different ({list(choices)}): give each "
            "once, at least two"
        )


def answers_to(
    asked: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any] | None]:
    """The answer to each question, wherever it stands: known by the question's words and choices, of which an answer
    that does not repeat them is taken by its place. None where there is none.
    """

    def key(row: Mapping[str, Any]) -> tuple[str, ...]:
        return row["question"], *(row.get("choices") or ())

    def answers_it(row: Mapping[str, Any], question: Mapping[str, Any]) -> bool:
        return all(row.get(name) in (None, question.get(name)) for name in ("question", "choices"))

    if len(answers) == len(asked) and all(map(answers_it, answers, asked)):
        return list(answers)
    known = {key(row): row for row in answers if "question" in row}
    return [known.get(key(row)) for row in asked]


def stream(seed: int, *key: object) -> random.Random:
    """Random numbers of their own for this key: the same in every process, unlike Python's hash."""
    digest = hashlib.blake2b("|".join(map(str, (seed, *key))).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))


class _Writer:
    """One method a kind of question."""

    def __init__(self, facts: Facts, study: str, choices: int, seed: int) -> None:
        self.facts, self.study, self.choices, self.seed = facts, study, choices, seed
        self.there = [key for key, present in facts.present.items() if present]
        self.absent = [key for key, present in facts.present.items() if not present]

    def _draw(self, *key: object) -> random.Random:
        return stream(self.seed, self.study, *key)

    def _presence(self) -> list[dict[str, Any]]:
        """As many "no" as "yes"; a study without findings gets one "no"."""
        asked = self._draw("presence").sample(self.absent, min(len(self.absent), max(1, len(self.there))))
        keys = [key for key in self.facts.present if key in {*self.there, *asked}]
        return [_row(_is_there(key), "yes" if key in self.there else "no", "presence", ["yes", "no"]) for key in keys]

    def _which(self) -> list[dict[str, Any]]:
        """One finding that is there among others that are not."""
        rows = []
        for key in self.there:
            draw = self._draw("which", key)
            others = draw.sample(self.absent, min(len(self.absent), self.choices - 1))
            if len(others) == self.choices - 1:
                rows.append(_row("Which of these findings is present?", key, "which", _shuffled([key, *others], draw)))
        return rows

    def _side(self) -> list[dict[str, Any]]:
        """left, right, both or neither; a finding on no side is asked about four times in ten a present one."""
        names: dict[str, dict[str, bool]] = {}
        for key, present in self.facts.present.items():
            side, _, name = key.partition(" ")
            if side in SIDES and name:
                names.setdefault(name, {})[side] = present
        known = {name: sides for name, sides in names.items() if len(sides) == len(SIDES)}
        sided = [name for name, sides in known.items() if any(sides.values())]
        none = [name for name in known if name not in sided]
        draw = self._draw("side")
        wanted = sum(draw.random() < 0.4 for _ in sided)
        asked = {*sided, *draw.sample(none, min(len(none), wanted))}
        rows = []
        for name in (name for name in known if name in asked):
            there = [side for side in SIDES if known[name][side]]
            answer = "neither" if not there else "both" if len(there) == 2 else there[0]
            rows.append(_row(f"On which side is the {name}?", answer, "side", [*SIDES, "both", "neither"]))
        return rows

    def _severity(self) -> list[dict[str, Any]]:
        rows = []
        for fact in self.facts.findings:
            if fact.severity and fact.severities:
                rows.append(_row(_how_severe(fact.key), fact.severity, "severity", ["not present", *fact.severities]))
        graded = [key for key in self.absent if (kind := FINDINGS.get(bare(key))) and kind.severities]
        draw = self._draw("severity")
        wanted = min(len(graded), sum(draw.random() < 1 / 3 for _ in rows))
        for key in draw.sample(graded, wanted):
            scale = FINDINGS[bare(key)].severities
            rows.append(_row(_how_severe(key), "not present", "severity", ["not present", *scale]))
        return rows

    def _count(self) -> list[dict[str, Any]]:
        rows = []
        for fact in self.facts.findings:
            if fact.count is None:
                continue
            plural = _PLURALS.get(fact.name) or fact.name + ("" if fact.name.endswith("s") else "s")
            words = f"{fact.side} {plural}" if fact.side else plural
            answer = str(fact.count) if fact.count < 4 else "4 or more"
            rows.append(_row(f"How many {words} are there?", answer, "count", ["1", "2", "3", "4 or more"]))
        return rows

    def _size(self) -> list[dict[str, Any]]:
        rows = []
        for fact in self.facts.findings:
            if fact.size_mm is None:
                continue
            question = f"How large is the {fact.key} in mm?"
            size = max(1, round(fact.size_mm))
            rung = self._draw("size", fact.key).randrange(self.choices)
            ladder = [max(1, round(size * RUNGS ** (place - rung))) for place in range(self.choices)]
            rows.append(_row(question, f"{size} mm", "size"))
            if len(set(ladder)) == self.choices:
                rows.append(_row(question, f"{size} mm", "size", [f"{value} mm" for value in ladder]))
        return rows

    def _location(self) -> list[dict[str, Any]]:
        rows = []
        for fact in self.facts.findings:
            others = [site for site in fact.sites if site != fact.site]
            if fact.site is None or not others:
                continue
            draw = self._draw("location", fact.key)
            chosen = draw.sample(others, min(len(others), self.choices - 1))
            options = _shuffled([fact.site, *chosen], draw)
            rows.append(_row(f"Where is the {fact.key}?", fact.site, "location", options))
        return rows

    def _phase(self) -> list[dict[str, Any]]:
        phase = _PHASE_WORDS.get((self.facts.phase or "").strip().lower())
        return [_row("Which contrast phase is this?", phase, "phase", list(PHASES))] if phase else []

    def _modality(self) -> list[dict[str, Any]]:
        modality = _MODALITY_WORDS.get((self.facts.modality or "").strip().lower())
        return [_row("Which modality is this?", modality, "modality", list(MODALITIES))] if modality else []


def _row(question: str, answer: str, kind: str, choices: list[str] | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {"question": question, "answer": answer, "kind": kind}
    return row if choices is None else {**row, "choices": choices}


def _is_there(key: str) -> str:
    article = "Are there" if bare(key).endswith("stones") else "Is there" if bare(key) in _MASS else "Is there a"
    return _AN.sub(r"\1n ", f"{article} {key}?")


def _how_severe(key: str) -> str:
    return f"What is the extent of the {key}?"


def _shuffled(options: list[str], draw: random.Random) -> list[str]:
    return draw.sample(options, len(options))
