"""Grounding: boxes from phrases, names from boxes, a report whose findings have a place; learnt from the volume."""

from dataclasses import replace
from functools import cache

import pytest
import torch
import world

import vol3d
from vol3d.data.batch import Batch, collate
from vol3d.evaluation.metrics.grounding import score_grounding
from vol3d.model.box_prompts import boxes_of, hulls, jitter_boxes, main_parts
from vol3d.model.interfaces import Evidence
from vol3d.tasks import Grounding, Regions
from vol3d.volume.runs import decode_runs

LEFT, RIGHT = world.FINDINGS
SMALL = {"dim": 32, "depth": 1, "num_heads": 2, "pixel_dim": 8}


@cache
def sample(number: int) -> world.Sample:
    """The toy world's boxes with their corners: voxel i spans i − 1/2 to i + 1/2 mm."""
    made = world.study(number)
    boxes = []
    for name, label in made.study.finding_labels.items():
        voxels = (made.finding_mask == label).nonzero().float()
        if len(voxels):
            low, high = (voxels.amin(0) - 0.5).tolist(), (voxels.amax(0) + 0.5).tolist()
            boxes.append({"label": name, "min_mm": low, "max_mm": high})
    known = {name: int(any(box["label"] == name for box in boxes)) for name in world.FINDINGS}
    return replace(made, study=replace(made.study, boxes=boxes, labels_known=known))


def batch(numbers: range, *, shuffled: bool = False, masks: bool = True) -> Batch:
    made = collate([sample(number) for number in numbers])
    order = torch.arange(len(made)).roll(1) if shuffled else torch.arange(len(made))
    finding_mask = made.finding_mask if masks else None
    return replace(made, image=made.image[order].float() / 300, finding_mask=finding_mask)


@cache
@torch.enable_grad()
def learnt(*, shuffled: bool = False) -> tuple[vol3d.VolumeLM, Grounding]:
    torch.manual_seed(0)
    sizes = {"embed_dim": 48, "depth": 1, "num_heads": 2, "patch_size": (4, 4, 2), "stem": "conv"}
    lm = vol3d.VolumeLM(vol3d.encoders.create("vit3d-tiny", **sizes))
    task = Grounding(lm, names=world.FINDINGS, prompts=2, **SMALL)
    optimizer = torch.optim.AdamW([*lm.parameters(), *task.parameters()], lr=3e-3)
    for step in range(300):
        part = batch(range(4 * step % 128, 4 * step % 128 + 4), shuffled=shuffled)
        loss = task.loss(lm, lm.encode(part.image, part.affine), part).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return lm.eval(), task.eval()


@torch.no_grad()
def scores(*, shuffled: bool = False) -> dict:
    lm, task = learnt(shuffled=True) if shuffled else learnt()  # called alike, it is trained once
    part = batch(range(500, 530), masks=False)
    dealt = replace(part, image=part.image.roll(1, 0))
    rows, blind = (
        {
            study.study: row
            for study, row in zip(b.studies, task.predict(lm, lm.encode(b.image, b.affine), b), strict=True)
        }
        for b in (part, dealt)
    )
    return task.score(Evidence(part.studies, rows, blind=lambda: blind, replicates=20))["grounding"]


def test_boxes_are_learnt_and_the_volume_is_looked_at():
    found = scores()
    assert found["iou"]["value"] > 0.7
    assert found["found@0.5"]["value"] > 0.8
    assert found["absent_silent"]["value"] > 0.8
    assert found["region_accuracy"]["value"] > 0.9
    assert found["baselines"]["blind"]["iou"] < 0.4
    assert scores(shuffled=True)["iou"]["value"] < 0.4


@torch.no_grad()
def test_a_box_is_named_and_a_report_is_grounded():
    lm, task = learnt()
    number = next(n for n in range(600, 640) if len(sample(n).study.boxes) == 2)
    part = batch(range(number, number + 1), masks=False)
    features, boxes = lm.encode(part.image, part.affine), sample(number).study.boxes
    corners = [[*box["min_mm"], *box["max_mm"]] for box in boxes]
    named = task.describe(lm, features, part, [corners])[0]
    assert [answer["answer"] for answer in named] == [box["label"] for box in boxes]
    assert sum(named[0]["scores"].values()) == pytest.approx(1, abs=1e-3)
    report = "There is a left pleural effusion. No pneumothorax. Small effusion on the right."
    found = task.ground(lm, features, part, [report])[0]
    assert [row["label"] for row in found] == [LEFT, RIGHT]
    assert found[0]["sentence"] == "there is a left pleural effusion"
    truth = {box["label"]: box for box in boxes}
    for row in found:
        middle = [(a + b) / 2 for a, b in zip(row["min_mm"], row["max_mm"], strict=True)]
        box = truth[row["label"]]
        assert all(low < m < high for low, m, high in zip(box["min_mm"], middle, box["max_mm"], strict=True))
        mask = decode_runs(row["runs"], (16, 16, 8))
        assert row["volume_ml"] == pytest.approx(mask.sum() / 1000, abs=0.01)
    assert task.ground(lm, features, part, ["The chest is normal."]) == [[]]
    empty = next(n for n in range(600, 640) if not sample(n).study.boxes)
    part = batch(range(empty, empty + 1), masks=False)
    borne = task.ground(lm, lm.encode(part.image, part.affine), part, [report])[0]
    assert all("min_mm" not in row for row in borne), "what the volume does not show gets no place"


