"""Every recipe parses and trains; a run leaves what it should, resumes to the same losses, and its model works.

A new recipe is found by itself: any YAML under recipes/ outside parts/ and overlays/ must parse, say in its comments
how it is run (`vol3d fit --config NAME`), have a run folder of its own, and take two steps (or one a stage) on
phantoms, after which its saved model is loaded and predicts. tests/small_recipes.py makes it small by the names of
its arguments; nothing has to be entered here. A part must fit the slot its folder names; an overlay must say in its
comments over which recipe it lies (`--config RECIPE --config overlays/NAME`).
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from small_recipes import RECIPES, found, resolved, small, stages_of
from volume_files import dicom_slice

import vol3d
from vol3d.cli import main
from vol3d.training import cli
from vol3d.training.cli import run
from vol3d.training.recipe import RecipeParts

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "quickstart.json"
COMPLETE, PARTS, OVERLAYS = found(""), found("parts"), found("overlays")
SLOTS = {"encoder": "model.encoder", "projector": "model.projector", "language": "model.language"}
"""Folder of a part → the key of a recipe it stands for."""
STEPS = 80
"""Of the small quickstart: enough of its last stage for some words to come."""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    findings = ["pleural effusion", "cardiomegaly", "ascites"]
    return vol3d.phantom.write(folder, studies=14, seed=7, shape=(32, 32, 16), findings=findings, split=(10, 2, 2))


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face model folder as one would download it, tiny and random."""
    folder = tmp_path_factory.mktemp("language")
    texts = ["Write the report of this CT. Findings: the liver is normal. Impression: no acute findings."]
    made = vol3d.LanguageModel.scratch(texts, embed_dim=32, depth=4, num_heads=2, vocab_size=300)
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def recipe_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / name).read_text())


def losses(folder: Path) -> dict[int, float]:
    """Step → training loss, from a run's metrics.csv."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    assert len({row["step"] for row in rows}) == len(rows), "a step stands in metrics.csv twice"
    return {int(row["step"]): float(row["train/loss"]) for row in rows}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, manifest: Path) -> Path:
    """The quickstart, made small."""
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    run(["fit", *small("quickstart.yaml", manifest, folder, STEPS)])
    return folder


# --- parsing -----------------------------------------------------------------------------------------------


def test_the_recipes_are_found() -> None:
    assert {"quickstart.yaml", "report_generation.yaml"} <= set(COMPLETE)
    assert "parts/encoder/vit3d_base.yaml" in PARTS
    assert not set(COMPLETE) & {*PARTS, *OVERLAYS}


@pytest.mark.parametrize("recipe", COMPLETE)
def test_a_recipe_parses_and_says_how_to_run_it(recipe: str) -> None:
    text = (RECIPES / recipe).read_text()
    assert f"vol3d fit --config {recipe}" in text
    config = resolved("--config", recipe)
    assert config["model"]["encoder"]["class_path"].startswith("vol3d.encoders.")
    assert config["run"].startswith("runs/")
    assert config["run"].endswith(Path(recipe).stem)


def test_every_recipe_has_a_run_folder_of_its_own() -> None:
    runs = [recipe_of(recipe)["run"] for recipe in COMPLETE]
    assert len(set(runs)) == len(runs), sorted(runs)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_fits_its_slot(part: str, tmp_path: Path) -> None:
    """One line of a recipe, the part's path, swaps it in."""
    slot, wanted = SLOTS[Path(part).parts[1]], yaml.safe_load((RECIPES / part).read_text())
    recipe, (side, key) = recipe_of("quickstart.yaml"), slot.split(".")
    recipe[side][key] = part
    (tmp_path / "swapped.yaml").write_text(yaml.safe_dump(recipe))
    given = resolved("--config", str(tmp_path / "swapped.yaml"))[side][key]
    if "class_path" in given:
        assert given["class_path"].rpartition(".")[2] == wanted["class_path"].rpartition(".")[2]
        given, wanted = given.get("init_args", {}), wanted.get("init_args", {})
    given, wanted = ({key: json.dumps(value) for key, value in node.items()} for node in (given, wanted))
    assert given.items() >= {key: value for key, value in wanted.items() if not value.startswith("{")}.items()


