"""M3D-Bench and Merlin from small trees laid out as their authors publish them."""

import csv
import json

import numpy as np
import pytest

from vol3d.evaluation.leakage import check_leakage, looks
from vol3d.evaluation.suites import M3D_BENCH, MERLIN, read_m3d_bench, read_merlin, suite_scores
from vol3d.phantom.files import write_nifti

HEADER = [
    "Image Path",
    "Question",
    "Choice A",
    "Choice B",
    "Choice C",
    "Choice D",
    "Answer",
    "Answer Choice",
    "Question Type",
]


def m3d(folder):
    case = folder / "M3D_Cap" / "ct_case" / "0001"
    case.mkdir(parents=True)
    np.save(case / "axial.npy", np.random.default_rng(0).random((1, 4, 8, 8)).astype(np.float32))
    (case / "text.txt").write_text("A small left pleural effusion.")
    items = [{"image": "ct_case/0001/axial.npy", "text": "ct_case/0001/text.txt"}]
    (folder / "M3D_Cap" / "M3D_Cap.json").write_text(json.dumps({"train": [], "test": items, "test1k": items}))
    with (folder / "M3D_Cap" / "M3D_VQA_test5k.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(HEADER)
        image = "M3D_Cap/ct_case/0001/axial.npy"
        rows.writerow([image, "Which side?", "Left", "Right", "Both", "None", "Left", "A", "Location"])
        rows.writerow(["M3D_Cap/ct_case/0002/axial.npy", "Which phase?", "a", "b", "c", "d", "a", "A", "Phase"])
    return folder / "M3D_Cap"


def test_m3d_bench_from_its_files(tmp_path):
    manifest = read_m3d_bench(m3d(tmp_path), tmp_path / "volumes")
    assert [study.split for study in manifest] == ["test"]
    closed, opened = manifest[0].questions
    assert closed == {
        "question": "Which side?", "answer": "Left", "kind": "Location", "choices": ["Left", "Right", "Both", "None"],
    }  # fmt: skip
    assert "choices" not in opened
    assert manifest[0].report == "A small left pleural effusion."


def test_files_that_are_no_m3d_bench(tmp_path):
    with pytest.raises(ValueError, match="no JSON of"):
        read_m3d_bench(tmp_path, tmp_path)
    folder = m3d(tmp_path)
    (folder / "M3D_VQA_test5k.csv").write_text("Image,Question\nx,y\n")
    with pytest.raises(ValueError, match="no column 'Image Path'; it has 'Image', 'Question'"):
        read_m3d_bench(folder, tmp_path / "volumes")


def test_every_task_of_a_suite_is_told():
    assert (len(M3D_BENCH), len(MERLIN)) == (8, 6)
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    told = suite_scores(
        "m3d-bench", {"grounding": {"iou": score, "m3d_hull_iou": score}, "vqa_closed": {"accuracy": score}}
    )
    assert told["referring expression comprehension"] == {"m3d_hull_iou": score, "iou": score}
    assert told["closed VQA"] == {"accuracy": score, "note": "not measured: m3d_substring_accuracy"}
    assert told["report generation"]["note"].startswith("not run: ")
    assert told.keys() == M3D_BENCH.keys()


def phantom(path, seed):
    hu = np.random.default_rng(seed).normal(0, 60, (12, 12, 12)).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti((hu - 20).astype(np.int16), np.diag([2.0, 2, 2, 1]), path)


def test_merlin_with_its_phenotypes(tmp_path):
    phantom(tmp_path / "volumes" / "AC1.nii.gz", 1)
    (tmp_path / "reports_final.csv").write_text(
        "study id,Findings,Split\nAC1,FINDINGS: Ascites. IMPRESSION: Ascites.,test\n"
    )
    (tmp_path / "phenotypes_test.csv").write_text("study id,572,401.1,250.2\nAC1,1,0,-1\n")
    study = read_merlin(tmp_path)[0]
    assert (study.codes, study.codes_absent, study.code_system) == (["572"], ["401.1"], "phecode")
    assert study.split == "test"


def test_copied_volumes_are_found_under_another_name(tmp_path):
    from vol3d.data.study import Study

    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        phantom(tmp_path / f"{name}.nii.gz", seed)
    studies = [
        Study(study=name, image=tmp_path / f"{name}.nii.gz", patient=name, split=split)
        for name, split in (("a", "train"), ("b", "test"), ("c", "test"))
    ]
    found = check_leakage(studies, looks=looks(studies))
    assert found["volumes_across_splits"] == ["a = c"]
    assert not found["clean"]
    assert check_leakage(studies[:2], looks=looks(studies[:2]))["clean"]
    assert check_leakage(studies)["volumes_across_splits"] == "not compared"


def test_curves_end_where_they_must():
    from sklearn.metrics import average_precision_score, roc_auc_score

    from vol3d.evaluation.curves import macro_curves

    rng = np.random.default_rng(0)
    truth = (rng.random((400, 1)) < 0.3).astype(float)
    said = np.clip(rng.normal(truth, 0.7), -2, 3)
    curves = macro_curves(said, truth)
    for name, metric in (("roc", roc_auc_score), ("pr", average_precision_score)):
        x, y = np.array(curves[name]).T
        assert np.trapezoid(y, x) == pytest.approx(metric(truth, said), abs=0.02)
    assert macro_curves(said, np.ones_like(truth)) == {}
