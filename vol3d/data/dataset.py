"""Studies as samples, and the loaders of a training run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from vol3d.data.batch import Batch, Sample, collate
from vol3d.data.cache import MASKS, Reader, VolumeCache
from vol3d.data.entries import Compression, Room, no_room
from vol3d.data.manifest import Manifest
from vol3d.data.priors import with_prior_reports
from vol3d.data.shards import parse_shard
from vol3d.data.shards import shard as part_of
from vol3d.data.slots import Slots
from vol3d.volume.grid import Grid

log = logging.getLogger(__name__)


class VolumeDataset(Dataset[Sample]):
    """The studies of a manifest on a grid, each a Sample. A study that cannot be read raises; none is skipped.

    Args:
        cache: folder of the cache; without one each visit reads the files again.
        in_memory: keep what was read, for data that fits: 2 bytes a voxel of the grid, as much for each mask.
        masks: True loads the label maps that a study has, False none, a list those named ("mask", "finding_mask").
        compression: of new cache entries, see `VolumeCache`.

    Raises:
        ValueError: a mask that is not one.
    """

    def __init__(
        self,
        manifest: Manifest,
        grid: Grid,
        cache: str | Path | None = None,
        *,
        in_memory: bool = False,
        masks: bool | Sequence[str] = True,
        compression: Compression | None = None,
    ) -> None:
        self.manifest = manifest
        self.grid = grid
        self.masks = _masks(masks)
        self.reader = Reader(grid, None if cache is None else VolumeCache(cache, grid, compression))
        self.kept: dict[int, Sample] | None = {} if in_memory else None
        self.slots = Slots()

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> Sample:
        if self.kept is None:
            return self._read(index, lambda name, shape: self.slots.take(shape))
        if index not in self.kept:
            self.kept[index] = self._read(index)
        return self.kept[index]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """The samples of one batch, one behind the other in memory that is used again: collating copies nothing."""
        slots: dict[str, Tensor] = {}

        def place(row: int, name: str, shape: tuple[int, ...]) -> Tensor | None:
            if name not in slots:
                slots[name] = self.slots.take((len(indices), *shape))
            return slots[name][row] if slots[name].shape[1:] == shape else None

        if self.kept is None:
            return [self._read(index, partial(place, row)) for row, index in enumerate(indices)]
        return [_copied(self[index], partial(place, row)) for row, index in enumerate(indices)]

    def _read(self, index: int, room: Room = no_room) -> Sample:
        return self.reader(self.manifest[index], self.masks, room)


def _masks(masks: bool | Sequence[str]) -> tuple[str, ...]:
    if isinstance(masks, bool):
        return MASKS if masks else ()
    unknown = [name for name in masks if name not in MASKS]
    if unknown:
        raise ValueError(f"masks {unknown}: choose from {', '.join(MASKS)}, or True or False for all or none")
    return tuple(masks)


def _copied(sample: Sample, room: Room) -> Sample:
    """The same voxels in a batch's memory."""
    volumes = {name: volume for name in ("hu", *MASKS) if (volume := getattr(sample, name)) is not None}
    places = {name: room(name, tuple(volume.shape)) for name, volume in volumes.items()}
    return replace(sample, **{n: place.copy_(volumes[n]) for n, place in places.items() if place is not None})


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
        masks: which label maps to load: True all, False none, or a list of "mask" and "finding_mask"; what no task
            reads costs time, and memory with `in_memory`.
        compression: "blosc2" writes new cache entries at half the size.
        augment: applied to each training batch on the device, after the window, with the number of the batch since
            the run began, each process's batches counted, so that no two are drawn alike (see
            `vol3d.data.augment.Augment`).
        shard: "3/64" predicts the fourth of 64 parts only, patients whole (see `vol3d.data.shards.shard`).
        others: name → manifest that single stages of training learn from (`Stage.data`); validation, test and
            prediction stay with `manifest`.

    Raises:
        ValueError: a number that is too small; a split that is asked for has no study, or fewer than one batch.
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
        masks: bool | list[str] = True,
        compression: Compression | None = None,
        others: dict[str, str | Manifest] | None = None,
        shard: str | None = None,
    ) -> None:
        super().__init__()
        for name, number, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("limit", limit, 1),
        ):
            if number is not None and number < least:
                raise ValueError(f"{name} is {number}: give at least {least}")
        self.source = manifest
        self.grid = _grid(grid)
        self.cache = cache
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.limit = limit
        self.in_memory = in_memory
        self.augment = augment
        self.masks = masks
        self.compression = compression
        self.other_sources = others or {}
        self.shard = None if shard is None else parse_shard(shard)
        self.reading: str | None = None
        """Name of the manifest the training loader reads; None is `manifest`."""
        self._resumed: tuple[str | None] | None = None
        self._ended_at: int | None = None
        self._datasets: dict[tuple[str | None, str], VolumeDataset] = {}
        self._manifests: dict[str | None, Manifest] = {}
        if in_memory and num_workers:
            log.warning("in_memory with %d workers keeps one copy a worker; num_workers=0 is faster", num_workers)

    @property
    def manifest(self) -> Manifest:
        """The whole manifest, read and checked on first use."""
        return self._read(None)

    @property
    def others(self) -> dict[str, Manifest]:
        """The manifests of single stages."""
        return {name: self._read(name) for name in self.other_sources}

    def _read(self, name: str | None) -> Manifest:
        if name not in self._manifests:
            source = self.source if name is None else self.other_sources[name]
            manifest = source if isinstance(source, Manifest) else Manifest.read(source)
            self._manifests[name] = with_prior_reports(manifest)
        return self._manifests[name]

    def setup(self, stage: str | None = None) -> None:
        """Reads the manifests, so that bad rows, and that none is to train on, are told before training starts."""
        manifests = (self.manifest, *self.others.values())
        for manifest in manifests:
            log.info("%r", manifest)
        if stage == "fit" and not any(len(manifest.split("train")) for manifest in manifests):
            self.dataset("train")

    def dataset(self, split: str, name: str | None = None) -> VolumeDataset:
        """The studies of "train", "val", "test" or "predict" (test, or all studies when none has a split), from
        `manifest` or one of the others."""
        if (name, split) not in self._datasets:
            studies = self._studies(split, name)
            if not len(studies):
                wanted = "test" if split == "predict" else split  # no row can say "predict"
                raise ValueError(f"no study of the split {wanted!r} in {self._read(name)!r}: add a split to its rows")
            if split == "predict" and self.shard is not None:
                studies = part_of(studies, *self.shard)  # empty where there are more shards than patients
            self._datasets[name, split] = VolumeDataset(
                studies[: self.limit],
                self.grid,
                self.cache,
                in_memory=self.in_memory,
                masks=self.masks,
                compression=self.compression,
            )
        return self._datasets[name, split]

    def _studies(self, split: str, name: str | None = None) -> Manifest:
        manifest = self._read(name)
        if split != "predict":
            return manifest.split(split)
        return manifest if all(study.split is None for study in manifest) else manifest.split("test")

    def train_dataloader(self) -> ResumableLoader:
        self.reading = self._wanted()
        dataset = self.dataset("train", self.reading)
        replicas = 1 if self.trainer is None else self.trainer.world_size
        if len(dataset) < self.batch_size * replicas:
            raise ValueError(
                f"train has {len(dataset)} studies, one step takes {self.batch_size * replicas} "
                f"(batch_size {self.batch_size} × {replicas} devices): lower batch_size"
            )
        rank = 0 if self.trainer is None else self.trainer.global_rank
        sampler = EpochSampler(dataset, replicas, rank, shuffle=True, seed=self.seed, drop_last=True)
        loader = ResumableLoader(dataset, sampler=sampler, drop_last=True, **self._options())
        if self._ended_at is not None and self.trainer is not None and self.trainer.global_step == self._ended_at:
            # Resumed behind the last batch of a pass: Lightning tells this from the length of the new loader, which
            # may read another manifest.
            self.trainer.fit_loop.epoch_loop.batch_progress.current.completed = len(loader)
        return loader

    def _wanted(self) -> str | None:
        """The manifest of the present stage; of the interrupted pass when a run goes on in the middle of one."""
        if self._resumed is not None:
            (name,), self._resumed = self._resumed, None
            return name
        module = None if self.trainer is None else self.trainer.lightning_module
        schedule = getattr(module, "schedule", None)
        if not self.other_sources or schedule is None:
            return None
        return module.stages[schedule.name(self.trainer.global_step)].data

    def state_dict(self) -> dict[str, Any]:
        loop = None if self.trainer is None else self.trainer.fit_loop.epoch_loop
        ended = loop is not None and loop.batch_progress.is_last_batch
        return {"reading": self.reading, "ended_at": loop.global_step if ended else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ended_at = state.get("ended_at")
        if "reading" in state and self._ended_at is None:
            self._resumed = (state["reading"],)

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
            batch = replace(batch, image=self.grid.window_hu(batch.image), value_range=self.grid.value_range)
        if self.augment is None or self.trainer is None or not self.trainer.training:
            return batch
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        number = step * self.trainer.world_size + self.trainer.global_rank
        return replace(self.augment(batch, number), augmented=True)


def _grid(grid: Grid | str) -> Grid:
    if isinstance(grid, Grid):
        return grid
    return Grid.load(grid) if grid.endswith(".json") else Grid.preset(grid)
