"""The doctor: each trap set in a small dataset is found, and nothing is found in a sound one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from vol3d.cli import main
from vol3d.data import doctor_page, doctor_volume
from vol3d.data.doctor import doctor
from vol3d.data.doctor_volume import Note
from vol3d.data.manifest import Manifest, Study
from vol3d.volume.export import write
from vol3d.volume.read import read_mask

SHAPE = (32, 28, 20)
LABELS = {"liver": 1, "spleen": 2, "spine": 3}
FINDINGS = {"left pleural effusion": 1, "right pleural effusion": 2}
NAMES = ("anna", "bert", "carl", "dora", "emil", "fred")


def body(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An ellipse of soft tissue in air with a liver on the right, a spleen on the left and a spine behind."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    hu = np.full(SHAPE, -1000.0)
    hu[(x / 0.9) ** 2 + (y / 0.8) ** 2 < 1] = 20
    mask = np.zeros(SHAPE, np.uint8)
    shift = rng.uniform(-0.15, 0.15, 9)
    for label, centre, size, value in (
        (1, (0.4, 0.1, 0), 0.35, 60),
        (2, (-0.5, 0, 0), 0.25, 120),
        (3, (0, -0.5, 0), 0.2, 700),
    ):
        around = zip((x, y, z), centre, shift[3 * (label - 1) :], strict=False)
        inside = sum((axis - place - move) ** 2 for axis, place, move in around) < size**2
        hu[inside], mask[inside] = value, label
    return hu + rng.normal(0, 25, SHAPE), mask


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    kind = np.uint8 if array.dtype == np.uint8 else np.int16
    nib.save(nib.Nifti1Image(array.astype(kind), np.diag([11.0, 11, 12, 1]) if affine is None else affine), path)
    return path


def test_a_manifest_without_a_study_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.jsonl").write_text("\n")
    assert main(["doctor", str(tmp_path / "m.jsonl")]) == 1
    assert "error   manifest            (all): has no study that can be used" in capsys.readouterr().out


def dataset(folder: Path) -> list[Study]:
    studies = []
    for number, name in enumerate(NAMES):
        hu, mask = body(number)
        lesion = np.zeros(SHAPE, np.uint8)
        lesion[3:7, 10:15, 5:12] = 1
        studies.append(
            Study(
                name,
                save(folder / f"{name}.nii.gz", hu),
                patient=f"patient {name}",
                split=("train", "train", "train", "val", "test", "test")[number],
                report=f"FINDINGS: Left pleural effusion of {number + 2} cm. {name.title()} word " + f"x{number} " * 20,
                codes=["J90"],
                code_system="icd10cm",
                mask=save(folder / f"{name}_mask.nii.gz", mask),
                mask_labels=LABELS,
                finding_mask=save(folder / f"{name}_finding.nii.gz", lesion),
                finding_labels=FINDINGS,
            )
        )
    return studies


def found(studies: list[Study], folder: Path, **options: Any) -> list[dict[str, str]]:
    path = Manifest(studies).write(folder / "manifest.jsonl")
    return [finding for finding in doctor(path, **options) if finding["severity"] != "info"]


def test_sound_dataset_is_sound(tmp_path: Path) -> None:
    assert found(dataset(tmp_path), tmp_path) == []


def mirrored(studies: list[Study], folder: Path) -> None:
    """The header says L where the patient's right is; image and mask agree with each other."""
    affine = np.diag([-11.0, 11, 12, 1])
    affine[0, 3] = 11.0 * (SHAPE[0] - 1)
    hu, mask = body(1)
    save(studies[1].image, hu, affine)
    save(studies[1].mask or folder, mask, affine)
    lesion = np.zeros(SHAPE, np.uint8)
    save(studies[1].finding_mask or folder, lesion, affine)


def upside_down(studies: list[Study], folder: Path) -> None:
    hu, mask = body(1)
    save(studies[1].image, hu[:, ::-1])
    save(studies[1].mask or folder, mask[:, ::-1])


