"""Masked-volume modelling: what is hidden, what counts, and that an encoder learns to fill it in."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from labelled_world import batch, evidence, model, sample
from torch import nn
from world import World, trainer

import vol3d
from vol3d.model.interfaces import Evidence
from vol3d.tasks import EHRCodes, MaskedVolume
from vol3d.training.module import VolumeModule
from vol3d.training.stages import Stage

LM = model()


def test_so_many_blocks_are_hidden_and_a_seed_hides_the_same() -> None:
    """4 × 4 × 4 tokens in blocks of 2 × 2 × 1: 16 of them, of which 0.6 are 10, of 4 tokens each."""
    task = MaskedVolume(LM, ratio=0.6, block=(2, 2, 1))
    hidden = task.hidden((4, 4, 4), [7, 8, 7])
    assert hidden.flatten(1).sum(1).tolist() == [40, 40, 40]
    assert torch.equal(hidden[0], hidden[2])
    assert not torch.equal(hidden[0], hidden[1])
    blocks = hidden[0].unfold(0, 2, 2).unfold(1, 2, 2).flatten(3).float().mean(-1)
    assert blocks.unique().tolist() == [0.0, 1.0], "a block is hidden whole"
    assert task.hidden((3, 3, 5), [0]).shape == (1, 3, 3, 5), "a grid that the blocks do not divide"


class Seen:
    """Encodes, and remembers what it was shown."""

    def __init__(self, lm: vol3d.VolumeLM) -> None:
        self.lm, self.image = lm, torch.empty(0)

    def __call__(self, image: torch.Tensor, affine: torch.Tensor) -> vol3d.model.interfaces.Features:
        self.image = image
        return self.lm.encoder(image, affine)


def test_the_encoder_never_sees_what_is_hidden_and_only_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    task, part = MaskedVolume(LM, ratio=0.5), batch(range(2))
    with torch.no_grad():
        task.fill.fill_(5.0)
    seen = Seen(LM)
    monkeypatch.setattr(LM, "encode", seen)
    predicted, target, counts = task.fill_in(LM, part, [0, 1])
    hidden = seen.image == 5.0
    assert hidden.float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(seen.image[~hidden], part.image[~hidden])
    assert torch.equal(target, part.image)
    assert predicted.shape == target.shape
    assert not (counts & ~hidden).any()
    assert counts.sum() >= hidden.sum() - 2, "all that is hidden but the lowest voxel, which counts as empty"


def test_the_error_by_hand() -> None:
    """The head says 0.25 everywhere, the hidden voxels are 1: the error is 0.75; the lowest value is free."""
    task, part = MaskedVolume(LM, ratio=0.5, pool=(2, 2, 1)), batch(range(1))
    with torch.no_grad():
        task.head[-1].weight.zero_()
        task.head[-1].bias.fill_(0.25)
    part.image = torch.ones_like(part.image)
    part.image[:, :, :4] = 0.0
    output = task.loss(LM, None, part)
    assert (output.loss.item(), output.count) == (pytest.approx(0.75), 1)
    part.image = torch.zeros_like(part.image)
    assert task.loss(LM, None, part).loss is None, "an empty image teaches nothing"


def test_what_is_empty_is_told_of_each_volume_alone() -> None:
    """Under a z-score or percentiles the lowest values of two volumes differ: neighbours in a batch say nothing."""
    task, part = MaskedVolume(LM), batch(range(2))
    part.image = part.image - part.image.amin(dim=(1, 2, 3, 4), keepdim=True)
    part.image[:, :, :8] = 0.0
    part.image[1] = 0.5 * part.image[1] + 0.3
    with torch.no_grad():
        together = task.predict(LM, None, part)
        alone = [task.predict(LM, None, part.select([row]))[0] for row in range(2)]
    for one, other in zip(together, alone, strict=True):
        assert one["masked_volume"] == pytest.approx(other["masked_volume"], abs=2e-5)


def test_each_token_predicts_its_own_voxels() -> None:
    """A head that says its token's number, on tokens that hold it: the volume counts up in x-major order."""
    lm = model(embed_dim=4, num_heads=1)
    task, part = MaskedVolume(lm, pool=(4, 4, 2)), batch(range(1))
    numbers = torch.arange(4 * 4 * 4.0)
    tokens = numbers[None, :, None].expand(1, -1, 4)
    lm.encode = lambda image, affine: vol3d.model.interfaces.Features(tokens, (4, 4, 4))
    task.head = nn.Linear(4, 1, bias=False)
    nn.init.constant_(task.head.weight, 0.25)
    predicted, _, _ = task.fill_in(lm, part, [0])
    assert torch.equal(predicted.flatten(), numbers)


