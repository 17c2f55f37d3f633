"""Separable resampling between grids with parallel axes: each axis is a short list of taps (index, weight).

MONAI's Spacing samples all three axes at once through a dense float grid of the whole volume. For parallel axes the
same linear interpolation factors into three one-dimensional ones, which read int16 slices one by one and never hold
a float copy of the volume. Equal to Spacing within float rounding (tests/test_volume_grid.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Kind = Literal["linear", "nearest", "average"]
Convert = Callable[[NDArray[np.generic]], NDArray[np.float32]]
_BLOCK = 16


@dataclass(frozen=True)
class Axis:
    """How an output axis of `size` voxels reads a source axis of `source` voxels.

    Output voxel k lies at source index `offset + k * step`; voxels outside [start, stop) lie outside the source.
    """

    source: int
    size: int
    step: float
    offset: float
    start: int
    stop: int

    @property
    def whole(self) -> bool:
        """Whether output voxels coincide with source voxels (a crop or a pad)."""
        return self.step == 1.0 and float(self.offset).is_integer()

    @property
    def unchanged(self) -> bool:
        """Whether output and source are the same voxels."""
        return self.whole and self.offset == 0 and self.size == self.source

    def reverse(self) -> Axis:
        """The way back: the source axis reads this one; outside is what lies over half a voxel beyond it."""
        step, offset = 1.0 / self.step, -self.offset / self.step
        start = max(0, int(np.ceil((-0.5 - offset) / step - 1e-9)))
        stop = min(self.source, int(np.floor((self.size - 0.5 - offset) / step + 1e-9)) + 1)
        return Axis(self.size, self.source, step, offset, min(start, self.source), max(stop, start))

    def taps(self, kind: Kind) -> Taps:
        """The source voxels, and their weights, that each output voxel inside [start, stop) is made of.

        "linear" reads the two neighbours, whatever the step: exactly what MONAI and the peers do, and a structure
        thinner than the step may fall between them. "average" weighs all source voxels within one step (a triangle,
        the usual anti-aliasing filter); equal to "linear" when the step is 1 or less.
        """
        at = np.clip(self.offset + self.step * np.arange(self.start, self.stop), 0, self.source - 1)
        nearest = np.floor(at + 0.5)
        if kind == "nearest":
            return Taps(nearest[None].astype(np.int64), np.ones((1, len(at)), np.float32))
        if kind == "linear" or self.step <= 1:
            if np.abs(at - nearest).max(initial=0) < 1e-6:
                return self.taps("nearest")
            low = np.minimum(np.floor(at), max(self.source - 2, 0))
            share = at - low
            index = np.stack([low, np.minimum(low + 1, self.source - 1)])
            return Taps(index.astype(np.int64), np.stack([1 - share, share]).astype(np.float32))
        reach = int(np.ceil(self.step))
        index = np.floor(at) + np.arange(-reach + 1, reach + 1)[:, None]
        weight = np.clip(1 - np.abs(index - at) / self.step, 0, None) * ((index >= 0) & (index < self.source))
        index = np.clip(index, 0, self.source - 1).astype(np.int64)
        return Taps(index, (weight / weight.sum(0)).astype(np.float32))


@dataclass(frozen=True)
class Taps:
    """Output voxel k = Σ weight[t, k] · source[index[t, k]].

    Shape:
        index, weight: (taps, outputs).
    """

    index: NDArray[np.int64]
    weight: NDArray[np.float32]

    def span(self) -> tuple[int, int]:
        """The source voxels that are read at all, [low, high)."""
        return int(self.index.min()), int(self.index.max()) + 1

    def shifted(self, low: int) -> Taps:
        """For a source whose first `low` voxels were cut off."""
        return Taps(self.index - low, self.weight)

    def apply(self, values: Tensor, dim: int) -> Tensor:
        """Resamples one axis of a float tensor."""
        shape = [1] * values.ndim
        shape[dim] = -1
        result = values.index_select(dim, torch.from_numpy(self.index[0]))
        if len(self.index) == 1:
            return result
        result *= torch.from_numpy(self.weight[0]).reshape(shape)
        for index, weight in zip(self.index[1:], self.weight[1:], strict=True):
            result.addcmul_(values.index_select(dim, torch.from_numpy(index)), torch.from_numpy(weight).reshape(shape))
        return result


def resample_volume(
    source: NDArray[np.generic],
    axes: tuple[Axis, Axis, Axis],
    convert: Convert,
    *,
    pad: int | None,
    kind: Kind = "linear",
) -> Tensor:
    """`source` (x, y, z), any type and memory order → (x, y, z) int16 on the axes' grid, `pad` outside.

    Args:
        pad: None is the lowest value on the grid.
        convert: stored values → float32 HU, memory order kept.
    """
    if interpolates(axes):
        return resample_slices(_slices(source), axes, convert, pad=pad, kind=kind)
    if any(axis.stop <= axis.start for axis in axes):
        return _filled(axes, pad or 0)
    starts = [int(axis.offset) + axis.start for axis in axes]
    part = source[tuple(slice(low, low + axis.stop - axis.start) for low, axis in zip(starts, axes, strict=True))]
    return _placed(to_int16(torch.from_numpy(convert(part))), axes, pad)


def interpolates(axes: tuple[Axis, Axis, Axis]) -> bool:
    """Whether the grid's voxels lie between those of the source: if not, it is a crop or a pad, or lies outside."""
    return all(axis.stop > axis.start for axis in axes) and not all(axis.whole for axis in axes)


