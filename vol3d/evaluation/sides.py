"""The same studies predicted twice, and the difference of any score between the two."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from vol3d.evaluation.intervals import Statistic, paired_bootstrap

if TYPE_CHECKING:
    from vol3d.data.batch import Sample
    from vol3d.data.study import Study

Rows = Mapping[str, Mapping[str, Any]]
Settings = Mapping[str, Mapping[str, Any]]
Block = dict[str, Any]
"""{score: {"value", "low", "high", "p", "first", "second"}}, and "wins", "ties", "losses" of the first, "counted" by
what; empty where the two have nothing to be compared by."""


@dataclass(frozen=True)
class Sides:
    """The same studies predicted twice.

    Args:
        studies: in both. first, second: study name → its row.
        samples: of each side, a study with its masks on the grid of that side's model, for masks; None without.
        settings: of each side, its tasks' arguments by class name ("VQA"), which say what was asked.
    """

    studies: Sequence[Study]
    first: Rows
    second: Rows
    samples: tuple[Callable[[Study], Sample], Callable[[Study], Sample]] | None = None
    replicates: int = 1000
    seed: int = 0
    settings: tuple[Settings, Settings] = ({}, {})

    @property
    def rows(self) -> tuple[Rows, Rows]:
        return self.first, self.second

    def both(self, field: str, kind: type) -> list[Study]:
        """Studies of which both sides predict `field`, as a value of this kind."""
        return [
            study for study in self.studies if all(isinstance(rows[study.study].get(field), kind) for rows in self.rows)
        ]

    def values(self, studies: Sequence[Study], field: str) -> tuple[list[Any], list[Any]]:
        first, second = ([rows[study.study][field] for study in studies] for rows in self.rows)
        return first, second

    def shared(self, task: str, argument: str) -> set[str] | None:
        """What both sides' tasks of this class were given as a list of names; None where neither has a list."""
        given = [side.get(task, {}).get(argument) for side in self.settings]
        lists = [set(names) for names in given if names is not None]
        return set.intersection(*lists) if lists else None

    def difference(self, names: Sequence[str], statistics: Sequence[Statistic], patients: Sequence[Any]) -> Block:
        """Scores of two statistics that give as many values as there are names."""
        first, second = statistics
        found = paired_bootstrap(first, second, patients, replicates=self.replicates, seed=self.seed)
        once = np.ones((1, len(patients)))
        values = [np.reshape(statistic(once), -1).tolist() for statistic in (first, second)]
        return {
            name: score | {"first": _known(one), "second": _known(two)}
            for name, score, one, two in zip(names, found, *values, strict=True)
        }

    def means(self, name: str, pairs: ndarray, patients: Sequence[Any]) -> Block:
        """The difference of the means of one number an item, (items, 2)."""

        def mean(column: int) -> Statistic:
            return lambda weights: weights @ pairs[:, column] / weights.sum(1)

        return self.difference([name], [mean(0), mean(1)], patients)


def counts(pairs: ndarray, counted: str) -> dict[str, Any]:
    """Wins, ties and losses over the items in which both have a value, (items, 2), higher is better."""
    first, second = pairs[np.isfinite(pairs).all(1)].T
    won, lost = int((first > second).sum()), int((first < second).sum())
    return {"wins": won, "ties": len(first) - won - lost, "losses": lost, "counted": counted}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
