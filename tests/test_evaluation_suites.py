"""M3D-Bench and Merlin from small trees laid out as their authors publish them."""

import csv
import json
from functools import partial

import numpy as np
import pytest
import torch

import vol3d
import vol3d.volume.read
from vol3d.evaluation.leakage import check_leakage, looks
from vol3d.evaluation.suite_m3d import read_m3d_bench
from vol3d.evaluation.suite_merlin import read_merlin
from vol3d.evaluation.suites import M3D_BENCH, MERLIN, evaluate_suite, suite_scores
from vol3d.model.inference import TrainedModel
from vol3d.model.language import Scratch
from vol3d.model.volume_lm import VolumeLM
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


def test_images_of_one_name_keep_their_own_questions(tmp_path):
    """Phases and planes name M3D's files: their words are the same in every patient."""
    folder, names = tmp_path / "M3D_Cap", ("Axial_C__portal_venous_phase", "Coronal_C__portal_venous_phase")
    images = [f"ct_case/{case}/{name}.npy" for case in ("000007", "000012") for name in names]
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / image, np.zeros((1, 4, 8, 8), np.float32))
        (folder / image).with_name("text.txt").write_text("Ascites.")
    items = [{"image": image, "text": str(image.rpartition("/")[0]) + "/text.txt"} for image in images]
    (folder / "M3D_Cap.json").write_text(json.dumps({"test": items}))
    with (folder / "M3D_VQA_test.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(HEADER)
        for image in images[::-1]:
            rows.writerow([f"M3D_Cap_npy/{image}", f"What of {image}?", "a", "b", "c", "d", "a", "A", "Plane"])
    manifest = read_m3d_bench(folder, tmp_path / "volumes")
    assert [study.questions[0]["question"] for study in manifest] == [f"What of {image}?" for image in images]
    assert [len(study.questions) for study in manifest] == [2] * len(images)


def m3d_masks(root):
    """Below the same folder: M3D-Seg's dataset 0003 with one case, M3D-RefSeg with one sentence."""
    rng = np.random.default_rng(1)
    seg = root / "M3D_Seg_npy"
    (seg / "0003" / "7" / "masks").mkdir(parents=True)
    np.save(seg / "0003" / "7" / "image.npy", rng.random((1, 4, 8, 8)).astype(np.float32))
    liver, spleen = np.zeros((2, 1, 4, 8, 8), dtype=bool)
    liver[0, 1:3, 2:5, 0:3] = True  # slices 1-2, rows 2-4, columns 0-2: the patient's right
    spleen[0, 1, 6, 6:8] = True
    for number, mask in ((0, liver), (2, spleen)):
        np.save(seg / "0003" / "7" / "masks" / f"mask_{number}.npy", mask)
    pairs = [
        {
            "image": "/elsewhere/M3D_Seg_npy/0003/7/image.npy",
            "label": f"/elsewhere/M3D_Seg_npy/0003/7/masks/mask_{n}.npy",
        }
        for n in (0, 2)
    ]
    (seg / "0003" / "0003.json").write_text(json.dumps({"train": [], "test": pairs}))
    (seg / "dataset_info.json").write_text(json.dumps({"0003": ["liver", "kidney", "spleen", "pancreas"]}))
    ref = root / "M3D_RefSeg_npy"
    (ref / "s0001").mkdir(parents=True)
    np.save(ref / "s0001" / "ct.npy", rng.random((1, 4, 8, 8)).astype(np.float32))
    labels = np.zeros((1, 4, 8, 8))
    labels[0, 2, 1:3, 1:4], labels[0, 0, 0, 0] = 2, 5
    np.save(ref / "s0001" / "mask.npy", labels)
    with (ref / "M3D_RefSeg_test.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Image", "Mask", "Mask_ID", "Question", "Answer"])
        where = "M3D_RefSeg_npy/s0001"
        rows.writerow([f"{where}/ct.npy", f"{where}/mask.npy", 2, "Please segment the cyst.", "Sure, [SEG]."])


def test_all_of_m3d_bench_below_one_folder(tmp_path):
    root = m3d(tmp_path).parent
    m3d_masks(root)
    caption, seg, ref = read_m3d_bench(root, tmp_path / "volumes")
    assert caption.report
    assert len(caption.questions) == 2
    assert (seg.study, seg.split, seg.mask_labels) == ("0003_7", "test", {"liver": 1, "spleen": 3})
    mask = vol3d.volume.read.read_mask(seg.mask)[0].numpy()
    assert mask.shape == (8, 8, 4)
    assert (mask == 1).sum() == 2 * 3 * 3
    # In RAS the right side has low x, the front high y.
    assert [int(place.mean()) for place in np.nonzero(mask == 1)] == [6, 4, 1]
    liver = next(box for box in seg.boxes if box["label"] == "liver")
    affine = vol3d.volume.read.read_mask(seg.mask).affine.numpy()
    corners = affine[:3, :3] @ np.argwhere(mask == 1).T + affine[:3, 3:]
    assert liver["min_mm"] == pytest.approx(corners.min(1) - 0.5)
    assert liver["max_mm"] == pytest.approx(corners.max(1) + 0.5)
    assert ref.finding_labels == {"Please segment the cyst.": 2}
    assert set(np.unique(vol3d.volume.read.read_mask(ref.finding_mask).numpy())) == {0, 2}


