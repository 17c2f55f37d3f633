"""Versions, devices, and what a saved model is."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vol3d import __version__

_PACKAGES = ("torch", "monai", "lightning", "transformers", "peft", "nibabel", "SimpleITK", "pydicom")


def info(model: str | Path | None = None) -> dict[str, Any]:
    """Versions and devices; with a model folder also its parts, parameters, tasks, grid and card.

    Raises:
        ValueError: the folder is not a saved model.
    """
    import torch

    data: dict[str, Any] = {"vol3d": __version__, "python": platform.python_version()}
    data.update({name: _version(name) for name in _PACKAGES})
    data["devices"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] or ["cpu"]
    if model is not None:
        from vol3d.model.pretrained import base_of, build

        parts, tasks, grid = build(model)
        data["model"] = str(model)
        for name in ("encoder", "projector", "language"):
            part = getattr(parts, name)
            if part is not None:
                count = sum(parameter.numel() for parameter in part.parameters())
                data[name] = f"{type(part).__name__}, {count:,} parameters"
        data["tasks"] = list(tasks)
        data["grid"] = grid.to_dict()
        if (base := base_of(model)) is not None:
            data["base"] = str(base)
        data["card"] = (Path(model) / "card.md").read_text(encoding="utf-8")
    return data


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
