"""The numbers of a run, step by step, in one CSV file that survives a resume."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class History(Logger):
    """Appends what is logged to a CSV file, one row a step, each written at once.

    Lightning's CSVLogger deletes the file of the run it resumes and buffers a hundred steps; here a resumed run goes
    on in the same file. Rows of steps that are done again are replaced.

    Args:
        path: the file ("runs/demo/metrics.csv").
        resumed: keep the rows that are there; otherwise the file starts anew with the first row.
    """

    def __init__(self, path: str | Path, *, resumed: bool = False) -> None:
        super().__init__()
        self.path = Path(path)
        self.resumed = resumed
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        return self.path.parent.name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: recipe.yaml in the same folder has them all."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": 0 if step is None else step, **{name: float(value) for name, value in metrics.items()}}
        if self._columns is None:
            self._start(int(row["step"]))
        if new := [name for name in row if name not in self._columns]:
            self._rewrite(self._rows(), self._columns + sorted(new))
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _start(self, first: int) -> None:
        """Keep the rows before `first` of the run that is resumed; a row half written when it was killed goes."""
        kept = [row for row in self._rows() if _step(row) < first] if self.resumed else []
        self._rewrite(kept, list(dict.fromkeys(name for row in kept for name in row)) or ["step"])

    def _rows(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if None not in row and None not in row.values() and row.get("step", "").isdigit()]

    def _rewrite(self, rows: list[dict[str, Any]], columns: list[str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(draft, self.path)
        self._columns = columns


def _step(row: dict[str, Any]) -> int:
    return int(row["step"])
