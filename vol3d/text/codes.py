"""Diagnosis codes of the findings we know: ICD-10-CM, and the phecode each belongs to.

The table is our own and small, made from `ontology.FINDINGS`. A code outside it is an error, never a guess.

Source: see `vol3d.text.ontology`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from vol3d.text.ontology import FINDINGS, Finding, in_report_order

# Letter, digit, digit (or A, B), then up to four characters: the shape every ICD-10-CM code has since 2016.
_ICD10CM = re.compile(r"[A-Z][0-9][0-9AB](?:\.[0-9A-Z]{1,4})?")

# Codes used when there is more than one; phecode map 1.2, as for the others.
_MANY = {"R91.8": "514", "K40.20": "550.1"}

PHECODES: dict[str, str] = {kind.icd10cm: kind.phecode for kind in FINDINGS.values()} | _MANY
"""ICD-10-CM code → phecode (map 1.2), for the codes of our findings."""


def is_icd10cm(code: str) -> bool:
    """Tell whether a string has the shape of an ICD-10-CM code ("M48.50XA"); it need not exist."""
    return _ICD10CM.fullmatch(code) is not None


def normalize_icd10cm(code: str) -> str:
    """Write an ICD-10-CM code the one way: upper case, with its dot ("i7140 " → "I71.40").

    Raises:
        ValueError: It does not have the shape of an ICD-10-CM code.
    """
    bare = code.strip().upper().replace(".", "")
    written = bare if len(bare) <= 3 else f"{bare[:3]}.{bare[3:]}"
    if not is_icd10cm(written):
        raise ValueError(f"{code!r} is not an ICD-10-CM code: use a letter, two digits, then up to four after the dot")
    return written


def phecode(icd10cm: str) -> str:
    """Give the phecode of an ICD-10-CM code, dotted or not.

    Raises:
        ValueError: Not an ICD-10-CM code, or one outside our table.
    """
    code = normalize_icd10cm(icd10cm)
    if code not in PHECODES:
        known = ", ".join(sorted(PHECODES))
        raise ValueError(f"no phecode for {code} among the {len(PHECODES)} codes of our findings ({known})")
    return PHECODES[code]


def finding_code(finding: Finding, *, several: bool = False) -> str:
    """Give the ICD-10-CM code of one finding; `several`: there is more of its kind, as on the other side."""
    kind = finding.type
    return kind.icd10cm_many if kind.icd10cm_many and (several or finding.count > 1) else kind.icd10cm


def study_codes(findings: Iterable[Finding]) -> list[str]:
    """Give the ICD-10-CM codes of one study, each once, in report order; two nodules are R91.8, one is R91.1.

    Example:
        >>> study_codes([Finding("inguinal hernia", "left"), Finding("inguinal hernia", "right")])
        ['K40.20']
    """
    ordered = in_report_order(findings)
    names = [finding.name for finding in ordered]
    return list(dict.fromkeys(finding_code(f, several=names.count(f.name) > 1) for f in ordered))
