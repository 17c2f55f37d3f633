"""The plan's memory is that of the real step, as PyTorch's own profiler counts it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import world
from real_peaks import peak, peaks

from vol3d import phantom
from vol3d.cli import main
from vol3d.data.batch import collate
from vol3d.plan import Plan, first_samples, plan
from vol3d.plan import _Rehearsal as Rehearsal
from vol3d.training.module import VolumeModule
from vol3d.training.recipe import RecipeParts
from vol3d.training.rehearsal import Fakes, rehearse


def prepared(size: int) -> tuple[VolumeModule, torch.optim.Optimizer]:
    module = world.module()
    module.language = module.language.build([world.study(number).study.report for number in range(size)])
    module.configure_model()
    module.log = lambda *_, **__: None
    module.enter("all")
    return module, torch.optim.AdamW(module.parameters(), lr=1e-3)


@pytest.mark.parametrize("size", [2, 16])
def test_a_rehearsal_needs_what_the_real_step_needs(size: int) -> None:
    batch = collate([world.study(number) for number in range(size)])
    batch.image = batch.image.float() / 300
    fakes = Fakes()
    with fakes as mode:
        module, optimizer = prepared(size)
        doubles = batch.map_tensors(mode.give)
        mode.vocabulary = module.model.language.causal_lm.config.vocab_size
        told = rehearse(lambda: module.training_step(doubles, 0), module, optimizer, mode)
    module, optimizer = prepared(size)
    real = peak(lambda: module.training_step(batch, 0), module, optimizer)
    assert told.total == pytest.approx(real, rel=0.15)
    assert told.weights == sum(p.numel() * p.element_size() for p in [*module.parameters(), *module.buffers()])
    assert told.optimizer >= 2 * sum(p.numel() * p.element_size() for p in module.parameters())
    assert told.flops > 0
    assert told.logits > 0


def test_numbers_and_masks_of_fractions_are_assumed_whole_ones_and_geometry_known() -> None:
    real, millimetres = torch.tensor([0, 3, 3]), torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0], dtype=torch.float64))
    with Fakes() as mode:
        labels = mode.give(real)
        assert int(labels.max()) == 3
        assert (labels == 3).nonzero().shape == (2, 1)
        assert torch.zeros(3, 5)[labels == 3].shape == (2, 5)
        assert labels.unique().tolist() == [0, 3]
        affine = mode.give(millimetres)
        assert (affine[:3, :3].norm(dim=0) / 2).max().item() == 2.5
        assert ((affine @ affine).diagonal() > 4).nonzero().tolist() == [[2]]
        fractions = torch.rand(100)
        assert int(fractions.sum() > 0) == 1
        assert fractions[fractions > 0.5].shape == (2,)


@pytest.mark.slow
def test_the_command_says_what_does_not_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = ["model.encoder.init_args.depth=1", "model.encoder.init_args.embed_dim=48", "model.stages.see.steps=1"]
    small += ["model.encoder.init_args.num_heads=2", f"data.manifest={tmp_path / 'none.jsonl'}"]
    said = main(["plan", "--json", "--config", "quickstart.yaml", "--gpu", "0.81", "--set", *small])
    told = json.loads(capsys.readouterr().out)
    assert said == 1
    assert not told["fits"]
    assert [stage["stage"] for stage in told["stages"]] == ["see", "name", "speak"]
    assert told["stages"][2]["logits"] > 0
    assert told["advice"]


def test_studies_that_carry_the_labels_stand_for_the_others(tmp_path: Path) -> None:
    manifest = phantom.write(tmp_path, studies=4, seed=0, shape=(64, 64, 32), prevalence=0.5)
    *others, labelled = [json.loads(line) for line in manifest.read_text().splitlines()]
    bare = [{key: row[key] for key in ("study", "image")} | {"report": "Long. " * 99} for row in others]
    recipe = ["--config", "cpu/ehr_codes.yaml", "--data.manifest", str(manifest)]

    def planned(rows: list[dict[str, Any]], split: str = "train") -> Plan:
        manifest.write_text("\n".join(json.dumps(row | {"split": split}) for row in rows))
        return plan(recipe, gpu_gb=24)

    assert planned([*bare, labelled | {"report": "Short."}]).stages[0].activations > 0
    with pytest.raises(ValueError, match=r"no label of its tasks in study-.* give the manifest those labels"):
        planned(bare)
    with pytest.raises(ValueError, match=r"no study of the split 'train' in .*manifest.jsonl: add a split"):
        planned(bare, "val")


def test_of_tasks_drawn_by_proportions_the_dearest_counts(tmp_path: Path) -> None:
    recipe = ["--config", "cpu/multitask.yaml", "--data.manifest", str(tmp_path / "none.jsonl")]
    recipe += ["--model.mixture", "vol3d.training.mixing.Mixture", "--model.feature_cache_gb", "0"]

    def speak(proportions: str) -> int:
        told = plan([*recipe, f"--model.mixture.proportions={{maps: 1, queries: 1, {proportions}}}"], gpu_gb=24)
        return next(stage.total for stage in told.stages if stage.stage == "speak")

    cheap, dear = speak("codes: 1"), speak("report: 1")
    assert cheap < 0.9 * dear
    assert speak("codes: 99, report: 1") >= dear


def test_of_tasks_drawn_by_proportions_the_mean_time_counts(tmp_path: Path) -> None:
    """Where nearly all steps are a cheap task's, nearly all of the time is its own."""
    recipe = ["--config", "cpu/multitask.yaml", "--data.manifest", str(tmp_path / "none.jsonl")]
    recipe += ["--model.mixture", "vol3d.training.mixing.Mixture", "--model.mixture.proportions={codes: 1}"]
    asked = Rehearsal(recipe, first_samples(RecipeParts(recipe).datamodule))

    def flops(**proportions: int) -> float:
        asked.module.mixture.proportions = proportions
        return asked("speak", 1).flops

    codes, report = flops(codes=1), flops(report=1)
    assert codes < 0.9 * report
    assert flops(codes=3, report=1) == pytest.approx(0.75 * codes + 0.25 * report)


