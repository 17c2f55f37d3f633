"""What a model is shown, and what its kept predictions depend on."""

import json
from dataclasses import replace

import pytest
import torch
from small_language import volume_lm
from toy_models import LEFT, Nothing, Toy, samples
from world import study as world_study

from vol3d.data.manifest import Manifest
from vol3d.evaluation.predictions import Looker, Shelf, cut_or_pad, fingerprint, read_predictions
from vol3d.evaluation.run import evaluate
from vol3d.model.places import boxes_to_mm
from vol3d.tasks import VQA, Grounding, PromptSegmentation, Regions, ReportGeneration, Retrieval


class Frames(Nothing):
    """Tells what it was shown."""

    kind = "frames"

    def predict(self, model, features, batch):
        seen = zip(batch.affine, batch.image, strict=True)
        return [
            {"origin": a[:3, 3].tolist(), "shape": list(i.shape[1:]), "mean": float(i.float().mean())} for a, i in seen
        ]


def moved(sample, by, hu=None):
    affine = sample.affine.clone()
    affine[:3, 3] = torch.tensor(by, dtype=affine.dtype)
    return replace(sample, affine=affine, hu=sample.hu if hu is None else hu)


def test_a_text_may_hold_any_character(tmp_path):
    """U+0085 and U+2028 end a line for `str.splitlines`, and nothing in JSON."""
    said = "No effusion.\u2028Ascites.\u0085Übrige Organe unauffällig."
    rows = [{"study": name, "report": said} for name in "ab"]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "predictions.jsonl").write_bytes(text.encode())
    assert read_predictions(tmp_path) == {row["study"]: row for row in rows}


def test_another_patients_volume_is_shown_in_the_studys_own_frame(tmp_path):
    dark, bright = (
        torch.full((1, *size), value, dtype=torch.int16) for size, value in (((8, 6, 4), -5), ((4, 6, 6), 7))
    )
    one, two = samples(2)
    one, two = moved(one, (5.0, 0, 0), dark), moved(two, (-300.0, 20, 9), bright)
    trained = Toy(Frames(), samples=[one, two])
    studies = [one.study, two.study]
    given = {"batch_size": 1}  # volumes of two shapes
    look = Looker(trained, Shelf(tmp_path / "a", {}), **given)
    own = look("own", [Frames()], studies)
    assert [own[name]["origin"] for name in ("s0", "s1")] == [[5, 0, 0], [-300, 20, 9]]
    once = trained.shown
    dealt = look("dealt", [Frames()], studies, volumes=studies[::-1])
    assert trained.shown == once + 2, "where the studies lie is known from the first look"
    for name in ("s0", "s1"):
        assert {part: dealt[name][part] for part in ("origin", "shape")} == {
            part: own[name][part] for part in ("origin", "shape")
        }
    assert dealt["s1"]["mean"] == pytest.approx((-5 * 4 * 6 * 4 - 1024 * 4 * 6 * 2) / (4 * 6 * 6))
    # An evaluation that goes on behind its own predictions reads where they lie.
    assert (
        Looker(trained, Shelf(tmp_path / "b", {}), **given)("dealt", [Frames()], studies, volumes=studies[::-1])
        == dealt
    )


BOX = {"label": "liver", "min_mm": [0, 0, 0], "max_mm": [1, 1, 1]}
ASKED = {"question": "Is there ascites?", "answer": "yes", "choices": ["yes", "no"]}


SETTINGS = {
    Grounding: {"names": ["liver"]},
    ReportGeneration: {"prior": True},
    Regions: {"findings": [LEFT], "organs": {"lower thorax": ["lung"]}},
}


@pytest.mark.parametrize(
    ("task", "fields", "same"),
    [
        (Grounding, {"boxes": [BOX | {"max_mm": [60, 1, 1]}]}, False),
        (Grounding, {"boxes": [BOX | {"label": "spleen"}]}, True),
        (VQA, {"boxes": [], "questions": [ASKED | {"answer": "no"}], "report": "There is ascites."}, True),
        (VQA, {"questions": [ASKED | {"choices": ["no", "yes"]}]}, False),
        (ReportGeneration, {"meta": {"prior_report": "A nodule of 8 mm."}}, False),
        (ReportGeneration, {"report": "There is ascites.", "boxes": [], "questions": []}, True),
        (Retrieval, {"report": "There is ascites."}, False),
        (Regions, {"report": "There is ascites.", "meta": {"sex": "F"}}, True),
        (PromptSegmentation, {"finding_labels": {"ascites": 1}}, False),
        (Regions, {"meta": {"modality": "mr"}}, False),
    ],
)
def test_kept_predictions_depend_on_what_the_task_reads_and_not_on_its_labels(task, fields, same):
    study = replace(world_study(0).study, boxes=[BOX], questions=[ASKED])
    trained = Toy(task(volume_lm(), **SETTINGS.get(task, {})))
    one, two = (fingerprint(trained, [each]) for each in (study, replace(study, **fields)))
    assert (one == two) == same


def test_cut_or_pad_keeps_the_middle():
    hu = torch.arange(5, dtype=torch.int16).view(1, 5, 1, 1)
    assert cut_or_pad(hu, (3, 1, 1), -1024).flatten().tolist() == [1, 2, 3]
    assert cut_or_pad(hu, (7, 1, 1), -1024).flatten().tolist() == [-1024, 0, 1, 2, 3, 4, -1024]
    assert cut_or_pad(hu, (5, 1, 1), -1024) is hu


class SameShare(Nothing):
    """Grounding that never looks: always the same share of the volume it is shown."""

    kind, names = "grounding", ["liver"]
    labelled, score = Grounding.labelled, Grounding.score
    share = torch.tensor([[[0.3, 0.3, 0.3, 0.8, 0.8, 0.8]]], dtype=torch.float64)

    def predict(self, model, features, batch):
        boxes = boxes_to_mm(self.share.expand(len(batch), 1, 6), batch.affine, tuple(batch.image.shape[2:]))
        said = {"answer": "liver"}
        return [
            {"boxes": [{"label": "liver", "min_mm": box[:3], "max_mm": box[3:], "score": 1.0}], "box_names": [said]}
            for box in boxes[:, 0].tolist()
        ]


@pytest.mark.parametrize("spread", [0, 5])
def test_grounding_that_never_looks_is_no_better_than_blind_wherever_patients_lie(tmp_path, spread):
    """Scanner origins differ, and say nothing of the patient."""
    found = []
    for number in range(12):
        origin = (
            spread * torch.randn(3, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        ).tolist()
        sample = moved(world_study(number, "test"), origin)
        low, high = ([a + b for a, b in zip(origin, corner, strict=True)] for corner in ((4, 4, 2), (12, 12, 6)))
        boxes = [{"label": "liver", "min_mm": low, "max_mm": high}]
        found.append(replace(sample, study=replace(sample.study, boxes=boxes, finding_labels={})))
    trained, manifest = Toy(SameShare(), samples=found), Manifest([sample.study for sample in found])
    result = evaluate(trained, manifest, out=tmp_path, replicates=50, probes=True)
    block = result["tasks"]["grounding"]
    assert block["iou"]["value"] > 0.5
    assert block["baselines"]["blind"]["iou"] == pytest.approx(block["iou"]["value"], abs=0.01)
    assert result["faithfulness"]["grounding"]["caught"] == ["image_dependence"]
