"""The plan's memory is that of the real step, as PyTorch's own profiler counts it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import world
from torch import nn
from torch.profiler import profile

from vol3d.cli import main
from vol3d.data.batch import collate
from vol3d.plan import plan
from vol3d.training.module import VolumeModule
from vol3d.training.rehearsal import Fakes, rehearse


def measured(step: Callable[[], torch.Tensor], module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Highest bytes of a real step by the profiler's record of every allocation, on top of weights and state."""

    def whole() -> None:
        step().backward()
        optimizer.step()
        optimizer.zero_grad()

    whole()
    held = [*module.parameters(), *module.buffers()]
    held += [value for state in optimizer.state.values() for value in state.values()]
    with profile(profile_memory=True) as record:
        whole()
    live = peak = 0
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak + sum(tensor.numel() * tensor.element_size() for tensor in held)


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
    real = measured(lambda: module.training_step(batch, 0), module, optimizer)
    assert told.total == pytest.approx(real, rel=0.15)
    assert told.weights == sum(p.numel() * p.element_size() for p in [*module.parameters(), *module.buffers()])
    assert told.optimizer >= 2 * sum(p.numel() * p.element_size() for p in module.parameters())
    assert told.flops > 0
    assert told.logits > 0


def test_numbers_and_masks_of_fractions_are_assumed_and_whole_ones_known() -> None:
    real = torch.tensor([0, 3, 3])
    with Fakes() as mode:
        labels = mode.give(real)
        assert int(labels.max()) == 3
        assert (labels == 3).nonzero().shape == (2, 1)
        assert torch.zeros(3, 5)[labels == 3].shape == (2, 5)
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


@pytest.mark.slow
def test_the_quickstart_costs_what_is_planned(tmp_path: Path) -> None:
    """Each stage of the demo's recipe as it stands: planned without a tensor, then measured in a real step."""
    from vol3d.data.dataset import VolumeData
    from vol3d.plan import _Recipe, _samples

    recipe = ["--config", "quickstart.yaml", "--data.manifest", str(tmp_path / "none.jsonl")]
    told = plan(recipe, gpu_gb=24)
    parsed = _Recipe(recipe)
    data: VolumeData = parsed.datamodule
    samples = _samples(data)
    module = parsed.model
    module.language = module.language.build([sample.study.report for sample in samples])
    module.configure_model()
    module.log = lambda *_, **__: None
    batch = collate([samples[row % 2] for row in range(8)])
    for stage in told.stages:
        module.train()
        module.enter(stage.stage)
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.0)

        def step() -> torch.Tensor:
            image = data.grid.window_hu(batch.image)
            with torch.autocast("cpu", torch.bfloat16):
                return module.training_step(type(batch)(**{**vars(batch), "image": image, "augmented": True}), 0)

        assert stage.total == pytest.approx(measured(step, module, optimizer), rel=0.15), stage.stage
