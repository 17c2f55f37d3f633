"""What each field of a manifest row may hold: each check returns the value to keep, or raises with the remedy."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from vol3d.data.study import PATH_FIELDS, SPLITS, Study

CODE_SYSTEMS = ("icd10cm", "icd9cm", "phecode")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"is {value!r}, not text: write it in quotes")
    if not value.strip():
        raise ValueError(f"is {value!r}, only white space: leave the field out when nothing is known")
    return value


def _patient(value: Any) -> str:
    """Without white space around it, which would make two patients of one, maybe in two splits."""
    return _text(value).strip()


def _one_of(choices: tuple[str, ...], value: Any) -> str:
    if value not in choices:
        raise ValueError(f"is {value!r}: use one of {', '.join(choices)}")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f'is {_brief(value)}: write a JSON list of texts such as ["J90", "K80.20"]')
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f'is {_brief(value)}: write a JSON object such as {{"name": 1}}')
    return value


def _labels_known(value: Any) -> dict[str, int | None]:
    for name, known in _object(value).items():
        if known is not None and known not in (0, 1):
            unknown = "; -1 often means unknown (Merlin) or uncertain (CheXpert): write null" if known == -1 else ""
            raise ValueError(f"gives {name!r} the label {known!r}: 1 is present, 0 absent, null not mentioned{unknown}")
    return {name: None if known is None else int(known) for name, known in value.items()}


def _outcomes(value: Any) -> dict[str, dict[str, float | int]]:
    for name, outcome in _object(value).items():
        time, event = (outcome.get("time"), outcome.get("event")) if isinstance(outcome, dict) else (None, None)
        if not _is_number(time) or time < 0 or event not in (0, 1):
            raise ValueError(
                f"gives {name!r} {_brief(outcome)}: write {{time: days since the scan, 0 or more, event: 1 or 0}}, "
                "event 0 when the patient was last seen without it"
            )
    return value


def _label_names(value: Any) -> dict[str, int]:
    taken: dict[int, str] = {}
    for name, label in _object(value).items():
        if not isinstance(label, int) or not 0 < label < 2**15:
            raise ValueError(f"gives {name!r} the label {label!r}: labels are whole numbers from 1 to 32767")
        if label in taken:
            raise ValueError(f"gives label {label} to both {taken[label]!r} and {name!r}: one name a label")
        taken[label] = name
    return value


def _boxes(value: Any) -> list[dict[str, Any]]:
    for number, box in enumerate(_list_of_objects(value)):
        low, high = box.get("min_mm"), box.get("max_mm")
        if not isinstance(box.get("label"), str) or not _is_point(low) or not _is_point(high):
            raise ValueError(f"box {number} is {_brief(box)}: write {{label, min_mm: [x, y, z], max_mm: [x, y, z]}}")
        if any(a >= b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"box {number} runs from {low} to {high} mm: min_mm must be below max_mm on each axis")
    return value


def _questions(value: Any) -> list[dict[str, Any]]:
    for number, item in enumerate(_list_of_objects(value)):
        asked = item.get("question")
        if not isinstance(asked, str) or not asked.strip() or not isinstance(item.get("answer"), str):
            raise ValueError(f"question {number} is {_brief(item)}: write {{question: text, answer: text, choices?}}")
        choices = item.get("choices")
        if choices is not None and item["answer"] not in _texts(choices):
            raise ValueError(f"question {number}: the answer {item['answer']!r} is not among its choices {choices}")
    return value


def _list_of_objects(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f'is {_brief(value)}: write a JSON list of objects such as [{{"label": "…"}}]')
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(item) for item in value)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "study": _text,
    "image": _text,
    "patient": _patient,
    "split": partial(_one_of, SPLITS),
    "report": _text,
    "findings": _text,
    "impression": _text,
    "codes": _texts,
    "codes_absent": _texts,
    "code_system": partial(_one_of, CODE_SYSTEMS),
    "labels_known": _labels_known,
    "outcomes": _outcomes,
    "mask": _text,
    "mask_labels": _label_names,
    "finding_mask": _text,
    "finding_labels": _label_names,
    "boxes": _boxes,
    "questions": _questions,
    "prior": _text,
    "meta": _object,
}
STRUCTURED = (
    *("codes", "codes_absent", "labels_known", "outcomes"),
    *("mask_labels", "finding_labels", "boxes", "questions", "meta"),
)
"""The fields that hold lists or objects: JSON-encoded in a CSV or Parquet cell."""


def check_row(
    row: Mapping[str, Any], folder: str, *, allow_outside: bool
) -> tuple[Study | None, list[tuple[str, str]]]:
    """A row's values → the Study, or None and what is wrong as (field, message with the remedy) pairs."""
    values: dict[str, Any] = {}
    wrong: list[tuple[str, str]] = []
    for name, value in row.items():
        if value is None or value == "" or name not in CHECKS:
            continue
        try:
            values[name] = CHECKS[name](value)
            if name in PATH_FIELDS:
                values[name] = resolve(value, folder, allow_outside=allow_outside)
        except ValueError as error:
            wrong.append((name, str(error)))
    wrong += [(name, "is missing: every row needs one") for name in ("study", "image") if row.get(name) in (None, "")]
    wrong += [] if wrong else _check_together(values)
    return (None if wrong else Study(**values)), wrong


