"""A loss that is no number stops the run before it touches a weight; a gradient that jumps is told."""

import logging
from pathlib import Path

import pytest
import torch
import world

from vol3d.training.stages import Stage
from vol3d.training.watch import Watch

STAGES = {"see": Stage(None, ["findings"], ["encoder", "tasks"], 1e-3)}


def fit(folder: Path, watch: Watch, spoil: float, number: int) -> None:
    """Forty studies, two a step; the loss of the step that sees study `number` is multiplied by `spoil`."""
    module = world.module(STAGES)
    step = module.training_step

    def spoilt(batch, batch_idx):
        return step(batch, batch_idx) * (spoil if any(study.study == f"s{number}" for study in batch.studies) else 1.0)

    module.training_step = spoilt
    data = world.World([world.study(index) for index in range(40)], batch_size=2)
    world.trainer(20, folder, callbacks=[watch], gradient_clip_val=None).fit(module, data)


def test_a_nan_stops_the_run_and_names_the_studies(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the loss is nan at step 6 of stage 'see', studies \['s12', 's13'\]"):
        fit(tmp_path, Watch(), float("nan"), 12)


def test_the_weights_are_those_of_the_step_before(tmp_path: Path) -> None:
    kept = []

    class Keep(Watch):
        def on_before_backward(self, trainer, pl_module, loss) -> None:
            if not torch.isfinite(loss):
                kept.append([p.detach().clone() for p in pl_module.parameters()])
                self.module = pl_module
            super().on_before_backward(trainer, pl_module, loss)

    watch = Keep()
    with pytest.raises(ValueError, match="no weight was changed"):
        fit(tmp_path, watch, float("inf"), 4)
    assert all(torch.equal(a, b) for a, b in zip(kept[0], watch.module.parameters(), strict=True))
    assert all(torch.isfinite(p).all() for p in watch.module.parameters())


def test_a_gradient_that_jumps_is_told_with_its_studies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vol3d"):
        fit(tmp_path, Watch(), 1.0, 30)
        assert "gradient norm" not in caplog.text
        fit(tmp_path, Watch(), 100.0, 30)
    assert caplog.text.count("gradient norm") == 1
    assert "step 15: gradient norm" in caplog.text
    assert "last studies: s30, s31" in caplog.text
