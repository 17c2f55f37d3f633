"""Two processes and tasks that only some studies have labels for, or whose weights have no axis to be divided along."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import two_processes
import world
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

import vol3d
from vol3d import tasks
from vol3d.data.batch import Sample, collate
from vol3d.data.manifest import Manifest
from vol3d.model.interfaces import Task
from vol3d.training.callbacks import SaveModel
from vol3d.training.consolidate import read_whole, write_model
from vol3d.training.mixing import Mixture
from vol3d.training.module import VolumeModule
from vol3d.training.sharding import Fsdp2Strategy, check_labels
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


# --- the weights divided: weights without an axis ---------------------------------------------------------------

WALLS = {"near wall": 1, "far wall": 2}


def walled(number: int) -> Sample:
    """A study with a report and two organs, both always there, so that every study asks for as much."""
    made = world.study(number, mask=False)
    organs = torch.zeros(made.hu.shape[1:], dtype=torch.int16)
    organs[:2], organs[14:] = 1, 2
    return replace(made, study=replace(made.study, mask=Path("m"), mask_labels=WALLS), mask=organs)


SCALARS: dict[str, tuple[dict[str, Any], Mixture | None]] = {
    "retrieval": ({"retrieval": partial(RETRIEVAL, loss="siglip")}, Mixture(uncertainty=True)),
    "segmentation": (
        {
            "masks": partial(
                tasks.PromptSegmentation, dim=16, num_heads=2, pixel_dim=4, prompts=2, absent=0.0, interactive=0.0
            )
        },
        None,
    ),
}


def fit(folder: Path, name: str, strategy: Any, ckpt: Path | None = None) -> list[float]:
    losses, made = world.Losses(), module(*SCALARS[name])
    data = Halves([walled(number) for number in range(16)])
    data.manifest.path = Path("manifest.jsonl")
    saver = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=2, save_top_k=-1)
    run = world.trainer(
        4, folder, callbacks=[losses, saver, SaveModel(folder)], enable_checkpointing=True, max_epochs=9,
        devices=2 if strategy else 1, strategy=strategy or "auto", use_distributed_sampler=False,
    )  # fmt: skip
    run.fit(made, data, ckpt_path=ckpt, weights_only=False if ckpt else None)
    return losses.values


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def mean(ranks: list[list[float]]) -> list[float]:
    return [sum(pair) / 2 for pair in zip(*ranks, strict=True)]


@pytest.mark.parametrize("name", SCALARS)
def test_weights_without_an_axis_learn_under_fsdp2_what_they_learn_alone(name: str, tmp_path: Path) -> None:
    def divided(folder: str, ckpt: Path | None = None) -> list[float]:
        return fit(tmp_path / folder, name, Fsdp2Strategy(process_group_backend="gloo"), ckpt)

    alone = fit(tmp_path / "alone", name, None)
    whole = mean(two_processes.together(divided, tmp_path / "a", "whole"))
    assert whole == pytest.approx(alone, abs=2e-4)
    wanted, found = weights(tmp_path / "alone"), weights(tmp_path / "whole")
    assert [key for key, value in wanted.items() if value.ndim == 0]
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], atol=2e-4, rtol=1e-3, msg=key)
    vol3d.load(tmp_path / "whole" / "model")
    rest = mean(two_processes.together(divided, tmp_path / "b", "rest", tmp_path / "whole/checkpoints/step=2.ckpt"))
    assert rest == pytest.approx(whole[2:], abs=1e-5)
    data = Halves([walled(number) for number in range(16)])
    data.manifest.path = Path("manifest.jsonl")
    state = read_whole(tmp_path / "rest/checkpoints/step=4.ckpt")
    write_model(module(*SCALARS[name]), data, state, tmp_path / "consolidated" / "model")
    for key, value in weights(tmp_path / "consolidated").items():
        torch.testing.assert_close(value, weights(tmp_path / "rest")[key], rtol=0, atol=0, msg=key)


def kind(name: str) -> Any:
    if name == "ddp":
        return DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
    return Fsdp2Strategy(process_group_backend="gloo", save_distributed_checkpoint=name == "pieces")


@pytest.mark.parametrize(("before", "after"), [("ddp", "pieces"), ("one file", "ddp"), ("one file", "one file")])
def test_a_checkpoint_in_one_file_goes_on_under_ddp_and_fsdp2(before: str, after: str, tmp_path: Path) -> None:
    """Weights without an axis have one under FSDP2; the moments are those of the weights they were made for."""

    def run(folder: str, name: str, ckpt: Path | None = None) -> list[float]:
        return fit(tmp_path / folder, "retrieval", kind(name), ckpt)

    whole = mean(two_processes.together(run, tmp_path / "a", "whole", before))
    rest = mean(two_processes.together(run, tmp_path / "b", "rest", after, tmp_path / "whole/checkpoints/step=2.ckpt"))
    assert rest == pytest.approx(whole[2:], abs=1e-4)
    wanted, found = weights(tmp_path / "whole"), weights(tmp_path / "rest")
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], atol=1e-4, rtol=1e-3, msg=key)


def read_in_turns(folder: Path, strategy: Any) -> list[float]:
    """Losses of two steps, in which process 0 has one text and process 1 two."""
    rows = [walled(number) for number in range(16)]
    said = ["one", "one", "one", "two"] * 4
    rows = [replace(row, study=replace(row.study, report=text)) for row, text in zip(rows, said, strict=True)]
    losses = world.Losses()
    run = world.trainer(
        2, folder, callbacks=[losses], devices=2 if strategy else 1, strategy=strategy or "auto", max_epochs=9,
        use_distributed_sampler=False,
    )  # fmt: skip
    run.fit(module({"retrieval": partial(RETRIEVAL, chunk=1)}), Halves(rows))
    return losses.values


def test_processes_with_unequal_numbers_of_texts_read_as_many_chunks_under_fsdp2(tmp_path: Path) -> None:
    def divided() -> list[float]:
        strategy = kind("pieces")
        strategy._timeout = timedelta(seconds=60)
        return read_in_turns(tmp_path, strategy)

    alone = read_in_turns(tmp_path, None)
    assert mean(two_processes.together(divided, tmp_path / "ranks")) == pytest.approx(alone, abs=2e-4)


def keep_in_turns(folder: Path, strategy: Any) -> list[float]:
    """Losses of three steps on a frozen encoder; process 0 has kept its studies after the first, process 1 never."""
    rows = [walled(0 if number % 2 == 0 else number) for number in range(12)]
    losses = world.Losses()
    run = world.trainer(
        3, folder, callbacks=[losses], devices=2 if strategy else 1, strategy=strategy or "auto", max_epochs=1,
        use_distributed_sampler=False,
    )  # fmt: skip
    made = module({"retrieval": RETRIEVAL})
    made.stages = {"read": Stage(None, None, ["tasks"], 1e-3)}
    data = Halves([walled(number) for number in range(12)], batch_size=4)
    data.train = rows
    run.fit(made, data)
    return losses.values


def test_a_process_with_all_features_kept_gathers_with_the_others(tmp_path: Path) -> None:
    def divided() -> list[float]:
        strategy = kind("pieces")
        strategy._timeout = timedelta(seconds=60)
        return keep_in_turns(tmp_path, strategy)

    alone = keep_in_turns(tmp_path, None)
    assert mean(two_processes.together(divided, tmp_path / "ranks")) == pytest.approx(alone, abs=2e-4)


def segment_in_turns(folder: Path) -> int:
    """Steps done: process 0 draws a second round in each of them, process 1 in none."""
    strategy = Fsdp2Strategy(process_group_backend="gloo")
    strategy._timeout = timedelta(seconds=60)
    build = partial(tasks.PromptSegmentation, dim=16, num_heads=2, pixel_dim=4, interactive=0.5)
    run = world.trainer(2, folder, devices=2, strategy=strategy, use_distributed_sampler=False, max_epochs=9)
    made, draw = module({"masks": build}), torch.rand

    def drawn(*size: Any, **options: Any) -> torch.Tensor:
        return torch.tensor(float(run.global_rank)) if size == ((),) and not options else draw(*size, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", drawn)
        run.fit(made, Halves([walled(number) for number in range(16)]))
    return run.global_step


def test_processes_that_draw_apart_look_as_often_under_fsdp2(tmp_path: Path) -> None:
    assert two_processes.together(segment_in_turns, tmp_path / "ranks", tmp_path) == [2, 2]


# --- the weights divided: every study labelled, or none ---------------------------------------------------------

SECTIONS = "FINDINGS:\nLiver: normal.\nSpleen: normal."
LEARNT: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "VQA": (partial(tasks.VQA, questions="manifest"), {"questions": [{"question": "Why?", "answer": "So."}]}, {}),
    "OrganReports": (tasks.OrganReports, {"report": SECTIONS}, {"report": "An examination of the body."}),
    "FindingQueries": (
        partial(tasks.FindingQueries, findings=["ascites"], read="tokens"),
        {"labels_known": {"ascites": 0}},
        {},
    ),
    "Retrieval": (partial(RETRIEVAL, text="sections"), {"report": SECTIONS}, {"report": "An examination."}),
    "Outcomes": (
        partial(tasks.Outcomes, outcomes=["death"], days=[365]),
        {"outcomes": {"death": {"time": 400, "event": 0}}},
        {"outcomes": {"death": {"time": 3, "event": 0}}},
    ),
}


@pytest.mark.parametrize("name", LEARNT)
def test_divided_weights_refuse_what_only_some_studies_teach(name: str) -> None:
    """A study without a label is one whose loss is None: its process would leave the others waiting."""
    build, labels, others = LEARNT[name]
    torch.manual_seed(0)
    made = world.module()
    made.language = made.language.build(["A text."])
    made.configure_model()
    task = build(made.model)
    bare = [world.study(number, report=False, mask=False) for number in range(5)]
    rows = [labels] * 3 + [others] * 2
    some = [
        replace(one, study=replace(one.study, finding_labels={}, **row)) for one, row in zip(bare, rows, strict=True)
    ]
    manifest = Manifest([one.study for one in some])
    given = SimpleNamespace(stages={"all": Stage()}, tasks={"it": task})
    with pytest.raises(ValueError, match=r"stage 'all', task 'it': 3 of 5 training studies carry its labels"):
        check_labels(given, SimpleNamespace(manifest=manifest))
    for part, learns in ((some[:3], True), (some[3:], False)):
        batch = world.World([]).on_after_batch_transfer(collate(part), 0)
        features = made._project(made.encode(batch), ["report"])
        assert (task.loss(made.model, features, batch).loss is not None) == learns


def test_every_task_says_what_it_learns_from() -> None:
    kinds = [kind for kind in vars(tasks).values() if isinstance(kind, type) and issubclass(kind, Task)]
    kinds += [getattr(tasks, name) for name in tasks.__all__]
    for kind in kinds:
        assert kind is Task or kind.learns is not Task.learns or kind.labelled is not Task.labelled, kind