def test_features_of_a_frozen_encoder_are_counted_up_to_the_limit(tmp_path: Path) -> None:
    """They lie on the GPU, of every study of the manifest."""
    manifest = phantom.write(tmp_path, studies=6, seed=0, shape=(64, 64, 32), prevalence=0.5)
    recipe = ["--config", "quickstart.yaml", "--data.manifest", str(manifest)]
    asked = Rehearsal(recipe, first_samples(RecipeParts(recipe).datamodule))
    stages, encoder = asked.module.stages, asked.module.model.encoder
    (learns,), frozen = [[name for name in stages if ("encoder" in stages[name].train) == it] for it in (True, False)]
    assert asked(learns, 1).kept == 0
    foot = asked(frozen[0], 1)
    tokens = math.prod(encoder.grid_size(tuple(asked.samples[0].hu.shape[1:])))
    studies = len(asked.data.manifest.split("train"))
    assert foot.kept in {studies * tokens * encoder.embed_dim * width for width in (2, 4)}
    assert foot.total == foot.weights + foot.gradients + foot.optimizer + foot.activations + foot.kept
    asked.module.feature_cache.limit = 1000.0
    assert asked(frozen[0], 1).kept == 1000
    asked.module.feature_cache.limit = 0.0
    assert asked(frozen[0], 1).kept == 0
    asked.data.source, asked.module.feature_cache.limit = tmp_path / "none.jsonl", 2e9
    assert asked(frozen[0], 1).kept == 2e9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart.yaml", "cpu/prompt_segmentation.yaml"])
def test_a_recipe_costs_what_is_planned(name: str, tmp_path: Path) -> None:
    """Each stage as it stands, planned without a tensor, then measured in a real step; benchmarks/planner.py does the
    same for every CPU recipe."""
    recipe = ["--config", name, "--data.manifest", str(tmp_path / "none.jsonl"), "--model.feature_cache_gb", "0"]
    told = plan(recipe, gpu_gb=24)
    measured = peaks(recipe, first_samples(RecipeParts(recipe).datamodule))
    assert {stage.stage: stage.total for stage in told.stages} == pytest.approx(measured, rel=0.15)


def test_a_card_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a card of 0 GB: give its memory in GB, such as 24"):
        plan(["--config", "quickstart.yaml"], gpu_gb=0)
    with pytest.raises(ValueError, match=r"and -1 TFLOPS"):
        plan(["--config", "quickstart.yaml"], gpu_gb=24, tflops=-1)