def resample_slices(
    slices: Iterable[tuple[int, NDArray[np.generic]]],
    axes: tuple[Axis, Axis, Axis],
    convert: Convert,
    *,
    pad: int | None,
    kind: Kind = "linear",
) -> Tensor:
    """A volume that comes slice by slice, each once, in any order → what `resample_volume` gives of the whole.

    Along y, then x within each slice, then z between the small slices, of which no more are held than are still needed.

    Args:
        slices: z and stored values (y, x). All are taken, needed or not: only at the end of a file is it known to be
            whole.
    """
    x, y, z = (axis.taps(kind) for axis in axes)
    (x_low, x_high), (y_low, y_high) = x.span(), y.span()
    x, y, blend = x.shifted(x_low), y.shifted(y_low), _Blend(z)
    planes = _int16(z.index.shape[1], y.index.shape[1], x.index.shape[1])
    for number, stored in slices:
        if blend.needs(number):
            plane = torch.from_numpy(np.ascontiguousarray(convert(stored[y_low:y_high, x_low:x_high])))
            for output, values in blend.add(number, x.apply(y.apply(plane, 0), 1)):
                planes[output] = to_int16(values)
    turned = _int16(*planes.shape[1:], len(planes))
    turned.flatten(0, 1).copy_(planes.flatten(1).t())  # torch turns a matrix in blocks, three axes voxel by voxel
    return _placed(turned.transpose(0, 1), axes, pad)


def _placed(values: Tensor, axes: tuple[Axis, Axis, Axis], pad: int | None) -> Tensor:
    """The values inside the source on the whole grid."""
    out = _filled(axes, int(values.min()) if pad is None else pad)
    out[_inside(axes)] = values
    return out


def _filled(axes: tuple[Axis, Axis, Axis], pad: int) -> Tensor:
    return torch.from_numpy(np.full(tuple(axis.size for axis in axes), pad, np.int16))


def _inside(axes: tuple[Axis, Axis, Axis]) -> tuple[slice, ...]:
    return tuple(slice(axis.start, axis.stop) for axis in axes)


def _slices(source: NDArray[np.generic]) -> Iterator[tuple[int, NDArray[np.generic]]]:
    """z and (y, x) of a volume (x, y, z); where z is not its slowest axis in memory, some at a time are copied."""
    block = 1 if np.argmax(np.abs(source.strides)) == 2 else _BLOCK
    for first in range(0, source.shape[2], block):
        part = source[:, :, first : first + block].transpose(2, 1, 0)
        yield from enumerate(part if block == 1 else np.ascontiguousarray(part), first)


def _int16(*shape: int) -> Tensor:
    """Not filled. NumPy asks for large pages, which torch does not: a fourth of the time was their first touch."""
    return torch.from_numpy(np.empty(shape, np.int16))


def to_int16(values: Tensor) -> Tensor:
    """Rounded to the nearest HU; what int16 cannot hold (metal, bad files) is clipped."""
    if values.dtype == torch.int16:
        return values
    return values.round().clamp_(-32768, 32767).to(torch.int16)


class _Blend:
    """Weighted sums of slices along z: each is given as soon as the last of its slices has come."""

    def __init__(self, z: Taps) -> None:
        columns = zip(z.index.T, z.weight.T, strict=True)
        self._made_of = [[(int(i), float(w)) for i, w in zip(*column, strict=True) if w != 0] for column in columns]
        self._waiting: dict[int, set[int]] = {}
        for output, parts in enumerate(self._made_of):
            for number, _ in parts:
                self._waiting.setdefault(number, set()).add(output)
        self._kept: dict[int, Tensor] = {}

    def needs(self, number: int) -> bool:
        return number in self._waiting

    def add(self, number: int, plane: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The sums that are complete with this slice, by their number."""
        self._kept[number] = plane
        for output in sorted(self._waiting[number]):
            parts = self._made_of[output]
            if all(index in self._kept for index, _ in parts):
                yield output, self._sum(parts)
                for index, _ in parts:
                    self._waiting[index].discard(output)
        for index in [index for index in self._kept if not self._waiting[index]]:
            del self._kept[index]

    def _sum(self, parts: list[tuple[int, float]]) -> Tensor:
        (first, weight), *others = parts
        if not others and weight == 1.0:
            return self._kept[first]
        total = self._kept[first] * weight
        for index, weight in others:
            total.add_(self._kept[index], alpha=weight)
        return total


def resample_dense(values: Tensor, axes: tuple[Axis, Axis, Axis], *, kind: Kind, outside: float | int = 0.0) -> Tensor:
    """A float tensor (x, y, z) on the axes' grid, float32, `outside` beyond the source."""
    out = torch.full(tuple(axis.size for axis in axes), outside, dtype=torch.float32)
    if any(axis.stop <= axis.start for axis in axes):
        return out
    order = (2, 1, 0) if out.numel() > values.numel() else (0, 1, 2)  # gather along memory rows while there are few
    for dim in order:
        values = axes[dim].taps(kind).apply(values, dim)
    out[_inside(axes)] = values
    return out