@pytest.mark.parametrize("recipe", ["report_generation.yaml", "cpu/report.yaml"])
def test_a_copy_of_a_shipped_recipe_finds_the_shipped_parts(recipe: str, tmp_path: Path) -> None:
    copy = Path(shutil.copy(RECIPES / recipe, tmp_path))
    assert resolved("--config", str(copy)) == resolved("--config", recipe)


def test_a_part_beside_a_recipe_of_ones_own_comes_before_the_shipped_one(tmp_path: Path) -> None:
    recipe = recipe_of("quickstart.yaml") | {"run": "runs/mine"}
    recipe["model"]["projector"] = "parts/projector/mlp.yaml"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert resolved("--config", str(tmp_path / "mine.yaml"))["model"]["projector"]["class_path"] == "vol3d.MLPProjector"
    own = tmp_path / "parts/projector/mlp.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("class_path: vol3d.SpatialPoolingProjector\n")
    config = resolved(f"--config={tmp_path / 'mine.yaml'}")
    assert config["model"]["projector"]["class_path"] == "vol3d.SpatialPoolingProjector"
    assert config["model"]["encoder"]["init_args"]["depth"] == 2
    assert config["run"] == "runs/mine"


def test_stages_that_do_not_fit_are_refused_before_anything_is_written(manifest: Path, tmp_path: Path) -> None:
    options = ["--config", "quickstart.yaml", "--data.manifest", str(manifest), "--run", str(tmp_path / "run")]
    with pytest.raises(ValueError, match=r"the stages take 600 steps and the trainer stops after 9"):
        run(["fit", *options, "--trainer.max_steps", "9"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "64"])
def test_a_precision_that_casts_all_is_refused_before_anything_is_written(precision: str, tmp_path: Path) -> None:
    options = ["--config", "quickstart.yaml", "--run", str(tmp_path / "run"), "--data.manifest", "none.jsonl"]
    options += ["--trainer.precision", precision]
    for start in (partial(run, ["fit", *options]), partial(RecipeParts, options, here=False)):
        with pytest.raises(ValueError, match=rf"precision {precision} would round .* set bf16-mixed"):
            start()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("bfloat16", "accelerator", "precision"),
    [(True, "cpu", "bf16-mixed"), (False, "cpu", "32-true"), (False, "auto", "bf16-mixed")],
)
def test_a_cpu_without_bfloat16_trains_in_float32(
    bfloat16: bool, accelerator: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "cpu_has_bfloat16", lambda: bfloat16)
    assert RecipeParts(["--config", "quickstart.yaml", f"--trainer.accelerator={accelerator}"]).precision == precision


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_lies_over_the_recipe_it_names(overlay: str) -> None:
    config, wanted = resolved("--config", base_of(overlay), "--config", overlay), recipe_of(overlay)
    for kind in ("tasks", "stages"):
        if kind in wanted.get("model", {}):
            assert list(config["model"][kind]) == list(wanted["model"][kind])


def base_of(overlay: str) -> str:
    """The first recipe an overlay's comments lay it over."""
    text = (RECIPES / overlay).read_text()
    bases = [recipe for recipe in COMPLETE if f"--config {recipe} --config {overlay}" in text]
    assert bases, f"{overlay} must say over which recipe it lies: --config RECIPE --config {overlay}"
    return bases[0]


# --- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", COMPLETE)
def test_a_recipe_takes_two_steps(recipe: str, manifest: Path, language: Path, tmp_path: Path) -> None:
    """Two, or one in each of its stages; what it saves is loaded and predicts."""
    folder, steps = tmp_path / "run", max(2, stages_of(recipe))
    run(["fit", *small(recipe, manifest, folder, steps, language)])
    assert list(losses(folder)) == list(range(steps))
    model, study = vol3d.load(folder / "model"), vol3d.Manifest.read(manifest).split("test")[0]
    assert model.predict([model.sample(study)])[0]["study"] == study.study


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_takes_its_steps(overlay: str, manifest: Path, language: Path, tmp_path: Path) -> None:
    folder, base = tmp_path / "run", base_of(overlay)
    steps = max(2, stages_of(base, overlay))
    run(["fit", *small(base, manifest, folder, steps, language, [overlay])])
    assert list(losses(folder)) == list(range(steps))