def _check_together(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    wrong = []
    both = sorted(set(values.get("codes", ())) & set(values.get("codes_absent", ())))
    if both:
        wrong.append(("codes_absent", f"repeats {both[0]!r} of codes: a code is recorded or absent, not both"))
    if (values.get("codes") or values.get("codes_absent")) and "code_system" not in values:
        wrong.append(("code_system", f"is missing but codes are given: say one of {', '.join(CODE_SYSTEMS)}"))
    if values.get("prior") is not None and values.get("prior") == values.get("study"):
        wrong.append(("prior", "names the study itself: give the earlier exam"))
    return wrong


def resolve(text: str, folder: str, *, allow_outside: bool) -> Path:
    """A path as written in a manifest → the absolute path of a file or folder that exists.

    Raises:
        ValueError: nothing is there, or a relative path (or a link on it) leads out of the manifest's folder.
    """
    absolute = os.path.isabs(text)
    path = os.path.normpath(text if absolute else f"{folder}{os.sep}{text}")
    if not (absolute or allow_outside or _is_inside(path, folder)):
        raise ValueError(
            f"{text!r} leads out of the manifest's folder: write the absolute path, or read the manifest with "
            "allow_outside=True if you trust it"
        )
    if not os.path.exists(path):
        raise ValueError(f"no file or folder at {text!r}{_nearest(path)}: paths are relative to the manifest's folder")
    return Path(path)


def _is_inside(path: str, folder: str) -> bool:
    if not path.startswith(folder + os.sep):
        return False
    real = os.path.realpath(path) if os.path.islink(path) else _real(os.path.dirname(path)) + os.sep
    return real.startswith(_real(folder) + os.sep)


@cache
def _real(folder: str) -> str:
    return os.path.realpath(folder)


@cache
def _by_stem(folder: str) -> dict[str, str]:
    return {entry.split(".")[0]: entry for entry in sorted(os.listdir(folder))}


def forget_folders() -> None:
    """Called before a manifest is read: what folders look like is remembered for one reading only."""
    _real.cache_clear()
    _by_stem.cache_clear()


def _nearest(path: str) -> str:
    """A hint when the same file lies there under another suffix, or behind the other slash."""
    if "\\" in path and os.path.exists(path.replace("\\", "/")):
        return " (it is there with / in place of \\)"
    folder, name = os.path.split(path)
    try:
        close = _by_stem(folder).get(name.split(".")[0])
    except OSError:
        return f" (no folder {os.path.basename(folder)!r} either)"
    return f" (there is {close!r})" if close else ""
