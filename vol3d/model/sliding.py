"""Windows over a volume larger than the model's grid: each is encoded once for all prompts, and what is held at a time
is one row of windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.types import Triple

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from vol3d.model.interfaces import Task
    from vol3d.model.volume_lm import VolumeLM
    from vol3d.volume.grid import Grid

Window = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Windows:
    """Where windows of `size` voxels lie over a volume of `shape`, the last of each axis flush with its end.

    Args:
        overlap: share of a window that the next one sees again.

    Raises:
        ValueError: a window larger than the volume, or an overlap outside 0 to 1.

    Example:
        >>> len(Windows((512, 512, 200), (160, 160, 104)))
        108
    """

    shape: Triple
    size: Triple
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is {self.overlap}: a share from 0 to below 1, such as 0.5")
        for axis, (whole, part) in enumerate(zip(self.shape, self.size, strict=True)):
            if part > whole:
                raise ValueError(
                    f"window is {part} voxels along {'xyz'[axis]}, the volume {whole}: pad the volume to {self.size}"
                )

    def starts(self, axis: int) -> list[int]:
        """First voxels of the windows along an axis; spaced as MONAI's sliding_window_inference spaces them."""
        whole, part = self.shape[axis], self.size[axis]
        step = max(1, int(part * (1 - self.overlap)))
        return sorted({min(start, whole - part) for start in range(0, whole - part + step, step)})

    def __len__(self) -> int:
        return len(self.starts(0)) * len(self.starts(1)) * len(self.starts(2))

    def row(self, x: int) -> Iterator[Window]:
        """The windows that start at x."""
        for y in self.starts(1):
            for z in self.starts(2):
                yield tuple(slice(a, a + n) for a, n in zip((x, y, z), self.size, strict=True))  # type: ignore[misc]

    def weights(self) -> list[Float[Tensor, " n"]]:
        """How much a voxel counts by its place in a window, along each axis: a Gaussian of an eighth of the size."""
        places = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in self.size]
        return [torch.exp(-0.5 * (place / (0.125 * n)) ** 2) for place, n in zip(places, self.size, strict=True)]

    def totals(self) -> list[Float[Tensor, " n"]]:
        """The weights of all windows added up, along each axis. Windows form a lattice and the weights are products, so
        the total at a voxel is the product of three: no map of counts is needed."""
        totals = [torch.zeros(n) for n in self.shape]
        for axis, (total, weight) in enumerate(zip(totals, self.weights(), strict=True)):
            for start in self.starts(axis):
                total[start : start + len(weight)] += weight
        return totals


@torch.no_grad()
def stitch(
    windows: Windows, predict: Callable[[Window], Float[Tensor, "prompts wx wy wz"]], prompts: int
) -> Iterator[tuple[slice, Float[Tensor, "prompts dx y z"]]]:
    """The weighted mean of what `predict` says of every window, slab by slab along x as slabs are finished.

    Held are `prompts` maps of one window's height over the volume's y and z, on the CPU; MONAI holds the whole output
    and a map of counts.

    Yields:
        which x, and the mean there. The tensor is reused: take what is needed of it before the next one.
    """
    height, x_starts = windows.size[0], windows.starts(0)
    x_weight, y_weight, z_weight = windows.weights()
    weight = x_weight[:, None, None] * y_weight[:, None] * z_weight
    x_total, y_total, z_total = windows.totals()
    column = 1 / (y_total[:, None] * z_total)
    held = torch.zeros(prompts, height, *windows.shape[1:])
    for number, x in enumerate(x_starts):
        for window in windows.row(x):
            said = predict(window).to("cpu", torch.float32)
            held[:, :, window[1], window[2]].addcmul_(said, weight)
        end = x_starts[number + 1] if number + 1 < len(x_starts) else windows.shape[0]
        done = end - x
        slab = held[:, :done]
        slab.mul_(column).div_(x_total[x:end, None, None])
        yield slice(x, end), slab
        # What is left moves to the front, in steps that never read what they have written.
        for start in range(0, height - done, done):
            length = min(done, height - done - start)
            held[:, start : start + length] = held[:, start + done : start + done + length]
        held[:, height - done :] = 0


@torch.no_grad()
def segment_sliding(
    model: VolumeLM,
    task: Task,
    grid: Grid,
    volume: MetaTensor,
    prompts: Sequence[str],
    *,
    overlap: float = 0.5,
    presence: float = 0.5,
) -> tuple[Bool[Tensor, "prompts x y z"], Grid]:
    """Masks of text prompts over a whole volume at the grid's spacing, however large it is.

    Every window is put through the encoder once for all prompts. A window in which a prompt is said to be absent votes
    against it.

    Args:
        task: a PromptSegmentation.
        grid: the model's card; its shape is the window's.
        volume: HU, as read.
        presence: least probability of being there.

    Returns:
        the masks, and the grid they lie on (the card, as large as the volume): `grid.inverse(mask, like=volume)`
        brings one back to the file's own.

    Raises:
        ValueError: the grid has no fixed spacing or shape to make windows of.
    """
    if grid.spacing is None or grid.shape is None:
        raise ValueError(
            f"grid {grid.name!r} has spacing {grid.spacing} and shape {grid.shape}: windows need both; segment "
            "without sliding"
        )
    # As large as the volume, and filled up to a window about its centre as the grid itself fills up.
    needed = replace(grid, shape=None).geometry(volume).shape
    whole = replace(grid, shape=tuple(map(max, needed, grid.shape)))
    on_grid = whole.resample(volume)
    shown, affine = on_grid.as_tensor(), torch.as_tensor(on_grid.affine, dtype=torch.float64)
    by_rule = isinstance(grid.window, str)
    if by_rule:  # a rule asks the whole volume, of which a window may hold only the dark
        shown = grid.window_hu(shown)
    windows = Windows(tuple(shown.shape[1:]), tuple(grid.shape), overlap)
    name = str(volume.meta.get("filename", "volume"))
    study = Study(study=name, image=Path(name))

    def predict(window: Window) -> Tensor:
        moved = affine.clone()
        start = torch.tensor([part.start for part in window], dtype=torch.float64)
        moved[:3, 3] += affine[:3, :3] @ start
        batch = Batch([study], shown[(slice(None), *window)][None], moved[None]).to(model.device)
        if not by_rule:
            batch = replace(batch, image=grid.window_hu(batch.image))
        features = model.encode(batch.image, batch.affine)
        return task.logits(model, features, batch, prompts, presence=presence)[0]

    masks = torch.zeros(len(prompts), *windows.shape, dtype=torch.bool)
    for place, slab in stitch(windows, predict, len(prompts)):
        torch.gt(slab, 0, out=masks[:, place])
    return masks, whole
