"""The toy world's boxes with the study-level labels of a health record, and a loop that learns one task from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import world

import vol3d
from vol3d.data.batch import Batch, collate
from vol3d.data.study import Study
from vol3d.model.interfaces import Evidence, Task

CODES = {"left pleural effusion": "J90", "right pleural effusion": "R18.8"}


def row(name: str = "a", **labels: Any) -> Study:
    return Study(study=name, image=Path("none.nii.gz"), **labels)


@cache
def sample(number: int) -> world.Sample:
    """A study whose codes say what is on the left and on the right, and who has an event early when anything is."""
    made = world.study(number)
    there = [name for name in world.FINDINGS if name in made.study.report]
    rng = np.random.default_rng(number)
    event, censored = 3000 * 0.2 ** len(there) * rng.lognormal(0, 0.2), rng.uniform(200, 4000)
    labels = {
        "codes": [CODES[name] for name in there],
        "codes_absent": [CODES[name] for name in world.FINDINGS if name not in there],
        "code_system": "icd10cm",
        "outcomes": {"death": {"time": min(event, censored), "event": int(event <= censored)}},
    }
    return replace(made, study=replace(made.study, **labels), finding_mask=None)


def batch(numbers: range, *, shuffled: bool = False) -> Batch:
    """Studies on the grid; shuffled, each with the volume of another."""
    made = collate([sample(number) for number in numbers])
    order = torch.arange(len(made)).roll(1) if shuffled else torch.arange(len(made))
    return replace(made, image=made.image[order].float() / 300)


def model(**settings: Any) -> vol3d.VolumeLM:
    torch.manual_seed(0)
    encoder = {"embed_dim": 48, "depth": 1, "num_heads": 2, "patch_size": (4, 4, 2), **settings}
    return vol3d.VolumeLM(vol3d.encoders.create("vit3d-tiny", **encoder))


def learn(
    build: Callable[[vol3d.VolumeLM], Task], *, steps: int, studies: int = 256, shuffled: bool = False
) -> tuple[vol3d.VolumeLM, Task]:
    """The model and its task after `steps` of 32 studies."""
    lm = model()
    task = build(lm)
    optimizer = torch.optim.AdamW([*lm.parameters(), *task.parameters()], lr=3e-3)
    for step in range(steps):
        first = 32 * step % studies
        part = batch(range(first, first + 32), shuffled=shuffled)
        loss = task.loss(lm, lm.encode(part.image, part.affine), part).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return lm.eval(), task.eval()


def evidence(
    lm: vol3d.VolumeLM, task: Task, numbers: range, validation: range | None = None, **settings: Any
) -> Evidence:
    """What the task says of unseen studies, as `vol3d evaluate` hands it over."""
    parts = [batch(part) for part in (numbers, validation) if part]
    with torch.no_grad():
        said = [task.predict(lm, lm.encode(part.image, part.affine), part) for part in parts]
    studies = [study for part in parts for study in part.studies]
    rows = {study.study: one for study, one in zip(studies, [one for part in said for one in part], strict=True)}
    checked = parts[1].studies if validation else []
    return Evidence(parts[0].studies, rows, validation=checked, **{"replicates": 100, **settings})
