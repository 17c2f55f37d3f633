"""Two processes: the losses are those of one, predictions are complete, divided models learn, save and resume alike."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
import world
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from small_recipes import resolved
from torch.utils.data import DataLoader

import vol3d
from vol3d.data.batch import collate
from vol3d.model.adapters import Lora
from vol3d.model.pretrained import build, save
from vol3d.training.callbacks import PredictionWriter, SaveModel
from vol3d.training.consolidate import read_whole, write_model
from vol3d.training.sharding import Fsdp2Strategy, ZeroStrategy, check_labels
from vol3d.training.stages import Stage
from vol3d.volume.grid import Grid

STAGES = {
    "see": Stage(3, ["findings"], ["encoder", "tasks"], 1e-3),
    "find": Stage(None, ["findings"], ["tasks"], 1e-3),
}
"""A second stage that freezes what the first one trained: what breaks in many processes if it is not told."""
TEXTS = ["There is a left pleural effusion.", "There is a right pleural effusion.", "The chest is normal."]
GRID = Grid(name="world", spacing=(1.0, 1.0, 1.0), shape=(16, 16, 8))


class Shared(world.World):
    """Process r of n takes every n-th study from the r-th on, so that all of them see one process's batch together."""

    def train_dataloader(self) -> DataLoader:
        count, rank = self.trainer.world_size, self.trainer.global_rank
        return DataLoader(self.train[rank::count], batch_size=self.batch_size // count, collate_fn=collate)


def data() -> Shared:
    made = Shared([world.study(n) for n in range(16)], [world.study(n, "test") for n in range(16, 21)])
    made.grid = GRID
    made.manifest.path = Path("manifest.jsonl")
    return made


def fit(folder: Path, strategy: Any, steps: int = 6, ckpt: Path | None = None, **settings: Any) -> list[float]:
    """The loss of each step in this process; leaves checkpoints and the saved model in `folder`."""
    losses = world.Losses()
    saver = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=2, save_top_k=-1)
    devices = 1 if strategy is None else 2
    run = world.trainer(
        steps, folder, callbacks=[losses, saver, SaveModel(folder)], enable_checkpointing=True, devices=devices,
        strategy=strategy or "auto", max_epochs=9, use_distributed_sampler=False, **settings,
    )  # fmt: skip
    run.fit(world.module(STAGES), data(), ckpt_path=ckpt, weights_only=False if ckpt else None)
    return losses.values


def ddp() -> DDPStrategy:
    return DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)


def fsdp() -> Fsdp2Strategy:
    return Fsdp2Strategy(process_group_backend="gloo")


