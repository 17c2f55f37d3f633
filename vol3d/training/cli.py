"""Lightning CLI over VolumeModule and VolumeData: `vol3d fit/validate/test/predict --config RECIPE`."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger

from vol3d.data.dataset import VolumeData
from vol3d.training.callbacks import PredictionWriter, SaveModel
from vol3d.training.module import VolumeModule
from vol3d.training.progress import StepProgress


class SaveRecipe(SaveConfigCallback):
    """Writes the resolved recipe into the run's folder as recipe.yaml, when the run trains."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class RecipeCLI(LightningCLI):
    """One option more than Lightning's own: `--run FOLDER`, where everything a run leaves behind goes."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str, default="runs/recipe", help="folder of this run")

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        folder = Path(self._get(self.config_init, "run"))
        extra = [
            ModelCheckpoint(folder / "checkpoints", save_last=True, every_n_train_steps=self._interval()),
            LearningRateMonitor("step"),
            SaveModel(folder, recipe=folder.name),
            PredictionWriter(folder),
        ]
        trainer_config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        if trainer_config.get("enable_progress_bar") is not False:
            extra.append(StepProgress())
        if trainer_config.get("enable_model_summary") is None:
            trainer_config["enable_model_summary"] = False  # each stage says itself what learns
        if not trainer_config.get("logger"):
            trainer_config["logger"] = CSVLogger(folder.parent, name=folder.name, version="")
        trainer_config["default_root_dir"] = str(folder)
        return self._instantiate_trainer(trainer_config, extra)

    def _interval(self) -> int | None:
        steps = self._get(self.config_init, "trainer", default={}).get("max_steps", -1)
        # About twenty checkpoints a run: at most 5 % of it is lost when it is killed.
        return max(1, steps // 20) if steps and steps > 0 else None


def run(arguments: Sequence[str] | None = None) -> RecipeCLI:
    """Run a Lightning subcommand with these arguments (`["fit", "--config", "recipe.yaml"]`)."""
    quiet()
    return RecipeCLI(
        VolumeModule,
        VolumeData,
        args=None if arguments is None else [_recipe(argument) for argument in arguments],
        save_config_callback=SaveRecipe,
        save_config_kwargs={"config_filename": "recipe.yaml", "overwrite": True},
    )


def _recipe(argument: str) -> str:
    """A shipped recipe may be given by its bare name (`--config quickstart.yaml`) when no such file is here."""
    if argument.endswith((".yaml", ".yml")) and not os.path.exists(argument):
        shipped = files("vol3d.recipes") / argument
        if shipped.is_file():
            return str(shipped)
    return argument


def quiet() -> None:
    """Silence advice that does not concern a vol3d user; warnings about their data stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (".*does not have many workers.*", ".*tensorboardX.*", ".*litlogger.*", ".*Checkpoint directory.*"):
        warnings.filterwarnings("ignore", message=text)
