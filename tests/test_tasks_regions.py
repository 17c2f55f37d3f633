"""Regions: an organ's tokens by mask or by attention, its section, and findings asked of the organ they belong to."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from world import FINDINGS, World, dealt, study, trainer

import vol3d
from vol3d.data.batch import Batch, Sample, collate
from vol3d.model.interfaces import Evidence
from vol3d.model.pooling import QueryPool
from vol3d.model.pretrained import build, save
from vol3d.model.volume_lm import VolumeLM
from vol3d.tasks import Regions
from vol3d.training.module import VolumeModule
from vol3d.training.stages import Stage
from vol3d.volume.grid import Grid

SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2}
ORGANS = {"lower thorax": ["lung"], "liver": ["liver"]}
LABELS = {"left lung": 1, "right lung": 2, "liver": 3}
PROMPTS = {name: {"positive": [f"There is a {name}."], "negative": ["The lungs are clear."]} for name in FINDINGS}
GRID = Grid(spacing=(4.0, 4.0, 8.0), shape=(16, 16, 8), window=(-300, 300))


def sample(number: int, *, mask: bool = True, split: str = "train") -> Sample:
    """A study of the toy world with lungs on both sides of a liver, and a section for each."""
    toy = study(number, split)
    lungs = " ".join(f"There is a {name}." for name in FINDINGS if name in toy.study.report) or "The lungs are clear."
    organs = torch.zeros(16, 16, 8, dtype=torch.int16)
    organs[:6], organs[10:], organs[6:10] = 1, 2, 3
    row = replace(
        toy.study,
        report=f"FINDINGS:\nLungs and pleura: {lungs}\nLiver and gallbladder: Normal liver.",
        labels_known={name: int(name in toy.study.report) for name in FINDINGS},
        mask_labels=LABELS,
    )
    return replace(toy, study=row, mask=organs if mask else None)


def batch_of(*samples: Sample) -> Batch:
    batch = collate(list(samples))
    return replace(batch, image=batch.image.float() / 300)


def encoder() -> torch.nn.Module:
    return vol3d.encoders.create("vit3d-tiny", embed_dim=32, depth=1, num_heads=2, patch_size=(4, 4, 2))


def task_of(model: VolumeLM, **settings: object) -> Regions:
    settings = {"prompts": PROMPTS, "text_encoder": SMALL, "embed_dim": 16, "queries": 3, **settings}
    return Regions(model, findings=FINDINGS, organs=ORGANS, **settings)


@cache
def trained(deal: int | None = None) -> VolumeModule:
    train = [sample(number) for number in range(96)]
    train = train if deal is None else dealt(train, deal)
    torch.manual_seed(0)
    task = partial(task_of, embed_dim=32, queries=4)
    module = VolumeModule(encoder(), {"regions": task}, stages={"all": Stage(learning_rate=3e-3)})
    trainer(60, Path()).fit(module, World(train, batch_size=16))
    return module.eval()


def judged(module: VolumeModule) -> dict:
    """Scores on new studies without masks."""
    samples = [sample(1000 + number, mask=False, split="val" if number < 24 else "test") for number in range(72)]
    batch = batch_of(*samples)
    with torch.inference_mode():
        features = module.model.encode(batch.image, batch.affine)
        rows = module.tasks["regions"].predict(module.model, features, batch)
    studies = [one.study for one in samples]
    predictions = {one.study: row for one, row in zip(studies, rows, strict=True)}
    return module.tasks["regions"].score(Evidence(studies[24:], predictions, validation=studies[:24], replicates=20))[
        "regions"
    ]


@pytest.mark.learn
def test_findings_are_told_of_their_organ_without_a_mask() -> None:
    scores = judged(trained())
    assert scores["macro_auroc"]["value"] > 0.95
    assert scores["calibrated_on"] == 24
    assert scores["baselines"]["blind"]["macro_auroc"] < 0.7


@pytest.mark.slow
@pytest.mark.learn
def test_shuffled_volumes_teach_nothing() -> None:
    assert np.mean([judged(trained(deal))["macro_auroc"]["value"] for deal in range(3)]) < 0.65


def test_tokens_of_an_organ_are_those_its_mask_touches() -> None:
    torch.manual_seed(0)
    model, batch = VolumeLM(encoder()), batch_of(sample(0), sample(1, mask=False))
    task = task_of(model)
    inside = task.inside(model.encode(batch.image, batch.affine), batch)
    lungs = inside[0, 0].view(4, 4, 4)
    assert lungs.all(dim=2).all(dim=1).tolist() == [True, True, True, True]
    assert inside[0, 1].view(4, 4, 4)[:, 0, 0].tolist() == [False, True, True, False]
    assert not inside[1].any()


def test_with_a_mask_an_organs_vector_depends_on_its_tokens_only() -> None:
    torch.manual_seed(0)
    model, batch = VolumeLM(encoder()), batch_of(sample(0))
    task = task_of(model)
    features = model.encode(batch.image, batch.affine)
    features.tokens = features.tokens.detach()
    inside = task.inside(features, batch)
    before = task.embed_organs(features, inside)
    changed = replace(
        features, tokens=torch.where(inside[0, 1][None, :, None], features.tokens, torch.randn_like(features.tokens))
    )
    after = task.embed_organs(changed, inside)
    torch.testing.assert_close(after[:, 1], before[:, 1])
    assert (after[:, 0] - before[:, 0]).abs().max() > 1e-3
    assert (task.embed_organs(changed)[:, 1] - task.embed_organs(features)[:, 1]).abs().max() > 1e-4, "free attention"


def test_a_prediction_reads_no_mask() -> None:
    """`vol3d predict` loads a test study's masks too, and they are labels."""
    torch.manual_seed(0)
    model, masked = VolumeLM(encoder()).eval(), batch_of(sample(0), sample(1))
    task, bare = task_of(model).eval(), replace(masked, mask=None)
    features = model.encode(masked.image, masked.affine)
    features.tokens = 3 * torch.randn_like(features.tokens)
    masked.mask[:, 4:] = 0  # a lung in some tokens only
    assert task.predict(model, features, masked) == task.predict(model, features, bare)


