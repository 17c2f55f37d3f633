"""The phantom: reproducible, anatomically plausible, and true to its masks, boxes, codes and report."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, label

from vol3d import phantom
from vol3d.phantom.findings import describe, excluded, plan
from vol3d.phantom.study import PhantomStudy
from vol3d.text.ontology import FINDINGS, KEYS

COARSE = (64, 64, 32)
FINE = (96, 96, 80)

# Mean HU of each finding's mask at 96 × 96 × 80 voxels: wide enough for partial volume, narrow enough to catch
# a finding painted in the wrong place or not at all.
PLAUSIBLE_HU = {
    "pleural effusion": (-60, 25), "pneumothorax": (-1010, -930), "pulmonary nodule": (-330, 50),
    "consolidation": (-120, 60), "emphysema": (-1000, -880), "atelectasis": (-150, 40), "cardiomegaly": (-10, 130),
    "pericardial effusion": (-110, 25), "coronary artery calcification": (350, 1100), "aortic aneurysm": (10, 160),
    "hepatic steatosis": (-40, 90), "liver lesion": (15, 75), "hepatic cyst": (-8, 45), "gallstones": (150, 900),
    "splenomegaly": (20, 125), "renal stone": (300, 1400), "hydronephrosis": (-15, 45), "renal cyst": (-35, 25),
    "ascites": (-12, 20), "bowel obstruction": (-500, 0), "inguinal hernia": (-420, 0), "hiatal hernia": (-520, 0),
    "vertebral fracture": (200, 520), "bone metastasis": (30, 1050),
}  # fmt: skip


@cache
def only(name: str, seed: int = 1, shape: tuple[int, int, int] = FINE) -> PhantomStudy:
    return phantom.make(seed, shape=shape, findings=[name], prevalence=1.0)


@cache
def normal(seed: int = 1, shape: tuple[int, int, int] = FINE) -> PhantomStudy:
    return phantom.make(seed, shape=shape, prevalence=0.0)


def voxels(study: PhantomStudy, organ: str) -> np.ndarray:
    return study.organs == study.organ_labels[organ]


def width(mask: np.ndarray, axis: int = 0) -> int:
    across = mask.any(axis=tuple(other for other in range(3) if other != axis))
    return int(np.ptp(np.flatnonzero(across))) + 1


def test_every_finding_of_the_ontology_can_be_drawn() -> None:
    assert set(phantom.FINDINGS) == set(FINDINGS) == set(PLAUSIBLE_HU)
    assert len(phantom.FINDINGS) >= 22


def test_a_seed_reproduces_a_study_to_the_voxel_and_another_seed_does_not() -> None:
    first, again, other = (phantom.make(seed, shape=COARSE) for seed in (11, 11, 12))
    np.testing.assert_array_equal(first.hu, again.hu)
    np.testing.assert_array_equal(first.finding_mask, again.finding_mask)
    assert first.report.text == again.report.text
    assert first.boxes == again.boxes
    assert first.outcomes == again.outcomes
    assert np.mean(first.hu != other.hu) > 0.3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_shapes_are_two_samplings_of_one_patient(seed: int) -> None:
    coarse, fine = phantom.make(seed, shape=(64, 64, 48)), phantom.make(seed, shape=(128, 128, 96))
    assert [f.key for f in coarse.findings] == [f.key for f in fine.findings]
    assert coarse.report == fine.report
    assert coarse.meta == fine.meta
    np.testing.assert_allclose(coarse.affine @ [-0.5, -0.5, -0.5, 1], fine.affine @ [-0.5, -0.5, -0.5, 1])
    pooled = fine.hu.reshape(64, 2, 64, 2, 48, 2).mean((1, 3, 5))
    assert np.corrcoef(pooled.ravel(), coarse.hu.ravel())[0, 1] > 0.98
    for organ in ("liver", "spleen", "right kidney", "left lung"):
        ml = [voxels(s, organ).sum() * np.linalg.det(s.affine[:3, :3]) for s in (coarse, fine)]
        assert ml[0] == pytest.approx(ml[1], rel=0.12), organ


def test_the_affine_is_ras_and_left_and_right_organs_lie_where_they_should() -> None:
    study = normal()
    spacing = np.diag(study.affine)[:3]
    np.testing.assert_allclose(spacing, np.array([400, 400, 416]) / FINE)
    mm = {
        organ: (np.argwhere(voxels(study, organ)) @ np.diag(spacing) + study.affine[:3, 3]).mean(0)
        for organ in study.organ_labels
    }
    for organ in ("liver", "gallbladder", "right kidney", "right lung", "inferior vena cava"):
        assert mm[organ][0] > 8, organ
    for organ in ("spleen", "stomach", "heart", "left kidney", "left lung"):
        assert mm[organ][0] < -8, organ
    assert mm["spine"][1] < mm["heart"][1]
    assert mm["bladder"][2] < mm["liver"][2] < mm["heart"][2]


@pytest.mark.parametrize("name", phantom.FINDINGS)
def test_each_finding_shows_at_its_place_with_plausible_hu(name: str) -> None:
    low, high = PLAUSIBLE_HU[name]
    for seed in (1, 2):
        study = only(name, seed)
        assert list(study.masks) == [f.key for f in study.findings] == list(FINDINGS[name].keys)
        for finding in study.findings:
            mask = study.masks[finding.key]
            assert mask.sum() >= 2
            assert low < study.hu[mask].mean() < high, (finding, study.hu[mask].mean())
            middle = float((np.flatnonzero(mask.any((1, 2))).mean() + 0.5) / FINE[0] - 0.5)
            if finding.side:
                assert (middle < -0.02) if finding.side == "left" else (middle > 0.02), finding
            if finding.name in ("liver lesion", "hepatic cyst"):
                assert voxels(study, "liver")[mask].mean() > 0.9


@pytest.mark.parametrize("name", phantom.FINDINGS)
def test_each_finding_shows_on_the_coarse_grid_of_the_demo(name: str) -> None:
    for seed in range(4):
        study, healthy = only(name, seed, COARSE), normal(seed, COARSE)
        for key, mask in study.masks.items():
            assert mask.any(), (seed, key)
            change = np.abs(study.hu[mask].astype(float) - healthy.hu[mask])
            if name not in ("splenomegaly", "cardiomegaly"):
                assert change.mean() > (15 if name in ("liver lesion", "hepatic steatosis") else 20), (seed, key)


def test_boxes_hold_their_masks_and_codes_and_labels_follow_the_findings() -> None:
    study = phantom.make(5, shape=COARSE, prevalence=0.4)
    assert [box["label"] for box in study.boxes] == [finding.key for finding in study.findings]
    for box in study.boxes:
        corners = np.argwhere(study.masks[box["label"]]) @ np.diag(np.diag(study.affine)[:3]) + study.affine[:3, 3]
        assert (corners > box["min_mm"]).all()
        assert (corners < box["max_mm"]).all()
        half = np.diag(study.affine)[:3] / 2
        np.testing.assert_allclose(corners.min(0) - half, box["min_mm"], atol=1e-3)
    names = {finding.name for finding in study.findings}
    keys = {finding.key for finding in study.findings}
    assert {name for name, there in study.labels_known.items() if there} == names | keys
    sides = {key for name in study.allowed for key in FINDINGS[name].keys}
    assert set(study.labels_known) == set(study.allowed) | sides
    assert not set(study.codes) & set(study.codes_absent)
    assert all(study.finding_labels[key] == KEYS.index(key) + 1 for key in study.masks)
    painted = set(np.unique(study.finding_mask)) - {0}
    assert painted <= {study.finding_labels[key] for key in study.masks}


def test_the_parser_reads_back_the_findings_from_the_report() -> None:
    parser = pytest.importorskip("vol3d.text.parser")
    for seed in range(12):
        study = phantom.make(seed, shape=(16, 16, 16))
        assert parser.finding_keys(study.report.text) == {finding.key for finding in study.findings}


def test_disease_changes_the_organ_by_as_much_as_its_definition_asks() -> None:
    for seed in range(6):
        healthy, large = normal(seed), only("cardiomegaly", seed)
        chest = width(voxels(healthy, "left lung") | voxels(healthy, "right lung"))
        assert width(voxels(healthy, "heart")) / chest < 0.45
        assert width(voxels(large, "heart")) / chest > 0.5
        assert voxels(only("splenomegaly", seed), "spleen").sum() > 2 * voxels(healthy, "spleen").sum()
        fatty = only("hepatic steatosis", seed)
        for study, least, most in ((fatty, -70, -30), (healthy, -20, 25)):
            liver, spleen = (
                float(np.median(study.hu[binary_erosion(voxels(study, organ))])) for organ in ("liver", "spleen")
            )
            assert least < liver - spleen < most, (seed, liver, spleen)


def test_measured_sizes_are_the_sizes_drawn() -> None:
    for name in ("renal cyst", "hepatic cyst", "pulmonary nodule", "aortic aneurysm"):
        study = only(name, 4, (128, 128, 128))
        box, finding = study.boxes[0], study.findings[0]
        spans = np.subtract(box["max_mm"], box["min_mm"])
        if finding.count == 1:
            assert finding.size_mm is not None
            assert spans[0] == pytest.approx(finding.size_mm, abs=5), (name, spans)


@pytest.mark.parametrize("name", [name for name, kind in FINDINGS.items() if kind.countable])
def test_several_are_as_many_bodies_as_are_told(name: str) -> None:
    """None touches another, and where they lie apart no one place is told for all."""
    sides = ("left", "right") if FINDINGS[name].sided else (None,)
    many = [seed for seed in range(90) if all(describe(seed, name, side).count > 1 for side in sides)]
    for seed in many[:3]:
        study = only(name, seed, (144, 144, 144))
        for finding in study.findings:
            assert label(study.masks[finding.key])[1] == finding.count > 1, finding
            if name in ("renal stone", "renal cyst", "bone metastasis"):
                assert finding.site is None


COMPANY = {
    "pulmonary nodule": ["consolidation", "atelectasis", "cardiomegaly", "pericardial effusion"],
    "hepatic cyst": ["hepatic steatosis"],
    "liver lesion": ["hepatic steatosis"],
}


@pytest.mark.parametrize("name", COMPANY)
def test_no_finding_is_hidden_by_another(name: str) -> None:
    """Its voxels show it also where everything stands that might hide it."""
    for seed in range(12):
        study = phantom.make(seed, shape=COARSE, findings=[name, *COMPANY[name]], prevalence=1.0)
        for finding in study.findings:
            if finding.name == name:
                mask = study.masks[finding.key]
                without = study.twin("remove", key=finding.key)
                assert mask.any(), (seed, finding)
                assert (abs(study.hu[mask] - without.hu[mask]) > 8).mean() > 0.6, (seed, finding)


def test_a_swap_leads_to_no_hidden_finding() -> None:
    company = ["pulmonary nodule", "cardiomegaly"]
    drawn = [plan(seed, company, 1.0) for seed in range(60)]
    sites = [("middle lobe", "right"), ("lower lobe", "right")]
    middle, lower = (
        next(
            seed
            for seed, one in enumerate(drawn)
            if [(p.finding.site, p.finding.side) for p in one] == [place, (None, None)]
        )
        for place in sites
    )
    study = phantom.make(lower, shape=COARSE, findings=company, prevalence=1.0)
    assert study.twin("swap").findings[0].side == "left"
    with pytest.raises(ValueError, match="no right pulmonary nodule to swap"):
        phantom.make(middle, shape=COARSE, findings=company, prevalence=1.0).twin("swap", key="right pulmonary nodule")


@pytest.mark.parametrize("change", ["remove", "swap", "resize"])
@pytest.mark.parametrize("name", phantom.FINDINGS)
def test_a_twin_differs_in_one_finding_only(name: str, change: str) -> None:
    company = [name, "ascites", "pleural effusion", "renal cyst", "consolidation", "cardiomegaly"]
    if name == "pulmonary nodule":  # never on one side with consolidation
        company.remove("consolidation")
    kind = FINDINGS[name]
    possible = {"remove": True, "swap": kind.sided, "resize": kind.measured or bool(kind.severities)}[change]
    for seed in range(40):
        keys = [item.key for item in plan(seed, company, 0.5)]
        mine = [key for key in kind.keys if key in keys]
        if mine and not (change == "swap" and len(mine) == 2):
            break
    study = phantom.make(seed, shape=COARSE, findings=company, prevalence=0.5)
    if not possible:
        with pytest.raises(ValueError, match=f"no {mine[0]} to {change}"):
            study.twin(change, key=mine[0])
        return
    old = next(finding for finding in study.findings if finding.key == mine[0])
    twin = study.twin(change, key=old.key)
    assert (twin.meta["twin_of"], twin.meta["change"], twin.meta["changed"]) == (seed, change, old.key)
    gone = [f for f in study.findings if f not in twin.findings]
    new = [f for f in twin.findings if f not in study.findings]
    assert gone == [old]
    assert [f.name for f in new] == ([] if change == "remove" else [name])
    if change == "swap":
        assert {new[0].side, old.side} == {"left", "right"}
    touched = study.masks[old.key].copy()
    for finding in new:
        touched |= twin.masks[finding.key]
    differs = study.hu != twin.hu
    assert differs.any()
    assert not (differs & ~binary_dilation(touched, iterations=2)).any()
    lines = [set(report.sections.items()) for report in (study.report, twin.report)]
    assert {organ for organ, _ in lines[0] ^ lines[1]} <= {old.type.organ}


def test_a_twin_is_reproducible_and_says_when_there_is_nothing_to_change() -> None:
    study = only("ascites", shape=COARSE)
    np.testing.assert_array_equal(study.twin().hu, study.twin().hu)
    with pytest.raises(ValueError, match=r"study 1 has no finding to swap \(findings: ascites\)"):
        study.twin("swap")
    with pytest.raises(ValueError, match="'flip': use one of remove, swap, resize"):
        study.twin("flip")


def test_prevalence_and_case_mix() -> None:
    names = ["pleural effusion", "ascites", "gallstones"]
    drawn = [plan(seed, names, 0.3) for seed in range(600)]
    for key in ("left pleural effusion", "right pleural effusion", "ascites", "gallstones"):
        assert np.mean([key in [p.key for p in one] for one in drawn]) == pytest.approx(0.3, abs=0.07)
    usual = [plan(seed) for seed in range(400)]
    assert np.mean([not one for one in usual]) == pytest.approx(0.3, abs=0.08)
    assert max(len(one) for one in usual) <= 8
    for one in usual:
        assert not any(excluded(p.finding, other.finding) for p in one for other in one)


def test_bad_arguments_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"shape is \(8, 64, 64\).*16"):
        phantom.make(0, shape=(8, 64, 64))
    with pytest.raises(ValueError, match=r"'broken heart'.*pleural effusion"):
        phantom.make(0, findings=["broken heart"])
    with pytest.raises(ValueError, match=r"prevalence is 2\.0.*0 and 1"):
        phantom.make(0, shape=COARSE, prevalence=2.0)
    with pytest.raises(ValueError, match="seed is -1"):
        phantom.make(-1)


def test_importing_phantoms_loads_no_torch() -> None:
    code = "import sys, vol3d.phantom as p; p.make(0, shape=(16, 16, 16)); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("shape", "most"), [((160, 160, 128), 10.0), (COARSE, 15.0)])
def test_making_a_study_takes_as_long_as_a_few_filters(shape: tuple[int, int, int], most: float) -> None:
    """Beside one Gaussian filter of as many voxels, in the same process, so that a busy machine slows both: where that
    takes 0.1 s and 3.3 ms, the bounds are 1 s and 50 ms."""
    # In a process of its own: here every call is type-checked, which doubles the time.
    code = (
        "import time, numpy, scipy.ndimage, vol3d.phantom as p\n"
        f"shape, taken, filters = {shape}, [], []\n"
        "noise = numpy.random.default_rng(0).normal(size=shape)\n"
        "for seed in range(8):\n"
        "    start = time.process_time()\n"
        "    p.make(seed, shape=shape)\n"
        "    made = time.process_time()\n"
        "    scipy.ndimage.gaussian_filter(noise, 2.0)\n"
        "    taken.append(made - start)\n"
        "    filters.append(time.process_time() - made)\n"
        "print(min(taken) / min(filters))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert float(done.stdout) < most
