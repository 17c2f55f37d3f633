"""Lightning CLI over VolumeModule and VolumeData: `vol3d fit/validate/test/predict --config RECIPE`."""

from __future__ import annotations

import logging
import os
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from vol3d.data.dataset import VolumeData
from vol3d.training.callbacks import FormerCheckpoints, PredictionWriter, SaveModel
from vol3d.training.features import StoredFeatures
from vol3d.training.history import History
from vol3d.training.memory import out_of_memory
from vol3d.training.module import VolumeModule
from vol3d.training.progress import StepProgress
from vol3d.training.stages import Schedule
from vol3d.training.watch import Watch

logger = logging.getLogger(__name__)

EXAMPLES = {
    "fit": {"epilog": "example: vol3d fit --config quickstart.yaml --data.manifest phantoms/manifest.jsonl"},
    "validate": {"epilog": "example: vol3d validate --config runs/quickstart/recipe.yaml --ckpt_path last"},
    "test": {"epilog": "example: vol3d test --config runs/quickstart/recipe.yaml --ckpt_path last"},
    "predict": {
        "epilog": "example: vol3d predict --config runs/quickstart/recipe.yaml --ckpt_path last; of other studies: "
        "--model.base runs/quickstart/model --data.manifest other.jsonl"
    },
}


_ALL_IN_ONE = ("bf16-true", "16-true", "64-true", "64")
"""Precisions that cast a whole batch and all weights; DeepSpeed keeps float32 copies of its own (`ZeroStrategy`)."""


