"""vol3d: train, run and judge multimodal language models on your own CT volumes.

Importing vol3d loads neither torch nor MONAI; each name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "read": "vol3d.volume.read",
    "read_mask": "vol3d.volume.read",
    "write": "vol3d.volume.export",
    "resample": "vol3d.volume.grid",
    "Geometry": "vol3d.volume.geometry",
    "Grid": "vol3d.volume.grid",
    "Manifest": "vol3d.data.manifest",
    "doctor": "vol3d.data.doctor",
    "VolumeData": "vol3d.data.dataset",
    "PerceiverProjector": "vol3d.model.projectors",
    "SpatialPoolingProjector": "vol3d.model.projectors",
    "MLPProjector": "vol3d.model.projectors",
    "LinearProjector": "vol3d.model.projectors",
    "PixelShuffleProjector": "vol3d.model.projectors",
    "AttentionPoolingProjector": "vol3d.model.projectors",
    "RadFMProjector": "vol3d.model.projectors",
    "MixerProjector": "vol3d.model.projectors",
    "MultiLayerProjector": "vol3d.model.injection",
    "LanguageModel": "vol3d.model.language",
    "VolumeLM": "vol3d.model.volume_lm",
    "VolumeModule": "vol3d.training.module",
    "load": "vol3d.model.inference",
    "evaluate": "vol3d.evaluation.run",
}
_ROOMS = ("encoders", "tasks", "recipes", "phantom", "text", "volume", "data", "model", "training", "evaluation")

__all__ = [*_HOME, *_ROOMS]

if TYPE_CHECKING:
    from vol3d import data, encoders, evaluation, model, phantom, recipes, tasks, text, training, volume
    from vol3d.data.dataset import VolumeData
    from vol3d.data.doctor import doctor
    from vol3d.data.manifest import Manifest
    from vol3d.evaluation.run import evaluate
    from vol3d.model.inference import load
    from vol3d.model.injection import MultiLayerProjector
    from vol3d.model.language import LanguageModel
    from vol3d.model.projectors import (
        AttentionPoolingProjector,
        LinearProjector,
        MixerProjector,
        MLPProjector,
        PerceiverProjector,
        PixelShuffleProjector,
        RadFMProjector,
        SpatialPoolingProjector,
    )
    from vol3d.model.volume_lm import VolumeLM
    from vol3d.training.module import VolumeModule
    from vol3d.volume.export import write
    from vol3d.volume.geometry import Geometry
    from vol3d.volume.grid import Grid, resample
    from vol3d.volume.read import read, read_mask


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _ROOMS:
        value = import_module(f"vol3d.{name}")
    else:
        raise AttributeError(f"module 'vol3d' has no attribute {name!r}; public names: {', '.join(sorted(__all__))}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
