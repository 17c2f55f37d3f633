"""A phantom's report: organ sections, impression, and question–answer pairs, written from its findings.

Every choice of words comes from its own stream, keyed by the seed and the finding's name (or the organ), never
from one stream shared by the whole report. So a **twin**, with one finding removed, moved to the other side
or resized, gets the same report word for word but for that finding's sentences and the impression.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np

from vol3d.phantom.wording import ABSENT, COUNTS, NO_FINDINGS, NORMAL, WORDINGS
from vol3d.text.ontology import FINDINGS, LOBES, ORGANS, POLES, VERTEBRAE, Finding, in_report_order

ABSENT_MENTIONED = 0.5
"""Chance that a finding that is not there is mentioned as absent."""

_SLOT = re.compile(r"\{(\w+)\}")
_OPTIONAL = re.compile(r"\[([^\]]*)\]")
_AN = re.compile(r"\b([Aa]) (?=[aeio]|8|11 |18 )")
_BINS = ((10.0, "under 10 mm"), (20.0, "10 to 19 mm"), (40.0, "20 to 39 mm"), (float("inf"), "40 mm or more"))


@dataclass(frozen=True, slots=True)
class Report:
    """One report.

    Args:
        text: The whole report, as `FINDINGS:` and `IMPRESSION:`.
        findings: The findings section without its header, one line an organ.
        impression: The impression without its header.
        sections: Organ → its sentences.
        questions: {question, answer, kind, finding, choices?}, closed when there are choices.
        exam: What was done to whom. Not part of `text`: an image tells neither age nor sex well enough for a
            model to be taught to write them.
    """

    text: str
    findings: str
    impression: str
    sections: dict[str, str]
    questions: list[dict[str, Any]] = field(repr=False)
    exam: str = ""


def write_report(
    findings: Sequence[Finding],
    *,
    seed: int,
    subset: Collection[str] | None = None,
    age: float | int | None = None,
    sex: str | None = None,
    contrast: str | bool | None = None,
) -> Report:
    """Write the report of one study.

    Args:
        findings: What is in the study; each key at most once, sided findings with their side.
        seed: Chooses the words. The same findings and seed give the same report.
        subset: Names of the findings this data set knows; decides which absent ones may be mentioned and which
            organs get a section. Default: all.
        age: Years, for `Report.exam`.
        sex: For `Report.exam`: "M"/"male" or "F"/"female".
        contrast: For `Report.exam`: whether (or in which phase) contrast medium was given.

    Raises:
        ValueError: A key occurs twice; a sided finding has no side; a finding outside the subset; an unknown name.
    """
    names = _subset(subset)
    ordered = in_report_order(findings)
    _check(ordered, names)
    groups = [_merge(list(group), seed) for _, group in groupby(ordered, key=lambda f: f.name)]
    told = [(finding, both) for group in groups for finding, both in group]
    sections = {}
    for organ in ORGANS:
        here = [name for name in names if FINDINGS[name].organ == organ]
        if here:
            sections[organ] = _organ(organ, here, told, seed)
    body = "\n".join(f"{organ}: {text}" for organ, text in sections.items())
    impression = _impression(told, seed)
    return Report(
        text=f"FINDINGS:\n{body}\nIMPRESSION:\n{impression}",
        findings=body,
        impression=impression,
        sections=sections,
        questions=ask_questions(ordered, seed=seed, subset=names),
        exam=_exam(age, sex, contrast),
    )


def ask_questions(
    findings: Sequence[Finding], *, seed: int, subset: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Ask about presence, side, count and size of what is there, and about one in four of what is not.

    Returns:
        Rows of the manifest's `questions`: question, answer, kind ("presence", "side", "count", "size"), finding
        (its key, or name for "side"), and choices where the question is closed.
    """
    names = _subset(subset)
    present = {f.key: f for f in in_report_order(findings)}
    rows: list[dict[str, Any]] = []
    for name in names:
        kind = FINDINGS[name]
        for key in kind.keys:
            finding = present.get(key)
            if finding is not None or _rng(seed, key, "ask").random() < 0.25:
                rows.append(_presence(key, finding is not None))
            if finding is not None and kind.countable:
                rows.append(_count(finding))
            if finding is not None and finding.size_mm is not None:
                rows.extend(_size(finding, seed))
        sides = [f.side for f in present.values() if f.name == name]
        if kind.sided and sides:
            answer = "both" if len(sides) == 2 else str(sides[0])
            question = f"On which side is the {name}?"
            rows.append(_row(question, answer, "side", name, choices=["left", "right", "both"]))
    return rows


