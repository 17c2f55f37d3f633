"""Stages that learn from manifests of their own: the right studies at every step, also after a stop."""

from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import world

from vol3d.data.dataset import VolumeData
from vol3d.data.manifest import Manifest
from vol3d.training.callbacks import SaveModel
from vol3d.training.stages import Stage
from vol3d.volume.grid import Grid

STAGES = {
    "see": Stage(5, ["findings"], ["encoder", "tasks"], data="masks"),
    "speak": Stage(6, ["report"], ["projector", "language"]),
    "again": Stage(None, ["findings"], ["encoder", "tasks"], data="masks"),
}


class Seen(lightning.Callback):
    def __init__(self) -> None:
        self.steps: list[tuple[int, str, list[str]]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.steps.append((trainer.global_step - 1, pl_module.stage, [study.study for study in batch.studies]))


class Files(VolumeData):
    """VolumeData over the toy world, whose studies have no files."""

    def _sample(self, name: str) -> object:
        return world.study(int(name[1:]))

    def dataset(self, split, name=None):
        return [world.study(int(study.study[1:])) for study in self._studies(split, name)]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch.image = batch.image.float() / 300
        return batch


def manifest(numbers: range) -> Manifest:
    return Manifest([world.study(number).study for number in numbers])


def fit(
    folder: Path, steps: int, ckpt_path: str | None = None, limit: int | None = None, **settings
) -> tuple[Seen, list[float]]:
    np.random.seed(0)
    grid = Grid(spacing=(1.0, 1.0, 1.0), shape=(16, 16, 8), window=(-1000, 1000))
    data = Files(manifest(range(10)), grid, batch_size=4, others={"masks": manifest(range(100, 106))}, limit=limit)
    seen, losses = Seen(), world.Losses()
    torch.manual_seed(0)
    module = world.module(STAGES)
    options = {"reload_dataloaders_every_n_epochs": 1, "callbacks": [seen, losses], **settings}
    world.trainer(steps, folder, **options).fit(module, data, ckpt_path=ckpt_path)
    return seen, losses.values


def test_each_stage_sees_its_own_studies_and_a_stopped_run_goes_on_the_same(tmp_path: Path) -> None:
    seen, losses = fit(tmp_path, 15)
    assert [step for step, _, _ in seen.steps] == list(range(15))
    for step, stage, studies in seen.steps:
        assert stage == ("see" if step < 5 else "speak" if step < 11 else "again")
        assert all((int(name[1:]) >= 100) == (stage != "speak") for name in studies)
    for stop in (3, 5, 8, 11):  # in the middle of a stage and where two meet
        folder = tmp_path / str(stop)
        checkpoint = lightning.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=stop, save_top_k=-1)
        first = Seen()
        fit(folder, 15, callbacks=[checkpoint, first], enable_checkpointing=True)
        path = next(folder.glob(f"*step={stop}.ckpt"))
        resumed, again = fit(folder, 15, ckpt_path=str(path))
        assert resumed.steps == seen.steps[stop:]
        assert again == pytest.approx(losses[stop:], abs=1e-6)


def test_the_models_card_names_what_each_stage_learnt_from(tmp_path: Path) -> None:
    fit(tmp_path, 12, callbacks=[SaveModel(tmp_path)], limit=5)
    card = (tmp_path / "model" / "card.md").read_text()
    assert "- `masks`: manifest in memory, 5 training studies\n- Manifest in memory, 5 training studies\n" in card
    assert "- see: 5 steps, learns encoder, tasks from findings of `masks`\n" in card


def test_a_stage_without_its_manifest_is_told(tmp_path: Path) -> None:
    module = world.module({"see": Stage(None, ["findings"], data="masks")})
    with pytest.raises(ValueError, match=r"stages learn from \['masks'\], the data has no other manifest"):
        world.trainer(2, tmp_path).fit(module, world.World([world.study(number) for number in range(8)]))
    with pytest.raises(ValueError, match="reload_dataloaders_every_n_epochs=1"):
        fit(tmp_path, 2, reload_dataloaders_every_n_epochs=0)
