"""What a training step receives: the studies' images on one grid, their geometry and their manifest rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from vol3d.data.study import Study


@dataclass
class Sample:
    """One study on the grid, as a dataset yields it (CPU tensors).

    Shape:
        hu: (1, x, y, z) int16, HU before any window.
        affine: (4, 4) float64, voxel index on the grid → RAS mm.
        mask, finding_mask: (x, y, z) int16 label maps on the same grid, or None when the study has none.
    """

    study: Study
    hu: Tensor
    affine: Tensor
    mask: Tensor | None = None
    finding_mask: Tensor | None = None


@dataclass
class Batch:
    """Several studies on one grid.

    Each task reads the labels it needs from `studies` (the manifest rows) and from the masks, so that a study
    without a label costs that task nothing.

    Shape:
        image: (batch, channels, x, y, z): int16 HU with one channel straight from the loader, windowed float
            with one channel a window once `Grid.window_hu` has run on the device.
        affine: (batch, 4, 4) float64, voxel index → RAS mm.
        mask, finding_mask: (batch, x, y, z) int16 label maps; all -1 for a study that has none; None when no
            study of the batch has one.
        augmented: the images differ at every visit, so that features of them must not be kept.
        value_range: what the window's ends became in a windowed image (`Grid.value_range`).
    """

    studies: list[Study]
    image: Tensor
    affine: Tensor
    mask: Tensor | None = None
    finding_mask: Tensor | None = None
    augmented: bool = False
    value_range: tuple[float, float] = (0.0, 1.0)

    def __len__(self) -> int:
        return len(self.studies)

    def select(self, rows: list[int]) -> Batch:
        """The batch of these rows only."""
        return replace(self.map_tensors(lambda tensor: tensor[rows]), studies=[self.studies[row] for row in rows])

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `function` applied to each tensor (for moving and pinning)."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: function(v) for k, v in tensors.items() if isinstance(v, Tensor)})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self.map_tensors(Tensor.pin_memory)


def collate(samples: list[Sample]) -> Batch:
    """Samples on one grid → a Batch; samples that lie one behind the other in one memory are not copied.

    Raises:
        ValueError: two samples differ in shape (both named, with their shapes).
    """
    first = samples[0]
    for sample in samples[1:]:
        if sample.hu.shape != first.hu.shape:
            raise ValueError(
                f"study {sample.study.study!r} is {tuple(sample.hu.shape)}, study {first.study.study!r} is "
                f"{tuple(first.hu.shape)}: one batch needs one grid; give the Grid a fixed shape"
            )
    return Batch(
        studies=[sample.study for sample in samples],
        image=_stack([sample.hu for sample in samples]),
        affine=torch.stack([sample.affine for sample in samples]),
        mask=_stack_masks([sample.mask for sample in samples], first.hu.shape[1:]),
        finding_mask=_stack_masks([sample.finding_mask for sample in samples], first.hu.shape[1:]),
    )


def _stack_masks(masks: list[Tensor | None], shape: torch.Size) -> Tensor | None:
    if all(mask is None for mask in masks):
        return None
    unknown = torch.full(shape, -1, dtype=torch.int16)
    return _stack([unknown if mask is None else mask for mask in masks])


def _stack(volumes: list[Tensor]) -> Tensor:
    first, voxels = volumes[0], volumes[0].numel()
    memory = first.untyped_storage().data_ptr()
    for row, volume in enumerate(volumes):
        behind = volume.untyped_storage().data_ptr() == memory and volume.is_contiguous()
        if not behind or volume.storage_offset() != first.storage_offset() + row * voxels:
            return torch.stack(volumes)
    return first.as_strided((len(volumes), *first.shape), (voxels, *first.stride()))
