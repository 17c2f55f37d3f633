"""Outcomes: what is known of whom when follow-up ends early, likelihoods by hand, and risks that only rise."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from labelled_world import batch, evidence, learn, model, row
from torch import nn

from vol3d.model.interfaces import Evidence, Features
from vol3d.tasks import Outcomes

LM = model()
TOKENS = Features(torch.randn(2, 6, 48, generator=torch.Generator().manual_seed(0)), (3, 2, 1))
THREE = [100, 200, 400]


class Said(nn.Module):
    """A head that always says the same logits."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([logits]))

    def forward(self, features: Features) -> torch.Tensor:
        return self.logits


def task_saying(logits: list[float], form: str, **settings: object) -> Outcomes:
    task = Outcomes(LM, outcomes=["death"], days=THREE, form=form, **settings)
    task.head = Said(logits)
    return task


def followed(time: float, event: int) -> object:
    made = batch(range(1))
    made.studies = [row("a", outcomes={"death": {"time": time, "event": event}})]
    return made


@pytest.mark.parametrize(
    ("time", "event", "happened", "known"),
    [
        (150, 1, [0, 1, 0], [1, 1, 0]),
        (100, 1, [1, 0, 0], [1, 0, 0]),  # on the day itself: inside
        (0, 1, [1, 0, 0], [1, 0, 0]),
        (500, 1, [0, 0, 0], [1, 1, 1]),
        (49, 0, [0, 0, 0], [0, 0, 0]),  # censored before the middle of the first interval: nothing is known
        (50, 0, [0, 0, 0], [1, 0, 0]),
        (160, 0, [0, 0, 0], [1, 1, 0]),
        (1000, 0, [0, 0, 0], [1, 1, 1]),
    ],
)
def test_what_hazards_know(time, event, happened, known):
    asked = Outcomes(LM, outcomes=["death"], days=THREE).labels(followed(time, event).studies[0])
    assert [part[0].astype(int).tolist() for part in asked] == [happened, known]


@pytest.mark.parametrize(
    ("time", "event", "happened", "known"),
    [
        (150, 1, [0, 1, 1], [1, 1, 1]),
        (500, 1, [0, 0, 0], [1, 1, 1]),
        (99, 0, [0, 0, 0], [0, 0, 0]),
        (200, 0, [0, 0, 0], [1, 1, 0]),
    ],
)
def test_what_the_cumulative_form_knows(time, event, happened, known):
    asked = Outcomes(LM, outcomes=["death"], days=THREE, form="cumulative").labels(followed(time, event).studies[0])
    assert [part[0].astype(int).tolist() for part in asked] == [happened, known]


def test_merlins_five_year_label():
    """Within five years, surely not within five years, or lost before: positive, negative, unknown."""
    task = Outcomes(LM, outcomes=["death"], days=[1826], form="cumulative")
    labels = [task.labels(followed(*seen).studies[0]) for seen in ((1000, 1), (1826, 0), (3000, 1), (1825, 0))]
    assert [(bool(happened), bool(known)) for happened, known in labels] == [
        (True, True),
        (False, True),
        (False, True),
        (False, False),
    ]


def test_the_likelihood_of_hazards_by_hand():
    """Hazards 0.2, 0.5, 0.1."""
    logits = torch.logit(torch.tensor([0.2, 0.5, 0.1])).tolist()
    task = task_saying(logits, "hazards")

    def loss(time: float, event: int) -> float:
        return task.loss(LM, TOKENS[[0]], followed(time, event)).loss.item()

    assert loss(150, 1) == pytest.approx(-math.log(0.8 * 0.5))
    assert loss(60, 0) == pytest.approx(-math.log(0.8))
    assert loss(350, 0) == pytest.approx(-math.log(0.8 * 0.5 * 0.9))
    assert task.risks(TOKENS)[0, 0].tolist() == pytest.approx([0.2, 0.6, 0.64])


def test_the_cumulative_form_by_hand():
    """Increments are softplus: from logit −1 by log 2 and log 4; p = 1 / (1 + e, e/2, e/8)."""
    task = task_saying([-1.0, 0.0, math.log(3)], "cumulative")
    chance = [1 / (1 + math.e / by) for by in (1, 2, 8)]
    assert task.risks(TOKENS)[0, 0].tolist() == pytest.approx(chance)
    seen = task.loss(LM, TOKENS[[0]], followed(250, 0)).loss.item()
    assert seen == pytest.approx(-(math.log(1 - chance[0]) + math.log(1 - chance[1])) / 2)
    event = task.loss(LM, TOKENS[[0]], followed(150, 1)).loss.item()
    assert event == pytest.approx(-(math.log(1 - chance[0]) + math.log(chance[1]) + math.log(chance[2])) / 3)


@pytest.mark.parametrize("form", ["hazards", "cumulative"])
def test_who_is_lost_at_once_or_has_no_outcome_costs_nothing(form):
    task = Outcomes(LM, outcomes=["death"], days=THREE, form=form)
    output = task.loss(LM, TOKENS[[0]], followed(10, 0))
    assert (output.loss, output.count) == (None, 0)
    made = batch(range(2))
    made.studies = [row("a"), row("b", outcomes={"death": {"time": 90, "event": 1}, "other": {"time": 1, "event": 1}})]
    output = task.loss(LM, TOKENS, made)
    assert output.count == 1
    output.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in task.parameters())


