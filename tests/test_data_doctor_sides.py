"""What the doctor tells from anatomy and from words alone, and where it holds its tongue."""

from __future__ import annotations

import itertools
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_data_doctor import body, dataset, found, save
from volume_files import SHARED, dicom_series, needs_shared, save_dicom
from volume_files import body as small_body

from vol3d.data.doctor_sides import sides
from vol3d.volume.read import read

AXES = ("left-right", "front-back", "head-feet")
REAL = {
    "abdomen_ct_totalseg/ct.nii.gz": {"front-back"},
    "abdomen_dicom_totalseg/dicom": {"left-right", "front-back"},
    "chest_ct_slicerio/CTChest4.nrrd": set(AXES),
    "chest_ct_lung1/lung1_image.nrrd": {"front-back"},
    "abdomen_dicom_crlm1004": set(AXES),
}
"""What can be told of each real CT; of the rest: unknown."""


def torso(liver: float = 0.4) -> np.ndarray:
    """4 mm voxels: lungs above, a liver at `liver` of the half width (right), a spine behind, a wide belly below."""
    shape = (90, 70, 100)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    hu = np.full(shape, -1000, np.float32)
    hu[(x / 0.9) ** 2 + (y / 0.8) ** 2 < 1] = -90
    for side in (-0.45, 0.45):
        hu[((x - side) / 0.3) ** 2 + (y / 0.5) ** 2 + ((z - 0.55) / 0.4) ** 2 < 1] = -850
    hu[((x - liver) / 0.38) ** 2 + (y / 0.55) ** 2 + ((z + 0.2) / 0.35) ** 2 < 1] = 110
    hu[((x + liver) / 0.12) ** 2 + (y / 0.2) ** 2 + ((z + 0.2) / 0.2) ** 2 < 1] = 110
    hu[(x / 0.09) ** 2 + ((y + 0.5) / 0.12) ** 2 < 1] = 500
    return hu


@pytest.mark.parametrize("flips", itertools.product([1, -1], repeat=3))
def test_a_torso_any_way_round(flips: tuple[int, int, int]) -> None:
    told = sides(torso()[:: flips[0], :: flips[1], :: flips[2]], (4.0, 4.0, 4.0))
    assert told == dict(zip(AXES, ("right" if flip == 1 else "wrong" for flip in flips), strict=True))


def test_what_cannot_be_told_is_not() -> None:
    assert sides(torso(liver=0.0), (4.0, 4.0, 4.0))["left-right"] == "unknown"
    assert set(sides(np.full((40, 40, 40), -1000, np.float32), (4.0, 4.0, 4.0)).values()) == {"unknown"}
    assert set(sides(torso()[:, :, :3], (4.0, 4.0, 4.0)).values()) == {"unknown"}
    noise = np.random.default_rng(0).normal(0, 300, (60, 60, 60)).astype(np.float32)
    assert "wrong" not in sides(noise, (4.0, 4.0, 4.0)).values()


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_real_scans_any_way_round(name: str) -> None:
    """Never a wrong verdict in eight mirror images, and a verdict wherever one is claimed."""
    volume = read(SHARED / name)
    values = volume[0].numpy()
    for flips in itertools.product([1, -1], repeat=3):
        told = sides(values[:: flips[0], :: flips[1], :: flips[2]], volume.meta["spacing"])
        for axis, flip in zip(AXES, flips, strict=True):
            expected = ("right" if flip == 1 else "wrong") if axis in REAL[name] else "unknown"
            assert told[axis] == expected, (flips, axis)


def test_mirrored_scan_without_a_mask(tmp_path: Path) -> None:
    studies = [replace(s, mask=None, mask_labels={}, finding_mask=None, finding_labels={}) for s in dataset(tmp_path)]
    affine = np.diag([-4.0, 4, 4, 1])
    save(studies[1].image, torso(), affine)
    hits = [f for f in found(studies, tmp_path) if f["check"] == "orientation"]
    assert [(f["study"], f["severity"]) for f in hits] == [("bert", "warning")]
    assert "lies on the patient's left: is the header mirrored?" in hits[0]["message"]


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("FINDINGS:\n\nIMPRESSION:\n", "0 words beside headers and blanks: an empty template"),
        ("FINDINGS: ___ IMPRESSION: None.", "0 words beside headers"),
        ("FINDINGS: The liver measures ____ cm. The spleen is normal.", "1 blanks that were never filled in ('____')"),
        ("FINDINGS: Liver is [normal/enlarged]. No effusion.", "never filled in ('[normal/enlarged]')"),
    ],
)
def test_template_reports(report: str, message: str, tmp_path: Path) -> None:
    studies = dataset(tmp_path)
    studies[1] = replace(studies[1], report=report)
    hits = [f for f in found(studies, tmp_path) if f["check"] == "report_template"]
    assert [f["study"] for f in hits] == ["bert"]
    assert message in hits[0]["message"]


def test_a_report_without_findings_and_impression_is_told(tmp_path: Path) -> None:
    studies = dataset(tmp_path)
    studies[1] = replace(studies[1], report="TECHNIQUE: Axial images. There is a small left pleural effusion.")
    hits = [f for f in found(studies, tmp_path) if f["check"] == "report_sections"]
    assert [(f["study"], f["severity"]) for f in hits] == [("bert", "warning")]
    assert "report of 10 words has neither findings nor impression" in hits[0]["message"]


@pytest.mark.parametrize("packed", [False, True])
def test_burnt_in_annotation(packed: bool, tmp_path: Path) -> None:
    studies = dataset(tmp_path)
    slices = dicom_series(small_body((32, 28, 12)), gap=20.0, PixelSpacing=[11, 11])
    slices[7].BurnedInAnnotation = "YES"
    image = save_dicom(tmp_path / "series", slices)
    if packed:
        with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
            for file in sorted(image.iterdir()):
                archive.write(file, file.name)
        image = tmp_path / "series.zip"
    studies[1] = replace(studies[1], image=image, mask=None, mask_labels={}, finding_mask=None, finding_labels={})
    hits = [f for f in found(studies, tmp_path) if f["check"] == "privacy"]
    assert [f["study"] for f in hits] == ["bert"]
    assert "BurnedInAnnotation" in hits[0]["message"]
    assert "Secret" not in str(found(studies, tmp_path))


def test_names_in_paths_and_ambiguous_codes(tmp_path: Path) -> None:
    studies = dataset(tmp_path)
    named = save(tmp_path / "Anna_Mueller_19620304" / "ct.nii.gz", body(1)[0])
    studies[1] = replace(studies[1], image=named, codes=["pneumonia", "J90"])
    told = {f["check"]: f for f in found(studies, tmp_path) if f["study"] == "bert"}
    assert "date or a person's name" in told["privacy"]["message"]
    assert "['pneumonia'] cannot be icd10cm" in told["codes"]["message"]
