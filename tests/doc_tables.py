"""Tables in docs/ whose rows are what the tests measured.

A test calls `row(TABLE, cells)`. With VOL3D_DOCS=1 the row is written into the page, without it the page must hold it
already: a table cannot go stale. A number that differs between machines is given as a bound (`bound`).

    VOL3D_DOCS=1 pytest -n 0 tests/test_encoders_*.py
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import vol3d

PAGE = Path(__file__).parent.parent / "docs" / "encoders.md"
WRITING = os.environ.get("VOL3D_DOCS") == "1"


def rows(table: str) -> dict[str, list[str]]:
    """First cell → cells, of the table between `<!-- TABLE -->` and `<!-- end -->`."""
    return {cells[0]: cells for cells in map(_cells, _parts(table)[1][2:])}


def row(table: str, cells: Sequence[object]) -> None:
    """Write this row, or check that the page has it."""
    wanted = [str(cell) for cell in cells]
    found = rows(table)
    if not WRITING:
        assert found.get(wanted[0]) == wanted, "docs/encoders.md is stale: see tests/doc_tables.py for how to write it"
        return
    before, (title, rule, *_), after = _parts(table)
    found[wanted[0]] = wanted
    lines = [title, rule, *("| " + " | ".join(found[name]) + " |" for name in sorted(found))]
    PAGE.write_text("\n".join([*before, *lines, *after]) + "\n", encoding="utf-8")


def measured(table: str, cells: Sequence[object], difference: float) -> None:
    """A row whose last cell bounds `difference` by a power of ten; the bound in the page may be looser than here."""
    known = rows(table).get(str(cells[0]))
    if WRITING or known is None or float(known[-1].removeprefix("< ")) < difference:
        row(table, [*cells, bound(difference)])
        return
    row(table, [*cells, known[-1]])


def parity(name: str, encoder: str, peer: str, compared: str, given: Tensor, expected: Tensor) -> None:
    """A row of the parity table; sizes are those of the published configuration of `encoder`."""
    with torch.device("cpu" if encoder == "swin-unetr" else "meta"):
        full = vol3d.encoders.create(encoder)
    count = sum(parameter.numel() for parameter in full.parameters())
    largest = max(1.0, float(expected.detach().abs().max()))
    difference = float((given.detach() - expected.detach()).abs().max()) / largest
    assert difference < 1e-5
    measured("parity", [name, peer, compared, f"{count:,}", f"{len(full.state_dict()):,}"], difference)


def bound(difference: float) -> str:
    """The next power of ten above, at least 1e-7: below it is the rounding of float32."""
    return f"< 1e{max(-7, math.floor(math.log10(difference)) + 1 if difference else -7)}"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _parts(table: str) -> tuple[list[str], list[str], list[str]]:
    """The page's lines before the table, of it, and after it."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(f"<!-- {table} -->") + 1
    end = lines.index("<!-- end -->", start)
    return lines[:start], lines[start:end], lines[end:]
