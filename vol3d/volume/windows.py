"""HU → what a network sees: windows and normalisations, plain torch, on any device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

RULES = ("minmax", "percentile", "zscore")
_SAMPLES = 1_000_000
_CACHED = 1 << 17
"""Voxels that stay in a CPU's cache from one step of a window to the next."""


def apply_windows(
    hu: Tensor, window: tuple[tuple[float, float], ...] | str, out_range: tuple[float, float], out: Tensor | None = None
) -> Tensor:
    """HU (..., 1, x, y, z) → float32 (..., windows, x, y, z), one pass a window and no copy beside the result.

    Args:
        out: float32 memory of the result's shape to write into, used again from batch to batch.

    Raises:
        ValueError: there is not exactly one channel, or `out` has another shape or type.
    """
    if hu.ndim < 4 or hu.shape[-4] != 1:
        raise ValueError(f"HU is {tuple(hu.shape)}; windows take (..., 1, x, y, z): one channel, not windowed before")
    shape = (*hu.shape[:-4], 1 if isinstance(window, str) else len(window), *hu.shape[-3:])
    if out is None:
        out = torch.empty(shape, dtype=torch.float32, device=hu.device)
    elif (tuple(out.shape), out.dtype) != (shape, torch.float32):
        raise ValueError(f"out is {tuple(out.shape)} {out.dtype}, the windowed volume {shape} torch.float32")
    if isinstance(window, str):
        return _by_rule(out.copy_(hu), window, out_range)
    for channel, (low, high) in enumerate(window):
        for source, target in _parts(hu.select(-4, 0), out.select(-4, channel)):
            _scaled(target.copy_(source), low, high, out_range)
    return out


def _parts(source: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in the same slabs along x, small enough for a CPU's cache; whole on any other device."""
    planes = source.shape[-3]
    if source.device.type == "cpu":
        planes = max(1, min(planes, _CACHED * planes // max(1, source.numel())))
    return zip(source.split(planes, -3), target.split(planes, -3), strict=True)


def _scaled(values: Tensor, low: Tensor | float, high: Tensor | float, out_range: tuple[float, float]) -> Tensor:
    """In place: float HU → `out_range`."""
    width = (high - low).clamp_min(1e-6) if isinstance(high, Tensor) else max(high - low, 1e-6)
    values.sub_(low).mul_((out_range[1] - out_range[0]) / width)
    if out_range[0]:
        values.add_(out_range[0])
    return values.clamp_(*out_range)


def _by_rule(values: Tensor, rule: str, out_range: tuple[float, float]) -> Tensor:
    """In place: each volume by its own values; percentiles of at most a million evenly drawn voxels."""
    flat = values.flatten(-4)
    if rule == "minmax":
        low, high = flat.amin(-1), flat.amax(-1)
        return _scaled(values, _spread(low), _spread(high), out_range)
    drawn = flat[..., :: max(1, flat.shape[-1] // _SAMPLES)]
    if rule == "percentile":
        low, high = torch.quantile(drawn, torch.tensor([0.005, 0.995], device=values.device), dim=-1)
        return _scaled(values, _spread(low), _spread(high), out_range)
    bright = torch.where(drawn > drawn.mean(-1, keepdim=True), drawn, torch.nan)
    low, high = torch.nanquantile(bright, torch.tensor([0.0005, 0.9995], device=values.device), dim=-1)
    mean = bright.nanmean(-1)
    deviation = (bright - mean[..., None]).square().nanmean(-1).sqrt().clamp_min(1e-6)
    return values.clamp_(_spread(low), _spread(high)).sub_(_spread(mean)).div_(_spread(deviation)).nan_to_num_()


def _spread(values: Tensor) -> Tensor:
    return values[..., None, None, None, None]
