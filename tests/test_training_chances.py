"""Many processes draw each for itself, also after a resume, and hide other patches at each step."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import two_processes
import world
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

import vol3d
from vol3d.data.batch import collate
from vol3d.tasks import FindingMaps, MaskedVolume
from vol3d.training import chances
from vol3d.training.module import VolumeModule
from vol3d.training.sharding import Fsdp2Strategy
from vol3d.training.stages import Stage


class Draws(lightning.Callback):
    """What the generator gives at each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(torch.rand(())))


class Halves(world.World):
    def train_dataloader(self) -> DataLoader:
        count, rank = self.trainer.world_size, self.trainer.global_rank
        return DataLoader(self.train[rank::count], batch_size=2, collate_fn=collate)


def fit(folder: Path, strategy: Any = None, ckpt: Path | None = None) -> tuple[list[float], list[int]]:
    """What one process draws, and the seeds of the patches it hides."""
    torch.manual_seed(3)
    draws, seeds = Draws(), []
    hidden = MaskedVolume.hidden

    def told(self: MaskedVolume, grid_size: Any, numbers: Any) -> torch.Tensor:
        seeds.extend(numbers)
        return hidden(self, grid_size, numbers)

    made = VolumeModule(
        vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=2, num_heads=2, patch_size=(4, 4, 2)),
        {"hide": MaskedVolume, "findings": partial(FindingMaps, findings=world.FINDINGS, cells=(1, 1, 1), top_cells=2)},
        stages={"see": Stage(None, None, ["encoder", "tasks"], 1e-3)},
    )
    saver = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=2, save_top_k=-1)
    run = world.trainer(
        4, folder, callbacks=[draws, saver], enable_checkpointing=True, devices=2 if strategy else 1,
        strategy=strategy or "auto", use_distributed_sampler=False, max_epochs=9,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskedVolume, "hidden", told)
        run.fit(made, Halves([world.study(n) for n in range(16)]), ckpt_path=ckpt, weights_only=False if ckpt else None)
    return draws.values, seeds


def ddp() -> DDPStrategy:
    return DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)


def fsdp() -> Fsdp2Strategy:
    return Fsdp2Strategy(process_group_backend="gloo")


@pytest.mark.parametrize("strategy", [ddp, fsdp])
def test_each_process_draws_for_itself_and_goes_on_where_it_stopped(
    strategy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    alone, _ = fit(tmp_path / "alone")
    whole = two_processes.together(lambda: fit(tmp_path / "whole", strategy()), tmp_path / "a")
    (first, hid), (second, hid_too) = whole
    assert first == alone, "the first process draws what it would alone"
    assert not set(first) & set(second)
    assert len({*hid, *hid_too}) == len(hid) + len(hid_too) == 16, "no mask is drawn twice"
    checkpoint = tmp_path / "whole/checkpoints/step=2.ckpt"
    rest = two_processes.together(lambda: fit(tmp_path / "rest", strategy(), checkpoint), tmp_path / "b")
    for (drawn, seeds), (before, seeds_before) in zip(rest, whole, strict=True):
        assert drawn == before[2:]
        assert seeds == seeds_before[4:]


def test_a_process_more_than_before_draws_for_itself_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    saved, drawn = chances.chances(), []
    for rank in range(3):
        monkeypatch.setattr(chances, "place", lambda rank=rank: (rank, 3))
        chances.set_chances(saved)
        drawn.append(float(torch.rand(())))
    torch.manual_seed(1)
    assert drawn[0] == float(torch.rand(()))
    assert len(set(drawn)) == 3
