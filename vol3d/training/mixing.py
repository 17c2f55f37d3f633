"""How several tasks' losses become one: weights, proportions, learnt uncertainty, and a log of their conflicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn


class Mixture(nn.Module):
    """Joins the losses of a step.

    Without options the total is Σ weight · loss over all tasks of the stage that found labels.

    Args:
        proportions: task → how often it is drawn. One task counts at each step then, which keeps a step as cheap as
            the task drawn, the same in all processes; when its labels are missing in the batches of all of them the
            next one drawn takes its place. Tasks not named are never drawn.
        uncertainty: learn a log variance s for each task, with the total Σ exp(−s) · weight · loss + s / 2.
        conflicts_every: log the cosine between the tasks' gradients at the shared tokens every so many steps; 0 never.
            Below 0 one task's step undoes the other's.
        seed: of the draws, which depend on it and the step only, so that ranks agree and a resumed run goes on.

    Raises:
        ValueError: a proportion below 0, or none above it; conflicts with proportions, under which one task counts.

    Source: uncertainty weighting as in Kendall et al. (arXiv:1705.07115), classification form for every task; cosines
    as in PCGrad (arXiv:2001.06782), here at the encoder's output instead of all shared weights, which costs no second
    backward pass through the encoder.
    """

    def __init__(
        self,
        *,
        proportions: dict[str, float | int] | None = None,
        uncertainty: bool = False,
        conflicts_every: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if proportions is not None and (min(proportions.values()) < 0 or max(proportions.values()) <= 0):
            raise ValueError(f"proportions must be 0 or above and one of them positive, got {proportions}")
        if proportions is not None and conflicts_every:
            raise ValueError(
                f"conflicts_every={conflicts_every} with proportions: one task counts at each step, and there is no "
                "other to compare it with; leave one of them out"
            )
        self.proportions, self.uncertainty = proportions, uncertainty
        self.conflicts_every, self.seed = conflicts_every, seed
        self.log_variances = nn.ParameterDict()

    def prepare(self, tasks: Sequence[str]) -> None:
        """Make room for what is learnt of each task.

        Raises:
            ValueError: a proportion for a task that there is not.
        """
        if unknown := set(self.proportions or {}) - set(tasks):
            raise ValueError(f"proportions name tasks {sorted(unknown)}, there are {sorted(tasks)}")
        if self.uncertainty:
            self.log_variances.update({name: nn.Parameter(torch.zeros(())) for name in tasks})

    def draw(self, tasks: Sequence[str], step: int) -> list[str]:
        """The tasks in the order in which they may fill this step's one place; all as they are without proportions."""
        if self.proportions is None:
            return list(tasks)
        names = [name for name in tasks if self.proportions.get(name, 0) > 0]
        if not names:
            raise ValueError(
                f"proportions {self.proportions} leave nothing to draw from the stage's tasks {list(tasks)}"
            )
        shares = np.array([self.proportions[name] for name in names])
        rng = np.random.default_rng((self.seed, step))
        return [str(name) for name in rng.choice(names, len(names), replace=False, p=shares / shares.sum())]

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Weighted losses by task → the one that is minimised."""
        if self.uncertainty:
            s = self.log_variances
            losses = {name: torch.exp(-s[name]) * loss + s[name] / 2 for name, loss in losses.items()}
        return torch.stack([loss.float() for loss in losses.values()]).sum()


def conflicts(losses: Mapping[str, Tensor], shared: Tensor) -> dict[str, float]:
    """Cosine between the gradients of each two losses at `shared`: "one|other" → −1 … 1.

    A loss that does not depend on `shared` is left out.
    """
    gradients = {}
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        if gradient is not None:
            gradients[name] = gradient.flatten().float()
    return {
        f"{one}|{other}": float(torch.cosine_similarity(gradients[one], gradients[other], dim=0))
        for one, other in combinations(gradients, 2)
    }
