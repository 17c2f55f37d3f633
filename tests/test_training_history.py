"""metrics.csv: written at once, kept over a resume, whole whatever happened to the run before."""

import csv
from pathlib import Path

from vol3d.training.history import History


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_on_disk_at_once_and_new_columns_are_added(tmp_path: Path) -> None:
    history = History(tmp_path / "run" / "metrics.csv")
    history.log_metrics({"train/loss": 2.0}, step=0)
    assert rows(history.path) == [{"step": "0", "train/loss": "2.0"}]
    history.log_metrics({"val/loss": 3.0}, step=0)
    history.log_metrics({"train/loss": 1.5, "val/loss": 2.5}, step=1)
    assert [row["train/loss"] for row in rows(history.path)] == ["2.0", "", "1.5"]
    assert [row["val/loss"] for row in rows(history.path)] == ["", "3.0", "2.5"]


def test_a_resumed_run_goes_on_and_replaces_the_steps_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = History(path)
    for step in range(6):
        first.log_metrics({"train/loss": 10.0 + step}, step=step)
    again = History(path, resumed=True)
    for step in range(4, 8):
        again.log_metrics({"train/loss": 20.0 + step, "lr": 0.1}, step=step)
    assert [int(row["step"]) for row in rows(path)] == list(range(8))
    assert [float(row["train/loss"]) for row in rows(path)] == [10, 11, 12, 13, 24, 25, 26, 27]


def test_a_row_cut_off_when_the_run_was_killed_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,a,b\n0,1.0,2.0\n1,1.0,2.0\n2,1.")
    History(path, resumed=True).log_metrics({"a": 3.0, "b": 4.0}, step=2)
    assert [(row["step"], row["a"]) for row in rows(path)] == [("0", "1.0"), ("1", "1.0"), ("2", "3.0")]


def test_a_new_run_starts_anew_and_leaves_the_file_until_it_has_something_to_say(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,a\n0,1.0\n")
    history = History(path)
    assert len(rows(path)) == 1
    history.log_metrics({"b": 1.0}, step=5)
    assert rows(path) == [{"step": "5", "b": "1.0"}]