def test_boxes_alone_teach_too_and_studies_without_them_cost_nothing():
    lm, _ = learnt()
    task = Grounding(lm, names=world.FINDINGS, box="head", **SMALL)
    part = batch(range(0, 4), masks=False)
    output = task.loss(lm, lm.encode(part.image, part.affine), part)
    assert output.count == 4
    assert set(output.log) == {"presence", "box", "name"}
    bare = replace(part, studies=[replace(study, boxes=[], labels_known={}) for study in part.studies])
    output = task.loss(lm, lm.encode(bare.image, bare.affine), bare)
    assert (output.loss, output.count) == (None, 0)
    assert task.score(Evidence(bare.studies, {})) == {}


def test_what_nobody_calls_absent_is_unknown_and_not_scored():
    study = sample(next(n for n in range(64) if sample(n).study.labels_known == {LEFT: 1, RIGHT: 0})).study
    _, task = learnt()
    given = {"min_mm": [0, 0, 0], "max_mm": [4, 4, 4], "score": 0.9}
    row = {"boxes": [{"label": name, **given} for name in (LEFT, RIGHT)], "box_names": [{"answer": LEFT}]}

    def silent(study):
        found = task.score(Evidence([study], {study.study: row}, replicates=20))["grounding"]
        return found["absent_silent"]["value"]

    assert silent(study) == 0.0
    assert silent(replace(study, labels_known={LEFT: 1})) is None


def test_boxes_given_to_the_healthy_are_counted():
    """Where nothing is there a box is most surely a false one."""
    ill, well = (sample(next(n for n in range(64) if len(sample(n).study.boxes) == count)).study for count in (1, 0))
    absent = next(name for name in world.FINDINGS if not ill.labels_known[name])
    _, task = learnt()
    assert task.learns(well)
    assert not task.learns(replace(well, labels_known={}))
    given = {"min_mm": [0, 0, 0], "max_mm": [4, 4, 4]}
    rows = {
        study.study: {
            "boxes": [{"label": name, **given, "score": score} for name in world.FINDINGS],
            "box_names": [{"answer": absent} for _ in study.boxes],
        }
        for study, score in ((ill, 0.1), (well, 0.9))
    }
    found = task.score(Evidence([ill, well], rows, replicates=20))["grounding"]
    assert found["absent_silent"]["value"] == pytest.approx(1 / 3)  # one in the ill, none of two in the healthy
    assert task.score(Evidence([well], rows, replicates=20)) == {}, "no box to find"


def test_a_box_outside_the_volume_is_refused():
    part = batch(range(0, 1))
    study = replace(part.studies[0], boxes=[{"label": LEFT, "min_mm": [40, 2, 2], "max_mm": [50, 9, 5]}])
    with pytest.raises(
        ValueError, match=r"study 's0': box 'left pleural effusion' from \[40.0, 2.0, 2.0\] .* \[-0.5, "
    ):
        boxes_of(replace(part, studies=[study]), 0)
    beside = {"label": LEFT, "min_mm": [2, 2, 2], "max_mm": [5, 9, 5]}
    with pytest.raises(ValueError, match=r"box 'left pleural effusion' from \[40.0, 2.0, 2.0\] .* lies outside"):
        boxes_of(replace(part, studies=[replace(study, boxes=[beside, *study.boxes])]), 0)
    lm, task = learnt()
    features = lm.encode(part.image, part.affine)
    with pytest.raises(ValueError, match=r"box 'region 0' from \[40.0, .* lies outside the volume"):
        task.describe(lm, features, part, [[[40, 2, 2, 50, 9, 5]]])
    with pytest.raises(ValueError, match=r"names must be given once each and at least one, got \[\]"):
        Grounding(lm, names=[])


