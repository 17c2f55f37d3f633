"""What the parts share: they remember how they were built, also when copied, and features can be selected."""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
import world

import vol3d
from vol3d import tasks
from vol3d.data.batch import collate
from vol3d.model.interfaces import Features, Task, predicting


def test_a_part_remembers_its_arguments_and_survives_copying() -> None:
    projector = vol3d.PerceiverProjector(24, 32, num_latents=5, num_heads=2)
    assert projector.init_args == {"in_dim": 24, "out_dim": 32, "num_latents": 5, "num_heads": 2}
    for twin in (copy.deepcopy(projector), pickle.loads(pickle.dumps(projector))):
        assert twin.init_args == projector.init_args
        torch.testing.assert_close(twin.state_dict(), projector.state_dict())


def test_features_of_some_studies_keep_what_belongs_to_them() -> None:
    affine = torch.arange(48, dtype=torch.float64).reshape(3, 4, 4)
    features = Features(torch.randn(3, 8, 4), (2, 2, 2), affine, torch.randn(3, 4), (torch.randn(3, 2, 4, 4, 4),))
    some = features[[2, 0]]
    assert len(some) == 2
    torch.testing.assert_close(some.tokens, features.tokens[[2, 0]])
    torch.testing.assert_close(some.affine, affine[[2, 0]])
    torch.testing.assert_close(some.scales[0], features.scales[0][[2, 0]])
    assert some.visual is None


SMALL = {"embed_dim": 16, "queries": 4, "text_encoder": {"embed_dim": 16, "depth": 1, "num_heads": 2}}
EFFUSIONS = {"findings": world.FINDINGS}
JUDGED: dict[str, Callable[[vol3d.VolumeLM], Task]] = {
    "report": partial(tasks.ReportGeneration, max_new_tokens=4),
    "impression": partial(tasks.ReportGeneration, target="impression", max_new_tokens=4),
    "organs": partial(tasks.OrganReports, max_new_tokens=4),
    "steps": partial(tasks.FindingsThenImpression, max_new_tokens=4),
    "structured": partial(tasks.StructuredReport, max_new_tokens=40),
    "vqa": tasks.VQA,
    "retrieval": partial(tasks.Retrieval, **SMALL),
    "zero_shot": partial(tasks.ZeroShot, **SMALL, **EFFUSIONS),
    "regions": partial(tasks.Regions, **SMALL, **EFFUSIONS),
    "codes": partial(tasks.EHRCodes, codes=["J90"], system="icd10cm"),
    "outcomes": partial(tasks.Outcomes, outcomes=["death"], days=[365]),
    "segmentation": partial(tasks.PromptSegmentation, dim=16, num_heads=2, pixel_dim=4),
    "grounding": partial(tasks.Grounding, names=world.FINDINGS, dim=16, num_heads=2),
    "hidden": tasks.MaskedVolume,
}


@pytest.fixture(scope="module")
def model() -> vol3d.VolumeLM:
    module = world.module()
    module.language = module.language.build(["FINDINGS: There is a left pleural effusion. IMPRESSION: Effusion."])
    module.configure_model()
    return module.model.eval()


@pytest.mark.parametrize("name", JUDGED)
def test_a_task_predicts_the_fields_it_says(name: str, model: vol3d.VolumeLM) -> None:
    task = JUDGED[name](model).eval()
    batch = world.World([]).on_after_batch_transfer(collate([world.study(0)]), 0)
    with torch.no_grad():
        features = model.encode(batch.image, batch.affine)
        features.visual = model.project(features)
        (row,) = task.predict(model, features, batch)
    assert row.keys() == {*(task.writes or (task.kind,))}


@pytest.mark.parametrize(
    ("one", "other"), [("retrieval", "zero_shot"), ("report", "organs"), ("impression", "steps"), ("vqa", "vqa")]
)
def test_of_two_tasks_that_predict_the_same_field_the_first_does(one: str, other: str, model: vol3d.VolumeLM) -> None:
    pair = {"first": JUDGED[one](model), "second": JUDGED[other](model)}
    assert list(predicting(pair)) == ["first"]
    assert list(predicting(dict(reversed(pair.items())))) == ["second"]


def test_the_second_trains_and_leaves_the_row_to_the_first(caplog: pytest.LogCaptureFixture) -> None:
    module = world.module()
    module.language = module.language.build(["A text."])
    module.task_factories = {name: JUDGED[name] for name in ("report", "organs", "vqa")}
    module.configure_model()
    assert "tasks organs train and do not predict" in caplog.text
    batch = world.World([]).on_after_batch_transfer(collate([world.study(0)]), 0)
    module.eval()
    with torch.no_grad():
        (row,) = module.predict_step(batch, 0)
        assert module.tasks["organs"].loss(module.model, module.encode(batch), batch) is not None
    assert row.keys() == {"study", "report", "answers"}


def test_tasks_of_different_fields_all_predict(model: vol3d.VolumeLM) -> None:
    apart = {name: JUDGED[name](model) for name in JUDGED.keys() - {"retrieval", "organs", "steps"}}
    assert predicting(apart) == apart
