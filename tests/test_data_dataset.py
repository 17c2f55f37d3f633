"""Loaders: the same order for the same seed, also after a stop in the middle of an epoch."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from test_data_cache import GRID, make_manifest

from vol3d.data.augment import Augment
from vol3d.data.batch import Batch, collate
from vol3d.data.dataset import VolumeData, VolumeDataset
from vol3d.data.manifest import Manifest
from vol3d.volume.grid import Grid

SHAKE = Augment(rotate=5.0, brightness=0.1)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    studies = make_manifest(tmp_path, 12)
    splits = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    return Manifest(replace(s, split=split) for s, split in zip(studies, splits, strict=True)).write(
        tmp_path / "manifest.jsonl"
    )


def names(batches: Any) -> list[str]:
    return [study.study for batch in batches for study in batch.studies]


class Recorder(LightningModule):
    """Trains nothing; writes down which studies it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[str] = []
        self.sums: list[float] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        assert batch.image.dtype == torch.float32
        assert -0.5 <= batch.image.min() <= batch.image.max() <= 1.5
        self.sums.append(float(batch.image.double().sum()))
        self.seen += [study.study for study in batch.studies]
        return self.weight.sum() * batch.image.mean()

    def validation_step(self, batch: Batch, index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(manifest: Path, folder: Path, callbacks: list[Callback], ckpt: Path | None = None, **options: Any) -> Recorder:
    module = Recorder()
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, callbacks=callbacks, logger=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks), **options,
    )  # fmt: skip
    data = VolumeData(manifest, GRID, cache=folder / "cache", batch_size=2, seed=3, in_memory=True, augment=SHAKE)
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=False if ckpt else None)
    return module


class Crash(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise SystemExit("power cut")


@pytest.mark.parametrize("steps", [1, 2, 4, 6, 8, 11])
def test_resumed_run_sees_the_studies_of_an_unbroken_one(manifest: Path, tmp_path: Path, steps: int) -> None:
    whole = fit(manifest, tmp_path, [])
    assert sorted(whole.seen[:8]) == sorted(whole.seen[8:16]) == [f"s{i}" for i in range(8)]
    assert whole.seen[:8] != whole.seen[8:16]
    save = ModelCheckpoint(tmp_path / "checkpoints", "{step}", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(SystemExit):
        fit(manifest, tmp_path, [Crash(steps + 1), save])
    resumed = fit(manifest, tmp_path, [], tmp_path / "checkpoints" / f"step={steps}.ckpt")
    assert resumed.seen == whole.seen[2 * steps :]
    assert resumed.sums == whole.sums[steps:], "augmented the same way"


def test_resume_from_the_end_of_an_epoch(manifest: Path, tmp_path: Path) -> None:
    whole = fit(manifest, tmp_path, [])
    save = ModelCheckpoint(tmp_path / "checkpoints", "{epoch}", save_top_k=-1)
    fit(manifest, tmp_path, [save])
    resumed = fit(manifest, tmp_path, [], tmp_path / "checkpoints" / "epoch=0.ckpt")
    assert resumed.seen == whole.seen[8:]


class Ranked(Recorder):
    """Writes down what each of the processes saw, as soon as it saw it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.folder.mkdir(exist_ok=True)
        with (self.folder / str(self.global_rank)).open("a") as file:
            file.writelines(f"{study.study}\n" for study in batch.studies)
        return super().training_step(batch, index)


def fit_on_two(manifest: Path, seen: Path, *, steps: int, ckpt: Path | None = None) -> list[list[str]]:
    """What two gloo processes saw, in order; a checkpoint `last.ckpt` is left after the last step."""
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=DDPStrategy(start_method="fork", process_group_backend="gloo"),
        max_steps=steps, max_epochs=9, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=0, default_root_dir=seen.parent, use_distributed_sampler=True,
        callbacks=[ModelCheckpoint(seen.parent / seen.name / "checkpoints", "step", every_n_train_steps=1)],
    )  # fmt: skip
    data = VolumeData(manifest, GRID, cache=manifest.parent / "cache", batch_size=1, seed=3, augment=SHAKE)
    trainer.fit(Ranked(seen), data, ckpt_path=ckpt, weights_only=False if ckpt else None)
    return [(seen / rank).read_text().split() for rank in "01"]


def test_processes_augment_differently_at_the_same_step(manifest: Path) -> None:
    """The number that augmentation is drawn by counts every process's batches; alone it is the step."""
    given: list[int] = []
    data = VolumeData(manifest, GRID, augment=lambda batch, number: (given.append(number), batch)[1])
    batch = next(iter(data.train_dataloader()))
    for world_size in (1, 2):
        for step, rank in itertools.product(range(3), range(world_size)):
            loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=step))
            data.trainer = SimpleNamespace(training=True, world_size=world_size, global_rank=rank, fit_loop=loop)  # type: ignore[assignment]
            assert data.on_after_batch_transfer(batch, 0).augmented
    assert given == [0, 1, 2, 0, 1, 2, 3, 4, 5]


