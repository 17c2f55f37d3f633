"""The words with which reports are asked for, and how their parts are joined."""

from __future__ import annotations

from collections.abc import Mapping

from vol3d.text.sections import MERLIN_ORGANS

REPORT = "Write the report of this CT."
FINDINGS = "Describe the findings of this CT."
ORGAN = "Describe the {organ} on this CT."
IMPRESSION = "Write the impression of this CT."
FROM_FINDINGS = "Findings:\n{findings}\nWrite the impression."
PRIOR = "Report of the earlier exam:\n{report}"
NO_PRIOR = "There is no earlier exam."
STRUCTURED = "List the findings of this CT as JSON."
MERLIN = "Generate a radiology report for {organ}###"
"""Merlin's own organ prompt, for its language model's weights. Source: Merlin's report_generation_demo (MIT)."""


def join_organs(sections: Mapping[str, str], impression: str = "") -> str:
    """Organ sections → one report with headers, in Merlin's order; empty ones are left out."""
    known = [organ for organ in MERLIN_ORGANS if sections.get(organ)]
    other = [organ for organ in sections if organ not in MERLIN_ORGANS and sections[organ]]
    lines = [f"{organ[:1].upper()}{organ[1:]}: {' '.join(sections[organ].split())}" for organ in known + other]
    return join_parts("\n".join(lines), impression)


def join_parts(findings: str, impression: str) -> str:
    """Findings and impression → one report with headers."""
    parts = (("FINDINGS", findings), ("IMPRESSION", impression))
    return "\n".join(f"{header}:\n{text.strip()}" for header, text in parts if text.strip())
