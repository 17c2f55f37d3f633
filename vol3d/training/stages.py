"""A training run as a list of stages: what learns, from which tasks, for how long, how fast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

PARTS = ("encoder", "projector", "language", "tasks")


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    Args:
        steps: optimizer steps; None means until the trainer stops (only for the last stage).
        tasks: names of the tasks whose losses count; None means all.
        train: which parts learn: encoder, projector, language, tasks. The others are frozen and in eval mode.
        learning_rate: peak, reached after `warmup` steps and then lowered along a cosine to a tenth.
        learning_rates: peak of single parts where it differs.
        warmup: steps.
        data: name of the manifest this stage learns from, one of `VolumeData(others=…)`; None for its `manifest`.

    Raises:
        ValueError: a part that there is not, a rate of its own for a part that does not learn, or no step.
    """

    steps: int | None = None
    tasks: list[str] | None = None
    train: list[str] = field(default_factory=lambda: list(PARTS))
    learning_rate: float = 1e-4
    learning_rates: dict[str, float] = field(default_factory=dict)
    warmup: int = 0
    data: str | None = None

    def __post_init__(self) -> None:
        unknown = [part for part in [*self.train, *self.learning_rates] if part not in PARTS]
        if unknown:
            raise ValueError(f"a stage trains {unknown}, the parts are {', '.join(PARTS)}")
        if frozen := [part for part in self.learning_rates if part not in self.train]:
            raise ValueError(
                f"learning_rates names {frozen}, the stage trains {self.train}: add {frozen[0]!r} to train, or take "
                "its rate out"
            )
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"a stage of {self.steps} steps: give 1 or more, or take the stage out of the recipe")

    def rate(self, part: str, step: int, steps: int) -> float:
        """Learning rate of `part` at `step` of the stage's `steps`."""
        peak = self.learning_rates.get(part, self.learning_rate) if part in self.train else 0.0
        if step < self.warmup:
            return peak * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        return peak * (0.55 + 0.45 * math.cos(math.pi * progress))


class Schedule:
    """Named stages laid end to end, in their order, over `total` optimizer steps.

    Raises:
        ValueError: a stage before the last has no length, or the stages are longer than the run.
    """

    def __init__(self, stages: Mapping[str, Stage], total: int) -> None:
        self.names, self.stages = list(stages), list(stages.values())
        if open_ended := [name for name in self.names[:-1] if stages[name].steps is None]:
            raise ValueError(f"stage {open_ended[0]!r} has no steps; only the last stage may run to the end")
        fixed = sum(stage.steps or 0 for stage in self.stages)
        if fixed > total or (self.stages[-1].steps is None and fixed >= total):
            raise ValueError(
                f"the stages take {fixed} steps and the trainer stops after {total}: raise trainer.max_steps or "
                "shorten a stage"
            )
        self.lengths = [stage.steps or total - fixed for stage in self.stages]

    def name(self, step: int) -> str:
        """The stage that `step` lies in."""
        return self.names[self._at(step)[0]]

    def _at(self, step: int) -> tuple[int, int]:
        """Number of the stage that `step` lies in, and the step inside it (the last stage never ends)."""
        for index, length in enumerate(self.lengths[:-1]):
            if step < length:
                return index, step
            step -= length
        return len(self.lengths) - 1, step

    def rate(self, part: str, step: int) -> float:
        index, inside = self._at(step)
        return self.stages[index].rate(part, inside, self.lengths[index])
