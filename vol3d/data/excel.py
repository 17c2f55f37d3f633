"""The first sheet of an .xlsx file as rows of text: enough for the tables that datasets come with."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, iterparse

from vol3d.data.formats import check_header

_MAX_BYTES = 2 * 10**9
_NAME = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def read_excel(path: Path) -> Iterator[dict[str, str | None]]:
    """One dict a row, keyed by the first row; an empty cell is None.

    Raises:
        ValueError: not an .xlsx file, one that unpacks to more than 2 GB, or two columns of one name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > _MAX_BYTES:
                raise ValueError(f"{path.name} unpacks to {size / 1e9:.1f} GB, at most {_MAX_BYTES / 1e9:.0f} are read")
            shared = _shared_texts(archive)
            sheet = min(name for name in archive.namelist() if re.fullmatch(r"xl/worksheets/sheet\d+\.xml", name))
            header: dict[int, str] = {}
            for cells in _rows(archive, sheet, shared):
                if not header:
                    header = {column: text for column, text in cells.items() if text}
                    check_header(path.name, [header.get(column, "") for column in range(max(header, default=-1) + 1)])
                else:
                    yield {name: cells.get(column) for column, name in header.items()}
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path.name} is not an .xlsx file: save it as .xlsx or .csv") from error


def _shared_texts(archive: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in archive.namelist():
        return []
    with archive.open("xl/sharedStrings.xml") as file:
        return [_text(element) for _, element in iterparse(file) if element.tag == f"{_NAME}si"]


def _text(element: Element) -> str:
    return "".join(part.text or "" for part in element.iter(f"{_NAME}t"))


def _rows(archive: zipfile.ZipFile, sheet: str, shared: list[str]) -> Iterator[dict[int, str | None]]:
    with archive.open(sheet) as file:
        for _, row in iterparse(file):
            if row.tag != f"{_NAME}row":
                continue
            yield {_column(cell, number): _value(cell, shared) for number, cell in enumerate(row.iter(f"{_NAME}c"))}
            row.clear()


def _column(cell: Element, number: int) -> int:
    letters = re.match(r"[A-Z]+", cell.get("r", ""))
    if not letters:
        return number
    place = 0
    for letter in letters[0]:
        place = 26 * place + ord(letter) - ord("A") + 1
    return place - 1


def _value(cell: Element, shared: list[str]) -> str | None:
    kind = cell.get("t")
    if kind == "inlineStr":
        return _text(cell) or None
    value = cell.find(f"{_NAME}v")
    if value is None or value.text is None:
        return None
    return shared[int(value.text)] if kind == "s" else value.text
