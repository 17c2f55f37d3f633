"""The tables and files that datasets come with: found by name, a table's cells as text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vol3d.data.excel import read_excel
from vol3d.data.formats import csv_cells

Row = dict[str, Any]


def visible(folder: Path, pattern: str) -> list[Path]:
    """What the pattern finds below a folder, sorted, without hidden files such as the `._ct.nii.gz` of macOS."""
    found = sorted(folder.glob(pattern))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def optional(folder: Path, stem: str, key: str) -> dict[str, Row]:
    """The rows of all tables of that name, by their column `key`, which is taken out of them."""
    found: dict[str, Row] = {}
    for path in sorted(path for end in (".csv", ".xlsx") for path in visible(folder, f"**/{stem}{end}")):
        for row in table(path):
            if key not in row:
                raise ValueError(f"{path.name} has no column {key!r}; it has {', '.join(map(repr, row))}")
            found[row.pop(key)] = row
    return found


def required(folder: Path, stem: str, key: str) -> dict[str, Row]:
    """The same of tables without which there is no manifest."""
    rows = optional(folder, stem, key)
    if not rows:
        raise ValueError(f"no rows of {stem}.csv or {stem}.xlsx below {folder.name}: give the folder as downloaded")
    return rows


def table(path: Path) -> Iterator[Row]:
    """The rows of a .csv (comma or semicolon), .tsv or .xlsx table, cells as text."""
    for number, row in numbered(path):
        if isinstance(row, str):
            raise ValueError(f"{path.name}, row {number}: {row}")
        yield row


def numbered(path: Path) -> Iterator[tuple[int, Row | str]]:
    """The rows that hold anything: each one's number as an editor shows it, and the row, or what is wrong with it."""
    if path.suffix == ".xlsx":
        yield from ((number, row) for number, row in enumerate(read_excel(path), start=2) if any(row.values()))
        return
    yield from csv_cells(path)
