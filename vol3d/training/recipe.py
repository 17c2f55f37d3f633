"""A recipe's parts without a run: what planning, consolidating and encoding ahead of training begin from."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from vol3d.data.dataset import VolumeData
from vol3d.training.cli import RecipeCLI, explained, named, quiet
from vol3d.training.module import VolumeModule

_FIT_ONLY = ("--ckpt_path", "--weights_only")
"""Options of `fit` that stand in a run's recipe.yaml and say nothing about its parts."""
_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


class RecipeParts(RecipeCLI):
    """The module and the data of a recipe as training begins with them, without a trainer.

    Args:
        options: as for `vol3d fit`: ["--config", "recipe.yaml", "--data.batch_size", "4"]. A run's own recipe.yaml is
            taken as well.
        here: in the precision this machine would train it in (`RecipeCLI`); False keeps the recipe's own.

    Raises:
        ValueError: a recipe that is not there, or says what the code does not know.

    Example:
        >>> RecipeParts(["--config", "quickstart.yaml"], here=False).precision
        'bf16-mixed'
    """

    model: VolumeModule
    datamodule: VolumeData

    def __init__(self, options: Sequence[str], *, here: bool = True) -> None:
        quiet()
        self.here = here
        try:
            super().__init__(
                VolumeModule, VolumeData, run=False, args=named(options), save_config_callback=None,
                parser_kwargs={"exit_on_error": False},
            )  # fmt: skip
        except ArgumentError as error:
            raise ValueError(explained(str(error), ["fit", *options])) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        for name in _FIT_ONLY:
            parser.add_argument(name, type=Any, default=None)

    def before_instantiate_classes(self) -> None:
        if self.here:
            super().before_instantiate_classes()
        else:
            self.check_precision()

    def instantiate_trainer(self, **kwargs: Any) -> None:
        return None

    @property
    def precision(self) -> str:
        """The trainer's, by its full name ("32-true", "bf16-mixed")."""
        said = str(self._get(self.config, "trainer").get("precision") or "32-true")
        return _PRECISIONS.get(said, said)
