"""metrics.csv: written at once, kept over a resume, whole whatever happened to the run before."""

import csv
from pathlib import Path

import pytest
import world

from vol3d.training.callbacks import FormerCheckpoints
from vol3d.training.history import History
from vol3d.training.stages import Stage


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


def test_a_run_that_slurm_requeues_keeps_its_rows_and_the_next_run_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning saves hpc_ckpt_1.ckpt and queues the same command again, which names no checkpoint."""
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)

    def fit(steps: int) -> list[int]:
        history = History(tmp_path / "metrics.csv")
        run = world.trainer(
            steps, tmp_path, callbacks=[FormerCheckpoints(tmp_path)], log_every_n_steps=1, max_epochs=9,
        )  # fmt: skip
        run.logger = history
        stages = {"see": Stage(None, ["findings"], ["encoder", "tasks"], 1e-3)}
        run.fit(world.module(stages), world.World([world.study(n) for n in range(8)], batch_size=4), weights_only=False)
        if steps == 3:
            run.save_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")
        return [int(row["step"]) for row in rows(history.path)]

    assert fit(3) == [0, 1, 2]
    assert fit(5) == [0, 1, 2, 3, 4]
    assert not (tmp_path / "hpc_ckpt_1.ckpt").exists()
    assert (tmp_path / "checkpoints" / "hpc_ckpt_1.ckpt").is_file()
    assert fit(4) == [0, 1, 2, 3]
    assert (tmp_path / "checkpoints-1" / "hpc_ckpt_1.ckpt").is_file()
