"""The `vol3d` command: bad input is refused in one line that names the file and the way out, with nothing written."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import vol3d
from vol3d import cli
from vol3d.cli import main
from vol3d.commands.command import Command
from vol3d.model.inference import usable

TINY = {"studies": 3, "seed": 1, "shape": (24, 24, 16), "split": (1, 1, 1)}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VOL3D_DEBUG", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vol3d.phantom.write(tmp_path_factory.mktemp("phantoms"), **TINY)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of random weights that writes reports."""
    from functools import partial

    from vol3d.model.pretrained import save

    lm = vol3d.VolumeLM(
        vol3d.encoders.create("vit3d-tiny", embed_dim=24, depth=1, num_heads=1, patch_size=(8, 8, 8)),
        partial(vol3d.PerceiverProjector, num_latents=2, depth=1, num_heads=1),
        vol3d.LanguageModel.scratch(["FINDINGS:\nThe liver is normal."], embed_dim=16, depth=1, num_heads=1),
    )
    tasks = {"report": vol3d.tasks.ReportGeneration(lm, max_new_tokens=4)}
    grid = vol3d.Grid(shape=(16, 16, 16), name="small")
    return save(tmp_path_factory.mktemp("saved") / "model", lm, tasks, grid, card="# a card\n")


@pytest.fixture
def refused(there: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused, leaving the folder as it was, and returns what it said."""

    def run(*argv: str | Path) -> str:
        before = sorted(there.rglob("*"))
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert sorted(there.rglob("*")) == before
        assert re.fullmatch(r"vol3d: [^\n]+\n", said.err), said.err
        assert "Traceback" not in said.err
        return said.err

    return run


def write_ct(path: Path, shape: tuple[int, ...] = (16, 16, 16)) -> Path:
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.int16), np.diag([2.0, 2.0, 2.0, 1.0])), path)
    return path


# --- images ------------------------------------------------------------------------------------------------


def test_an_image_that_is_missing(refused: Callable[..., str], model: Path) -> None:
    assert "nothing.nii.gz" in refused("report", model, "nothing.nii.gz")


def test_an_image_that_is_none(refused: Callable[..., str], model: Path, there: Path) -> None:
    (there / "notes.txt").write_text("not an image")
    (there / "broken.nii.gz").write_bytes(b"\x1f\x8bnot really")
    assert "notes.txt" in refused("report", model, "notes.txt")
    assert "broken.nii.gz" in refused("report", model, "broken.nii.gz")


def test_a_folder_that_is_empty(refused: Callable[..., str], model: Path, there: Path) -> None:
    (there / "series").mkdir()
    assert re.search(r"series.*(empty|no DICOM|no file)", refused("report", model, "series"))


def test_an_image_that_cannot_be_hu_is_taken_at_the_users_word(
    refused: Callable[..., str], model: Path, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = write_ct(there / "mr.nii.gz", (32, 32, 16))
    assert 'pass --modality "MR" (or "PT") for what it is' in refused("report", model, image)
    assert main(["report", str(model), str(image), "--modality", "MR"]) == 0
    assert capsys.readouterr().out


# --- models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [("report", "ct.nii.gz"), ("evaluate", "m.jsonl", "--out", "o"), ("info",)])
def test_a_model_folder_that_is_none(refused: Callable[..., str], there: Path, argv: tuple[str, ...]) -> None:
    (there / "runs").mkdir()
    write_ct(there / "ct.nii.gz")
    said = refused(argv[0], "runs", *argv[1:])
    assert re.search(r"runs is not a saved vol3d model: it has no config.yaml.*give the folder", said)


# --- manifests ---------------------------------------------------------------------------------------------


def test_a_manifest_that_is_missing(refused: Callable[..., str], model: Path) -> None:
    for argv in (
        ["evaluate", model, "nothing.jsonl", "--out", "scores"],
        ["doctor", "nothing.jsonl", "--page", "p.html"],
    ):
        assert re.search(r"no manifest at .*nothing\.jsonl: give a \.jsonl", refused(*argv))


def test_a_manifest_row_without_an_image(refused: Callable[..., str], model: Path, there: Path) -> None:
    (there / "m.jsonl").write_text('{"study": "a", "report": "Normal."}\n')
    for argv in (["evaluate", model, "m.jsonl", "--out", "scores"], ["prepare", "m.jsonl", "--grid=m3d", "--cache=c"]):
        said = refused(*argv)
        assert re.search(r"m\.jsonl, row 1 \(study 'a'\), field 'image': is missing: every row needs one", said)


def test_a_manifest_whose_image_is_not_there(refused: Callable[..., str], model: Path, there: Path) -> None:
    (there / "m.jsonl").write_text('{"study": "a", "image": "ct/a.nii.gz", "report": "Normal."}\n')
    said = refused("evaluate", model, "m.jsonl", "--out", "scores")
    assert re.search(r"m\.jsonl, row 1 .*no file or folder at 'ct/a\.nii\.gz'.*relative to the manifest", said)


def test_a_split_that_has_no_study(refused: Callable[..., str], model: Path, there: Path) -> None:
    write_ct(there / "a.nii.gz")
    (there / "m.jsonl").write_text(
        '{"study": "a", "image": "a.nii.gz", "patient": "p", "split": "train", "report": "x."}\n'
    )
    said = refused("evaluate", model, "m.jsonl", "--out", "scores", "--split", "val")
    assert re.search(r"no row has split 'val', the splits are \['train'\]: choose one with --split", said)


def test_evaluation_of_studies_without_reports(refused: Callable[..., str], model: Path, there: Path) -> None:
    write_ct(there / "a.nii.gz")
    (there / "m.jsonl").write_text('{"study": "a", "image": "a.nii.gz", "patient": "p"}\n')
    said = refused("evaluate", model, "m.jsonl", "--out", "scores")
    assert re.search(r"1 studies and the model's tasks \(report\) share no label to score: add the labels", said)


# --- grids -------------------------------------------------------------------------------------------------


def test_a_grid_of_no_known_name(refused: Callable[..., str], phantoms: Path) -> None:
    for option, value in (("--device", "cpu"), ("--batch-size", "8")):
        said = refused("prepare", phantoms, "--grid", "merlin", "--cache", "cache", option, value)
        assert f"prepare --grid takes no {option}: it encodes nothing" in said
    said = refused("prepare", phantoms, "--grid", "merlot", "--cache", "cache")
    assert re.search(r"no grid named 'merlot'; there are .*merlin", said)


def test_a_grid_card_that_is_none(refused: Callable[..., str], phantoms: Path, there: Path) -> None:
    (there / "grid.json").write_text('{"spacings": [1, 1, 1]}')
    assert re.search(
        r"unknown fields spacings; known:", refused("prepare", phantoms, "--grid", "grid.json", "--cache", "c")
    )
    assert "missing.json" in refused("prepare", phantoms, "--grid", "missing.json", "--cache", "c")


def test_a_grid_that_does_not_fit_the_encoder(refused: Callable[..., str], phantoms: Path) -> None:
    said = refused(
        *("fit", "--config", "quickstart.yaml", "--data.manifest", phantoms, "--data.batch_size=1", "--run=run"),
        "--data.grid.init_args.shape=[60,64,32]",
    )
    assert re.search(r"60 voxels along x, not a multiple of the patch size 8", said)
    said = refused(
        *("fit", "--config", "quickstart.yaml", "--data.manifest", phantoms, "--data.batch_size=1", "--run=run"),
        "--data.grid.init_args.window=[-160,240]",
    )
    assert re.search(r"'phantom-64' has 1 windows, the encoder takes 3 channels: set data\.grid", said)
    made = ("fit", "--config", "quickstart.yaml", "--data.manifest", phantoms, "--run=run", "--model.encoder")
    remedy = "--model.encoder.dict_kwargs.in_channels"
    assert remedy[2:] in refused(*made, "parts/encoder/swin_unetr.yaml")
    assert "56 voxels along x, not a multiple of the patch size 32" in refused(
        *made, "parts/encoder/swin_unetr.yaml", f"{remedy}=3"
    )


# --- recipes and arguments ---------------------------------------------------------------------------------


def test_a_recipe_that_says_what_nobody_knows(refused: Callable[..., str], there: Path) -> None:
    (there / "mine.yaml").write_text("trainer:\n  max_stepz: 3\n")
    said = refused("fit", "--config", "mine.yaml")
    assert re.search(r"mine\.yaml: .*'trainer\.max_stepz'; `vol3d fit --help` lists", said)
    assert "'wings' is not accepted" in refused(
        "fit", "--config", "quickstart.yaml", "--model.encoder.init_args.wings=2"
    )
    assert "--model.wings=2" in refused("fit", "--config", "quickstart.yaml", "--model.wings=2")


def test_a_recipe_that_is_missing(refused: Callable[..., str]) -> None:
    said = refused("fit", "--config", "nothing.yaml")
    assert re.search(r"nothing\.yaml.*does not exist.*a shipped recipe by name: .*quickstart\.yaml", said)


def test_a_recipe_whose_manifest_is_missing(refused: Callable[..., str]) -> None:
    said = refused("fit", "--config", "quickstart.yaml", "--data.manifest=nothing.jsonl", "--run=run")
    assert re.search(r"no manifest at .*nothing\.jsonl: give a \.jsonl", said)


def test_a_checkpoint_that_is_missing_is_refused_before_the_runs_recipe_is_written_over(
    refused: Callable[..., str], phantoms: Path, there: Path
) -> None:
    (there / "run").mkdir()
    (there / "run/recipe.yaml").write_text("the former run's")
    said = refused(
        *("fit", "--config", "quickstart.yaml", "--data.manifest", phantoms, "--data.batch_size=1", "--run=run"),
        "--ckpt_path=run/checkpoints/lost.ckpt",
    )
    assert re.search(
        r"--ckpt_path run/checkpoints/lost\.ckpt: no such file; .*last for run/checkpoints/last\.ckpt", said
    )
    assert (there / "run/recipe.yaml").read_text() == "the former run's"


def test_numbers_that_are_too_small(refused: Callable[..., str], model: Path) -> None:
    for argv in (
        ["codes", model, "ct.nii.gz", "-k", "0"],
        ["search", "index", "words", "-k", "0"],
        ["embed", model, "m.jsonl", "-o", "index", "--batch-size", "0"],
        ["evaluate", model, "m.jsonl", "--out", "scores", "--replicates", "0"],
    ):
        assert re.search(rf"argument {argv[-2]}: is 0: give at least 1 \(see `vol3d {argv[0]}", refused(*argv))
    for argv in (
        ["codes", model, "ct.nii.gz", "-k", "-1"],
        ["evaluate", model, "m.jsonl", "--out", "scores", "--seed", "-1"],
        ["prepare", "m.jsonl", "--grid=m3d", "--cache=c", "--workers", "-1"],
    ):
        assert re.search(rf"argument {argv[-2]}: is -1: give at least", refused(*argv))


def test_paths_that_the_system_refuses_come_with_a_remedy(
    refused: Callable[..., str], phantoms: Path, there: Path
) -> None:
    (there / "file").write_text("x")
    said = refused("prepare", phantoms, "--grid", "missing.json", "--cache", "c")
    assert said == "vol3d: missing.json: No such file or directory; give one that is there\n"
    for argv in (["phantom", "file", "--studies", "1"], ["prepare", phantoms, "--grid=m3d", "--cache=file"]):
        assert re.search(r"file\S*: .*; a file lies where a folder is needed: give another", refused(*argv))


def test_a_mask_is_refused_by_its_suffix_before_the_model_is_read(refused: Callable[..., str]) -> None:
    assert re.search(
        r"spleen\.png: cannot write this suffix; use \.nii,",
        refused(*["segment", "m", "ct", "spleen", "-o", "spleen.png"]),
    )


def test_wrong_arguments(refused: Callable[..., str]) -> None:
    assert re.search(r"invalid choice: 'reprot' \(choose from .*\(see `vol3d --help`\)", refused("reprot"))
    assert re.search(r"required: IMAGE \(see `vol3d report --help`\)", refused("report", "model"))
    assert re.search(r"--studies: invalid int value: 'ten'", refused("phantom", "out", "--studies", "ten"))
    assert re.search(r"studies is 0: give at least 1", refused("phantom", "out", "--studies", "0"))


def test_a_device_that_is_not_there(refused: Callable[..., str], model: Path, there: Path) -> None:
    image = write_ct(there / "ct.nii.gz")
    for argv in (["report", model, image], ["codes", model, image], ["evaluate", model, "m.jsonl", "--out", "scores"]):
        said = refused(*argv, "--device", "cuda:99")
        assert re.search(r"device 'cuda:99' cannot be used: torch \S+ finds \d+ GPUs here; give cpu", said)
    assert re.search(r"device 'gpu' cannot be used", refused("report", model, image, "--device", "gpu"))


def test_a_graph_is_not_captured_on_a_cpu(refused: Callable[..., str], model: Path) -> None:
    said = refused("evaluate", model, "m.jsonl", "--out", "scores", "--device", "cpu", "--cuda-graph")
    assert "--cuda-graph is for a GPU and the model runs on cpu" in said


def test_a_gpu_is_taken_where_there_is_one() -> None:
    assert usable("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert usable("cpu") == torch.device("cpu")


def test_memory_that_does_not_suffice_for_a_verb_is_told_with_what_helps(
    refused: Callable[..., str], model: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of")

    monkeypatch.setattr("vol3d.model.inference.TrainedModel.report", full)
    said = refused("report", model, phantoms.parent / "images/study-00000.nii.gz")
    assert said == "vol3d: CUDA out of memory: give another GPU (--device cuda:1) or --device cpu\n"


# --- exit codes, json, help --------------------------------------------------------------------------------


def test_debug_shows_where(there: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOL3D_DEBUG", "1")
    with pytest.raises((ValueError, OSError), match=r"nothing\.nii\.gz"):
        main(["report", str(model), "nothing.nii.gz"])


def test_an_error_nobody_thought_of_is_told_as_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, there: Path
) -> None:
    def broken(arguments: object) -> None:
        raise KeyError("a\nb")

    monkeypatch.setitem(cli.COMMANDS, "info", Command("", "", cli.COMMANDS["info"].arguments, broken))
    assert main(["info"]) == 2
    assert re.fullmatch(r"vol3d: KeyError: .*VOL3D_DEBUG=1 shows where\)\n", capsys.readouterr().err)


@pytest.mark.parametrize("lightning", [False, True], ids=["plain", "during fit"])
def test_ctrl_c_is_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, there: Path, lightning: bool
) -> None:
    def interrupted(arguments: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if lightning:  # what Lightning's trainer does after a graceful shutdown
                sys.exit(1)
            raise

    monkeypatch.setitem(cli.COMMANDS, "info", Command("", "", cli.COMMANDS["info"].arguments, interrupted))
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "vol3d: interrupted\n"


@pytest.mark.parametrize("argv", ["phantom", "doctor", "prepare", "info", "info MODEL", "report", "evaluate"])
def test_json_is_one_object_and_nothing_else(
    there: Path, phantoms: Path, model: Path, capfd: pytest.CaptureFixture[str], argv: str
) -> None:
    commands = {
        "phantom": ["phantom", "out", "--studies", "2", "--shape", "24", "24", "16"],
        "doctor": ["doctor", phantoms],
        "prepare": ["prepare", phantoms, "--grid", model / "grid.json", "--cache", "cache"],
        "info": ["info"],
        "info MODEL": ["info", model],
        "report": ["report", model, phantoms.parent / "images/study-00000.nii.gz"],
        "evaluate": ["evaluate", model, phantoms, "--out", "scores"],
    }
    keys = {
        "phantom": {"manifest", "studies"},
        "doctor": {"findings", "errors"},
        "prepare": {"studies", "made", "ready", "failed", "seconds", "failures"},
        "info": {"vol3d", "torch", "devices"},
        "info MODEL": {"model", "encoder", "projector", "language", "tasks", "grid", "card"},
        "report": {"study", "findings", "impression", "sections", "seconds", "grid"},
        "evaluate": {"model", "manifest", "studies", "patients", "tasks", "faithfulness", "leakage"},
    }
    assert main([*map(str, commands[argv]), "--json"]) in ((0, 1) if argv == "doctor" else (0,))
    out = capfd.readouterr().out
    assert out.count("\n") == 1
    data = json.loads(out)
    assert isinstance(data, dict)
    assert keys.get(argv, set()) <= data.keys()


def test_volumes_read_ahead_and_from_a_cache_are_the_same_to_a_model(there: Path, phantoms: Path, model: Path) -> None:
    ahead = ["--out", "ahead", "--workers", "2", "--cache", "cache", "--device", "cpu"]
    for options in (["--out", "plain"], ahead):
        assert main(["evaluate", str(model), str(phantoms), *options, "--probes", "blank"]) == 0
    for name in ("predictions.jsonl", "probe-blank.jsonl"):
        assert (there / "plain" / name).read_text() == (there / "ahead" / name).read_text()
    assert list((there / "cache").rglob("*.safetensors"))


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    summary = capsys.readouterr().out
    for name in (*cli.COMMANDS, *cli.LIGHTNING):
        assert re.search(rf"^    {name} +\w", summary, re.MULTILINE), name
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as left:
            main([name, "--help"])
        assert left.value.code == 0
        assert f"example:\n  vol3d {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", cli.LIGHTNING)
def test_lightning_commands_have_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert f"vol3d {name} --config" in " ".join(capsys.readouterr().out.split())


# --- the real thing ----------------------------------------------------------------------------------------


def command(*argv: str, **settings: object) -> subprocess.Popen[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "vol3d.cli", *argv], **{**streams, **settings})


def test_the_command_itself(there: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(vol3d.__file__).parent.parent)}
    start = time.perf_counter()
    helped = command("--help", env=environment)
    out, err = helped.communicate(timeout=60)
    assert (helped.returncode, err) == (0, "")
    assert "Not for clinical use" in " ".join(out.split()) or "not for clinical use" in " ".join(out.split())
    # Under a second on a free machine; the margin is for a busy one.
    assert time.perf_counter() - start < 10
    refused = command("report", "model", "ct.nii.gz", env=environment)
    out, err = refused.communicate(timeout=120)
    assert (refused.returncode, out) == (2, "")
    assert re.fullmatch(r"vol3d: model is not a saved vol3d model: [^\n]+\n", err)


@pytest.mark.slow
def test_interrupting_a_real_run(there: Path, phantoms: Path) -> None:
    """Ctrl-C while training: exit code 130, and the run can be resumed from its last checkpoint."""
    environment = {**os.environ, "PYTHONPATH": str(Path(vol3d.__file__).parent.parent)}
    small = ["--model.encoder.init_args.depth=1", "--data.batch_size=1", "--trainer.max_steps=100000"]
    fit = ["fit", "--config", "quickstart.yaml", f"--data.manifest={phantoms}", "--run=run", *small]
    run = command(*fit, "--trainer.log_every_n_steps=1", env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (there / "run/metrics.csv").is_file() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=120)
    assert run.returncode == 130
    assert (there / "run/recipe.yaml").is_file()