def test_two_processes_share_an_epoch_and_resume_in_its_middle(manifest: Path, tmp_path: Path) -> None:
    whole = fit_on_two(manifest, tmp_path / "whole", steps=8)
    for epoch in (slice(0, 4), slice(4, 8)):
        shards = [rank[epoch] for rank in whole]
        assert sorted(shards[0] + shards[1]) == [f"s{i}" for i in range(8)], "each study once, none twice"
    assert whole[0][:4] != whole[0][4:], "another order in the next epoch"
    first = fit_on_two(manifest, tmp_path / "first", steps=3)
    rest = fit_on_two(manifest, tmp_path / "rest", steps=8, ckpt=tmp_path / "first/checkpoints/step.ckpt")
    assert [one + two for one, two in zip(first, rest, strict=True)] == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_order_follows_seed_and_epoch_alone(manifest: Path, workers: int) -> None:
    def order(seed: int) -> list[str]:
        loader = VolumeData(manifest, GRID, seed=seed, num_workers=workers).train_dataloader()
        return names(loader) + names(loader)

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0)[:8] != order(0)[8:]


def test_state_without_lightning(manifest: Path) -> None:
    loader = VolumeData(manifest, GRID).train_dataloader()
    whole = names(loader)
    other = VolumeData(manifest, GRID).train_dataloader()
    running = iter(other)
    first = names([next(running)])
    third = VolumeData(manifest, GRID).train_dataloader()
    third.load_state_dict(other.state_dict())
    assert first + names(third) == whole


@pytest.mark.parametrize(("name", "number", "least"), [("batch_size", 0, 1), ("num_workers", -1, 0), ("limit", -1, 1)])
def test_numbers_that_are_too_small(manifest: Path, name: str, number: int, least: int) -> None:
    """A limit of −1 would leave out the last study."""
    with pytest.raises(ValueError, match=f"{name} is {number}: give at least {least}"):
        VolumeData(manifest, GRID, **{name: number})


def test_splits_and_limit(manifest: Path) -> None:
    data = VolumeData(manifest, GRID, batch_size=3, limit=7)
    data.setup("fit")
    assert len(names(data.train_dataloader())) == 6, "the last batch of a training epoch is a whole one"
    assert names(data.val_dataloader()) == ["s8", "s9"]
    assert names(data.test_dataloader()) == names(data.predict_dataloader()) == ["s10", "s11"]


def test_the_report_of_an_earlier_exam_is_looked_up(tmp_path: Path) -> None:
    first, *others = make_manifest(tmp_path, 3)
    old = replace(first, patient="p", split=None, report="Small cyst.")
    new = replace(others[0], patient="p", split="train", prior=old.study)
    path = Manifest([old, new, others[1]]).write(tmp_path / "manifest.jsonl")
    (study,) = VolumeData(path, GRID).dataset("train").manifest
    assert study.meta["prior_report"] == "Small cyst."
    assert "prior_report" not in Manifest.read(path)[new.study].meta, "the manifest itself stays as it is"


def test_prediction_without_splits_takes_all(tmp_path: Path) -> None:
    data = VolumeData(make_manifest(tmp_path, 3), GRID)
    assert names(data.predict_dataloader()) == ["s0", "s1", "s2"]
    with pytest.raises(ValueError, match="no study of the split 'train' in Manifest\\(3 studies"):
        data.train_dataloader()


def test_training_on_a_manifest_without_splits_is_refused_before_all_else(manifest: Path) -> None:
    whole = Manifest(replace(study, split=None) for study in Manifest.read(manifest))
    with pytest.raises(ValueError, match=r"no study of the split 'train' in .*12 studies.*: add a split to its rows"):
        VolumeData(whole, GRID).setup("fit")
    VolumeData(whole, GRID).setup("predict")
    VolumeData(whole, GRID, others={"masks": str(manifest)}).setup("fit")


def test_fewer_studies_than_a_batch(manifest: Path) -> None:
    with pytest.raises(ValueError, match=r"train has 8 studies, one step takes 16 \(batch_size 16 × 1 devices\)"):
        VolumeData(manifest, GRID, batch_size=16).train_dataloader()


def test_batch_is_windowed_on_the_device_and_masks_stay(manifest: Path) -> None:
    grid = replace(GRID, window=[(-1000.0, 1000.0), (-160.0, 240.0)])
    data = VolumeData(manifest, grid)
    batch = next(iter(data.train_dataloader()))
    assert (batch.image.shape, batch.image.dtype) == ((2, 1, 12, 12, 8), torch.int16)
    after = data.on_after_batch_transfer(batch, 0)  # outside training, so nothing is augmented
    assert (after.image.shape, after.image.dtype) == ((2, 2, 12, 12, 8), torch.float32)
    assert torch.allclose(after.image[:, :1], (batch.image.float() + 1000).div(2000).clamp(0, 1), atol=1e-6)
    assert after.mask is not None
    assert set(after.mask.unique().tolist()) == {0, 1, 2}
    assert torch.equal(data.on_after_batch_transfer(after, 0).image, after.image), "windowed once"


