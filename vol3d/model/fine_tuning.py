"""Training that begins from a saved model."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vol3d.model.interfaces import Encoder, Part, Task
from vol3d.model.pretrained import build, save

if TYPE_CHECKING:
    from vol3d.model.language import LanguageModel, LanguageSource
    from vol3d.model.volume_lm import VolumeLM
    from vol3d.volume.grid import Grid


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """A saved model whose weights another one begins with."""

    folder: Path
    model: VolumeLM
    tasks: Mapping[str, Task]
    grid: Grid

    @classmethod
    def read(cls, folder: str | Path) -> Base:
        """Raises:
        ValueError: the folder is not a saved model.
        """
        return cls(Path(folder), *build(folder))

    def language(self, source: LanguageSource) -> LanguageModel | None:
        """Its language model, to be trained on; None where it has none.

        For `Scratch` that is the whole of it, with its tokenizer and adapters. `Pretrained` puts its own adapters
        around it; those it had are first added into the weights they adapt.

        Raises:
            ValueError: it is more than `Pretrained` can go around.
        """
        from vol3d.model.language import Pretrained

        language = self.model.language
        if language is None or not isinstance(source, Pretrained):
            return language
        if language.prefix is not None or language.special_tokens or source.quantization is not None:
            raise ValueError(
                f"{self.folder}: its language model has a prefix or tokens of its own, or is to be held in 4 bits: "
                "give the recipe a language model's own folder as name, and leave base out"
            )
        plain = unadapted(self.model, self.tasks, self.grid)._language()
        return source.around(plain.causal_lm.to(getattr(torch, source.dtype)), plain.tokenizer)

    def give(self, model: VolumeLM, tasks: Mapping[str, Task]) -> None:
        """Its weights to encoder, projector, and the tasks that both have; a task that it has not keeps its own.

        Raises:
            ValueError: a part is another one here (its first tensor and both shapes are named), or a task answers
                other names, or the same in another order.
        """
        self.give_encoder(model.encoder)
        if self.model.projector is not None and model.projector is not None:
            self._give("projector", self.model.projector, model.projector)
        for name in self.tasks.keys() & set(tasks):
            self._give(f"task {name!r}", self.tasks[name], tasks[name])
            saved, own = self.tasks[name].outputs, tasks[name].outputs
            if saved != own:
                row = next(row for row, (there, here) in enumerate(zip(saved, own, strict=True)) if there != here)
                raise ValueError(
                    f"{self.folder}: its task {name!r} answers {saved[row]!r} where this one answers {own[row]!r} "
                    f"(number {row} of {len(own)}): give the recipe the names of {self.folder / 'config.yaml'} in "
                    "their order, or this task another name, to begin anew"
                )

    def compare_grid(self, grid: Grid) -> None:
        """Warns where volumes are put on another grid, or windowed otherwise, than those its weights know."""
        own, other = ({**each.to_dict(), "name": None} for each in (self.grid, grid))
        differ = [f"{name} {own[name]}, here {other[name]}" for name in own if own[name] != other[name]]
        if differ:
            logger.warning(
                "%s was trained on another grid (%s): for its own, --data.grid %s",
                self.folder, "; ".join(differ), self.folder / "grid.json",
            )  # fmt: skip

    def give_encoder(self, encoder: Encoder) -> None:
        self._give("encoder", self.model.encoder, encoder)

    def _give(self, name: str, mine: Part, part: Part) -> None:
        saved, own = ({key: tuple(value.shape) for key, value in each.state_dict().items()} for each in (mine, part))
        if differ := sorted(key for key in saved.keys() | own.keys() if saved.get(key) != own.get(key)):
            there, here = (each.get(differ[0], "no such tensor") for each in (saved, own))
            raise ValueError(
                f"{self.folder}: its {name} is another one, {len(differ)} of {len(saved)} tensors differ ({differ[0]} "
                f"is {there} there and {here} here): give the recipe the {name} of {self.folder / 'config.yaml'}"
            )
        part.load_state_dict(mine.state_dict())
        there, here = mine.settings, part.settings
        if differ := [f"{key} {there.get(key)!r}, here {here[key]!r}" for key in here if there.get(key) != here[key]]:
            logger.warning("%s: its %s was built with other arguments: %s", self.folder, name, "; ".join(differ))


def unadapted(model: VolumeLM, tasks: Mapping[str, Task], grid: Grid) -> VolumeLM:
    """The model with LoRA adapters added into the weights they adapt; the model itself where it has none."""
    if model.language is None or model.language.lora is None:
        return model
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "plain", model, tasks, grid, merge=True)
        return build(Path(folder) / "plain")[0]