def test_every_parameter_learns_masks_or_none_and_no_text_costs_nothing() -> None:
    torch.manual_seed(0)
    model, batch = VolumeLM(encoder()), batch_of(*(sample(number, mask=number < 3) for number in range(6)))
    task = task_of(model)
    output = task.loss(model, model.encode(batch.image, batch.affine), batch)
    output.loss.backward()
    assert output.count == 6
    assert "attention" in output.log
    bare = {
        name for name, one in task.named_parameters() if one.requires_grad and (one.grad is None or not one.grad.any())
    }
    assert bare == set()
    blank = replace(batch, studies=[replace(one, report=None, findings=None, impression=None) for one in batch.studies])
    assert task.loss(model, model.encode(batch.image, batch.affine), blank).loss is None


def test_sections_of_other_organs_cost_nothing() -> None:
    """A report's other sections are not read, and a step whose reports have only such finds no label."""
    torch.manual_seed(0)
    model, batch = VolumeLM(encoder()), batch_of(*(sample(number) for number in range(4)))
    task = task_of(model)
    more = [replace(one, report=f"{one.report}\nSpleen: Splenomegaly, {one.study}.") for one in batch.studies]
    features, read = model.encode(batch.image, batch.affine), []
    task.texts.register_forward_pre_hook(lambda _, given: read.extend(given[0]))
    loss = task.loss(model, features, replace(batch, studies=more)).loss
    torch.testing.assert_close(loss, task.loss(model, features, batch).loss)
    assert not any("Splenomegaly" in text for text in read)
    other = [replace(one, report="FINDINGS:\nSpleen: Normal.") for one in batch.studies]
    assert task.loss(model, features, replace(batch, studies=other)).loss is None
    assert not any(map(task.learns, other))


def test_a_saved_model_scores_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batch = VolumeLM(encoder()), batch_of(sample(0, mask=False), sample(1, mask=False))
    task = task_of(model).eval()
    save(tmp_path / "model", model, {"regions": task}, GRID)
    again, tasks, _ = build(tmp_path / "model")
    features = model.encode(batch.image, batch.affine)
    assert tasks["regions"].predict(again, features, batch) == task.predict(model, features, batch)


def test_a_query_finds_what_it_looks_for() -> None:
    torch.manual_seed(0)
    pool, tokens = QueryPool(8, queries=2, width=4), torch.randn(3, 10, 8)
    assert pool(tokens).shape == (3, 2, 4)
    allowed = torch.zeros(3, 2, 10, dtype=torch.bool)
    allowed[:, :, 5] = True
    changed = tokens.clone()
    changed[:, :5] = 0
    torch.testing.assert_close(pool(tokens, allowed), pool(changed, allowed))


def test_organs_that_reports_do_not_have() -> None:
    model = VolumeLM(encoder())
    with pytest.raises(ValueError, match=r"reports have no section 'thyroid': the sections are lower thorax"):
        Regions(model, findings=["ascites"], organs={"thyroid": ["thyroid"]}, text_encoder=SMALL)
    with pytest.raises(ValueError, match=r"'ascites' belongs to none of the organs lower thorax, liver"):
        Regions(model, findings=["ascites"], organs=ORGANS, text_encoder=SMALL)
