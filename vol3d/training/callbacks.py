"""What a run leaves behind besides its checkpoints: the saved model, predictions, and a log of the losses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import BasePredictionWriter


class SaveModel(lightning.Callback):
    """Writes `RUN/model` when fitting ends, with the data's grid as its preprocessing card.

    Args:
        folder: the run's folder.
        recipe: name told in the model's card.
    """

    def __init__(self, folder: str | Path, recipe: str = "") -> None:
        self.folder, self.recipe = Path(folder), recipe

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero or trainer.datamodule is None or trainer.fast_dev_run:
            return
        from vol3d.model.pretrained import save

        card = model_card(trainer, pl_module, self.recipe)
        save(self.folder / "model", pl_module.model, dict(pl_module.tasks.items()), trainer.datamodule.grid, card=card)


def model_card(trainer: lightning.Trainer, module: Any, recipe: str) -> str:
    """Markdown: what the model was trained on, how, and what it must not be used for."""
    data = trainer.datamodule
    stages = "\n".join(
        f"- {name}: {length} steps, learns {', '.join(stage.train)} from {', '.join(stage.tasks or module.tasks)}"
        for (name, stage), length in zip(module.stages.items(), module.schedule.lengths, strict=True)
    )
    losses = {name: float(value) for name, value in trainer.callback_metrics.items() if name.endswith("loss")}
    return (
        f"# vol3d model\n\nRecipe: {recipe or 'not named'}. Steps: {trainer.global_step}.\n\n"
        f"## Data\n\nManifest `{data.manifest.path.name}`, {len(data.manifest.split('train'))} training studies, "
        f"grid `{data.grid.name}`.\n\n"
        f"## Training\n\n{stages}\n\nLast losses: {json.dumps(losses)}\n\n"
        "## Limits\n\nFor research only. Not a medical device; not validated for any clinical use.\n"
    )


class PredictionWriter(BasePredictionWriter):
    """Writes `RUN/predictions.jsonl`, one line a study, while `vol3d predict` runs."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(write_interval="batch")
        self.path = Path(folder) / "predictions.jsonl"

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")

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
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in prediction)
