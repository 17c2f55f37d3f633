"""What is known of a study before it is put into words: findings with their details, phase and modality."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vol3d.text.codes import normalize_code, unknown_codes
from vol3d.text.ontology import FINDINGS, SIDES, Finding
from vol3d.text.parser import Mention, finding_labels, parse_findings, parse_mentions


@dataclass(frozen=True)
class Fact:
    """One finding that is there, as far as it is known.

    Args:
        name: without its side. side: "left", "right" or None. count: None when nobody counted.
        site: where, and sites: where else it might be. severity, severities: likewise, in rising order.
    """

    name: str
    side: str | None = None
    size_mm: float | None = None
    count: int | None = None
    site: str | None = None
    sites: tuple[str, ...] = ()
    severity: str | None = None
    severities: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.side} {self.name}" if self.side else self.name

    @classmethod
    def of(cls, finding: Finding) -> Fact:
        """A parsed finding as a fact; a text that says "a nodule" says nothing of how many more there are."""
        kind = finding.type
        count = finding.count if finding.count > 1 else None
        return cls(
            finding.name, finding.side, finding.size_mm, count, finding.site, kind.sites, finding.severity,
            kind.severities,
        )  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What is known of one study.

    Args:
        present: finding ("left pleural effusion", "ascites") → whether it is there; what is not in it is unknown.
        findings: details of some of those that are there.
        phase, modality: as the manifest's meta tells them.
    """

    present: Mapping[str, bool] = field(default_factory=dict)
    findings: Sequence[Fact] = ()
    phase: str | None = None
    modality: str | None = None

    def only(self, findings: Collection[str]) -> Facts:
        """What is known of these findings alone."""
        present = {key: value for key, value in self.present.items() if key in findings}
        return replace(self, present=present, findings=[fact for fact in self.findings if fact.key in findings])


def row_facts(
    *,
    labels: Mapping[str, int | None] | None = None,
    report: str | None = None,
    codes: Sequence[str] = (),
    codes_absent: Sequence[str] = (),
    code_system: str | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Facts:
    """The facts in a manifest row; where two sources speak of one finding, labels win over the report, that over codes.

    A label without a side wins over both sides.

    Args:
        labels: `labels_known`; a null is unknown. report: parsed by rules; what it does not mention is unknown.
        codes, codes_absent: those of findings we have words for are read, of ICD-10-CM and phecodes; no code of
            ICD-9-CM is. code_system: of both; None for ICD-10-CM.
        meta: "phase" (or "contrast") and "modality" are read.
    """
    present = _coded(codes, codes_absent, code_system or "icd10cm")
    if report:
        present |= {key: bool(value) for key, value in finding_labels(report).items()}
    told = {_readable(name): bool(value) for name, value in (labels or {}).items() if value is not None}
    present = _agreeing(present, told) | told
    sided = {bare(key) for key in present if bare(key) != key}
    # "pleural effusion" beside "left pleural effusion" and "right pleural effusion" would be asked twice.
    present = {key: value for key, value in present.items() if key not in sided}
    details = _told(report or "")
    meta = meta or {}
    phase = meta.get("phase", meta.get("contrast"))
    return Facts(
        present,
        [fact for fact in details if present.get(fact.key, False)],
        phase if isinstance(phase, str) else None,
        meta["modality"] if isinstance(meta.get("modality"), str) else None,
    )


def _agreeing(present: Mapping[str, bool], labels: Mapping[str, bool]) -> dict[str, bool]:
    """Without the sides of a finding that a label without a side contradicts: it is there and none of them is, or the
    other way round."""
    there = {bare(key) for key, value in {**present, **labels}.items() if value and bare(key) != key}
    agree = {name: value == (name in there) for name, value in labels.items()}
    return {key: value for key, value in present.items() if bare(key) == key or agree.get(bare(key), True)}


def _told(report: str) -> list[Fact]:
    """Details of what a report says is there, as far as it is certain of them: "multiple cysts" tells no number, and of
    what may lie in several places none is the answer to where it is."""
    said: dict[str, list[Mention]] = {}
    for mention in parse_mentions(report):
        if mention.status in ("present", "possible"):
            said.setdefault(mention.finding.key, []).append(mention)
    facts = []
    for finding in parse_findings(report):
        fact, mentions = Fact.of(finding), said[finding.key]
        counted = [m.finding.count for m in mentions if m.counted]
        if len(counted) < len(mentions) and finding.count not in counted:
            fact = replace(fact, count=None)
        if finding.count > 1 or len({m.finding.site for m in mentions} - {None}) > 1:
            fact = replace(fact, site=None)
        facts.append(fact)
    return facts


def bare(key: str) -> str:
    """A finding's name without its side."""
    side, _, name = key.partition(" ")
    return name if side in SIDES and name else key


def _coded(codes: Sequence[str], absent: Sequence[str], system: str) -> dict[str, bool]:
    """Findings without a side that a code stands for; a code tells no side, so sided findings are left to others.

    Of the codes' own system alone: 571.5 is fatty liver as a phecode, and cirrhosis in ICD-9-CM.
    """
    names: dict[str, list[str]] = {}
    for kind in FINDINGS.values():
        own = {"icd10cm": (kind.icd10cm, kind.icd10cm_many), "phecode": (kind.phecode,)}.get(system, ())
        for code in filter(None, own):
            names.setdefault(code, []).append("" if kind.sided else kind.name)

    def named(given: Sequence[str]) -> list[str]:
        malformed = unknown_codes(given, system)
        told = [names.get(normalize_code(code, system), []) for code in given if code not in malformed]
        # Two findings may share a phecode: what is coded for one of them is known of neither.
        return [kinds[0] for kinds in told if len(kinds) == 1 and kinds[0]]

    return dict.fromkeys(named(absent), False) | dict.fromkeys(named(codes), True)


def _readable(name: str) -> str:
    return name.replace("_", " ").strip()