def named_otherwise(studies: list[Study], folder: Path) -> None:
    mask = read_mask(studies[1].mask or folder)
    mask.meta["labels"] = {1: "Spleen", 2: "liver"}
    studies[1] = replace(studies[1], mask=write(mask, folder / "bert_mask.nrrd"))


TRAPS = {
    "truncated": (
        lambda s, f: s[1].image.write_bytes(s[1].image.read_bytes()[:2000]),
        ("bert", "unreadable", "error", "bert.nii.gz: "),
    ),
    "mirrored": (mirrored, ("bert", "orientation", "error", "2 of 2 sided structures lie across the midline (liver: ")),
    "prone header": (upside_down, ("bert", "orientation", "error", "spine lies ")),
    "same voxels in two splits": (
        lambda s, f: save(s[5].image, body(0)[0]),
        ("fred", "duplicate", "error", "same voxels as study 'anna' in train, this one is in test: a leak"),
    ),
    "noise added": (
        lambda s, f: save(s[2].image, body(0)[0] + 3),
        ("carl", "near_duplicate", "warning", "as study 'anna'"),
    ),
    "other spacing": (
        lambda s, f: [save(p, body(1)[n], np.diag([11.0, 11, 2, 1])) for n, p in ((0, s[1].image), (1, s[1].mask))],
        ("bert", "spacing", "warning", "2 mm along z; half of the dataset is at 12 mm"),
    ),
    "mask on another grid": (
        lambda s, f: save(s[1].mask, body(1)[1][:, :, 2:]),
        ("bert", "mask_grid", "warning", "resample it with vol3d.resample(mask, like=image)"),
    ),
    "empty mask": (lambda s, f: save(s[1].mask, body(1)[1] * 0), ("bert", "mask_empty", "warning", "no labelled")),
    "unnamed label": (
        lambda s, f: save(s[1].mask, body(1)[1] + np.uint8(1)),
        ("bert", "mask_labels", "warning", "labels without a name: [4]"),
    ),
    "saved window": (
        lambda s, f: save(s[1].image, body(1)[0].clip(-1024, 60)),
        ("bert", "hu", "warning", "are exactly 60 HU"),
    ),
    "intercept off": (
        lambda s, f: save(s[1].image, body(1)[0] + 250),
        ("bert", "hu", "warning", "air is at"),
    ),
    "names that the mask has otherwise": (
        named_otherwise,
        ("bert", "mask_labels", "error", "mask itself says that 'liver' is 2, not 1, 'spleen' is 1, not 2: correct"),
    ),
    "lesion elsewhere": (
        lambda s, f: save(s[1].finding_mask, np.pad(np.ones((4, 5, 7), np.uint8), ((24, 4), (10, 13), (5, 8)))),
        ("bert", "side", "error", "to the patient's right of the midline"),
    ),
}  # fmt: skip
ROW_TRAPS = {
    "other side": ({"report": "Small right pleural effusion."}, "side", "error", "report says 'right pleural"),
    "prior": ({"report": "Unchanged since the prior CT."}, "prior", "warning", "'Unchanged since'"),
    "prior that is not there": ({"prior": "gone"}, "prior", "warning", "prior 'gone' is not among the studies"),
    "icd9": ({"codes": ["511.9"]}, "codes", "error", "['511.9'] cannot be icd10cm: they look like icd9cm"),
    "icd9 that could be icd10": ({"codes": ["V10.11"]}, "codes", "error", "2024 to 2026: they look like icd9cm"),
    "no such code": ({"codes_absent": ["K99.9"]}, "codes", "warning", "['K99.9'] are not in ICD-10-CM of 2024"),
    "no dot": ({"codes": ["K8020"]}, "codes", "error", "take a dot"),
    "no report": (
        {"report": None, "findings": None, "impression": None},
        "report", "warning", "has no report; 10 other studies have one",
    ),
    "box": (
        {"boxes": [{"label": "left renal cyst", "min_mm": [280, 90, 60], "max_mm": [300, 110, 80]}]},
        "side", "error", "box 'left renal cyst' lies",
    ),
    "box in LPS": (
        {"boxes": [{"label": "renal cyst", "min_mm": [-300, -110, 60], "max_mm": [-280, -90, 80]}]},
        "box", "error", "lies 100 % outside the image, which spans (-6, -6, -6) to (346, 302, 234) mm: boxes are",
    ),
    "box half outside": (
        {"boxes": [{"label": "renal cyst", "min_mm": [-30, 90, 60], "max_mm": [0, 110, 80]}]},
        "box", "warning", "lies 82 % outside the image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS)
def test_trap_in_a_file_is_found(tmp_path: Path, trap: str) -> None:
    studies = dataset(tmp_path)
    spring, (study, check, severity, message) = TRAPS[trap]
    spring(studies, tmp_path)
    findings = found(studies, tmp_path)
    hits = [f for f in findings if (f["study"], f["check"], f["severity"]) == (study, check, severity)]
    assert any(message in hit["message"] for hit in hits), findings
    assert {f["study"] for f in findings} == {study}, findings


@pytest.mark.parametrize("trap", ROW_TRAPS)
def test_trap_in_a_row_is_found(tmp_path: Path, trap: str) -> None:
    pytest.importorskip("vol3d.text.parser")
    studies = dataset(tmp_path)
    changes, check, severity, message = ROW_TRAPS[trap]
    studies[1] = replace(studies[1], **changes)
    if trap == "no report":
        studies += [replace(s, study=f"{s.study} later", prior=s.study) for s in studies if s.study != "bert"]
    findings = [f for f in found(studies, tmp_path) if f["study"] == "bert"]
    assert any((f["check"], f["severity"]) == (check, severity) and message in f["message"] for f in findings), findings


def test_copied_reports_are_one_finding_a_group(tmp_path: Path) -> None:
    studies = dataset(tmp_path)
    words = " ".join(f"word{i}" for i in range(60))
    texts = ["Normal study.", "normal  study.", "Normal study.", words, words + " more", "Something else."]
    studies = [replace(study, report=text) for study, text in zip(studies, texts, strict=True)]
    messages = [f["message"] for f in found(studies, tmp_path) if f["check"].startswith("report")]
    assert messages == [
        "3 studies have this same report of 2 words: a template, or a copy (anna, bert, carl)",
        "2 reports share over 90 % of their word triples, across val and test (dora, emil)",
    ]


def test_bad_rows_are_listed_and_the_rest_is_audited(tmp_path: Path) -> None:
    path = Manifest(dataset(tmp_path)).write(tmp_path / "manifest.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["labels_known"] = {"ascites": -1}
    rows[5]["patient"] = rows[1]["patient"]
    rows[3]["image"] = "gone.nii.gz"
    path.write_text("\n".join(map(json.dumps, rows)))
    errors = [f for f in doctor(path) if f["severity"] == "error"]
    assert [(f["study"], f["check"]) for f in errors] == [
        ("dora", "manifest"),
        ("anna", "manifest"),
        ("fred", "manifest"),
    ] or {f["study"] for f in errors} == {"anna", "dora", "fred"}
    assert "null not mentioned" in " ".join(f["message"] for f in errors)
    assert "is in test here and in train" in " ".join(f["message"] for f in errors)


def test_what_a_manifest_ignores_is_a_finding(tmp_path: Path) -> None:
    path = Manifest(dataset(tmp_path)).write(tmp_path / "manifest.jsonl")
    path.write_text(path.read_text().replace('"codes"', '"Codes"'))
    [note] = [f for f in doctor(path) if f["check"] == "manifest"]
    assert (note["study"], note["severity"]) == ("", "warning")
    assert note["message"] == "field 'Codes' (6 rows) is not one of a manifest and is ignored; did you mean 'codes'?"


def test_priors_that_are_given_otherwise_or_say_nothing(tmp_path: Path) -> None:
    first, second, third, *rest = dataset(tmp_path)
    first = replace(first, report="Unchanged since the prior CT.", meta={"prior_report": "Normal."})
    second = replace(second, report=None, findings=None, impression=None)
    third = replace(third, patient=second.patient, prior=second.study)
    notes = [f for f in found([first, second, third, *rest], tmp_path) if f["check"] == "prior"]
    assert [note["study"] for note in notes] == [third.study]
    assert f"its prior {second.study!r} has no report" in notes[0]["message"]


def test_studies_in_memory_are_checked_as_a_file_is(tmp_path: Path) -> None:
    first, *rest, last = dataset(tmp_path)
    studies = Manifest([first, *rest, replace(last, patient=first.patient)])
    [error] = [f for f in doctor(studies) if f["severity"] == "error" and f["check"] == "manifest"]
    assert (error["study"], error["file"]) == (last.study, "")
    assert error["message"] == (
        f"field 'split': patient {first.patient!r} is in test here and in train in study {first.study!r}: "
        "keep all studies of a patient in one split"
    )
    alone = [replace(study, patient=study.study) for study in studies]
    [note] = [f for f in doctor(Manifest(alone)) if f["check"] == "patients"]
    assert "6 of 6 studies have no patient" in note["message"]


def test_resumed_audit_reads_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies = dataset(tmp_path)
    state = tmp_path / "state.jsonl"
    path = Manifest(studies).write(tmp_path / "manifest.jsonl")
    first = doctor(path, resume=state)
    state.write_text(state.read_text() + '{"key": "cut off')
    read: list[str] = []
    real = doctor_volume.read_volume
    monkeypatch.setattr(doctor_volume, "read_volume", lambda study: read.append(study.study) or real(study))
    assert doctor(path, resume=state) == first
    assert read == []
    save(studies[2].image, body(99)[0])
    doctor(path, resume=state)
    assert read == ["carl"]


def test_exit_code_says_whether_a_study_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studies = dataset(tmp_path)
    path = Manifest(studies).write(tmp_path / "manifest.jsonl")
    assert main(["doctor", str(path), "--json"]) == 0
    save(studies[1].image, body(1)[0].clip(-1024, 60))
    assert main(["doctor", str(path), "--json"]) == 1, "a warning about one study"
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["findings"]
    assert {"study", "file", "check", "severity", "message"} == set.intersection(*map(set, rows))


def test_workers_find_the_same(tmp_path: Path) -> None:
    path = Manifest(dataset(tmp_path)).write(tmp_path / "manifest.jsonl")
    assert doctor(path, workers=2) == doctor(path)


def test_page_is_one_file_and_escapes(tmp_path: Path) -> None:
    studies = dataset(tmp_path)
    mirrored(studies, tmp_path)
    studies[0] = replace(studies[0], report="<script>unchanged since prior CT</script>")
    findings = found(studies, tmp_path, page=tmp_path / "doctor.html")
    html = (tmp_path / "doctor.html").read_text()
    assert html.count("data:image/png;base64,") == len({f["study"] for f in findings})
    assert "sided structures lie across the midline" in html
    assert "<script" not in html
    assert "http" not in html


def test_page_lists_the_first_of_a_flaw_that_every_row_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_page, "LISTED", 2)
    findings = [Note(f"s{n}", "ct.nii", "report", "warning", "is empty") for n in range(5)]
    findings += [Note("s9", "ct.nii", "report", "error", "is no text")]
    page = doctor_page.write_page(tmp_path / "doctor.html", Manifest([]), {}, findings).read_text()
    assert page.count("<td>is empty") == 2
    assert "5, 2 of them listed below" in page
    assert page.count("<td>is no text") == 1
