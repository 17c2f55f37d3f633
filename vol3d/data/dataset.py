"""Studies as samples, and the loaders of a training run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from vol3d.data.batch import Batch, Sample, collate
from vol3d.data.cache import VolumeCache, sample
from vol3d.data.manifest import Manifest
from vol3d.volume.grid import Grid

log = logging.getLogger(__name__)


class VolumeDataset(Dataset[Sample]):
    """The studies of a manifest on a grid, each a Sample. A study that cannot be read raises; none is skipped.

    Args:
        cache: folder of the cache; without one each visit reads the files again.
        in_memory: keep what was read, for data that fits: 2 bytes a voxel of the grid, masks beside it.
    """

    def __init__(
        self, manifest: Manifest, grid: Grid, cache: str | Path | None = None, *, in_memory: bool = False
    ) -> None:
        self.manifest = manifest
        self.grid = grid
        self.cache = None if cache is None else VolumeCache(cache, grid)
        self.kept: dict[int, Sample] | None = {} if in_memory else None

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> Sample:
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        study = self.manifest[index]
        found = sample(study, self.grid) if self.cache is None else self.cache.get(study)
        if self.kept is not None:
            self.kept[index] = found
        return found


class EpochSampler(DistributedSampler[Sample]):
    """An order that depends on seed and epoch only, and can start in the middle of an epoch."""

    start = 0
    """How many samples of this process to leave out of the epoch that is resumed."""

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.start = 0
        super().set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(list(super().__iter__())[self.start :])


class ResumableLoader(DataLoader[Sample]):
    """A loader that Lightning stores in its checkpoints: after a crash the epoch goes on with the next batch."""

    done = 0
    """Batches of the present epoch that were handed out."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        sampler = self.sampler
        if not isinstance(sampler, EpochSampler):  # Lightning's overfit_batches puts its own in
            yield from super().__iter__()
            return
        epoch = sampler.epoch
        self.done = sampler.start // (self.batch_size or 1)
        for batch in super().__iter__():
            self.done += 1
            yield batch
        self.done = 0
        if sampler.epoch == epoch:  # nobody counts the epochs for us
            sampler.set_epoch(epoch + 1)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": getattr(self.sampler, "epoch", 0), "done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if isinstance(self.sampler, EpochSampler):
            self.sampler.set_epoch(state["epoch"])
            self.sampler.start = state["done"] * (self.batch_size or 1)


class VolumeData(LightningDataModule):
    """Train, validation, test and prediction loaders over one manifest.

    Batches leave the loader as int16 HU; the window is applied on the device, so that workers, cache and transfer
    carry 2 bytes a voxel. Two runs with one seed see the same studies in the same order, also after a resume in
    the middle of an epoch.

    Args:
        manifest: path of the manifest (or the Manifest itself).
        grid: the preprocessing card, the name of a preset ("merlin"), or the path of a grid.json.
        cache: folder of the cache (see `prepare`); None reads the files at every visit.
        batch_size: studies a step and device.
        num_workers: loader processes; 0 loads in the training process.
        seed: of the training order.
        limit: use the first so many studies of each split.
        in_memory: keep samples in memory after their first visit.
        augment: applied to each training batch on the device, after the window, with the number of the batch since
            the run began (see `vol3d.data.augment.Augment`).

    Raises:
        ValueError: a split that is asked for has no study, or fewer than one batch.
    """

    def __init__(
        self,
        manifest: str | Path | Manifest,
        grid: Grid | str,
        cache: str | Path | None = None,
        batch_size: int = 2,
        num_workers: int = 0,
        seed: int = 0,
        limit: int | None = None,
        in_memory: bool = False,
        augment: Callable[[Batch, int], Batch] | None = None,
    ) -> None:
        super().__init__()
        self.source = manifest
        self.grid = _grid(grid)
        self.cache = cache
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.limit = limit
        self.in_memory = in_memory
        self.augment = augment
        self._datasets: dict[str, VolumeDataset] = {}
        self._manifest: Manifest | None = None
        if in_memory and num_workers:
            log.warning("in_memory with %d workers keeps one copy a worker; num_workers=0 is faster", num_workers)

    @property
    def manifest(self) -> Manifest:
        """The whole manifest, read and checked on first use."""
        if self._manifest is None:
            self._manifest = self.source if isinstance(self.source, Manifest) else Manifest.read(self.source)
        return self._manifest

    def setup(self, stage: str | None = None) -> None:
        """Reads the manifest, so that bad rows are told before training starts."""
        log.info("%r", self.manifest)

    def dataset(self, split: str) -> VolumeDataset:
        """The studies of "train", "val", "test" or "predict" (test, or all studies when none has a split)."""
        if split not in self._datasets:
            studies = self._studies(split)[: self.limit]
            if not len(studies):
                raise ValueError(f"no study of the split {split!r} in {self.manifest!r}: add a split to its rows")
            self._datasets[split] = VolumeDataset(studies, self.grid, self.cache, in_memory=self.in_memory)
        return self._datasets[split]

    def _studies(self, split: str) -> Manifest:
        if split != "predict":
            return self.manifest.split(split)
        return self.manifest if all(study.split is None for study in self.manifest) else self.manifest.split("test")

    def train_dataloader(self) -> ResumableLoader:
        dataset = self.dataset("train")
        replicas = 1 if self.trainer is None else self.trainer.world_size
        if len(dataset) < self.batch_size * replicas:
            raise ValueError(
                f"train has {len(dataset)} studies, one step takes {self.batch_size * replicas} "
                f"(batch_size {self.batch_size} × {replicas} devices): lower batch_size"
            )
        rank = 0 if self.trainer is None else self.trainer.global_rank
        sampler = EpochSampler(dataset, replicas, rank, shuffle=True, seed=self.seed, drop_last=True)
        return ResumableLoader(dataset, sampler=sampler, drop_last=True, **self._options())

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        return DataLoader(self.dataset("val"), **self._options()) if len(self._studies("val")) else []

    def test_dataloader(self) -> DataLoader[Sample]:
        return DataLoader(self.dataset("test"), **self._options())

    def predict_dataloader(self) -> DataLoader[Sample]:
        return DataLoader(self.dataset("predict"), **self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "collate_fn": collate,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.num_workers > 0,
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Windows int16 HU on the device: (batch, 1, x, y, z) → float (batch, channels, x, y, z)."""
        if not batch.image.is_floating_point():
            batch = replace(batch, image=self.grid.window_hu(batch.image))
        if self.augment is None or self.trainer is None or not self.trainer.training:
            return batch
        return replace(self.augment(batch, self.trainer.fit_loop.epoch_loop.total_batch_idx), augmented=True)


def _grid(grid: Grid | str) -> Grid:
    if isinstance(grid, Grid):
        return grid
    return Grid.load(grid) if grid.endswith(".json") else Grid.preset(grid)
