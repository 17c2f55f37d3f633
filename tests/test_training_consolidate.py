"""Checkpoints as model folders, and what is said when they are none, or when memory does not suffice."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vol3d
from vol3d.cli import main
from vol3d.training.cli import run
from vol3d.training.consolidate import consolidate, read_whole
from vol3d.training.memory import out_of_memory

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 22.17 GiB of which 1.03 GiB is free "
    "Of the allocated memory 19.00 GiB is allocated by PyTorch."
)
RECIPE = """
run: {run}
seed_everything: 0
trainer: {{accelerator: cpu, max_steps: 2, enable_progress_bar: false, num_sanity_val_steps: 0, limit_val_batches: 0}}
model:
  encoder:
    class_path: vol3d.encoders.create
    init_args: {{name: vit3d-tiny}}
    dict_kwargs: {{embed_dim: 32, depth: 1, num_heads: 2, patch_size: [8, 8, 4], in_channels: 1}}
  tasks:
    maps:
      class_path: vol3d.tasks.FindingMaps
      init_args: {{findings: [ascites]}}
data:
  manifest: {manifest}
  grid:
    class_path: vol3d.Grid
    init_args: {{name: small, spacing: [12.0, 12.0, 26.0], shape: [32, 32, 16], window: [-160, 240]}}
  batch_size: 2
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    manifest = vol3d.phantom.write(folder / "phantoms", studies=6, seed=0, shape=(32, 32, 16), split=(4, 1, 1))
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(run=folder / "tiny", manifest=manifest))
    return path


