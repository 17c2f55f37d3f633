"""Two processes and tasks that only some studies have labels for, or whose weights have no axis to be divided along."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
import world
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

import vol3d
from vol3d import tasks
from vol3d.data.batch import Sample, collate
from vol3d.training.mixing import Mixture
from vol3d.training.module import VolumeModule
from vol3d.training.stages import Stage
from vol3d.volume.grid import Grid

CODES = [f"{chapter:03d}.{number}" for chapter in range(1, 61) for number in range(10, 60)]
"""More than one of DDP's small buckets holds."""
TEXTS = {"embed_dim": 16, "depth": 2, "num_heads": 2}
RETRIEVAL = partial(tasks.Retrieval, embed_dim=16, queries=4, text_encoder=TEXTS)


@pytest.fixture(autouse=True)
def _no_seed_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def module(made: dict[str, Any], mixture: Mixture | None = None) -> VolumeModule:
    torch.manual_seed(0)
    encoder = vol3d.encoders.create("vit3d-tiny", embed_dim=96, depth=2, num_heads=2, patch_size=(4, 4, 2))
    return VolumeModule(encoder, made, stages={"see": Stage(None, None, ["encoder", "tasks"], 1e-3)}, mixture=mixture)


class Halves(world.World):
    """Process r of n reads every n-th study from the r-th on."""

    grid = Grid(name="world", spacing=(1.0, 1.0, 1.0), shape=(16, 16, 8))

    def train_dataloader(self) -> DataLoader:
        count, rank = self.trainer.world_size, self.trainer.global_rank
        return DataLoader(self.train[rank::count], batch_size=self.batch_size // count, collate_fn=collate)


# --- the batch divided: any mixture of labels ------------------------------------------------------------------


def coded(number: int, *, codes: bool, report: bool = True) -> Sample:
    made = world.study(number, report=report, mask=False)
    known = {"codes": ["001.10"], "codes_absent": ["002.10"], "code_system": "phecode"} if codes else {}
    return replace(made, study=replace(made.study, **known))


def step_together(folder: Path, samples: list[Sample], mixture: Mixture | None) -> list[float] | str:
    """The sum of each weight after four steps, or what stopped them; a wait that has no end is stopped."""
    strategy = DDPStrategy(
        process_group_backend="gloo", find_unused_parameters=True, bucket_cap_mb=1, timeout=timedelta(seconds=60)
    )
    made = module({"retrieval": RETRIEVAL, "codes": partial(tasks.EHRCodes, codes=CODES, system="phecode")}, mixture)
    run = world.trainer(4, folder, devices=2, strategy=strategy, use_distributed_sampler=False, max_epochs=9)
    try:
        run.fit(made, Halves(samples))
    except ValueError as error:
        return str(error)
    return [float(parameter.detach().sum()) for parameter in made.parameters()]


MIXTURES = {
    "all": None,
    "drawn": {"proportions": {"codes": 1, "retrieval": 1}},
    "conflicts": {"conflicts_every": 1},
}


@pytest.mark.parametrize("settings", MIXTURES.values(), ids=MIXTURES)
def test_ddp_takes_any_mixture_of_labels(settings: dict[str, Any] | None, tmp_path: Path) -> None:
    """The second process meets no code; messages that crossed would stop the run or give the two other weights."""
    mixture = None if settings is None else Mixture(**settings)
    samples = [coded(number, codes=number % 2 == 0) for number in range(16)]
    first, second = two_processes.together(step_together, tmp_path / "ranks", tmp_path, samples, mixture)
    assert not isinstance(first, str), first
    assert first == second


def test_a_pass_without_labels_is_refused_when_no_process_finds_one(tmp_path: Path) -> None:
    some = [coded(number, codes=number % 2 == 0, report=False) for number in range(8)]
    first, second = two_processes.together(step_together, tmp_path / "a", tmp_path, some, None)
    assert first == second
    assert not isinstance(first, str)
    none = [coded(number, codes=False, report=False) for number in range(8)]
    for said in two_processes.together(step_together, tmp_path / "b", tmp_path, none, None):
        assert "found a label in all 1 batches of a pass" in said
