"""A saved model at work on new volumes: it prepares every input by the card it was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vol3d.data.batch import Batch, Sample, collate
from vol3d.data.cache import MASKS, Reader, VolumeCache
from vol3d.data.parallel import map_in_order
from vol3d.data.study import TEXTS, Study
from vol3d.model.interfaces import Features, Task, predicting
from vol3d.model.volume_lm import VolumeLM

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from vol3d.volume.grid import Grid


def load(folder: str | Path, *, device: str = "cpu", cache: str | Path | None = None) -> TrainedModel:
    """Load a saved model folder for inference.

    Args:
        device: as torch names it, "cuda:1"; "auto" takes a GPU where there is one.
        cache: folder that `vol3d prepare` filled: a manifest's studies are read from it, and put there when they are
            not. None puts each on the grid at every visit.

    Raises:
        ValueError: the folder is not a saved model (what is missing is named), or torch has no such device.
    """
    from vol3d.model.pretrained import build

    place = usable(device)
    model, tasks, grid = build(folder)
    return TrainedModel(model, tasks, grid, folder=Path(folder), cache=cache).to(place)


def usable(device: str | torch.device) -> torch.device:
    """The device of this name; "auto" is a GPU where there is one, else the CPU.

    Raises:
        ValueError: torch does not know it, or cannot use it here.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        gpus = torch.cuda.device_count()
        raise ValueError(
            f"device {str(device)!r} cannot be used: torch {torch.__version__} finds {gpus} GPUs here; give cpu"
            f"{', cuda:0' if gpus else ''}{f' to cuda:{gpus - 1}' if gpus > 1 else ''} or auto"
        ) from error


