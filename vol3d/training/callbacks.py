"""What a run leaves behind besides its own checkpoints: those of the run before, the saved model, predictions."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import BasePredictionWriter

from vol3d.data.shards import merge_predictions
from vol3d.training.history import History
from vol3d.training.sharding import whole
from vol3d.training.stages import PARTS

log = logging.getLogger(__name__)


class FormerCheckpoints(lightning.Callback):
    """Moves the checkpoints of an earlier run aside when another begins in its folder, before the first step.

    `RUN/checkpoints` then holds those of one run, so that `--ckpt_path last` goes on from no other, and none is lost:
    the earlier ones are kept as `RUN/checkpoints-1` (2, 3 …). A run that is resumed keeps its own, and its history:
    one that SLURM has requeued too, which is given no path, but finds its `RUN/hpc_ckpt_1.ckpt`. When a run has ended,
    that file lies with its other checkpoints, where the next run in the folder does not go on from it.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        found = self.folder / "checkpoints"
        resumed = trainer.ckpt_path is not None or trainer.global_step > 0
        for logger in trainer.loggers:
            if resumed and isinstance(logger, History):
                logger.resumed = True
        anew = not resumed and not trainer.fast_dev_run
        if not anew or not trainer.is_global_zero or not found.is_dir():
            return
        kept = next(path for n in count(1) if not (path := self.folder / f"checkpoints-{n}").exists())
        found.rename(kept)
        log.warning(
            "%s: checkpoints of the run before; to go on with that one, --ckpt_path %s", kept, kept / "last.ckpt"
        )

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:
            for requeued in self.folder.glob("hpc_ckpt_*.ckpt"):
                (self.folder / "checkpoints").mkdir(exist_ok=True)
                requeued.rename(self.folder / "checkpoints" / requeued.name)


class SaveModel(lightning.Callback):
    """Writes `RUN/model` when fitting ends, with the data's grid as its preprocessing card.

    Args:
        folder: the run's folder.
        recipe: name told in the model's card.
    """

    def __init__(self, folder: str | Path, recipe: str = "") -> None:
        self.folder, self.recipe = Path(folder), recipe

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.datamodule is None or trainer.fast_dev_run:
            return
        from vol3d.model.pretrained import save

        with whole(pl_module):  # every process gives its part of divided weights, the first writes
            if trainer.is_global_zero:
                tasks, card = dict(pl_module.tasks.items()), model_card(trainer, pl_module, self.recipe)
                grid, base = trainer.datamodule.grid, pl_module.base
                save(self.folder / "model", pl_module.model, tasks, grid, card=card, base=base)


def model_card(trainer: lightning.Trainer, module: Any, recipe: str) -> str:
    """Markdown: what the model was trained on, how, and what it must not be used for."""
    data = trainer.datamodule
    there = [part for part in PARTS if module.part(part) is not None]
    stages = "\n".join(
        f"- {name}: {length} steps, learns {', '.join(part for part in stage.train if part in there)} from "
        f"{', '.join(stage.tasks or module.tasks)}{'' if stage.data is None else f' of `{stage.data}`'}"
        for (name, stage), length in zip(module.stages.items(), module.schedule.lengths, strict=True)
    )
    manifests = "\n".join(
        f"- {_studies(data, name)}" for name in dict.fromkeys(stage.data for stage in module.stages.values())
    )
    losses = {name: float(value) for name, value in trainer.callback_metrics.items() if name.endswith("loss")}
    origin = "" if module.base is None else f" Fine-tuned from `{module.base}`."
    return (
        f"# vol3d model\n\nRecipe: {recipe or 'not named'}. Steps: {trainer.global_step}.{origin}\n\n"
        f"## Data\n\n{manifests}\n\nGrid `{data.grid.name}`.\n\n"
        f"## Training\n\n{stages}\n\nLast losses: {json.dumps(losses)}\n\n"
        "## Limits\n\nFor research only. Not a medical device; not validated for any clinical use.\n"
    )


def _studies(data: Any, name: str | None) -> str:
    """How many studies the stages of one manifest learn from."""
    manifest = data.manifest if name is None else data.others[name]
    source = "in memory" if manifest.path is None else f"`{manifest.path.name}`"
    studies = manifest.split("train")[: getattr(data, "limit", None)]
    return f"{'Manifest' if name is None else f'`{name}`: manifest'} {source}, {len(studies)} training studies"


class PredictionWriter(BasePredictionWriter):
    """Writes `RUN/predictions.jsonl`, one line a study, while `vol3d predict` runs.

    Several processes write a file each, which the first of them joins at the end: each study once, in the order of
    the manifest. They must share the run's folder. A shard without a study leaves an empty file.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(write_interval="batch")
        self.path = Path(folder) / "predictions.jsonl"

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._own(trainer, trainer.global_rank).write_text("", encoding="utf-8")

    def _own(self, trainer: lightning.Trainer, rank: int) -> Path:
        """The file that one process writes."""
        return self.path if trainer.world_size == 1 else self.path.with_name(f".predictions-{rank}.jsonl")

    def write_on_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        prediction: list[dict[str, Any]],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        with self._own(trainer, trainer.global_rank).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in prediction)

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "predict" and trainer.predict_loop.skip and trainer.is_global_zero:  # no other hook was called
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("", encoding="utf-8")

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.world_size == 1:
            return
        trainer.strategy.barrier("predictions")
        if not trainer.is_global_zero:
            return
        parts = [self._own(trainer, rank) for rank in range(trainer.world_size)]
        order = None if trainer.datamodule is None else [study.study for study in trainer.datamodule.manifest]
        merge_predictions(parts, self.path, order)
        for part in parts:
            part.unlink()
