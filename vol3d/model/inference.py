"""A saved model at work on new volumes: it prepares every input by the card it was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vol3d.data.batch import Batch, Sample, collate
from vol3d.data.study import Study
from vol3d.model.interfaces import Task
from vol3d.model.volume_lm import VolumeLM

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from vol3d.volume.grid import Grid


def load(folder: str | Path, *, device: str = "cpu") -> TrainedModel:
    """Load a saved model folder for inference.

    Raises:
        ValueError: the folder is not a saved model (what is missing is named).
    """
    from vol3d.model.pretrained import build

    model, tasks, grid = build(folder)
    return TrainedModel(model, tasks, grid, folder=Path(folder)).to(device)


class TrainedModel:
    """A model, its task heads and its preprocessing card.

    Every volume given is put on `grid` here; a tensor without geometry is refused, because what was done to it
    cannot be known.
    """

    def __init__(self, model: VolumeLM, tasks: dict[str, Task], grid: Grid, *, folder: Path | None = None) -> None:
        self.model, self.tasks, self.grid, self.folder = model.eval(), tasks, grid, folder

    def to(self, device: str) -> TrainedModel:
        for module in (self.model, *self.tasks.values()):
            module.to(device)
        return self

    def report(self, volume: MetaTensor | str | Path) -> str:
        """The report of one volume: a path, or what `vol3d.read` gave."""
        task = self._task("report")
        return next(iter(self._predict_one(volume, task).values()))

    def predict(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Every task's prediction for samples that already lie on the grid, one dictionary a study."""
        batch = self._batch(collate(list(samples)))
        with torch.inference_mode():
            features = self.model.encode(batch.image, batch.affine)
            rows: list[dict[str, Any]] = [{"study": study.study} for study in batch.studies]
            for task in self.tasks.values():
                for row, prediction in zip(rows, task.predict(self.model, features, batch), strict=True):
                    row.update(prediction)
        return rows

    def sample(self, volume: Study | MetaTensor | str | Path) -> Sample:
        """Put one volume, or a manifest's study with its masks, on the model's grid."""
        if isinstance(volume, Study):
            from vol3d.data.cache import sample

            return sample(volume, self.grid)
        from monai.data import MetaTensor

        from vol3d.volume.read import read

        path = Path(volume) if isinstance(volume, (str, Path)) else None
        volume = read(path) if path is not None else volume
        if not isinstance(volume, MetaTensor):
            raise ValueError(
                f"got a {type(volume).__name__} of shape {tuple(volume.shape)} without geometry: give a path or the "
                "MetaTensor that vol3d.read returns, and the model puts it on its own grid"
            )
        image = path or Path(str(volume.meta.get("filename", "volume")))
        on_grid = self.grid.resample(volume)
        return Sample(Study(study=image.name, image=image), on_grid.as_tensor(), on_grid.affine)

    def _predict_one(self, volume: MetaTensor | str | Path, task: Task) -> dict[str, Any]:
        batch = self._batch(collate([self.sample(volume)]))
        with torch.inference_mode():
            return task.predict(self.model, self.model.encode(batch.image, batch.affine), batch)[0]

    def _batch(self, batch: Batch) -> Batch:
        batch = batch.to(self.model.device)
        batch.image = self.grid.window_hu(batch.image)
        return batch

    def _task(self, name: str) -> Task:
        if name not in self.tasks:
            raise ValueError(
                f"this model was not trained for {name!r}; it has {', '.join(self.tasks) or 'no task'}: train it with "
                f"a recipe whose tasks hold {name!r}"
            )
        return self.tasks[name]


def batched(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    """Lists of at most `size` samples."""
    held: list[Sample] = []
    for sample in samples:
        held.append(sample)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held