def test_several_boxes_of_one_label_are_answered_by_the_box_around_them():
    boxes = [
        {"label": "nodule", "min_mm": [0, 0, 0], "max_mm": [2, 2, 2]},
        {"label": "nodule", "min_mm": [5, 1, -3], "max_mm": [6, 4, 1]},
        {"label": "cyst", "min_mm": [1, 1, 1], "max_mm": [2, 2, 2]},
    ]
    assert hulls(boxes) == {"nodule": (0, 0, -3, 6, 4, 2), "cyst": (1, 1, 1, 2, 2, 2)}


def test_crumbs_do_not_move_a_box():
    mask = torch.zeros(1, 2, 16, 16, 8, dtype=torch.bool)
    mask[0, 0, 2:6, 2:6, 2:6] = True
    mask[0, 0, 15, 15, 7] = True
    kept = main_parts(mask)
    assert kept[0, 0].sum() == 64
    assert not kept[0, 0, 15, 15, 7]
    assert not kept[0, 1].any()
    assert mask[0, 0, 15, 15, 7], "the mask that was given stays as it is"
    assert torch.equal(main_parts(mask, 0.0), mask)


def test_jittered_boxes_stay_boxes_near_the_old_ones():
    boxes = torch.tensor([[[0.0, 0, 0, 10, 20, 30]]], dtype=torch.float64).repeat(50, 1, 1)
    moved = jitter_boxes(boxes)
    assert (moved[..., 3:] > moved[..., :3]).all()
    assert ((moved - boxes).abs() <= 0.05 * torch.tensor([10.0, 20, 30] * 2) + 1e-9).all()
    assert (moved != boxes).all()


@torch.no_grad()
@pytest.mark.parametrize("order", [1, -1])
def test_one_model_may_name_boxes_and_organs_findings(order):
    """Each of the two has fields of its own in a row of predictions."""
    sizes = {"embed_dim": 48, "depth": 1, "num_heads": 2, "patch_size": (4, 4, 2), "stem": "conv"}
    lm = vol3d.VolumeLM(vol3d.encoders.create("vit3d-tiny", **sizes))
    organs = Regions(lm, findings=world.FINDINGS, organs={"lower thorax": ["lung"]})
    tasks = [Grounding(lm, names=world.FINDINGS, **SMALL).eval(), organs.eval()][::order]
    part = batch(range(6), masks=False)
    features = lm.eval().encode(part.image, part.affine)
    rows = [{} for _ in part.studies]
    for task in tasks:
        for row, told in zip(rows, task.predict(lm, features, part), strict=True):
            assert not row.keys() & told.keys()
            row.update(told)
    predictions = {study.study: row for study, row in zip(part.studies, rows, strict=True)}
    blocks = [task.score(Evidence(part.studies, predictions, replicates=5)) for task in tasks][::order]
    assert "region_accuracy" in blocks[0]["grounding"]
    assert "macro_auroc" in blocks[1]["regions"]


def test_scores_by_hand():
    truth = [{"a": (0, 0, 0, 10, 10, 10)}, {"a": (0, 0, 0, 10, 10, 10)}]
    regions = [[{"label": "a"}], [{"label": "a"}, {"label": "not learnt"}]]
    box = {"label": "a", "min_mm": [0, 0, 0], "max_mm": [10, 10, 5], "score": 0.9}
    said = [
        {"boxes": [box, {**box, "label": "b", "score": 0.1}], "box_names": [{"answer": "a"}]},
        {"boxes": [{**box, "score": 0.2}, {**box, "label": "b"}], "box_names": [{"answer": "b"}, {"answer": "a"}]},
    ]
    wrong = [{**row, "boxes": [{**box, "max_mm": [10, 10, 10]}]} for row in said]
    absent = [["b"], ["b"]]
    got = score_grounding(truth, regions, said, ["p", "q"], ["a", "b"], absent=absent, blind=wrong, replicates=20)
    assert got["iou"]["value"] == pytest.approx(0.25)  # one of 1/2, one unsaid
    assert got["readable"]["value"] == 0.5
    assert got["region_accuracy"]["value"] == 0.5
    assert got["absent_silent"]["value"] == 0.5
    assert got["baselines"]["blind"]["iou"] == pytest.approx(1)
    unknown = score_grounding(truth, regions, said, ["p", "q"], ["a", "b"], absent=[["b"], []], replicates=20)
    assert unknown["absent_silent"]["value"] == 1.0  # nobody says that the second study has no b
    scores = {name for name, score in got.items() if isinstance(score, dict) and "value" in score}
    assert scores <= got["baselines"]["blind"].keys()
