"""Studies on the page: what is outlined of truth and model."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from labelled_world import model
from world import study as box_study

from vol3d.data.study import Study
from vol3d.evaluation.case import _PREDICTED, _TRUE, case_view
from vol3d.evaluation.cases import _texts, show_cases
from vol3d.tasks import EHRCodes
from vol3d.volume.runs import encode_runs


def seen(**row):
    """One study with a left effusion, shown by a model that predicted `row`."""
    sample = next(one for one in map(box_study, range(20)) if one.study.report == "There is a left pleural effusion.")
    trained = SimpleNamespace(sample=lambda study: sample, tasks={})
    study = sample.study
    study = type(study)(**(vars(study) | {"finding_mask": study.image}))
    (case,) = show_cases(trained, [study], {study.study: row})
    truth = (sample.finding_mask == 1).numpy()
    return case, truth


def drawn(case):
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image

    pictures = [Image.open(BytesIO(b64decode(p["source"].partition(",")[2]))) for p in case_view(case)["pictures"]]
    return [np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist() for picture in pictures]


def test_masks_of_truth_and_model_lie_on_the_same_slices():
    _, truth = seen(report="x")
    moved = np.roll(truth, 1, axis=1)
    said = {"left pleural effusion": {"runs": encode_runs(moved)}}
    case, _ = seen(report="There is a left pleural effusion.", segmentation=said)
    dice = 2 * (truth & moved).sum() / (truth.sum() + moved.sum())
    assert case.outlined == f"left pleural effusion, Dice {dice:.2f}"
    for pixels in drawn(case):
        assert list(_TRUE) in pixels
        assert list(_PREDICTED) in pixels
    # On the axial slice through the truth, the model's mask lies one pixel further to the front.
    rows = [np.flatnonzero(plane[0].any(1)).mean() for plane in (case.overlays, case.predicted_overlays)]
    assert rows[1] == pytest.approx(rows[0] - 1, abs=0.5)


def test_a_model_that_only_draws_is_told_by_volumes():
    _, truth = seen(report="x")
    case, _ = seen(segmentation={"left pleural effusion": {"runs": encode_runs(truth)}})
    assert case.truth == case.generated == f"left pleural effusion: {truth.sum() / 1000:.0f} ml"
    assert case.outlined.endswith("Dice 1.00")


def test_a_predicted_box_is_outlined_where_no_mask_was_drawn():
    _, truth = seen(report="x")
    places = np.argwhere(truth)
    box = {"label": "left pleural effusion", "score": 0.9}
    box |= {"min_mm": (places.min(0) - 0.5).tolist(), "max_mm": (places.max(0) + 0.5).tolist()}
    case, _ = seen(report="There is a left pleural effusion.", boxes=[box])
    assert case.outlined.endswith("Dice 1.00")


def test_nothing_drawn_and_nothing_there():
    sample = next(one for one in map(box_study, range(20)) if one.study.report == "The chest is normal.")
    trained = SimpleNamespace(sample=lambda study: sample, tasks={})
    (case,) = show_cases(trained, [sample.study], {sample.study.study: {"report": "The chest is normal."}})
    assert (case.outlined, case.overlays, case.predicted_overlays) == ("", None, None)


def test_codes_are_shown_as_the_task_judges_them():
    """Mapped to its system and known in truth: not ICD codes missed and phecodes invented."""
    task = EHRCodes(model(), codes=["507", "572", "416"])
    study = Study(study="s", image=Path("s.nii.gz"), codes=["J90"], codes_absent=["R18.8"], code_system="icd10cm")
    said = {"codes": {"507": 0.7, "572": 0.8, "416": 0.9}}
    truth, output, true, given = _texts(SimpleNamespace(tasks={"codes": task}), study, said)
    assert (truth, output) == ("507", "416: 0.90\n572: 0.80\n507: 0.70")
    assert (true, given) == ({"507"}, {"507", "572"}), "nothing is known of 416"


def test_a_model_that_gives_boxes_alone_has_cases_too():
    ascites = {"label": "ascites", "min_mm": [0, 0, 0], "max_mm": [9.6, 20, 30]}
    study = Study(study="s", image=Path("s.nii.gz"), boxes=[ascites])
    said = [ascites | {"score": 0.9, "max_mm": [12, 20, 30]}, ascites | {"label": "gallstones", "score": 0.1}]
    truth, output, true, given = _texts(SimpleNamespace(tasks={}), study, {"boxes": said})
    assert (truth, output) == ("ascites: 0 to 10 × 0 to 20 × 0 to 30 mm", "ascites: 0 to 12 × 0 to 20 × 0 to 30 mm")
    assert true == given == {"ascites"}
