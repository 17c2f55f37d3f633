"""HU → what a network sees: windows and normalisations, plain torch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

RULES = ("minmax", "percentile", "zscore")
_SAMPLES = 1_000_000


def apply_windows(hu: Tensor, window: tuple[tuple[float, float], ...] | str, out_range: tuple[float, float]) -> Tensor:
    """HU (..., 1, x, y, z) → float32 (..., windows, x, y, z).

    Raises:
        ValueError: there is not exactly one channel.
    """
    if hu.ndim < 4 or hu.shape[-4] != 1:
        raise ValueError(f"HU is {tuple(hu.shape)}; windows take (..., 1, x, y, z): one channel, not windowed before")
    values = hu.float()
    if isinstance(window, str):
        return _by_rule(values, window, out_range)
    low = torch.tensor([pair[0] for pair in window], device=hu.device)[:, None, None, None]
    high = torch.tensor([pair[1] for pair in window], device=hu.device)[:, None, None, None]
    return _scaled(values, low, high, out_range)


def _scaled(values: Tensor, low: Tensor, high: Tensor, out_range: tuple[float, float]) -> Tensor:
    scale = (out_range[1] - out_range[0]) / (high - low).clamp_min(1e-6)
    return ((values - low) * scale).add_(out_range[0]).clamp_(*out_range)


def _by_rule(values: Tensor, rule: str, out_range: tuple[float, float]) -> Tensor:
    """Each volume by its own values; percentiles of at most a million evenly drawn voxels."""
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
    clipped = values.clamp(_spread(low), _spread(high))
    return torch.nan_to_num((clipped - _spread(mean)) / _spread(deviation))


def _spread(values: Tensor) -> Tensor:
    return values[..., None, None, None, None]
