"""Mixing tasks: proportions are kept and repeatable, uncertainty weighting is its formula, conflicts are seen."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
import world

from vol3d.training.mixing import Mixture, conflicts
from vol3d.training.stages import Stage


def test_draws_follow_the_proportions_and_repeat() -> None:
    mixture = Mixture(proportions={"a": 3, "b": 1, "never": 0})
    first = [mixture.draw(["a", "b", "never"], step)[0] for step in range(2000)]
    assert first == [mixture.draw(["a", "b", "never"], step)[0] for step in range(2000)]
    assert Counter(first)["a"] / 2000 == pytest.approx(0.75, abs=0.03)
    assert "never" not in first
    assert Mixture().draw(["a", "b"], 0) == ["a", "b"]


def test_bad_proportions_are_told() -> None:
    with pytest.raises(ValueError, match=r"proportions must be 0 or above .* got \{'a': -1\}"):
        Mixture(proportions={"a": -1})
    with pytest.raises(ValueError, match=r"proportions name tasks \['reprot'\], there are \['report'\]"):
        Mixture(proportions={"reprot": 1}).prepare(["report"])
    with pytest.raises(ValueError, match=r"leave nothing to draw from the stage's tasks \['b'\]"):
        Mixture(proportions={"a": 1}).draw(["b"], 0)
    with pytest.raises(ValueError, match="conflicts_every=10 with proportions: one task counts at each step"):
        Mixture(proportions={"a": 1, "b": 1}, conflicts_every=10)


def test_uncertainty_weighting_is_its_formula_and_learns_the_weights() -> None:
    mixture = Mixture(uncertainty=True)
    mixture.prepare(["loud", "quiet"])
    mixture.log_variances["loud"].data.fill_(1.0)
    total = mixture.total({"loud": torch.tensor(4.0), "quiet": torch.tensor(0.5)})
    assert float(total.detach()) == pytest.approx(4 * math.exp(-1) + 0.5 + 0.5)
    # The minimum over s of exp(−s) L + s / 2 lies at exp(s) = 2 L.
    optimizer = torch.optim.SGD(mixture.parameters(), 0.1)
    for _ in range(500):
        optimizer.zero_grad()
        mixture.total({"loud": torch.tensor(4.0), "quiet": torch.tensor(0.5)}).backward()
        optimizer.step()
    assert float(mixture.log_variances["loud"].exp()) == pytest.approx(8.0, rel=0.01)
    assert float(mixture.log_variances["quiet"].exp()) == pytest.approx(1.0, rel=0.01)


def test_conflicts_are_the_cosines_of_the_gradients() -> None:
    shared = torch.tensor([1.0, 2.0], requires_grad=True)
    losses = {"x": shared[0] * 3, "minus_x": -shared[0], "y": shared[1], "elsewhere": torch.ones(1, requires_grad=True)}
    found = conflicts({name: loss.sum() for name, loss in losses.items()}, shared)
    assert found == pytest.approx({"x|minus_x": -1.0, "x|y": 0.0, "minus_x|y": 0.0})


def _fit(
    folder: Path, mixture: Mixture, samples: list, steps: int = 6
) -> tuple[world.Losses, dict[str, float], object]:
    module = world.module({"all": Stage(None, ["findings", "report"], learning_rate=1e-3)}, mixture=mixture)
    losses, seen = world.Losses(), {}

    class Seen(world.lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            for name, value in trainer.callback_metrics.items():
                seen[name] = seen.get(name, 0) + float(value)

    trainer = world.trainer(steps, folder, callbacks=[losses, Seen()])
    trainer.fit(module, world.World(samples))
    return losses, seen, module


def test_one_task_a_step_with_proportions_and_the_next_when_labels_are_missing(tmp_path: Path) -> None:
    both = [world.study(number) for number in range(8)]
    _, seen, module = _fit(tmp_path, Mixture(proportions={"findings": 1, "report": 1}), both)
    draws = Counter(module.mixture.draw(["findings", "report"], step)[0] for step in range(6))
    assert draws["findings"]
    assert draws["report"]
    assert "train/findings_loss" in seen
    assert "train/report_loss" in seen
    reports_only = [world.study(number, mask=False) for number in range(8)]
    losses, seen, _ = _fit(tmp_path / "b", Mixture(proportions={"findings": 9, "report": 1}), reports_only)
    assert len(losses.values) == 6
    assert "train/findings_loss" not in seen


def test_uncertainty_and_conflicts_in_a_run(tmp_path: Path) -> None:
    samples = [world.study(number) for number in range(8)]
    _, seen, module = _fit(tmp_path, Mixture(uncertainty=True, conflicts_every=2), samples)
    assert "train/cosine_findings|report" in seen
    assert all(float(s) != 0 for s in module.mixture.log_variances.values())