class SaveRecipe(SaveConfigCallback):
    """Writes the resolved recipe into the run's folder as recipe.yaml, when the run trains and its parts fit."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            _check_grid(pl_module, trainer.datamodule)
            if trainer.max_steps > 0:
                Schedule(pl_module.stages, trainer.max_steps)  # refuses stages that do not fit
            super().setup(trainer, pl_module, stage)


def _check_grid(module: VolumeModule, data: VolumeData) -> None:
    """Refuse a grid the encoder cannot take before anything is written or read."""
    encoder, grid = getattr(module, "encoder", None), data.grid
    if encoder is None:  # fitted before: its parts have met
        return
    if grid.channels != encoder.in_channels:
        raise ValueError(
            f"grid {grid.name!r} has {grid.channels} windows, the encoder takes {encoder.in_channels} channels: set "
            "data.grid.init_args.window or model.encoder.init_args.in_channels (model.encoder.dict_kwargs.in_channels "
            "where the encoder is named to vol3d.encoders.create)"
        )
    if grid.shape is not None:
        encoder.grid_size(grid.shape)


class RecipeCLI(LightningCLI):
    """One option more than Lightning's own: `--run FOLDER`, where everything a run leaves behind goes."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str, default="runs/recipe", help="folder of this run")

    def before_instantiate_classes(self) -> None:
        """A recipe for a CPU in bf16-mixed trains in float32 where bfloat16 is emulated: finer, and twice as fast."""
        trainer = self._get(self.config, "trainer", default={})
        self.check_precision()
        self.check_weights()
        cpu = trainer.get("accelerator") == "cpu" and trainer.get("precision") == "bf16-mixed"
        if cpu and not cpu_has_bfloat16():
            logger.warning("this CPU has no bfloat16 arithmetic: training in 32-true, not in bf16-mixed")
            trainer["precision"] = "32-true"

    def check_precision(self) -> None:
        """Refuses what would cast a whole batch."""
        trainer = self._get(self.config, "trainer", default={})
        divided = "ZeroStrategy" in str(trainer.get("strategy"))
        if str(trainer.get("precision")) in _ALL_IN_ONE and not divided:
            raise ValueError(
                f"precision {trainer['precision']} would round a batch's millimetres, and weights so that small "
                "updates are lost: set bf16-mixed (frozen weights of a pretrained language model are bfloat16 then too)"
            )

    def check_weights(self) -> None:
        """Refuses a checkpoint that is not there before the run's recipe.yaml is written over.

        Judging and predicting take the base that is named, or the run's last checkpoint, and not weights that nobody
        trained, as Lightning would without a word; only a trial run may (`fast_dev_run`). Training that is to go on
        from the last checkpoint begins anew where there is none yet, and says so.
        """
        if self.subcommand is None:
            return
        keys = ("ckpt_path", "model.base", "trainer.fast_dev_run")
        given, base, trial = (self._get(self.config, key) for key in keys)
        run = Path(self._get(self.config, "run"))
        last = run / "checkpoints" / "last.ckpt"
        if given is not None and _is_path(str(given)) and not Path(given).exists():
            raise ValueError(f"--ckpt_path {given}: no such file; give one of RUN/checkpoints, or last for {last}")
        if self.subcommand == "fit":
            if given == "last" and not last.exists() and not list(run.glob("hpc_ckpt_*.ckpt")):
                logger.warning("--ckpt_path last: there is no %s; training begins anew", last)
            return
        if given == "last" and not last.exists():
            raise ValueError(f"--ckpt_path last: there is no {last}; give the checkpoint's path, or the run's --run")
        if given is None and base is not None:
            logger.warning("no --ckpt_path: the weights are those of the base, %s", base)
        elif given is None and last.exists():
            logger.warning("no --ckpt_path: the weights are those of %s", last)
            self.config[self.subcommand]["ckpt_path"] = str(last)
        elif given is None and not trial:
            raise ValueError(
                f"vol3d {self.subcommand} is given no trained weights, and there is no {last}: add --ckpt_path, or "
                "--model.base RUN/model"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        folder = Path(self._get(self.config_init, "run"))
        trainer_config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        extra = [
            FormerCheckpoints(folder),
            self._checkpoints(folder, trainer_config),
            LearningRateMonitor("step"),
            SaveModel(folder, recipe=folder.name),
            PredictionWriter(folder),
            Watch(),
        ]
        if cache := self._get(self.config_init, "data").cache:
            extra.append(StoredFeatures(cache))
        if trainer_config.get("enable_progress_bar") is not False:
            extra.append(StepProgress())
        if trainer_config.get("enable_model_summary") is None:
            trainer_config["enable_model_summary"] = False  # each stage says itself what learns
        stages = getattr(self._get(self.config_init, "model"), "stages", {})
        if any(stage.data for stage in stages.values()):
            trainer_config["reload_dataloaders_every_n_epochs"] = 1  # each stage's own manifest
        if not trainer_config.get("logger"):
            # The history of a run is that of its training; validating or testing later must not add to it.
            name = "metrics.csv" if self.subcommand == "fit" else f"{self.subcommand}.csv"
            trainer_config["logger"] = History(folder / name, resumed=bool(self._get(self.config_init, "ckpt_path")))
        trainer_config["default_root_dir"] = str(folder)
        return self._instantiate_trainer(trainer_config, extra)

    def _checkpoints(self, folder: Path, trainer: dict[str, Any]) -> ModelCheckpoint:
        steps = trainer.get("max_steps", -1)
        return ModelCheckpoint(
            folder / "checkpoints",
            save_last=not trainer.get("fast_dev_run"),  # a trial would write last.ckpt, and nothing else
            # About twenty checkpoints a run: at most 5 % of it is lost when it is killed.
            every_n_train_steps=max(1, steps // 20) if steps and steps > 0 else None,
            enable_version_counter=False,  # last.ckpt is the last one, also of a run resumed from another
        )


def _is_path(checkpoint: str) -> bool:
    """Whether it is a path of this machine: not one of Lightning's own words, nor in its registry or at a URL."""
    return (
        checkpoint not in ("last", "best", "hpc") and not checkpoint.startswith("registry") and "://" not in checkpoint
    )


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 numbers itself (AVX512-BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def run(arguments: Sequence[str] | None = None) -> RecipeCLI:
    """Run a Lightning subcommand with these arguments (`["fit", "--config", "recipe.yaml"]`).

    Raises:
        ValueError: a recipe that is not there, or says what the code does not know; memory that does not suffice.
    """
    quiet()
    try:
        return RecipeCLI(
            VolumeModule,
            VolumeData,
            args=None if arguments is None else named(arguments),
            save_config_callback=SaveRecipe,
            save_config_kwargs={"config_filename": "recipe.yaml", "overwrite": True},
            parser_kwargs={"prog": "vol3d", "exit_on_error": False} | EXAMPLES,
        )
    except ArgumentError as error:
        raise ValueError(explained(str(error), list(arguments or ["fit"]))) from error
    except IsADirectoryError as error:
        if not str(error.filename).endswith(".ckpt"):
            raise
        raise ValueError(
            f"{error.filename} is a checkpoint in pieces, which only the strategy that wrote it goes on from: add its "
            "overlay (overlays/fsdp2.yaml), or make a model folder of it by `vol3d consolidate` and begin from that by "
            "--model.base FOLDER"
        ) from error
    except torch.OutOfMemoryError as error:
        raise ValueError(out_of_memory(str(error), list(arguments or ["fit"]))) from error


def explained(message: str, arguments: Sequence[str]) -> str:
    """What the parser said in one line: which recipe, which key, and the way out."""
    if "File does not exist" in message:
        shipped = sorted(path.name for path in files("vol3d.recipes").iterdir() if path.name.endswith(".yaml"))
        remedy = f"give a YAML file, or a shipped recipe by name: {', '.join(shipped)}"
    else:
        remedy = f"`vol3d {arguments[0]} --help` lists what a recipe may say"
    recipes = [after for flag, after in pairwise(arguments) if flag in ("--config", "-c")]
    recipes += [flag.partition("=")[2] for flag in arguments if flag.startswith("--config=")]
    said = " ".join(message.replace("Parser key ", "").split()).rstrip(".")
    return ": ".join(filter(None, [", ".join(recipes), f"{said}; {remedy}"]))


def named(arguments: Sequence[str]) -> list[str]:
    """The arguments with the bare names of shipped recipes and parts made paths, also inside recipes of one's own."""
    found = [_recipe(argument) for argument in arguments]
    for place, argument in enumerate(found):
        flag, equals, name = argument.rpartition("=")
        after = not equals and place > 0 and found[place - 1] in ("--config", "-c")
        if (after or flag in ("--config", "-c")) and os.path.isfile(name):
            found[place] = f"{flag}{equals}{_with_shipped_parts(Path(name))}"
    return found


def _recipe(argument: str) -> str:
    """A shipped recipe or part may be given by its bare name (`--config quickstart.yaml`) when no such file is here."""
    flag, equals, name = argument.rpartition("=")
    if name.endswith((".yaml", ".yml")) and not os.path.exists(name) and (shipped := _shipped(name)):
        return f"{flag}{equals}{shipped}"
    return argument


def _shipped(name: str) -> str | None:
    path = files("vol3d.recipes") / name.removeprefix("../")  # as a recipe of cpu/ names a part
    return str(path) if path.is_file() else None


def _with_shipped_parts(recipe: Path) -> str:
    """The recipe's path; its text, where it names shipped parts that do not lie beside it (a copy of a shipped one)."""
    try:
        said = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return str(recipe)  # the parser says what is wrong
    missing = set()

    def look(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: look(part) for key, part in value.items()}
        if isinstance(value, list):
            return [look(part) for part in value]
        if not isinstance(value, str) or not value.endswith((".yaml", ".yml")):
            return value
        if (beside := recipe.parent / value).is_file():
            return str(beside.resolve())
        missing.add(value)
        return _shipped(value) or value

    found = look(said)
    return yaml.safe_dump(found, sort_keys=False) if any(map(_shipped, missing)) else str(recipe)


def quiet() -> None:
    """Silence advice that does not concern a vol3d user; warnings about their data stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        *(".*does not have many workers.*", ".*tensorboardX.*", ".*litlogger.*", ".*Checkpoint directory.*"),
        *(".*args parameter is intended.*", ".*smaller than the logging interval.*", ".*in eval mode at the start.*"),
        *(
            ".*args parameter.*both args and command line.*",
            ".*LeafSpec.*",
            ".*Total length of `list` across ranks is zero.*",
            ".*there is no last checkpoint available.*",  # said with the path
        ),
    ):
        warnings.filterwarnings("ignore", message=text)