def mean(ranks: list[list[float]]) -> list[float]:
    return [sum(pair) / 2 for pair in zip(*ranks, strict=True)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module", autouse=True)
def _no_seed_of_another_test() -> Iterator[None]:
    """Lightning seeds every rank anew from what an earlier `seed_everything` left in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PL_GLOBAL_SEED", raising=False)
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of one process with the whole batch."""
    folder = tmp_path_factory.mktemp("alone")
    return fit(folder, None), weights(folder)


@pytest.mark.parametrize("strategy", [ddp, fsdp])
def test_two_processes_learn_what_one_learns_and_go_on_where_they_stopped(
    strategy: Any, alone: tuple[list[float], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    whole = mean(two_processes.together(lambda: fit(tmp_path / "whole", strategy()), tmp_path / "a"))
    assert whole == pytest.approx(alone[0], abs=2e-4)
    assert len(set(whole)) == len(whole)
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(value, alone[1][name], atol=2e-4, rtol=1e-3, msg=name)
    assert vol3d.load(tmp_path / "whole" / "model").tasks.keys() == {"findings", "report"}
    checkpoint = tmp_path / "whole/checkpoints/step=4.ckpt"
    rest = mean(two_processes.together(lambda: fit(tmp_path / "rest", strategy(), ckpt=checkpoint), tmp_path / "b"))
    assert rest == pytest.approx(whole[4:], abs=1e-5)
    check_consolidated(tmp_path)


def check_consolidated(folder: Path) -> None:
    """The last checkpoint, in whatever pieces, gives the model folder that the run itself left."""
    (last,) = (folder / "rest" / "checkpoints").glob("*step=6*")
    write_model(world.module(STAGES), data(), read_whole(last), folder / "rest" / "consolidated" / "model")
    found, wanted = weights(folder / "rest" / "consolidated"), weights(folder / "rest")
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=0, msg=name)
    assert vol3d.load(folder / "rest" / "consolidated" / "model").tasks.keys() == {"findings", "report"}


def predict(folder: Path) -> None:
    writer = PredictionWriter(folder)
    run = world.trainer(1, folder, callbacks=[writer], devices=2, strategy=ddp())
    module = world.module(STAGES)
    run.predict(module, data(), return_predictions=False)


def test_predictions_of_two_processes_are_complete_and_in_order(tmp_path: Path) -> None:
    """Five studies for two processes: what fills the last batch of one of them must not be counted twice."""
    two_processes.together(predict, tmp_path / "ranks", tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [row["study"] for row in rows] == [f"s{n}" for n in range(16, 21)]
    assert all({"report", "finding_probabilities"} <= row.keys() for row in rows)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["predictions.jsonl"]


def refused(folder: Path) -> str:
    run = world.trainer(1, folder, callbacks=[PredictionWriter(folder)], devices=2, strategy=fsdp())
    with pytest.raises(ValueError, match=r"2 processes that share a model's weights cannot predict: .*strategy ddp"):
        run.predict(world.module(STAGES), data(), return_predictions=False)
    return "refused"


def test_divided_weights_do_not_predict_and_leave_what_is_there_alone(tmp_path: Path) -> None:
    """One process would end its report while the other still waits for its part of the weights."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "predictions.jsonl").write_text("kept")
    assert two_processes.together(lambda: refused(tmp_path / "run"), tmp_path / "ranks") == ["refused"] * 2
    assert (tmp_path / "run" / "predictions.jsonl").read_text() == "kept"


class Judged(world.World):
    """Five studies to validate on, one by one; of two processes the second meets no report."""

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=1, collate_fn=collate)


def validate(folder: Path, strategy: Any) -> dict[str, float]:
    studies = [world.study(n, "val", report=n % 2 == 0) for n in range(10, 15)]
    run = world.trainer(1, folder, devices=1 if strategy is None else 2, strategy=strategy or "auto")
    module = world.module()
    module.encoder = vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=2, num_heads=2, patch_size=(4, 4, 2))
    run.validate(module, Judged([world.study(n) for n in range(8)], studies), verbose=False)
    return {name: float(value) for name, value in run.callback_metrics.items()}


@pytest.mark.parametrize("strategy", [ddp, fsdp])
def test_validation_losses_are_those_of_one_process_in_each_of_two(strategy: Any, tmp_path: Path) -> None:
    """Neither the study that fills up the second process's share nor a task it has no label for changes a mean."""
    one = validate(tmp_path, None)
    assert one["val/findings_studies"] == 5
    assert one["val/report_studies"] == 3
    assert one["val/report_loss"] > 0
    for rank in two_processes.together(lambda: validate(tmp_path / "run", strategy()), tmp_path / "ranks"):
        assert rank == pytest.approx(one, rel=1e-4)


def test_divided_weights_want_a_tasks_labels_in_every_study() -> None:
    module = world.module({"speak": Stage(None, ["report"])})
    module.language = module.language.build(TEXTS)
    module.configure_model()
    check_labels(module, data())
    some = world.World([world.study(n, report=n > 2) for n in range(8)])
    with pytest.raises(ValueError, match=r"stage 'speak', task 'report': 5 of 8 training studies .*overlays/ddp.yaml"):
        check_labels(module, some)
    check_labels(module, world.World([world.study(n, report=False) for n in range(8)]))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_learns_what_one_process_learns_and_goes_on_where_it_stopped(
    stage: int, alone: tuple[list[float], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed", reason='needs pip install "vol3d[deepspeed]"')
    from zero_on_cpu import ZeroOnCpu

    whole = mean(two_processes.together(lambda: fit(tmp_path / "whole", ZeroOnCpu(stage)), tmp_path / "a"))
    assert whole == pytest.approx(alone[0], abs=2e-3)
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(value, alone[1][name], atol=2e-3, rtol=1e-2, msg=name)
    checkpoint = tmp_path / "whole/checkpoints/step=4.ckpt"
    rest = mean(
        two_processes.together(lambda: fit(tmp_path / "rest", ZeroOnCpu(stage), ckpt=checkpoint), tmp_path / "b")
    )
    assert rest == pytest.approx(whole[4:], abs=1e-4)
    check_consolidated(tmp_path)


@pytest.mark.slow
def test_validation_losses_under_zero_3_are_those_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason='needs pip install "vol3d[deepspeed]"')
    from zero_on_cpu import ZeroOnCpu

    one = validate(tmp_path, None)
    for rank in two_processes.together(lambda: validate(tmp_path / "run", ZeroOnCpu(3)), tmp_path / "ranks"):
        assert rank == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_lora_under_zero_3_is_saved_whole_and_merges(tmp_path: Path) -> None:
    """The weights of ZeRO-3 are empty between steps: what is saved, and merged, must not be (M3D issue 59)."""
    pytest.importorskip("deepspeed", reason='needs pip install "vol3d[deepspeed]"')
    from zero_on_cpu import ZeroOnCpu

    two_processes.together(lambda: fit_lora(tmp_path / "run", ZeroOnCpu(3, mixed=True)), tmp_path / "a")
    check_lora(tmp_path)


def test_lora_under_fsdp2_is_saved_whole_and_merges(tmp_path: Path) -> None:
    two_processes.together(lambda: fit_lora(tmp_path / "run", fsdp()), tmp_path / "a")
    check_lora(tmp_path)


def fit_lora(folder: Path, strategy: Any) -> None:
    module = world.module({"speak": Stage(None, ["report"], ["projector", "language"], 5e-2)})
    torch.manual_seed(0)
    plain = vol3d.LanguageModel.scratch(TEXTS, embed_dim=32, depth=2, num_heads=2)
    module.language = vol3d.LanguageModel(plain.causal_lm, plain.tokenizer, lora=Lora(rank=2))
    run = world.trainer(
        3, folder, callbacks=[SaveModel(folder)], devices=2, strategy=strategy, use_distributed_sampler=False,
        precision="bf16-mixed",
    )  # fmt: skip
    run.fit(module, data())


def check_lora(folder: Path) -> None:
    saved = weights(folder / "run")
    moved = [name for name, value in saved.items() if "lora_B" in name and value.abs().sum() > 0]
    assert moved, "LoRA's second matrix starts at zero and must have learnt"
    assert all(value.numel() for value in saved.values())
    model, tasks, grid = build(folder / "run" / "model")
    save(folder / "merged", model, tasks, grid, merge=True)
    merged = build(folder / "merged")[0]
    assert not [name for name, _ in merged.named_parameters() if "lora_" in name]
    batch = data().on_after_batch_transfer(collate([world.study(1), world.study(2)]), 0)
    losses = [
        one.language_loss(one.encode(batch.image, batch.affine), ["<volume>Report:"] * 2, TEXTS[:2])
        for one in (model.float(), merged.float())
    ]
    torch.testing.assert_close(losses[0], losses[1], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["deepspeed_zero2", "deepspeed_zero3_offload"])
def test_the_deepspeed_overlays_reach_deepspeed_as_they_are_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's own `config` takes a path or a dict, and a parser that tries a path first makes a dict one."""
    written = resolved("--config", "quickstart.yaml", "--config", f"overlays/{name}.yaml")["trainer"]["strategy"]
    config = written["init_args"]["config"]
    assert config["zero_optimization"]["stage"] == (2 if name.endswith("2") else 3)
    monkeypatch.setattr("vol3d.training.sharding.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install \"vol3d\[deepspeed\]\""):
        ZeroStrategy(config)
