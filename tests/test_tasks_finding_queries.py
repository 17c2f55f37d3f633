"""Finding queries that read the encoder's tokens: presence learnt from labels alone, and from the volume."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import world

import vol3d
from vol3d.data.batch import Sample
from vol3d.tasks import FindingQueries
from vol3d.training.module import VolumeModule
from vol3d.training.stages import Stage


def labelled(number: int) -> Sample:
    """A study of the toy world with labels instead of masks."""
    sample = world.study(number)
    known = {name: int(bool((sample.finding_mask == 1 + place).any())) for place, name in enumerate(world.FINDINGS)}
    return replace(sample, study=replace(sample.study, labels_known=known), finding_mask=None)


def module() -> VolumeModule:
    torch.manual_seed(0)
    return VolumeModule(
        vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=1, num_heads=2, patch_size=(4, 4, 2)),
        {"labels": partial(FindingQueries, findings=world.FINDINGS, read="tokens")},
        stages={"all": Stage(None, train=["encoder", "tasks"], learning_rate=3e-3)},
    )


@pytest.mark.parametrize("shuffled", [False, True])
def test_findings_are_learnt_from_labels_and_not_from_other_volumes(shuffled: bool, tmp_path: Path) -> None:
    train = [labelled(number) for number in range(64)]
    if shuffled:  # each row with another study's volume
        train = [replace(one, hu=other.hu) for one, other in zip(train, train[17:] + train[:17], strict=True)]
    test = [labelled(number) for number in range(1000, 1064)]
    data = world.World(train, test)
    made, run = module(), world.trainer(120, tmp_path)
    run.fit(made, data)
    rows = [row for batch in run.predict(made, data) for row in batch]
    right = [
        (row["finding_queries"][name] > 0.5) == bool(sample.study.labels_known[name])
        for row, sample in zip(rows, test, strict=True)
        for name in world.FINDINGS
    ]
    accuracy = sum(right) / len(right)
    assert (accuracy < 0.7) if shuffled else (accuracy > 0.9), accuracy


def test_a_finding_that_is_not_known_costs_nothing() -> None:
    made = module()
    made.trainer = world.trainer(1, Path("none"))
    made.configure_model()
    task, data = made.tasks["labels"], world.World([])
    batch = data.on_after_batch_transfer(world.collate([labelled(number) for number in range(4)]), 0)
    features = made.encode(batch)
    whole = task.loss(made.model, features, batch)
    silent = [replace(study, labels_known={world.FINDINGS[0]: None}) for study in batch.studies[2:]]
    half = task.loss(made.model, features, replace(batch, studies=[*batch.studies[:2], *silent]))
    first = task.loss(made.model, features[[0, 1]], batch.select([0, 1]))
    assert (whole.count, half.count) == (4, 2)
    torch.testing.assert_close(half.loss, first.loss)
    assert task.loss(made.model, features[[2, 3]], replace(batch.select([2, 3]), studies=silent)).loss is None


def test_the_projectors_tokens_need_a_projector() -> None:
    model = vol3d.VolumeLM(vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=1, num_heads=2))
    with pytest.raises(ValueError, match='the model has no projector: give it one, or read="tokens"'):
        FindingQueries(model, findings=world.FINDINGS)
