"""Outcomes: the risk of an event within given times, learnt from follow-up that may end before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.interfaces import Evidence, Features, Task, TaskOutput
from vol3d.model.volume_lm import VolumeLM
from vol3d.tasks.pooling import PooledLogits, Pooling

FIVE_YEARS = (365, 731, 1096, 1461, 1826)
"""The ends of the first five years, in days."""


class Outcomes(Task):
    """Time to event in intervals: the risk of each outcome by each of `days`.

    "hazards" predicts for each interval the chance of the event among those who reached it; the loss is the likelihood
    of what was seen, and a patient who is censored counts as far as they were followed, past the middle of an interval
    as all of it. "cumulative" predicts the chance of the event by each day directly, as a logit that can only rise;
    a day is known to be free of the event when follow-up reached it, and unknown when censoring came first. With one
    day, `days=[1826]`, this is Merlin's five-year label: positive, negative, or unknown and masked.

    Args:
        model: the shared model.
        outcomes: names as in the manifest's `outcomes`; a study without one costs nothing.
        days: ends of the intervals, rising; an event on the day itself lies inside.
        form: "hazards" or "cumulative".
        queries: how many things are looked for in the tokens before they are weighed together: what makes an event
            come sooner lies in several places, whose sum counts.
        pooling: see `PooledLogits`.

    Raises:
        ValueError: names given twice, days that do not rise; in the loss, a time that is no number of days.

    Source: hazards, Gensheimer & Narasimhan, "A scalable discrete-time survival model for neural networks" (PeerJ 2019,
    arXiv:1805.00917), with an event on a boundary in the interval it ends; cumulative, the additive hazard layer of
    Sybil (Mikhael et al., J Clin Oncol 2023), with softplus for ReLU, whose increments cannot die.
    """

    kind = "outcomes"

    def __init__(
        self,
        model: VolumeLM,
        *,
        outcomes: list[str],
        days: Sequence[int] = FIVE_YEARS,
        form: Literal["hazards", "cumulative"] = "hazards",
        queries: int = 32,
        pooling: Pooling = "attention",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not outcomes or len(set(outcomes)) != len(outcomes):
            raise ValueError(f"outcomes must be named once each and at least one, got {outcomes}")
        if not days or days[0] <= 0 or any(b <= a for a, b in pairwise(days)):
            raise ValueError(f"days are {list(days)}: give the ends of the intervals, above 0 and rising")
        self.outcomes, self.days, self.form, self.weight = list(outcomes), list(days), form, weight
        self.head = nn.Sequential(
            PooledLogits(model.encoder.embed_dim, queries, pooling),
            nn.GELU(),
            nn.Linear(queries, len(self.outcomes) * len(self.days)),
        )
        # Events are rare in an interval, and increments small.
        nn.init.constant_(self.head[-1].bias, -2.0)

    @property
    def outputs(self) -> tuple[Any, ...]:
        return (*self.outcomes, *self.days)

    def labels(self, study: Study) -> tuple[np.ndarray, np.ndarray]:
        """What is asked of each outcome and day, and where the answer is known; (outcomes, days) each.

        The question is "did it happen in this interval, to one who reached it?" for hazards, and "did it happen by this
        day?" for the cumulative form.
        """
        happened, known = np.zeros((2, len(self.outcomes), len(self.days)), bool)
        ends = np.array(self.days, float)
        middles = (np.r_[0.0, ends[:-1]] + ends) / 2
        for row, name in enumerate(self.outcomes):
            if name not in study.outcomes:
                continue
            time, event = study.outcomes[name].get("time"), study.outcomes[name].get("event")
            if not isinstance(time, (int, float)) or not math.isfinite(time) or time < 0 or event not in (0, 1):
                raise ValueError(
                    f"study {study.study!r}: outcome {name!r} has time {time!r} and event {event!r}: write days since "
                    "the scan, 0 or more, and event 1 or 0"
                )
            by_then = (time <= ends) & bool(event)
            if self.form == "cumulative":
                happened[row], known[row] = by_then, by_then | (time >= ends)
            else:
                happened[row] = by_then & (np.cumsum(by_then) == 1)
                known[row] = happened[row] | ((ends < time) if event else (time >= middles))
        return happened, known

    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> TaskOutput:
        labels = [self.labels(study) for study in batch.studies]
        device = features.tokens.device
        happened, known = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*labels, strict=True))
        studies = known.flatten(1).any(dim=1)
        if not studies.any():
            return TaskOutput(None, 0)
        happened, known = happened[studies].float(), known[studies]
        each = F.binary_cross_entropy_with_logits(self.logits(features)[studies], happened, reduction="none") * known
        # Over intervals the hazards' log-likelihoods add up; the cumulative days are one question asked several times.
        told = each.sum(2) if self.form == "hazards" else each.sum(2) / known.sum(2).clamp_min(1)
        return TaskOutput((told.sum(1) / known.any(dim=2).sum(1)).mean(), int(studies.sum()))

    def logits(self, features: Features) -> Tensor:
        """Shape: (batch, outcomes, days)."""
        raw = self.head(features).unflatten(1, (len(self.outcomes), len(self.days)))
        if self.form == "hazards":
            return raw
        return torch.cat([raw[..., :1], F.softplus(raw[..., 1:])], dim=2).cumsum(dim=2)

    def risks(self, features: Features) -> Tensor:
        """Chance of each outcome by each day, (batch, outcomes, days)."""
        logits = self.logits(features)
        return logits.sigmoid() if self.form == "cumulative" else 1 - F.logsigmoid(-logits).cumsum(dim=2).exp()

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        rows = []
        for study in self.risks(features).detach().cpu().double().numpy().round(6).tolist():
            told = {
                name: {"risk": risks[-1], "cumulative": risks, "days": self.days}
                for name, risks in zip(self.outcomes, study, strict=True)
            }
            rows.append({"outcomes": told})
        return rows

    def labelled(self, study: Study) -> bool:
        return not study.outcomes.keys().isdisjoint(self.outcomes)

    def learns(self, study: Study) -> bool:
        """A study that left before the first day tells nothing."""
        return bool(self.labels(study)[1].any())

    def score(self, evidence: Evidence) -> dict[str, dict[str, Any]]:
        from vol3d.evaluation.metrics.survival import score_outcomes

        widths = np.diff([0, *self.days])
        tables, patients = {}, {}
        for name in self.outcomes:
            studies = [study for study in evidence.studies if name in study.outcomes]
            if not studies:
                continue
            risks = np.array([evidence.predictions[study.study]["outcomes"][name]["cumulative"] for study in studies])
            times = np.array([study.outcomes[name]["time"] for study in studies], float)
            events = np.array([study.outcomes[name]["event"] for study in studies], bool)
            # Ranked by the days without the event that are lost, which tells early risk from late.
            tables[name] = times, events, risks @ widths, {d: 1 - risks[:, i] for i, d in enumerate(self.days)}
            patients[name] = [study.patient for study in studies]
        if not tables:
            return {}
        return {"outcomes": score_outcomes(tables, patients, replicates=evidence.replicates, seed=evidence.seed)}