def test_in_memory_reads_once(manifest: Path, tmp_path: Path) -> None:
    dataset = VolumeDataset(Manifest.read(manifest), GRID, in_memory=True)
    first = dataset[0].hu
    dataset.manifest[0].image.unlink()
    assert dataset[0].hu is first


@pytest.mark.parametrize("masks", [True, False, ["mask"], ["finding_mask"]])
def test_masks_that_no_task_reads_are_left_on_the_disk(manifest: Path, masks: bool | list[str]) -> None:
    data = VolumeData(manifest, GRID, masks=masks, in_memory=True)
    batch = next(iter(data.train_dataloader()))
    assert (batch.mask is not None) == (masks in (True, ["mask"]))
    assert batch.finding_mask is None
    with pytest.raises(ValueError, match=r"masks \['liver'\]: choose from mask, finding_mask"):
        VolumeDataset(data.manifest, GRID, masks=["liver"])


def test_a_batch_is_not_copied_and_its_memory_serves_again_only_when_free(manifest: Path, tmp_path: Path) -> None:
    dataset = VolumeDataset(Manifest.read(manifest), GRID, tmp_path / "cache", masks=False)
    alone = [dataset[index].hu for index in range(6)]
    assert all(hu.untyped_storage().nbytes() == hu.nbytes for hu in alone), "no batch is kept alive by one sample"
    for _ in range(2):  # made, then read from the cache
        samples = dataset.__getitems__([0, 1])
        first = collate(samples)
        assert first.image.data_ptr() == samples[0].hu.data_ptr()
        view, place = first.image[1, 0], first.image.data_ptr()
        del samples, first
        second = collate(dataset.__getitems__([2, 3]))
        assert second.image.data_ptr() != place, "a view is still held"
        assert torch.equal(view, alone[1][0])
        del view
        third = collate(dataset.__getitems__([4, 5]))
        assert third.image.data_ptr() == place, "nobody holds it any more"
        assert torch.equal(second.image, torch.stack(alone[2:4]))
        assert torch.equal(third.image, torch.stack(alone[4:]))
        del second, third


@pytest.mark.parametrize("in_memory", [True, False])
def test_collate_takes_samples_in_any_place_and_order(manifest: Path, in_memory: bool) -> None:
    dataset = VolumeDataset(Manifest.read(manifest), GRID, in_memory=in_memory)
    dataset.manifest = Manifest([*list(dataset.manifest)[:3], replace(dataset.manifest[3], mask=None)])
    samples = dataset.__getitems__([2, 0, 3])
    batch = collate(samples)
    for row, index in enumerate([2, 0, 3]):
        assert torch.equal(batch.image[row], dataset[index].hu)
    assert batch.mask is not None
    assert set(batch.mask[2].unique().tolist()) == {-1}
    turned = collate(samples[::-1])
    assert torch.equal(turned.image, batch.image.flip(0))
    assert torch.equal(collate([samples[0], samples[2]]).image, batch.image[[0, 2]])


def test_workers_hand_over_the_same_batches(manifest: Path, tmp_path: Path) -> None:
    loaders = [VolumeData(manifest, GRID, tmp_path / "cache", seed=1, num_workers=n).train_dataloader() for n in (0, 2)]
    for ours, theirs in zip(*loaders, strict=True):
        assert torch.equal(ours.image, theirs.image)
        assert ours.mask is not None
        assert torch.equal(ours.mask, theirs.mask)
        assert theirs.image.is_shared()


def test_unreadable_study_stops_the_run_by_name(manifest: Path) -> None:
    studies = Manifest.read(manifest)
    studies[3].image.write_bytes(b"not an image")
    with pytest.raises(ValueError, match="study 's3': "):
        VolumeDataset(studies, GRID)[3]


def test_grid_from_yaml_by_card_by_name_and_by_file(tmp_path: Path) -> None:
    GRID.save(tmp_path / "grid.json")
    parser = ArgumentParser()
    parser.add_argument("--data", type=VolumeData)
    card = {"spacing": [2, 2, 2], "shape": [12, 12, 8], "window": [-1000, 1000]}
    grids = [card, {"class_path": "vol3d.Grid", "init_args": card}, str(tmp_path / "grid.json"), "merlin"]
    for grid, wanted in zip(grids, [GRID, GRID, GRID, Grid.preset("merlin")], strict=True):
        augment = {"class_path": "vol3d.data.augment.Augment", "init_args": {"rotate": 10}}
        arguments = {"manifest": "manifest.jsonl", "grid": grid, "limit": 3, "augment": augment}
        row = {"class_path": "vol3d.VolumeData", "init_args": arguments}
        data = parser.instantiate(parser.parse_object({"data": row})).data
        assert (data.grid, data.augment) == (wanted, Augment(rotate=10.0))
    with pytest.raises(ValueError, match="no grid named 'Merlin'; there are"):
        VolumeData("manifest.jsonl", "Merlin")