def test_a_run_leaves_what_the_contract_says(trained: Path) -> None:
    for name in ("recipe.yaml", "checkpoints/last.ckpt", "metrics.csv", "model/config.yaml", "model/model.safetensors"):
        assert (trained / name).is_file(), name
    assert (trained / "model/grid.json").is_file()
    card = (trained / "model/card.md").read_text()
    assert "10 training studies" in card
    assert "not validated for any clinical use" in card
    recipe = yaml.safe_load((trained / "recipe.yaml").read_text())
    assert recipe["trainer"]["max_steps"] == STEPS
    assert not [path for path in (trained / "model").iterdir() if path.suffix in (".pt", ".pkl", ".bin", ".ckpt")]


def test_losses_are_those_written_down(trained: Path) -> None:
    """Twenty losses over all stages; a refactor must not move them.

    After a change that should: VOL3D_GOLDEN=1 pytest tests/test_recipes.py.
    """
    found = list(losses(trained).values())[:: STEPS // 20]
    if os.environ.get("VOL3D_GOLDEN") == "1":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps([round(value, 6) for value in found], indent=1) + "\n")
    assert len(found) == 20
    # Other processors round otherwise, and Adam amplifies it.
    assert found == pytest.approx(json.loads(GOLDEN.read_text()), rel=2e-2)


class Crash(lightning.Callback):
    """Ends a run with an error after `step` steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("the power went out")


def test_resuming_goes_on_to_the_same_losses_and_keeps_the_history(
    trained: Path, manifest: Path, tmp_path: Path
) -> None:
    """Ended in the speaking stage after 60 of 80 steps and resumed: every loss is the uninterrupted run's."""
    folder = tmp_path / "run"
    options = small("quickstart.yaml", manifest, folder, STEPS)
    crash = ["--trainer.callbacks+=test_recipes.Crash", "--trainer.callbacks.step=60"]
    with pytest.raises(RuntimeError, match="the power went out"):
        run(["fit", *options, *crash])
    assert len(losses(folder)) in (59, 60)
    assert not (folder / "model").exists()
    run(["fit", *options, "--ckpt_path=last"])
    assert losses(folder) == pytest.approx(losses(trained), abs=1e-4)
    assert list(losses(folder)) == list(range(STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["merlin_joint.yaml", "merlin_staged.yaml", "m3d_style.yaml", "u_vlm_style.yaml"])
def test_a_run_stopped_in_every_stage_goes_on_to_the_same_losses(
    recipe: str, manifest: Path, language: Path, tmp_path: Path
) -> None:
    """Two steps a stage, and the power goes out in the second of each: one run, as if never stopped."""
    count = stages_of(recipe)
    options = {
        name: small(recipe, manifest, tmp_path / name, 2 * count, language, stage_steps=2) for name in ("whole", "cut")
    }
    run(["fit", *options["whole"]])
    for stage in range(count):
        crash = ["--trainer.callbacks+=test_recipes.Crash", f"--trainer.callbacks.step={2 * stage + 2}"]
        with pytest.raises(RuntimeError, match="the power went out"):
            run(["fit", *options["cut"], *crash, *(["--ckpt_path=last"] if stage else [])])
        assert not (tmp_path / "cut" / "model").exists()
        saved = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=False)
        assert saved["global_step"] == 2 * stage + 1, "the checkpoint lies inside the stage"
    run(["fit", *options["cut"], "--ckpt_path=last"])
    assert list(losses(tmp_path / "cut")) == list(range(2 * count))
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    assert len(set(losses(tmp_path / "cut").values())) == 2 * count