class TrainedModel:
    """A model, its task heads and its preprocessing card.

    Every volume given is put on `grid` here; a tensor without geometry is refused, because what was done to it
    cannot be known.
    """

    def __init__(
        self,
        model: VolumeLM,
        tasks: dict[str, Task],
        grid: Grid,
        *,
        folder: Path | None = None,
        cache: str | Path | None = None,
    ) -> None:
        self.model, self.tasks, self.grid, self.folder = model.eval(), tasks, grid, folder
        self.reader = Reader(grid, None if cache is None else VolumeCache(cache, grid))

    def to(self, device: str | torch.device) -> TrainedModel:
        """Move model and tasks, as `load` does.

        Raises:
            ValueError: torch has no such device.
        """
        device = usable(device)
        for module in (self.model, *self.tasks.values()):
            module.to(device)
        return self

    def report(self, volume: MetaTensor | str | Path) -> str:
        """The report of one volume (a path, or what `vol3d.read` gave), or the part of it that the model writes."""
        return next(iter(self._predict_one(volume, self._task(*TEXTS)).values()))

    def ask(self, volume: MetaTensor | str | Path, question: str, choices: Sequence[str] | None = None) -> str:
        """The answer to a question about one volume; one of `choices` when they are given."""
        task = self._task("vqa")
        with torch.inference_mode():
            features, _ = self._see(self.sample(volume))
            return task.answer(self.model, features, [question], [choices])[0]["answer"]

    def codes(self, volume: MetaTensor | str | Path) -> dict[str, float]:
        """Probability of each code the model was trained on, highest first."""
        found = self._predict_one(volume, self._task("codes"))["codes"]
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def segment(self, volume: MetaTensor | str | Path, prompt: str, **options: Any) -> MetaTensor:
        """The mask of what `prompt` names, (1, x, y, z) uint8 on the volume's own grid; empty when it is not there.

        Options are those of the task's `segment`: points and boxes in RAS millimetres, or an earlier mask, which is put
        on the model's grid here when it has a geometry (as this gives it, or `vol3d.read_mask`).
        """
        task, volume = self._task("segmentation"), self._read(volume)
        if isinstance(mask := options.get("mask"), type(volume)):
            mask = mask if mask.ndim == 4 else mask[None]
            options["mask"] = self.grid.resample_mask(mask, like_volume=volume)[0].as_tensor()
        with torch.inference_mode():
            features, batch = self._see(self.sample(volume))
            mask = task.segment(self.model, features, batch, [prompt], **options)[0, 0]
        return self.grid.inverse(mask.to(torch.uint8)[None].cpu(), like=volume)

    def embed(self, volume: MetaTensor | str | Path) -> Tensor:
        """The volume's unit vector (embed_dim,), comparable with `embed_text`'s by their product."""
        task = self._task("retrieval")
        with torch.inference_mode():
            features, _ = self._see(self.sample(volume))
            return task.embed_volume(self.model, features)[0]

    def embed_text(self, text: str) -> Tensor:
        """The text's unit vector (embed_dim,)."""
        with torch.inference_mode():
            return self._task("retrieval").embed_text(self.model, [text])[0]

    def predict(self, samples: Sequence[Sample], tasks: Sequence[Task] | None = None) -> list[dict[str, Any]]:
        """What all tasks (`predicting`), or these, say of samples that already lie on the grid, one dictionary a study.

        The volume is encoded and projected once for all of them.
        """
        tasks = list(predicting(self.tasks).values()) if tasks is None else tasks
        with torch.inference_mode():
            features, batch = self._see(*samples)
            if any("visual" in task.uses for task in tasks):
                features.visual = self.model.project(features)
            rows: list[dict[str, Any]] = [{"study": study.study} for study in batch.studies]
            for task in tasks:
                for row, prediction in zip(rows, task.predict(self.model, features, batch), strict=True):
                    row.update(prediction)
        return rows

    def sample(self, volume: Study | MetaTensor | str | Path) -> Sample:
        """Put one volume, or a manifest's study with its masks, on the model's grid."""
        if isinstance(volume, Study):
            return self.reader(volume)
        path = Path(volume) if isinstance(volume, (str, Path)) else None
        volume = self._read(volume)
        image = path or Path(str(volume.meta.get("filename", "volume")))
        on_grid = self.grid.resample(volume)
        return Sample(Study(study=image.name, image=image), on_grid.as_tensor(), on_grid.affine)

    def read_ahead(self, studies: Sequence[Study], *, masks: bool = True, workers: int = 0) -> Iterator[Sample]:
        """Studies on the model's grid, in their order, read ahead by `workers` processes (0: as they are asked for).

        Raises:
            ValueError, FileNotFoundError: a study that cannot be read, by its name.
        """
        for found in map_in_order(partial(self.reader.attempt, masks=MASKS if masks else ()), studies, workers):
            if isinstance(found, Exception):
                raise found
            yield found

    def _read(self, volume: MetaTensor | str | Path) -> MetaTensor:
        from monai.data import MetaTensor

        from vol3d.volume.read import read

        if isinstance(volume, (str, Path)):
            return read(volume)
        if not isinstance(volume, MetaTensor):
            shape = f" of shape {tuple(volume.shape)}" if hasattr(volume, "shape") else ""
            raise ValueError(
                f"got a {type(volume).__name__}{shape} without geometry: give a path or the "
                "MetaTensor that vol3d.read returns, and the model puts it on its own grid"
            )
        return volume

    def _see(self, *samples: Sample) -> tuple[Features, Batch]:
        """The features of samples on the grid, and the windowed batch they come from."""
        batch = collate(list(samples)).to(self.model.device)
        batch = replace(batch, image=self.grid.window_hu(batch.image))
        return self.model.encode(batch.image, batch.affine), batch

    def _predict_one(self, volume: MetaTensor | str | Path, task: Task) -> dict[str, Any]:
        with torch.inference_mode():
            features, batch = self._see(self.sample(volume))
            return task.predict(self.model, features, batch)[0]

    def _task(self, *kinds: str) -> Any:
        """The first task that predicts one of `kinds`."""
        for task in self.tasks.values():
            if task.kind in kinds:
                return task
        known = sorted({task.kind for task in self.tasks.values() if task.kind})
        raise ValueError(
            f"this model was not trained for {kinds[0]!r}; it predicts {', '.join(known) or 'nothing by itself'}: "
            f"train it with a recipe that has a task for {kinds[0]!r}"
        )
