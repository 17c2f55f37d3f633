"""Loss curves and reliability plots for an inline SVG; ticks are HTML, so that text stays text at any width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT = 1000, 300
_COLOURS = ("#1c6e7d", "#c2703d", "#6b5b95", "#7a8b3f", "#a23b57", "#4a6fa5", "#3d3d3d", "#c9a227")
_MOST_POINTS = 400


def loss_charts(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A chart for each loss ("report loss" of training and validation together), so that none flattens another."""
    names = [name for name in dict.fromkeys(key for row in history for key in row) if "loss" in name.lower()]
    families: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: not name.startswith("train")):
        families.setdefault(name.replace("_", "/").split("/", 1)[-1] if "/" in name else "loss", []).append(name)
    charts = []
    for family, members in families.items():
        kept = [
            {"step": row.get("step", place)} | {name: row.get(name) for name in members}
            for place, row in enumerate(history)
        ]
        if (chart := loss_chart(kept)) is not None:
            charts.append(chart | {"title": family.replace("/", " ")})
    return charts


def loss_chart(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Every column of metrics.csv with "loss" in its name, over its "step"; None when there is no curve.

    Cells may be text, and empty where nothing was logged. The scale is logarithmic where a loss falls to a twentieth
    or less, since its end would lie on the floor otherwise.

    Returns:
        "curves" [{"name", "colour", "last", "points"}], "log", and "x", "y": ticks as (place in %, text).
    """
    curves = _curves(history)
    if not curves:
        return None
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    log = min(ys) > 0 and max(ys) > 20 * min(ys)
    left, right = min(xs), max(max(xs), min(xs) + 1)
    heights = _powers(min(ys), max(ys)) if log else nice_ticks(min(0.0, *ys), max(*ys, 1e-9), beyond=True)
    scale = math.log10 if log else float
    bottom, top = scale(heights[0]), scale(heights[-1])

    def place(point: tuple[float, float]) -> str:
        across, up = (point[0] - left) / (right - left), (scale(point[1]) - bottom) / (top - bottom)
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
        "log": log,
        "x": [(100 * (tick - left) / (right - left), f"{tick:,.10g}") for tick in nice_ticks(left, right)],
        "y": [(100 * (1 - (scale(tick) - bottom) / (top - bottom)), f"{tick:.6g}") for tick in heights],
    }


def _powers(low: float, high: float) -> list[float]:
    """1, 3, 10, 30 … around two positive numbers."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = [part * 10.0**power for power in range(first, last + 1) for part in (1, 3)]
    start = max(place for place, mark in enumerate(marks) if mark <= low)
    end = min(place for place, mark in enumerate(marks) if mark >= high)
    chosen = marks[start : max(end, start + 1) + 1]
    if len(chosen) <= 6:
        return chosen
    step = -(-(last - first) // 6)
    return [10.0**power for power in range(first, last + step, step)]


def curve_chart(curve: Sequence[Sequence[float]]) -> str:
    """Points (x, y), both from 0 to 1, as a polyline on a plot of 100 × 100."""
    return " ".join(f"{100 * x:.2f},{100 * (1 - y):.2f}" for x, y in curve)


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
