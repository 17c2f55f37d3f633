"""Diagnosis codes: how ICD-10-CM, ICD-9-CM and phecodes are written, their hierarchy, and those of our findings.

The table of our findings is our own and small, made from `ontology.FINDINGS`. A code outside it is an error, never a
guess. Maps of the whole code sets are in `vol3d.text.phecodes`.

Source: see `vol3d.text.ontology`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vol3d.text.ontology import FINDINGS, Finding, in_report_order

# Letter, digit, digit (or A, B), then up to four characters: the shape every ICD-10-CM code has since 2016.
_ICD10CM = re.compile(r"[A-Z][0-9][0-9AB](?:\.[0-9A-Z]{1,4})?")
_ICD9CM = re.compile(r"(?:[0-9]{3}|V[0-9]{2})(?:\.[0-9]{1,2})?|E[0-9]{3}(?:\.[0-9])?")
# Map 1.2 ("008.51", "1010.5"), and phecodeX ("GI_520.11").
_PHECODE = re.compile(r"[0-9]{3,4}(?:\.[0-9]{1,2})?|[A-Z]{2}_[0-9]{3}(?:\.[0-9]{1,3})?")

SYSTEMS = {
    "icd10cm": "a letter, two digits, then up to four after the dot (K80.20)",
    "icd9cm": "three digits, then up to two after the dot (250.01); or V and two, or E and three digits",
    "phecode": "three digits, then up to two after the dot (008.51); phecodeX: GI_520.11",
}
"""Code systems of a manifest, and what a code of each looks like."""

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


def normalize_code(code: str, system: str) -> str:
    """Write a code of any of `SYSTEMS` the one way: upper case, with its dot and its leading zeros.

    A phecode may come as a number ("8.5" is 008.5), as Merlin's table has it; an ICD-9-CM code may not, because 8.5
    could be 008.5 or 085.

    Raises:
        ValueError: an unknown system, or no code of it.
    """
    if system not in SYSTEMS:
        raise ValueError(f"code system is {system!r}: use one of {', '.join(SYSTEMS)}")
    if system == "icd10cm":
        return normalize_icd10cm(code)
    written, shape = code.strip().upper(), _ICD9CM if system == "icd9cm" else _PHECODE
    if system == "icd9cm" and "." not in written:
        whole = 4 if written.startswith("E") else 3
        written = ".".join(filter(None, (written[:whole], written[whole:])))
    if system == "phecode" and written[:1].isdigit():
        whole, dot, part = written.partition(".")
        written = whole.zfill(3) + dot + part
    if shape.fullmatch(written) is None:
        raise ValueError(f"{code!r} is not a code of {system}: use {SYSTEMS[system]}")
    return written


def unknown_codes(codes: Sequence[str], system: str) -> list[str]:
    """Those of `codes` that no code of the system is written like, each once, in their order.

    Whether a well-formed code exists is another question, see `vol3d.text.code_sets.missing_codes`.

    Example:
        >>> unknown_codes(["J90", "K80.20", "pneumonia", "507"], "icd10cm")
        ['pneumonia', '507']
    """
    if system not in SYSTEMS:
        raise ValueError(f"code system is {system!r}: use one of {', '.join(SYSTEMS)}")
    return [code for code in dict.fromkeys(codes) if not _is_code(code, system)]


def _is_code(code: str, system: str) -> bool:
    try:
        normalize_code(code, system)
    except ValueError:
        return False
    return True


def parents(code: str) -> list[str]:
    """The codes above a normalized one, nearest first; the three systems are all cut from the right.

    Example:
        >>> parents("E11.65"), parents("008.51")
        (['E11.6', 'E11'], ['008.5', '008'])
    """
    whole, _, part = code.partition(".")
    return [f"{whole}.{part[:length]}".rstrip(".") for length in range(len(part) - 1, -1, -1)]


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
