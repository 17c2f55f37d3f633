"""A world small enough to learn in seconds: bright boxes on the left or the right, and a sentence about them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader

import vol3d
from vol3d.data.batch import Batch, Sample, collate
from vol3d.data.manifest import Manifest
from vol3d.data.study import Study
from vol3d.model.language import Scratch
from vol3d.tasks import FindingMaps, ReportGeneration
from vol3d.training.module import VolumeModule
from vol3d.training.stages import Stage

FINDINGS = ["left pleural effusion", "right pleural effusion"]
PLACES = {"left pleural effusion": 4, "right pleural effusion": 12}


def study(number: int, split: str = "train", *, report: bool = True, mask: bool = True) -> Sample:
    """16 × 16 × 8 voxels of noise, each finding a box in one half with probability 1/2."""
    rng = np.random.default_rng(number)
    hu = rng.normal(0, 30, (16, 16, 8))
    labels = np.zeros(hu.shape, np.int16)
    present = [name for name in FINDINGS if rng.random() < 0.5]
    for name in present:
        y, z = rng.integers(4, 12), rng.integers(2, 6)
        box = np.s_[PLACES[name] - 2 : PLACES[name] + 2, y - 2 : y + 2, z - 1 : z + 1]
        hu[box] += 300
        labels[box] = 1 + FINDINGS.index(name)
    text = "".join(f"There is a {name}. " for name in present).strip() or "The chest is normal."
    row = Study(
        study=f"s{number}",
        image=Path("none.nii.gz"),
        split=split,
        report=text if report else None,
        finding_labels={name: 1 + index for index, name in enumerate(FINDINGS)},
    )
    return Sample(
        row,
        torch.from_numpy(hu.astype(np.int16))[None],
        torch.eye(4, dtype=torch.float64),
        finding_mask=torch.from_numpy(labels) if mask else None,
    )


def dealt(samples: list[Sample], deal: int) -> list[Sample]:
    """The same studies, each with the volume of another, dealt by chance.

    One deal may agree with the truth a little by chance, and a ranking makes much of little: judge several.
    """
    order = np.random.default_rng(deal).permutation(len(samples))
    return [replace(samples[other], study=sample.study) for other, sample in zip(order, samples, strict=True)]


class World(lightning.LightningDataModule):
    """Training studies in a fixed order, so that a resumed run can be compared step by step."""

    def __init__(self, train: list[Sample], test: list[Sample] | None = None, batch_size: int = 8) -> None:
        super().__init__()
        self.train, self.test, self.batch_size = train, test or [], batch_size
        self.manifest = Manifest([sample.study for sample in train + self.test])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=self.batch_size, collate_fn=collate)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=16, collate_fn=collate)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        batch.image = batch.image.float() / 300
        return batch


SPEAK = Stage(None, ["report"], ["projector", "language"], 2e-3)


def module(stages: dict[str, Stage] | None = None, **settings: Any) -> VolumeModule:
    torch.manual_seed(0)
    return VolumeModule(
        vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=1, num_heads=2, patch_size=(4, 4, 2)),
        {"findings": partial(FindingMaps, findings=FINDINGS, cells=(1, 1, 1), top_cells=2), "report": ReportGeneration},
        partial(vol3d.PerceiverProjector, num_latents=4, num_heads=2),
        Scratch(embed_dim=48, depth=2, num_heads=2, vocab_size=300),
        stages,
        **settings,
    )


def trainer(steps: int, folder: Path, **settings: Any) -> lightning.Trainer:
    return lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, "gradient_clip_val": 1.0, **settings},
    )


class Losses(lightning.Callback):
    """Remembers the loss of every training step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"]))