def _subset(subset: Collection[str] | None) -> list[str]:
    if subset is None:
        return list(FINDINGS)
    unknown = sorted(set(subset) - set(FINDINGS))
    if unknown:
        raise ValueError(f"unknown findings {', '.join(unknown)}; known: {', '.join(FINDINGS)}")
    return [name for name in FINDINGS if name in set(subset)]


def _check(findings: list[Finding], names: list[str]) -> None:
    for finding in findings:
        if finding.name not in names:
            raise ValueError(f"{finding.key} is not in the subset ({', '.join(names)}): add {finding.name!r} to it")
        if finding.type.sided and finding.side is None:
            raise ValueError(f"{finding.name} has no side: give side='left' or side='right', or two findings for both")
        if finding.count > len(COUNTS):
            raise ValueError(f"{finding.key} has count {finding.count}: a report counts up to {len(COUNTS)}")
    keys = [finding.key for finding in findings]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is given {keys.count(key)} times: give it once, with count={keys.count(key)}")


def _merge(group: list[Finding], seed: int) -> list[tuple[Finding, bool]]:
    """Tell a pair that differs in nothing but its side as one sentence, three times in five."""
    wording = WORDINGS[group[0].name]
    if len(group) == 2 and wording.both:
        left, right = group
        alike = replace(left, side=right.side, site=right.site) == right and left.site == right.site is None
        if alike and left.count == 1 and _rng(seed, left.name, "bilateral").random() < 0.6:
            return [(replace(left, side=None), True)]
    return [(finding, False) for finding in group]


def _organ(organ: str, names: list[str], told: list[tuple[Finding, bool]], seed: int) -> str:
    sentences = [_sentence(finding, both, seed) for finding, both in told if finding.type.organ == organ]
    if not sentences:
        sentences.append(_pick(NORMAL[organ], seed, organ, "normal"))
    there = {finding.name for finding, _ in told}
    absent = [n for n in names if n not in there and _rng(seed, n, "absent").random() < ABSENT_MENTIONED]
    if absent:
        listed = _join([WORDINGS[name].absent for name in absent])
        sentences.append(_pick(ABSENT, seed, organ, "absent").format(names=listed))
    return " ".join(sentences)


def _sentence(finding: Finding, both: bool, seed: int) -> str:
    wording = WORDINGS[finding.name]
    # Keyed by name, not by side: a twin on the other side is told in the same words.
    options = wording.both if both else wording.many if finding.count > 1 else wording.one
    return _fill(_pick(options, seed, finding.name, "wording"), finding, seed)


def _impression(told: list[tuple[Finding, bool]], seed: int) -> str:
    if not told:
        return _pick(NO_FINDINGS, seed, "impression", "normal")
    lines = []
    for finding, both in told:
        wording = WORDINGS[finding.name]
        option = (
            wording.both_impression if both else wording.many_impression if finding.count > 1 else wording.impression
        )
        lines.append(_fill(option, finding, seed) + ".")
    if len(lines) == 1:
        return lines[0]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def _fill(template: str, finding: Finding, seed: int) -> str:
    size = None if finding.size_mm is None else _length(finding.size_mm, _rng(seed, finding.name, "unit").random())
    adverb = f"{finding.severity}ly" if finding.severity else None
    slots: dict[str, str | None] = {
        "severity": finding.severity,
        "adverb": adverb,
        "side": finding.side,
        "size": size,
        "count": COUNTS[finding.count - 1],
        "site": finding.site or ("bowel" if finding.name == "bowel obstruction" else None),
        "place": _place(finding),
    }

    def optional(match: re.Match[str]) -> str:
        part = match.group(1)
        return part if all(slots[name] for name in _SLOT.findall(part)) else ""

    text = _SLOT.sub(lambda match: slots[match.group(1)] or "", _OPTIONAL.sub(optional, template))
    text = _AN.sub(r"\1n ", text)
    return text[0].upper() + text[1:]