def test_labels_and_settings_that_cannot_be_used_are_named():
    task = Outcomes(LM, outcomes=["death"])
    for time, event in ((-3, 1), (float("nan"), 0), (5, 2)):
        with pytest.raises(ValueError, match=f"study 'a': outcome 'death' has time {time} and event {event}"):
            task.loss(LM, TOKENS[[0]], followed(time, event))
    with pytest.raises(ValueError, match=r"days are \[365, 365\]: give the ends of the intervals, above 0 and rising"):
        Outcomes(LM, outcomes=["death"], days=[365, 365])
    with pytest.raises(ValueError, match=r"once each and at least one, got \[\]"):
        Outcomes(LM, outcomes=[])


@pytest.mark.parametrize("form", ["hazards", "cumulative"])
def test_risks_only_rise(form):
    task = Outcomes(LM, outcomes=["death", "stroke"], form=form)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.normal_(std=2)
    told = task.predict(LM, TOKENS, batch(range(2)))
    for study in told:
        for name in ("death", "stroke"):
            risks = study["outcomes"][name]["cumulative"]
            assert risks == sorted(risks)
            assert 0 <= risks[0] <= risks[-1] == study["outcomes"][name]["risk"] <= 1


@pytest.mark.learn
@pytest.mark.parametrize("form", ["hazards", "cumulative"])
def test_it_learns_who_has_the_event_first_and_must_see_the_volume_for_it(form):
    build = partial(Outcomes, outcomes=["death"], days=[365, 1096, 1826], form=form)
    lm, task = learn(build, steps=60)
    scores = task.score(evidence(lm, task, range(1000, 1150)))["outcomes"]
    assert scores["c_index"]["value"] > 0.8, "0.86 is reached by who knows what is there"
    assert scores["c_index_ipcw"]["value"] > 0.75
    assert scores["per_outcome"]["death"]["auc@1096"]["value"] > 0.95
    assert scores["per_outcome"]["death"]["brier@1096"]["value"] < 0.1
    assert abs(scores["baselines"]["blind"]["c_index"] - 0.5) < 0.1


@pytest.mark.learn
def test_it_learns_nothing_from_the_volumes_of_others():
    """Judged by the Brier score: any chance correlation with the one thing to see orders all studies one way."""
    lm, task = learn(partial(Outcomes, outcomes=["death"], days=[365, 1096, 1826]), steps=60, shuffled=True)
    scores = task.score(evidence(lm, task, range(1000, 1150)))["outcomes"]["per_outcome"]["death"]
    assert scores["brier@1096"]["value"] > 0.9 * scores["baselines"]["constant"]["brier@1096"]


def test_several_outcomes_are_averaged_and_each_is_known_in_its_own_studies():
    task = Outcomes(LM, outcomes=["death", "stroke", "other"], days=[10, 20])
    rng = np.random.default_rng(0)
    studies, told = [], {}
    for number in range(30):
        times = {"death": {"time": number + 1, "event": 1}, "stroke": {"time": 30 - number, "event": int(number > 3)}}
        studies.append(row(f"s{number}", outcomes=times if number % 2 else {"death": times["death"]}))
        cumulative = {"death": [1 - number / 30] * 2, "stroke": rng.random(2).tolist(), "other": [0.0, 0.0]}
        told[f"s{number}"] = {"outcomes": {name: {"cumulative": risks} for name, risks in cumulative.items()}}
    scores = task.score(Evidence(studies, told, replicates=50))["outcomes"]
    assert scores["per_outcome"].keys() == {"death", "stroke"}
    assert scores["per_outcome"]["death"]["c_index"]["value"] == 1
    assert scores["per_outcome"]["stroke"]["studies"] == 15
    each = [scores["per_outcome"][name]["c_index"]["value"] for name in ("death", "stroke")]
    assert scores["c_index"]["value"] == pytest.approx(np.mean(each))
    assert task.score(Evidence([row("a")], {"a": {}})) == {}


def test_the_phantoms_admission_follows_from_their_findings():
    """Who knows every finding orders nine pairs in ten; the death of a patient is what it was without admissions."""
    from vol3d import phantom
    from vol3d.evaluation.metrics.survival import c_index
    from vol3d.phantom.study import _ACUTE

    studies = [phantom.make(seed, shape=(16, 16, 16)) for seed in range(40)]
    told = [study.outcomes["admission"] for study in studies]
    sooner = [sum(_ACUTE.get(finding.name, 0.1) for finding in study.findings) for study in studies]
    times, events = np.array([row["time"] for row in told], float), np.array([row["event"] for row in told], bool)
    assert c_index(times, events, np.array(sooner)) > 0.85
    assert 0.25 < events.mean() < 0.75
    assert (times > 1826).mean() > 0.15, "five-year labels need patients who were followed that long"
    assert studies[3].outcomes["death"] == {"time": 287, "event": 0}