def test_a_checkpoint_gives_the_model_folder_the_run_left(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["fit", "--config", str(recipe)])
    folder, made = recipe.parent / "tiny", tmp_path / "model"
    assert main(["consolidate", str(folder / "checkpoints" / "last.ckpt"), str(made), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"model": str(made), "merged": False}
    found, wanted = (load_file(path / "model.safetensors") for path in (made, folder / "model"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    assert vol3d.load(made).grid == vol3d.load(folder / "model").grid
    # What the run wrote down of itself can be planned as well, with an overlay on top.
    said = ["plan", "--config", str(folder / "recipe.yaml"), "--config", "overlays/ddp.yaml", "--gpu", "24", "--json"]
    assert main(said) == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["batch_size"] == 2


def test_a_second_run_in_a_folder_has_its_own_checkpoints(recipe: Path, tmp_path: Path) -> None:
    fit = ["fit", "--config", str(recipe), f"--run={tmp_path}"]
    run([*fit, "--trainer.max_steps=3"])
    first = (tmp_path / "checkpoints/last.ckpt").read_bytes()
    run([*fit, "--trainer.fast_dev_run=true"])
    assert (tmp_path / "checkpoints/last.ckpt").read_bytes() == first, "a trial run moves nothing"
    run([*fit, "--trainer.max_steps=2", "--seed_everything=1"])
    assert (tmp_path / "checkpoints-1/last.ckpt").read_bytes() == first
    assert [torch.load(path, weights_only=False)["global_step"] for path in (tmp_path / "checkpoints").iterdir()] == [
        2,
        2,
    ]
    made = consolidate(tmp_path / "checkpoints/last.ckpt", None, tmp_path / "made")
    assert (made / "model.safetensors").read_bytes() == (tmp_path / "model/model.safetensors").read_bytes()
    # Resumed from another than the last, the last is written over and nothing is moved.
    (other,) = (tmp_path / "checkpoints-1").glob("*step=3.ckpt")
    run([*fit, "--trainer.max_steps=4", f"--ckpt_path={other}"])
    assert sorted(path.name for path in tmp_path.glob("checkpoints*")) == ["checkpoints", "checkpoints-1"]
    assert not list(tmp_path.rglob("last-*"))
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=False)["global_step"] == 4


def test_a_shard_without_a_study_leaves_no_predictions(recipe: Path, tmp_path: Path) -> None:
    run(["fit", "--config", str(recipe), f"--run={tmp_path / 'trained'}"])
    trained = f"--model.base={tmp_path / 'trained/model'}"
    for shard, count in (("0/2", 1), ("1/2", 0)):
        run(["predict", "--config", str(recipe), f"--run={tmp_path / shard[0]}", f"--data.shard={shard}", trained])
        assert len((tmp_path / shard[0] / "predictions.jsonl").read_text().splitlines()) == count


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_weights_that_nobody_trained_are_refused(
    verb: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [verb, "--config", str(recipe), f"--run={tmp_path}"]
    assert main(command) == 2
    assert f"vol3d {verb} is given no trained weights, and there is no {tmp_path}" in capsys.readouterr().err
    assert main([*command, "--ckpt_path=last"]) == 2
    assert f"there is no {tmp_path / 'checkpoints/last.ckpt'}; give" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_going_on_from_a_checkpoint_that_is_not_there_begins_anew_and_says_so(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    fit = ["fit", "--config", str(recipe), f"--run={tmp_path}", "--ckpt_path=last"]
    said = f"there is no {tmp_path / 'checkpoints/last.ckpt'}; training begins anew"
    for times in (1, 1):
        run(fit)
        assert caplog.text.count(said) == times
    assert not [warning for warning in recwarn if "no last checkpoint" in str(warning.message)]


def test_a_run_predicts_with_its_own_last_checkpoint(recipe: Path, tmp_path: Path) -> None:
    """Without `--ckpt_path`: with the weights that it ended with, and a trial run with any."""
    predict = ["predict", "--config", str(recipe), f"--run={tmp_path}"]
    run([*predict, "--trainer.fast_dev_run=true"])
    untrained = (tmp_path / "predictions.jsonl").read_text()
    run(["fit", "--config", str(recipe), f"--run={tmp_path}"])
    run(predict)
    trained = (tmp_path / "predictions.jsonl").read_text()
    run([*predict, f"--ckpt_path={tmp_path / 'checkpoints/last.ckpt'}"])
    assert (tmp_path / "predictions.jsonl").read_text() == trained != untrained


def test_a_recipe_that_cannot_be_read_is_told_by_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", "no_such.yaml", "--gpu", "24"]) == 2
    assert "no_such.yaml: " in (said := capsys.readouterr().err)
    assert "give a YAML file, or a shipped recipe by name" in said


def test_what_is_no_checkpoint_or_another_models_is_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no checkpoint: give the file or the folder"):
        read_whole(tmp_path)
    (tmp_path / "notes.txt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"notes.txt is no checkpoint of a run, or not whole .*: give the file or"):
        read_whole(tmp_path / "notes.txt")
    torch.save({"weights": 1}, tmp_path / "no_state.ckpt")
    with pytest.raises(ValueError, match=r"no_state.ckpt is no checkpoint of a run"):
        read_whole(tmp_path / "no_state.ckpt")
    torch.save({"state_dict": {"model.other": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"(\d+) of \1 weights missing .*1 unexpected \['model.other'\]"):
        consolidate(tmp_path / "other.ckpt", recipe, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_memory_that_does_not_suffice_is_told_once_with_remedies(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr("vol3d.training.module.VolumeModule.training_step", full)
    assert main(["fit", "--config", str(recipe)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vol3d:")]
    assert "asked for 2.50 GiB more" in line
    assert f"vol3d plan --config {recipe} --gpu 24" in line
    assert "--data.batch_size 1 (now 2)" in line


def test_the_batch_size_told_is_the_one_in_force(recipe: Path) -> None:
    said = ["fit", "--config", str(recipe), "--data.batch_size", "12"]
    assert "--data.batch_size 6 (now 12)" in out_of_memory(CUDA, said)
    assert "--data.batch_size 2 (now 4)" in out_of_memory("out of memory", [*said[:3], "--data.batch_size=4"])
    one = out_of_memory(CUDA, [*said[:4], "1"])
    assert "data.batch_size is 1 already" in one
    assert "accumulate" not in one


def test_a_checkpoint_in_pieces_is_refused_by_a_strategy_that_reads_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "last.ckpt"
    folder.mkdir()

    def reads(*_: object, **__: object) -> None:
        torch.load(folder)

    monkeypatch.setattr("vol3d.training.cli.RecipeCLI", reads)
    with pytest.raises(
        ValueError, match=r"last.ckpt is a checkpoint in pieces, .*fsdp2.yaml.*consolidate.*--model.base"
    ):
        run(["fit", "--config", "quickstart.yaml"])