def test_m3d_seg_without_its_names(tmp_path):
    m3d_masks(tmp_path)
    (tmp_path / "M3D_Seg_npy" / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match="does not name the classes of dataset '0003'"):
        read_m3d_bench(tmp_path, tmp_path / "volumes")
    m3d_masks_gone = tmp_path / "M3D_Seg_npy" / "0003" / "7" / "masks" / "mask_2.npy"
    (tmp_path / "M3D_Seg_npy" / "dataset_info.json").write_text('{"0003": ["liver", "kidney", "spleen"]}')
    m3d_masks_gone.unlink()
    with pytest.raises(ValueError, match=r"mask_2\.npy: no such file from"):
        read_m3d_bench(tmp_path, tmp_path / "volumes")


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


def merlin(folder):
    phantom(folder / "merlin_data" / "AC1.nii.gz", 1)
    (folder / "reports_final.csv").write_text(
        "study id,Findings,Split\nAC1,FINDINGS: Ascites. IMPRESSION: Ascites.,test\n"
    )
    (folder / "zero_shot_findings_disease_cls.csv").write_text("study id,ascites,gallstones\nAC1,1,-1\n")
    (folder / "phenotypes_test.csv").write_text("study id,572,401.1,250.2\nAC1,1,0,-1\n")
    (folder / "five_years_disease_task.csv").write_text("study id,cvd,ihd,htn,dm,ckd,ost\nAC1,1,0,2,3,,1\n")
    organs = folder / "segmentations" / "AC1"
    organs.mkdir(parents=True)
    for place, name in enumerate(("liver", "spleen")):
        mask = np.zeros((36, 36, 36), np.uint8)
        mask[10 * place : 10 * place + 5] = 1
        write_nifti(mask, np.diag([2.0, 2, 2, 1]), organs / f"{name}.nii.gz")
    return folder


def test_merlin_with_the_labels_of_all_six_families(tmp_path):
    study = read_merlin(merlin(tmp_path), tmp_path / "out")[0]
    assert (study.codes, study.codes_absent, study.code_system) == (["572"], ["401.1"], "phecode")
    assert study.split == "test"
    assert study.labels_known == {"ascites": 1, "gallstones": None}
    # 2 and 3 are not explained by the table's authors: unknown.
    event, none = {"time": 1826, "event": 1}, {"time": 1827, "event": 0}
    assert study.outcomes == {"cvd": event, "ihd": none, "ost": event}
    assert study.mask_labels == {"liver": 1, "spleen": 2}
    assert (vol3d.volume.read.read_mask(study.mask).numpy() == 2).sum() == 5 * 36 * 36
    (tmp_path / "five_years_disease_task.csv").write_text("id,cvd\nAC1,1\n")
    with pytest.raises(ValueError, match="no column 'study id'; it has 'id', 'cvd'"):
        read_merlin(tmp_path, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "made", "tasks"), [("m3d-bench", "m3d", M3D_BENCH), ("merlin", "merlin", MERLIN)])
def test_a_suite_from_its_files_to_its_scores(tmp_path, name, made, tasks):
    """Every task of the suite by one untrained model, from a tree of files to scores under the suite's names."""
    if made == "m3d":
        source = m3d(tmp_path).parent
        m3d_masks(source)
        names = ["liver", "spleen"]
    else:
        source, names = merlin(tmp_path), ["liver"]
    torch.manual_seed(0)
    encoder = vol3d.encoders.create("vit3d-tiny", in_channels=1)
    model = VolumeLM(
        encoder,
        partial(vol3d.PerceiverProjector, num_latents=4),
        Scratch(embed_dim=32, depth=1, num_heads=2, vocab_size=300).build(["Ascites. Which side? left"] * 9),
    )
    built = {
        "report": vol3d.tasks.ReportGeneration(model, max_new_tokens=4),
        "vqa": vol3d.tasks.VQA(model, questions="manifest", max_new_tokens=4),
        "zero": vol3d.tasks.ZeroShot(model, findings=["ascites"], synonyms=False, attributes=False),
        "codes": vol3d.tasks.EHRCodes(model, codes=["572", "401.1"], min_positives=1),
        "outcomes": vol3d.tasks.Outcomes(model, outcomes=["cvd", "ihd", "ost"], days=[1826]),
        "masks": vol3d.tasks.PromptSegmentation(model, dim=16, depth=1, num_heads=2),
        "boxes": vol3d.tasks.Grounding(model, names=names, dim=16, depth=1, num_heads=2),
    }
    grid = vol3d.Grid(spacing=(1, 1, 1), shape=(32, 32, 16), window=(-1000, 1000))
    trained = TrainedModel(model, built, grid)
    result = evaluate_suite(name, trained, source, out=tmp_path / "evaluation", replicates=20)
    told = result["suite"]["tasks"]
    assert told.keys() == tasks.keys()
    not_run = {task: scores["note"] for task, scores in told.items() if scores.keys() == {"note"}}
    assert not_run == {}
    rows = (tmp_path / "evaluation" / "volumes" / "manifest.jsonl").read_text().splitlines()
    assert len(rows) == result["studies"]


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
