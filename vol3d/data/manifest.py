"""The manifest: a dataset as a list of studies, read from JSON Lines, CSV or Parquet.

Every row is checked before any is used, so that a bad path in row 9,000 is known in the first second and not
after a night of training.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, overload

from vol3d.data.fields import CHECKS, check_row, forget_folders
from vol3d.data.formats import READERS, WRITERS, atomic
from vol3d.data.study import SPLITS, Study

log = logging.getLogger(__name__)

SHOWN = 5
"""How many problems a ManifestError spells out."""


class Problem(NamedTuple):
    """Something wrong with one field of one row.

    `row` counts as an editor shows it (a CSV's header is row 1); 0 where studies come from no file's rows.
    """

    row: int
    study: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{_place(self.row, self.study)}, field {self.field!r}: {self.message}"


def _place(row: int, study: str) -> str:
    return f"row {row} (study {study!r})" if row else f"study {study!r}"


class ManifestError(ValueError):
    """A manifest that cannot be used; `problems` has all that is wrong with it, row by row."""

    def __init__(self, name: str, problems: Sequence[Problem], rows: int) -> None:
        self.problems = list(problems)
        told = f"{name}, {problems[0]}"
        if len(problems) > 1:
            bad = len({problem.row for problem in problems})
            more = f", the first {SHOWN} (`vol3d doctor` lists all)" if len(problems) > SHOWN else ""
            lines = ";\n".join(map(str, problems[:SHOWN]))
            told = f"{name}: {len(problems)} problems in {bad} of {rows} rows{more}:\n{lines}"
        super().__init__(told)


class Manifest(Sequence[Study]):
    """Studies in a fixed order; `manifest[3]`, `manifest["study name"]`, `manifest[:10]`.

    Args:
        studies: the studies, each name once.
        path: the file they were read from, if any.

    Raises:
        ValueError: a study name occurs twice.

    Example:
        >>> manifest = Manifest.read("data/manifest.jsonl")  # doctest: +SKIP
        >>> train = manifest.split("train")  # doctest: +SKIP
    """

    def __init__(self, studies: Iterable[Study], path: Path | None = None) -> None:
        self.studies = list(studies)
        self.path = path
        self._by_name = {study.study: study for study in self.studies}
        if len(self._by_name) < len(self.studies):
            seen: set[str] = set()
            twice = next(s.study for s in self.studies if s.study in seen or seen.add(s.study))  # type: ignore[func-returns-value]
            raise ValueError(f"study {twice!r} occurs twice among {len(self.studies)} studies: give each its own name")

    @property
    def root(self) -> Path:
        """The folder that relative paths start from."""
        return Path.cwd() if self.path is None else self.path.parent

    @property
    def patients(self) -> list[str]:
        """The patients, each once, in order of appearance."""
        return list(dict.fromkeys(study.patient for study in self.studies))

    def __len__(self) -> int:
        return len(self.studies)

    def __iter__(self) -> Iterator[Study]:
        return iter(self.studies)

    def __contains__(self, item: object) -> bool:
        return item in self._by_name if isinstance(item, str) else item in self.studies

    @overload
    def __getitem__(self, item: int | str) -> Study: ...
    @overload
    def __getitem__(self, item: slice) -> Manifest: ...
    def __getitem__(self, item: int | str | slice) -> Study | Manifest:
        if isinstance(item, slice):
            return Manifest(self.studies[item], self.path)
        if isinstance(item, int):
            return self.studies[item]
        if item not in self._by_name:
            close = difflib.get_close_matches(item, self._by_name, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise KeyError(f"no study {item!r} among {len(self)} studies{hint}")
        return self._by_name[item]

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {len(part)}" for name in SPLITS if (part := self.split(name)))
        return f"Manifest({len(self)} studies of {len(self.patients)} patients{': ' + splits if splits else ''})"

    def split(self, name: str) -> Manifest:
        """The studies of one split: "train", "val" or "test" (none: an empty manifest)."""
        if name not in SPLITS:
            raise ValueError(f"split {name!r} is none of {', '.join(SPLITS)}")
        return Manifest((study for study in self.studies if study.split == name), self.path)

    def by_name(self) -> Manifest:
        """The studies in the order of their names, whatever that of the rows."""
        return Manifest(sorted(self.studies, key=lambda study: study.study), self.path)

    @classmethod
    def read(cls, path: str | Path, *, allow_outside: bool = False) -> Manifest:
        """Reads and checks a manifest (.jsonl, .csv, .tsv, .parquet, or a folder holding manifest.jsonl).

        Args:
            allow_outside: follow relative paths and links that lead out of the manifest's folder.

        Raises:
            ManifestError: naming each bad row, its field and the remedy; a study named twice; a patient in two
                splits.
            FileNotFoundError, ValueError: no such file, or a suffix that is none of these.
        """
        path = locate(Path(path))
        studies, problems, rows = read_rows(path, allow_outside=allow_outside)
        if not rows:
            raise ValueError(f"{path.name} has no rows: write one study a line")
        if problems:
            raise ManifestError(path.name, problems, rows)
        return cls((study for _, study in studies), path)

    @classmethod
    def from_csv(cls, path: str | Path, columns: Mapping[str, str], **options: Any) -> Manifest:
        """Your own table with your own column names; see `vol3d.data.importers.from_csv`."""
        return importers().from_csv(path, columns, **options)

    @classmethod
    def from_merlin(cls, folder: str | Path) -> Manifest:
        """The Merlin Abdominal CT Dataset as downloaded; see `vol3d.data.importers.from_merlin`."""
        return importers().from_merlin(folder)

    @classmethod
    def from_ct_rate(cls, folder: str | Path, *, original: bool = False) -> Manifest:
        """CT-RATE as downloaded; see `vol3d.data.importers.from_ct_rate`."""
        return importers().from_ct_rate(folder, original=original)

    @classmethod
    def from_m3d(cls, path: str | Path, out: str | Path) -> Manifest:
        """M3D-Cap's JSON, volumes rewritten to `out`; see `vol3d.data.importers.from_m3d`."""
        return importers().from_m3d(path, out)

    @classmethod
    def from_totalsegmentator(cls, folder: str | Path, out: str | Path) -> Manifest:
        """The TotalSegmentator dataset, masks merged to `out`; see `vol3d.data.importers.from_totalsegmentator`."""
        return importers().from_totalsegmentator(folder, out)

    @classmethod
    def from_nnunet(cls, folder: str | Path) -> Manifest:
        """A raw nnU-Net or Decathlon dataset; see `vol3d.data.importers.from_nnunet`."""
        return importers().from_nnunet(folder)

    def write(self, path: str | Path) -> Path:
        """Writes the manifest (.jsonl, .csv, .parquet), whole or not at all; returns its path.

        Files inside the new manifest's folder are written relative to it, others absolute.
        """
        path = Path(os.path.abspath(path))
        rows = [study.to_row(path.parent) for study in self.studies]
        if path.suffix not in WRITERS:
            raise ValueError(f"{path.name}: a manifest ends in {', '.join(WRITERS)}")
        with atomic(path) as part:
            WRITERS[path.suffix](part, rows)
        return path


def importers() -> ModuleType:
    """Imported late: the importers make manifests."""
    return import_module("vol3d.data.importers")


def read_rows(path: Path, *, allow_outside: bool = False) -> tuple[list[tuple[int, Study]], list[Problem], int]:
    """(row number, Study) of each good row, all problems, and the number of rows; for whoever wants to go on."""
    rows = READERS[path.suffix](path)
    studies, problems, count = check_rows(path.name, rows, path.parent, allow_outside=allow_outside)
    problems += check_across(studies)
    return studies, sorted(problems, key=lambda problem: problem.row), count


def check_rows(
    name: str, rows: Iterable[tuple[int, dict[str, Any] | str]], folder: Path, *, allow_outside: bool
) -> tuple[list[tuple[int, Study]], list[Problem], int]:
    """The same of numbered rows from anywhere, each looked at for itself.

    Args:
        name: the file's, for warnings.
        folder: where relative paths start.
    """
    forget_folders()
    studies: list[tuple[int, Study]] = []
    problems: list[Problem] = []
    columns: Counter[str] = Counter()
    count = 0
    for number, row in rows:
        count += 1
        if isinstance(row, str):
            problems.append(Problem(number, "?", "row", row))
            continue
        columns.update(row.keys() - CHECKS.keys())
        study, wrong = check_row(row, str(folder), allow_outside=allow_outside)
        problems += [Problem(number, str(row.get("study", "?")), field, message) for field, message in wrong]
        if study is not None:
            studies.append((number, study))
    for message in _ignored(columns):
        log.warning("%s: %s", name, message)
    _warn_of_rows(name, studies)
    return studies, problems, count


def check_across(studies: Iterable[tuple[int, Study]]) -> list[Problem]:
    """Names given twice, patients in two splits, priors of another patient, priors in a circle."""
    studies = list(studies)
    problems = []
    first: dict[str, tuple[int, Study]] = {}
    where: dict[str, tuple[int, Study]] = {}
    for number, study in studies:
        earlier, other = first.setdefault(study.study, (number, study))
        if other is not study:
            message = f"was already used{f' in row {earlier}' if earlier else ''}: rename one"
            problems.append(Problem(number, study.study, "study", message))
        if study.split is None:
            continue
        earlier, other = where.setdefault(study.patient, (number, study))
        if other.split != study.split:
            message = (
                f"patient {study.patient!r} is in {study.split} here and in {other.split} in "
                f"{_place(earlier, other.study)}: keep all studies of a patient in one split"
            )
            problems.append(Problem(number, study.study, "split", message))
    for number, study in studies:
        if study.prior in first and first[study.prior][1].patient != study.patient:
            other = first[study.prior][1]
            message = f"{study.prior!r} is of patient {other.patient!r}, this study of {study.patient!r}: one patient"
            problems.append(Problem(number, study.study, "prior", message))
        if _leads_back(study, first):
            message = f"{study.prior!r} has this study among its own priors: one of them is not the earlier exam"
            problems.append(Problem(number, study.study, "prior", message))
    return problems


def _leads_back(study: Study, studies: Mapping[str, tuple[int, Study]]) -> bool:
    """Whether a study is, over its priors, its own: it would be shown a report written later, maybe its own."""
    seen: set[str] = set()
    name = study.prior
    while name in studies and name not in seen:
        seen.add(name)
        name = studies[name][1].prior
    return study.study in seen


def _warn_of_rows(name: str, studies: list[tuple[int, Study]]) -> None:
    alone = sum(study.patient == study.study for _, study in studies)
    if alone:
        log.warning(
            "%s: %d of %d rows have no patient; each study counts as its own patient, so two exams of one person "
            "may land in two splits unnoticed",
            name, alone, len(studies),
        )  # fmt: skip
    known = {study.study for _, study in studies}
    dangling = [study for _, study in studies if study.prior is not None and study.prior not in known]
    if dangling:
        log.warning(
            "%s: %d studies name a prior that is not in this manifest (the first: %r of study %r); it is not used",
            name, len(dangling), dangling[0].prior, dangling[0].study,
        )  # fmt: skip


def unknown_fields(path: Path) -> list[str]:
    """Of each field that no manifest has, one sentence with the remedy."""
    rows = (row for _, row in READERS[path.suffix](path) if isinstance(row, dict))
    return _ignored(Counter(chain.from_iterable(row.keys() - CHECKS.keys() for row in rows)))


def _ignored(columns: Mapping[str, int]) -> list[str]:
    messages = []
    for column, count in columns.items():
        close = difflib.get_close_matches(column.lower(), CHECKS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "put what you want to keep under 'meta'"
        messages.append(f"field {column!r} ({count} rows) is not one of a manifest and is ignored; {hint}")
    return messages


def locate(path: Path) -> Path:
    """The manifest file that `path` means: itself, or the manifest.jsonl of a folder."""
    path = Path(os.path.abspath(path))
    if path.is_dir():
        path = path / "manifest.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no manifest at {path}: give a .jsonl, .csv or .parquet file with one study a row")
    if path.suffix not in READERS:
        raise ValueError(f"{path.name}: a manifest ends in {', '.join(READERS)}")
    return path
