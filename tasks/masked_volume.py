"""Masked-volume modelling: an encoder learns from CT without any label, by filling in what was hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.interfaces import Evidence, Features, Task, TaskOutput
from vol3d.model.volume_lm import VolumeLM
from vol3d.training.contrastive import place


class MaskedVolume(Task):
    """Hide patches of the image, encode what is left, and predict the hidden voxels from the tokens.

    The image itself is masked, so that any encoder can be trained: a hidden voxel takes a value that is learnt, one a
    window. The loss is the mean absolute error over hidden voxels that are not empty (outside the scan every voxel has
    the volume's lowest value and nothing is to be learnt). The encoder sees the masked image, so this task encodes by
    itself (`encodes`): in a stage of its own that is all that is encoded, beside other tasks it costs a second pass.

    Args:
        model: the shared model.
        ratio: share of the patches that is hidden.
        block: tokens along x, y, z that are hidden together; larger holes are harder to fill from their rim.
        pool: voxels along x, y, z that are averaged before they are predicted; (1, 1, 1) predicts each.
        depth: layers of the head: 1 is linear, more are a hidden layer each.

    Raises:
        ValueError: a ratio outside 0 to 1, or a pool that does not divide the encoder's patch.

    Source: SimMIM (arXiv:2111.09886), masking in image space and with a light head; here blocks are given in tokens and
    empty voxels are left out.
    """

    kind = "masked_volume"
    encodes = True
    drawn: Tensor

    def __init__(
        self,
        model: VolumeLM,
        *,
        ratio: float = 0.6,
        block: Sequence[int] = (1, 1, 1),
        pool: Sequence[int] = (1, 1, 1),
        depth: int = 1,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        encoder = model.encoder
        if not 0 < ratio < 1:
            raise ValueError(f"ratio is {ratio}: hide a share of the patches between 0 and 1, such as 0.6")
        if any(patch % part for patch, part in zip(encoder.patch_size, pool, strict=True)):
            raise ValueError(f"pool is {tuple(pool)}, the encoder's patch {encoder.patch_size}: it must divide it")
        self.ratio, self.block, self.pool, self.weight = ratio, tuple(block), tuple(pool), weight
        self.patch = tuple(encoder.patch_size)
        self.cells = [patch // part for patch, part in zip(self.patch, self.pool, strict=True)]
        width, outputs = encoder.embed_dim, encoder.in_channels * math.prod(self.cells)
        layers: list[nn.Module] = [nn.LayerNorm(width)]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.GELU()]
        self.head = nn.Sequential(*layers, nn.Linear(width, outputs))
        self.fill = nn.Parameter(torch.zeros(encoder.in_channels))
        # Counts the masks each process has drawn, so that a resumed run goes on with the next one.
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))

    def hidden(self, grid_size: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Which tokens are hidden, (len(seeds), *grid_size) bool; the same seed hides the same."""
        blocks = [math.ceil(size / part) for size, part in zip(grid_size, self.block, strict=True)]
        count = max(1, round(self.ratio * math.prod(blocks)))
        masks = torch.zeros(len(seeds), math.prod(blocks), dtype=torch.bool)
        for row, seed in enumerate(seeds):
            order = torch.randperm(masks.shape[1], generator=torch.Generator().manual_seed(seed))
            masks[row, order[:count]] = True
        mask = masks.view(-1, *blocks)
        for axis, part in enumerate(self.block, start=1):
            mask = mask.repeat_interleave(part, dim=axis)
        return mask[:, : grid_size[0], : grid_size[1], : grid_size[2]]

    def fill_in(self, model: VolumeLM, batch: Batch, seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted and true voxels (pooled), and which of them count; (batch, channels, x, y, z) each."""
        image = batch.image
        grid = model.encoder.grid_size(tuple(image.shape[2:]))
        hidden = self.hidden(grid, seeds).to(image.device)[:, None]
        covered = _larger(hidden, self.patch)
        masked = torch.where(covered, self.fill.view(1, -1, 1, 1, 1).to(image.dtype), image)
        features = model.encode(masked, batch.affine)
        predicted = rearrange(
            self.head(features.tokens),
            "b (gx gy gz) (c cx cy cz) -> b c (gx cx) (gy cy) (gz cz)",
            gx=grid[0], gy=grid[1], gz=grid[2], c=image.shape[1], cx=self.cells[0], cy=self.cells[1],
        ).float()  # fmt: skip
        target = F.avg_pool3d(image.float(), self.pool)
        lowest = target.amin(dim=(1, 2, 3, 4), keepdim=True)  # of each volume: a rule's window has no common one
        counts = _larger(hidden, self.cells) & (target.amax(dim=1, keepdim=True) > lowest)
        return predicted, target, counts.expand_as(target)

    def loss(self, model: VolumeLM, features: Features | None, batch: Batch) -> TaskOutput:
        """The features of the whole image are not used."""
        if self.training:
            first = int(self.drawn)
            self.drawn += len(batch)
            rank, ranks = place()
            seeds = [number * ranks + rank for number in range(first, first + len(batch))]
        else:
            seeds = _seeds(batch)
        predicted, target, counts = self.fill_in(model, batch, seeds)
        if not counts.any():
            return TaskOutput(None, 0)
        return TaskOutput(F.l1_loss(predicted[counts], target[counts]), len(batch))

    def predict(self, model: VolumeLM, features: Features | None, batch: Batch) -> list[dict[str, Any]]:
        """Mean absolute error of the hidden voxels, and that of their own mean value said everywhere."""
        predicted, target, counts = self.fill_in(model, batch, _seeds(batch))
        rows = []
        for said, true, here in zip(predicted, target, counts, strict=True):
            error = (said - true).abs()[here].mean(), (true[here].mean() - true[here]).abs().mean()
            named = zip(
                ("error", "constant_error"),
                (round(float(each.detach().nan_to_num()), 5) for each in error),
                strict=True,
            )
            rows.append({"masked_volume": dict(named)})
        return rows

    def labelled(self, study: Study) -> bool:
        """Every volume is its own label."""
        return True

    def score(self, evidence: Evidence) -> dict[str, dict[str, Any]]:
        from vol3d.evaluation.metrics.reconstruction import score_reconstruction

        if not evidence.studies:
            return {}
        rows = [evidence.predictions[study.study]["masked_volume"] for study in evidence.studies]
        errors = (np.array([row[name] for row in rows]) for name in ("error", "constant_error"))
        patients = [study.patient for study in evidence.studies]
        options = {"replicates": evidence.replicates, "seed": evidence.seed}
        return {"masked_volume": score_reconstruction(*errors, patients, **options)}


def _seeds(batch: Batch) -> list[int]:
    return [crc32(study.study.encode()) for study in batch.studies]


def _larger(mask: Tensor, times: Sequence[int]) -> Tensor:
    """Each element of (batch, 1, x, y, z) as a box of so many."""
    for axis, count in enumerate(times, start=2):
        mask = mask.repeat_interleave(count, dim=axis)
    return mask
