"""What of a study's texts is matched to its volume, and which texts say the same."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, runtime_checkable

from vol3d.text.parser import parse_findings
from vol3d.text.sections import split_organs


@runtime_checkable
class Told(Protocol):
    """A study, as far as its texts go."""

    @property
    def report(self) -> str | None: ...
    @property
    def findings(self) -> str | None: ...
    @property
    def impression(self) -> str | None: ...


def matched(study: Told, text: str) -> dict[str, str]:
    """The texts of a study that are matched, by part: of its field `text`, or of each organ ("sections")."""
    if text == "sections":
        return split_organs(study.findings or "")
    told = getattr(study, text)
    return {text: told} if told else {}


def says(text: str, equal: str) -> Hashable:
    """What a text says, as far as two texts may say the same: its words, or its findings in every detail."""
    return " ".join(text.lower().split()) if equal == "text" else tuple(parse_findings(text))
