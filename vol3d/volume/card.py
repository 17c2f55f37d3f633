"""Checks of what a preprocessing card may say; values come from Python, YAML or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vol3d.volume.windows import RULES


def check_three(values: Sequence[Any], name: str, kind: type) -> tuple[Any, Any, Any]:
    """Three positive numbers, one an axis."""
    numbers = tuple(kind(value) for value in values)
    if len(numbers) != 3 or min(numbers) <= 0 or not np.isfinite(numbers).all():
        raise ValueError(f"{name} {tuple(values)} is not three positive numbers (x, y, z)")
    return numbers


def check_pair(values: Sequence[Any], name: str) -> tuple[float, float]:
    """(low, high) with low below high."""
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"{name} {tuple(values)} is not (low, high) with low < high")
    return numbers


def check_windows(window: Any) -> tuple[tuple[float, float], ...] | str:
    """One window or several → a tuple of pairs; the name of a rule stays."""
    if isinstance(window, str):
        if window not in RULES:
            raise ValueError(
                f"window {window!r}: choose (low, high) in HU, several of them, or one of {', '.join(RULES)}"
            )
        return window
    pairs = [window] if len(window) and not isinstance(window[0], Sequence) else window
    if not len(pairs):
        raise ValueError("window has no (low, high) pair")
    return tuple(check_pair(pair, "window") for pair in pairs)