def test_a_new_run_in_an_old_folder_starts_its_history_anew(manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for steps in (6, 3):
        run(["fit", *small("quickstart.yaml", manifest, folder, steps)])
    assert list(losses(folder)) == [0, 1, 2]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_losses(manifest: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle, then `--ckpt_path last`: no step is missing, none differs."""
    steps = 160
    options = {name: small("quickstart.yaml", manifest, tmp_path / name, steps) for name in ("whole", "killed")}
    run(["fit", *options["whole"]])
    command = [sys.executable, "-m", "vol3d.cli", "fit", *options["killed"]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    history = tmp_path / "killed/metrics.csv"
    child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (history.is_file() and history.read_text().count("\n") > 60) and time.monotonic() < deadline:
        assert child.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    run(["fit", *options["killed"], "--ckpt_path=last"])
    assert losses(tmp_path / "killed") == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)


def test_validating_and_testing_leave_the_history_alone(
    trained: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained / "metrics.csv").read_bytes()
    recipe = ["--config", str(trained / "recipe.yaml"), "--ckpt_path=last"]
    assert main(["validate", *recipe, "--trainer.limit_val_batches=1"]) == 0
    assert main(["test", *recipe]) == 0
    assert main(["predict", *recipe]) == 0
    assert (trained / "metrics.csv").read_bytes() == before
    rows = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()]
    test = vol3d.Manifest.read(manifest).split("test")
    assert [row["study"] for row in rows] == [study.study for study in test]
    assert isinstance(rows[0]["report"], str)
    assert (trained / "test.csv").is_file()


# --- the model that comes out ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def same_ct(tmp_path_factory: pytest.TempPathFactory, manifest: Path) -> dict[str, Path]:
    """One phantom as NIfTI, NRRD and a folder with a DICOM series."""
    folder = tmp_path_factory.mktemp("same")
    volume = vol3d.read(manifest.parent / "images" / "study-00000.nii.gz")
    paths = {"nifti": folder / "ct.nii.gz", "nrrd": folder / "ct.nrrd", "dicom": folder / "series"}
    vol3d.write(volume, paths["nifti"])
    vol3d.write(volume, paths["nrrd"])
    paths["dicom"].mkdir()
    spacing, origin = vol3d.Geometry.of(volume).spacing, vol3d.Geometry.of(volume).origin
    hu = volume[0].numpy()
    for k in range(hu.shape[2]):
        # RAS index axes grow towards R, A; DICOM rows and columns towards L, P: the direction cosines say so.
        position = (-origin[0], -origin[1], origin[2] + k * spacing[2])
        stored = (hu[:, :, k].T + 1024).astype("uint16")
        tags = {"PixelSpacing": [spacing[1], spacing[0]], "InstanceNumber": k + 1}
        slice_ = dicom_slice(stored, position, (-1, 0, 0, 0, -1, 0), RescaleIntercept=-1024, RescaleSlope=1, **tags)
        slice_.save_as(paths["dicom"] / f"{k:03}.dcm", enforce_file_format=True)
    return paths


def test_one_ct_in_three_formats_gets_one_report(trained: Path, same_ct: dict[str, Path]) -> None:
    model = vol3d.load(trained / "model")
    samples = {name: model.sample(path) for name, path in same_ct.items()}
    for name, sample in samples.items():
        assert (sample.hu.int() - samples["nifti"].hu.int()).abs().max() <= 1, name
    reports = {name: model.report(path) for name, path in same_ct.items()}
    assert len(set(reports.values())) == 1, reports
    # So little training may leave the greedy text empty: what was seen must be the same too.
    seen = {name: model.predict([sample])[0]["finding_probabilities"] for name, sample in samples.items()}
    assert seen["nrrd"] == pytest.approx(seen["nifti"], abs=1e-2)
    assert seen["dicom"] == pytest.approx(seen["nifti"], abs=1e-2)


@pytest.mark.parametrize("kind", ["nifti", "nrrd", "dicom"])
def test_the_report_command(
    kind: str, trained: Path, same_ct: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(trained / "model"), str(same_ct[kind]), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data.keys() == {"study", "findings", "impression", "sections", "seconds", "grid"}
    assert data["study"] == same_ct[kind].name
    assert data["grid"]["shape"] == [32, 32, 16]


def test_the_info_command(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(trained / "model"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["tasks"] == list(recipe_of("quickstart.yaml")["model"]["tasks"])
    assert data["grid"]["name"] == "phantom-64"
    assert main(["info", str(trained / "model")]) == 0
    assert "For research only" in capsys.readouterr().out


def test_the_evaluate_command(
    trained: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evaluation"
    assert (
        main(["evaluate", str(trained / "model"), str(manifest), "--out", str(out), "--split", "train", "--json"]) == 0
    )
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads((out / "evaluation.json").read_text())
    assert data["studies"] == 10
    report = data["tasks"]["report"]
    assert report["finding_f1"].keys() >= {"value", "low", "high"}
    assert report["baselines"].keys() >= {"blind", "always_normal"}
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 10
    assert "<svg" in (out / "evaluation.html").read_text()