def _place(finding: Finding) -> str | None:
    site, side, name = finding.site, finding.side, finding.name
    sites = finding.type.sites
    before = f"{side} " if side else ""
    if sites == LOBES:
        return "lingula" if site == "lingula" else f"{before}{site or 'lung'}"
    if sites == POLES or name == "hydronephrosis":
        return f"{site} of the {before}kidney" if site else f"{before}kidney"
    if name in ("liver lesion", "hepatic cyst"):
        return f"{site} of the liver" if site else "liver"
    if name == "aortic aneurysm":
        return site or "aorta"
    if name == "vertebral fracture":
        return site or "a vertebral body"
    if name == "bone metastasis" and site:
        return site if site in VERTEBRAE else f"the {site}"
    return None


def _length(size_mm: float, draw: float) -> str:
    rounded = max(1, round(size_mm))
    return f"{rounded / 10:.1f} cm" if rounded >= 10 and draw < 0.3 else f"{rounded} mm"


def _exam(age: float | int | None, sex: str | None, contrast: str | bool | None) -> str:
    words = "CT of the chest, abdomen and pelvis"
    if contrast is not None:
        given = contrast not in (False, "none", "no", "without", "native", "")
        words += f" {'with' if given else 'without'} intravenous contrast"
    who = {"m": "man", "f": "woman"}.get((sex or "")[:1].lower(), "patient")
    if age is not None:
        words += f" in a {age:.0f}-year-old {who}"
    elif sex:
        words += f" in a {who}"
    return words + "."


def _presence(key: str, there: bool) -> dict[str, Any]:
    name = key.removeprefix("left ").removeprefix("right ")
    article = {"gallstones": "Are there", "pleural effusion": "Is there a"}.get(name)
    if article is None:
        mass = {"consolidation", "emphysema", "atelectasis", "cardiomegaly", "hepatic steatosis", "splenomegaly",
                "hydronephrosis", "ascites", "coronary artery calcification"}  # fmt: skip
        article = "Is there" if name in mass else "Is there a"
    question = _AN.sub(r"\1n ", f"{article} {key}?")
    return _row(question, "yes" if there else "no", "presence", key, choices=["yes", "no"])


def _count(finding: Finding) -> dict[str, Any]:
    plural = {"bone metastasis": "bone metastases"}.get(finding.name, finding.name.removesuffix("s") + "s")
    words = f"{finding.side} {plural}" if finding.side else plural
    answer = str(finding.count) if finding.count < 4 else "4 or more"
    return _row(f"How many {words} are there?", answer, "count", finding.key, choices=["1", "2", "3", "4 or more"])


def _size(finding: Finding, seed: int) -> list[dict[str, Any]]:
    assert finding.size_mm is not None
    size = max(1, round(finding.size_mm))
    of = {"splenomegaly": "spleen", "gallstones": "largest gallstone"}.get(finding.name, finding.key)
    label = next(label for limit, label in _BINS if size < limit)
    if _rng(seed, finding.name, "size question").random() < 0.5:
        return [_row(f"How large is the {of}?", f"{size} mm", "size", finding.key)]
    question = f"Which size range does the {of} fall into?"
    return [_row(question, label, "size", finding.key, choices=[label for _, label in _BINS])]


def _row(question: str, answer: str, kind: str, finding: str, choices: list[str] | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {"question": question, "answer": answer, "kind": kind, "finding": finding}
    return row if choices is None else {**row, "choices": choices}


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _pick(options: Sequence[str], seed: int, *key: str) -> str:
    return options[int(_rng(seed, *key).random() * len(options))]


def _rng(seed: int, *key: str) -> np.random.Generator:
    return np.random.default_rng(_stream(seed, key))


@lru_cache(maxsize=4096)
def _stream(seed: int, key: tuple[str, ...]) -> int:
    # Python's own hash differs from process to process.
    return int.from_bytes(hashlib.blake2b("|".join((str(seed), *key)).encode(), digest_size=8).digest())
