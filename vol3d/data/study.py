"""One row of a manifest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

TEXTS = ("report", "findings", "impression")
"""The texts of a study, the whole one first."""
SPLITS = ("train", "val", "test")
PATH_FIELDS = ("image", "mask", "finding_mask")


class _Derived(str):
    """Text that was derived from a study's other texts, which `dataclasses.replace` would pass on as if given."""


class _Text:
    """A text of a study: what the manifest says, or else what can be derived from its other texts."""

    def __init__(self, derive: Callable[[Study], str | None]) -> None:
        self.derive = derive

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, study: Study | None, owner: type | None = None) -> str | None:
        if study is None:
            return None  # the dataclass default
        given = study.__dict__[self.name]
        if given is not None:
            return given
        derived = self.derive(study)
        return None if derived is None else _Derived(derived)

    def __set__(self, study: Study, value: str | None) -> None:
        study.__dict__[self.name] = value


def _join_sections(study: Study) -> str | None:
    parts = [(name.upper(), vars(study)[name]) for name in ("findings", "impression")]
    return "\n\n".join(f"{name}:\n{text}" for name, text in parts if text) or None


def _find_section(study: Study, name: str) -> str | None:
    report = vars(study)["report"]
    if not report:
        return None
    from vol3d.text.sections import split_report

    return getattr(split_report(report), name) or None


@dataclass(frozen=True, eq=False, repr=False)
class Study:
    """One study of a manifest. An empty list or dict means: not recorded.

    `report`, `findings` and `impression` stand in for each other: where the manifest gives only the report, the
    two sections are found by their headers; where it gives only the sections, the report is their join.
    To change the text of a study, `dataclasses.replace` the one that was given. Boxes are in RAS millimetres. Paths
    are absolute once read.
    """

    study: str
    image: Path
    patient: str = ""
    split: str | None = None
    report: str | None = _Text(_join_sections)  # type: ignore[assignment]
    findings: str | None = _Text(partial(_find_section, name="findings"))  # type: ignore[assignment]
    impression: str | None = _Text(partial(_find_section, name="impression"))  # type: ignore[assignment]
    codes: list[str] = field(default_factory=list)
    codes_absent: list[str] = field(default_factory=list)
    code_system: str | None = None
    labels_known: dict[str, int | None] = field(default_factory=dict)
    outcomes: dict[str, dict[str, float | int]] = field(default_factory=dict)
    mask: Path | None = None
    mask_labels: dict[str, int] = field(default_factory=dict)
    finding_mask: Path | None = None
    finding_labels: dict[str, int] = field(default_factory=dict)
    boxes: list[dict[str, Any]] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    prior: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", self.study)
        self._forget_derived()

    def _forget_derived(self) -> None:
        """A text that was derived is derived again from what stands beside it now, or kept where it stands alone."""
        texts = vars(self)
        given = {name for name in TEXTS if texts[name] and type(texts[name]) is str}
        sources = {"report": {"findings", "impression"}, "findings": {"report"}, "impression": {"report"}}
        for name, source in sources.items():
            if isinstance(texts[name], _Derived):
                texts[name] = None if source & given else str(texts[name])

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if isinstance(other, Study) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.study, self.image))

    @property
    def modality(self) -> str | None:
        """What the image is read as: `meta.modality` where that is another than CT; "CT" where `meta.hu` vouches that
        its values are HU; otherwise None, so that they are checked. A table's "CT" or "Chest CT" only describes.
        """
        said = self.meta.get("modality")
        if isinstance(said, str) and said.strip() and not _CT.search(said):
            return said
        return "CT" if str(self.meta.get("hu")).lower() in ("true", "1") else None

    def __repr__(self) -> str:
        return f"Study({self.study!r}, image={str(self.image)!r}, patient={self.patient!r}, split={self.split!r})"

    def to_row(self, folder: Path) -> dict[str, Any]:
        """The study as a manifest row: empty fields left out, paths inside `folder` made relative to it."""
        row = {f.name: vars(self)[f.name] for f in fields(self)}
        row = {name: value for name, value in row.items() if value not in (None, [], {})}
        for name in PATH_FIELDS:
            if name in row:
                path = Path(row[name]).absolute()
                row[name] = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
        if row["patient"] == self.study:
            del row["patient"]
        return row


_CT = re.compile(r"(?<![a-z])(?:(?:nc|ce|hr|ld)?ct(?:a|pa)?|computed tomography)(?![a-z])", re.IGNORECASE)
_ONCE = "store it once, vol3d.write(vol3d.read(folder, {}), 'ct.nii.gz'), and give that file as image"
_REMEDIES = {
    "modality=": "meta.modality",
    "vouch with": "meta.hu: true",
    "with series=": _ONCE.format("series=…"),
    "with irregular=": _ONCE.format("irregular='resample'"),
}
"""Arguments that a reader's message names → what does the same for a row."""


def in_manifest_words(message: str) -> str:
    """A reader's message whose remedies can be followed by whoever has a manifest."""
    said = "; ".join(words for argument, words in _REMEDIES.items() if argument in message)
    return f"{message} (in a manifest: {said})" if said else message


def texts_of(studies: Iterable[Study]) -> list[str]:
    """What a tokenizer of its own can learn from: the studies' reports; where none has one, their questions and
    answers."""
    studies = list(studies)
    reports = [text for study in studies if (text := study.report)]
    return reports or [f"{asked['question']} {asked['answer']}" for study in studies for asked in study.questions]
