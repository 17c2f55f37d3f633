"""A saved model at work on new volumes: it prepares every input by the card it was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vol3d.data.batch import Batch, Sample, collate
from vol3d.data.study import Study
from vol3d.model.interfaces import Features, Task
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
        return next(iter(self._predict_one(volume, self._task("report")).values()))

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

        Options are those of the task's `segment`: points, boxes or an earlier mask in RAS millimetres.
        """
        task, volume = self._task("segmentation"), self._read(volume)
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
        """The prediction of every task, or of these, for samples that already lie on the grid, one dictionary a study.

        The volume is encoded and projected once for all of them.
        """
        tasks = list(self.tasks.values()) if tasks is None else tasks
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
            from vol3d.data.cache import sample

            return sample(volume, self.grid)
        path = Path(volume) if isinstance(volume, (str, Path)) else None
        volume = self._read(volume)
        image = path or Path(str(volume.meta.get("filename", "volume")))
        on_grid = self.grid.resample(volume)
        return Sample(Study(study=image.name, image=image), on_grid.as_tensor(), on_grid.affine)

    def _read(self, volume: MetaTensor | str | Path) -> MetaTensor:
        from monai.data import MetaTensor

        from vol3d.volume.read import read

        if isinstance(volume, (str, Path)):
            return read(volume)
        if not isinstance(volume, MetaTensor):
            raise ValueError(
                f"got a {type(volume).__name__} of shape {tuple(volume.shape)} without geometry: give a path or the "
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

    def _task(self, kind: str) -> Any:
        """The first task that predicts `kind`."""
        for task in self.tasks.values():
            if task.kind == kind:
                return task
        kinds = sorted({task.kind for task in self.tasks.values() if task.kind})
        raise ValueError(
            f"this model was not trained for {kind!r}; it predicts {', '.join(kinds) or 'nothing by itself'}: train it "
            f"with a recipe that has a task for {kind!r}"
        )


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
