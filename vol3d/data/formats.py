"""The file formats of a manifest: rows in, rows out."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from vol3d.data.fields import CHECKS, STRUCTURED
from vol3d.volume.atomic import PART, atomic

__all__ = ["PART", "READERS", "WRITERS", "atomic"]

# One reader a format; each yields (row number, row), or a text saying what is wrong with the row.


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield number, "is not UTF-8: save the manifest as UTF-8"
            except json.JSONDecodeError as error:
                yield number, f"is not valid JSON ({error.msg} at column {error.colno}): write one object a line"
            except RecursionError:
                yield number, "is nested too deeply: write one flat object a line"
            else:
                yield number, row if isinstance(row, dict) else "is not a JSON object: write one object a line"


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, cells in csv_cells(path):
        yield number, cells if isinstance(cells, str) else decode_cells(cells)


def csv_cells(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Rows whose cells are text as they stand there, those of empty cells left out; one with too many is told, not cut.

    Raises:
        ValueError: two columns of one name.
    """
    with open_table(path) as (file, delimiter), _long_cells():
        mark = {",": "comma", ";": "semicolon", "\t": "tab"}.get(delimiter, delimiter)
        rows = csv.reader(file, delimiter=delimiter)
        header = next(rows, [])
        check_header(path.name, header)
        for number, cells in enumerate(rows, start=2):
            if any(cells[len(header) :]):
                yield number, f"has more cells than the header has names: quote cells that hold a {mark}"
            elif any(cells):
                yield number, dict.fromkeys(header) | dict(zip(header, cells, strict=False))


def check_header(name: str, header: Sequence[str]) -> None:
    """Refuses a table of which one column would hide another of its name.

    Raises:
        ValueError: naming both columns, counted from 1.
    """
    first: dict[str, int] = {}
    for number, column in enumerate(header, start=1):
        if column and first.setdefault(column, number) != number:
            raise ValueError(
                f"{name}: columns {first[column]} and {number} are both named {column!r}: rename or remove one"
            )


_DECLARED = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
"""What Excel takes a first line for that is none of the table's."""


@contextmanager
def open_table(path: Path) -> Iterator[tuple[TextIO, str]]:
    """The text of a .csv or .tsv from its header on, and what parts its cells: comma, semicolon (Excel in much of
    Europe) or tab, or what a first line "sep=;" says.

    Raises:
        ValueError: the text is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            if declared := _DECLARED.fullmatch(header):
                yield file, declared[1]
            else:
                file.seek(0)
                yield file, "\t" if path.suffix == ".tsv" else max(",;\t", key=header.count)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8: save it as UTF-8 (in Excel: CSV UTF-8)") from error


@contextmanager
def _long_cells() -> Iterator[None]:
    """The csv module refuses cells over 128 kB; a row's questions may be longer."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    parquet = _pyarrow().parquet
    number = 0
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=1000):
        for row in batch.to_pylist():
            number += 1
            yield number, decode_cells(row)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet manifests need pyarrow: pip install 'vol3d[parquet]'") from error
    return pyarrow


def decode_cells(cells: Mapping[str, Any]) -> dict[str, Any] | str:
    """A row without its empty cells, lists and objects read from their JSON; or what is wrong with it."""
    row = {name: value for name, value in cells.items() if value not in (None, "")}
    for name in STRUCTURED:
        if isinstance(row.get(name), str):
            try:
                row[name] = json.loads(row[name])
            except json.JSONDecodeError as error:
                return f"field {name!r} is not valid JSON ({error.msg}): lists and objects are JSON-encoded in a cell"
    return row


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _cells(rows: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    columns = [name for name in CHECKS if any(name in row for row in rows)]
    encoded = [{k: json.dumps(v, ensure_ascii=False) if k in STRUCTURED else v for k, v in row.items()} for row in rows]
    return columns, encoded


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    columns, cells = _cells(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(cells)


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    columns, cells = _cells(rows)
    table = _pyarrow().table({name: [row.get(name) for row in cells] for name in columns})
    _pyarrow().parquet.write_table(table, path)


READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}
WRITERS = {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet}
