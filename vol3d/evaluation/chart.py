"""Loss curves and reliability plots for an inline SVG; ticks are HTML, so that text stays text at any width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT = 1000, 300
_COLOURS = ("#1c6e7d", "#c2703d", "#6b5b95", "#7a8b3f", "#a23b57", "#4a6fa5", "#3d3d3d", "#c9a227")
_MOST_POINTS = 400


def loss_chart(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Every column of metrics.csv with "loss" in its name, over its "step"; None when there is no curve.

    Cells may be text, and empty where nothing was logged.

    Returns:
        "curves" [{"name", "colour", "last", "points"}], and "x", "y": ticks as (place in %, text).
    """
    curves = _curves(history)
    if not curves:
        return None
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    left, right = min(xs), max(max(xs), min(xs) + 1)
    heights = nice_ticks(min(0.0, *ys), max(*ys, 1e-9), beyond=True)
    bottom, top = heights[0], heights[-1]

    def place(point: tuple[float, float]) -> str:
        across, up = (point[0] - left) / (right - left), (point[1] - bottom) / (top - bottom)
        return f"{WIDTH * across:.1f},{HEIGHT * (1 - up):.1f}"

    return {
        "curves": [
            {
                "name": name.replace("_", " ").replace("/", " "),
                "colour": _COLOURS[number % len(_COLOURS)],
                "last": points[-1][1],
                "points": " ".join(map(place, _thin(points))),
            }
            for number, (name, points) in enumerate(curves.items())
        ],
        "x": [(100 * (tick - left) / (right - left), f"{tick:,.10g}") for tick in nice_ticks(left, right)],
        "y": [(100 * (1 - (tick - bottom) / (top - bottom)), f"{tick:.6g}") for tick in heights],
    }


def reliability_chart(bins: Sequence[Mapping[str, float]]) -> list[dict[str, float]] | None:
    """Where the bins of `vol3d.evaluation.metrics.codes.reliability` lie on a plot of 100 × 100, largest radius 3.

    Returns:
        [{"x", "y", "radius", "probability", "frequency", "labels"}], None for nothing to draw.
    """
    most = max((row["labels"] for row in bins), default=0)
    if not most:
        return None
    return [
        dict(row)
        | {"x": 100 * row["probability"], "y": 100 * (1 - row["frequency"])}
        | {"radius": 1 + 2 * math.sqrt(row["labels"] / most)}
        for row in bins
    ]


def nice_ticks(low: int | float, high: int | float, *, beyond: bool = False) -> list[float]:
    """Three to seven round numbers between low and high; with `beyond`, the first and last enclose them."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    first = math.floor(low / step) if beyond else math.ceil(low / step - 1e-9)
    last = math.ceil(high / step - 1e-9) if beyond else math.floor(high / step + 1e-9)
    return [round(step * number, 12) for number in range(first, last + 1)]


def _curves(history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    columns = [name for name in dict.fromkeys(key for row in history for key in row) if "loss" in name.lower()]
    curves = {}
    for name in columns:
        places = [(_number(row.get("step", number)), _number(row.get(name))) for number, row in enumerate(history)]
        points = [(x, y) for x, y in places if x is not None and y is not None]
        if len(points) > 1:
            curves[name] = points
    return curves


def _number(cell: object) -> float | None:
    try:
        number = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of stretches, so that a long run stays a small file."""
    if len(points) <= _MOST_POINTS:
        return points
    return [tuple(part.mean(0).tolist()) for part in np.array_split(np.array(points), _MOST_POINTS)]