def test_a_resumed_run_draws_on_and_an_evaluation_draws_the_same() -> None:
    lm, part = model(), batch(range(4))
    task = MaskedVolume(lm).train()
    task.loss(lm, None, part)
    again = MaskedVolume(lm).train()
    again.load_state_dict(task.state_dict())
    assert int(again.drawn) == 4
    assert task.loss(lm, None, part).loss == again.loss(lm, None, part).loss
    task.eval()
    assert task.loss(lm, None, part).loss == task.loss(lm, None, part).loss
    assert int(task.drawn) == 8


def test_settings_that_cannot_be_used_are_named() -> None:
    with pytest.raises(ValueError, match=r"ratio is 1\.0: hide a share of the patches between 0 and 1"):
        MaskedVolume(LM, ratio=1.0)
    with pytest.raises(ValueError, match=r"pool is \(3, 2, 1\), the encoder's patch \(4, 4, 2\): it must divide it"):
        MaskedVolume(LM, pool=(3, 2, 1))


@pytest.mark.parametrize(("tasks", "passes"), [(["fill"], 1), (["fill", "codes"], 2)])
def test_alone_it_encodes_once_a_step(tasks: list[str], passes: int, tmp_path: Path) -> None:
    encoder, calls = model().encoder, []
    encoder.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    builds = {"fill": MaskedVolume, "codes": partial(EHRCodes, codes=["507", "572"])}
    module = VolumeModule(encoder, builds, stages={"learn": Stage(tasks=tasks)})
    trainer(2, tmp_path).fit(module, World([sample(number) for number in range(8)]))
    assert calls == [8] * 2 * passes


@pytest.mark.learn
def test_an_encoder_learns_to_fill_in_what_it_can_know() -> None:
    """Stripes whose phase and direction differ by study: what is hidden follows from what is seen."""

    def striped(first: int) -> vol3d.data.batch.Batch:
        part = batch(range(first, first + 16))
        place = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in (16, 16, 8)], indexing="ij"))
        for row in range(16):
            generator = torch.Generator().manual_seed(first + row)
            phase, axis = (
                2 * math.pi * torch.rand((), generator=generator),
                int(torch.rand((), generator=generator) > 0.5),
            )
            part.image[row, 0] = torch.sin(2 * math.pi * place[axis] / 8 + phase)
        return part

    lm = model()
    task = MaskedVolume(lm)
    optimizer = torch.optim.AdamW([*lm.parameters(), *task.parameters()], lr=3e-3)
    losses = []
    for step in range(60):
        loss = task.loss(lm, None, striped(16 * (step % 8))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert task.fill.grad.abs().sum() > 0
    unseen = striped(1000)
    told = [row["masked_volume"] for row in task.eval().predict(lm, None, unseen)]
    error, constant = (sum(row[name] for row in told) / 16 for name in ("error", "constant_error"))
    assert constant == pytest.approx(2 / math.pi, abs=0.05)
    assert error < 0.6 * constant, (error, losses[::10])


def test_the_score_stands_beside_a_constant() -> None:
    task = MaskedVolume(LM).eval()
    shown = evidence(LM, task, range(6))
    scores = task.score(shown)["masked_volume"]
    assert scores["error"]["low"] <= scores["error"]["value"] <= scores["error"]["high"]
    assert 0 < scores["baselines"]["constant"]["error"] < 1
    assert task.score(Evidence([], {})) == {}
