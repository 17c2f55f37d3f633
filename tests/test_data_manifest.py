"""The manifest: what is read is what was written, and every bad row is named with its remedy."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vol3d.data.manifest import Manifest, ManifestError, Study

FULL = {
    "study": "a",
    "image": "ct/a.nii.gz",
    "patient": "p1",
    "split": "train",
    "report": "FINDINGS:\nSmall left pleural effusion.\n\nIMPRESSION:\nEffusion.",
    "codes": ["J90"],
    "codes_absent": ["K80.20"],
    "code_system": "icd10cm",
    "labels_known": {"ascites": 0, "effusion": 1, "hernia": None},
    "outcomes": {"death": {"time": 12.5, "event": 0}},
    "mask": "masks/a.nii.gz",
    "mask_labels": {"liver": 1, "spleen": 2},
    "finding_mask": "masks/a_findings.nii.gz",
    "finding_labels": {"left pleural effusion": 1},
    "boxes": [{"label": "left pleural effusion", "min_mm": [0, 0, 0], "max_mm": [10, 5, 2.5]}],
    "questions": [{"question": "Effusion?", "answer": "yes", "choices": ["yes", "no"]}],
    "meta": {"age": 61, "sex": "F", "note": "größer, \"quoted\""},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("ct/a.nii.gz", "ct/b.nii.gz", "masks/a.nii.gz", "masks/a_findings.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def written(folder: Path, *rows: dict[str, Any] | str) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_every_field_is_read(folder: Path) -> None:
    study = Manifest.read(written(folder, FULL))["a"]
    for name in FULL.keys() - {"image", "mask", "finding_mask"}:
        assert getattr(study, name) == FULL[name], name
    assert study.image == folder / "ct/a.nii.gz"
    assert study.finding_mask == folder / "masks/a_findings.nii.gz"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_written_then_read_is_the_same(folder: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    manifest = Manifest.read(written(folder, FULL, {"study": "b", "image": "ct/b.nii.gz", "patient": "p2"}))
    copy = Manifest.read(manifest.write(folder / f"copy{suffix}"))
    assert list(copy) == list(manifest)
    assert str(folder) not in (folder / f"copy{suffix}").read_bytes().decode(errors="replace"), "paths are relative"
    elsewhere = Manifest.read(manifest.write(folder / "sub" / f"copy{suffix}"))
    assert [study.image for study in elsewhere] == [study.image for study in manifest]


def test_csv_of_a_european_spreadsheet(folder: Path) -> None:
    path = folder / "data.csv"
    rows = 'study;image;report;codes;code_system\na;ct/a.nii.gz;Ödem, links;"[""J90""]";icd10cm\n'
    path.write_text(rows, encoding="utf-8-sig")
    (read,) = Manifest.read(path)
    assert (read.report, read.codes) == ("Ödem, links", ["J90"])
    path.write_text("study;image\na;ct/a.nii.gz;more\n")
    with pytest.raises(ValueError, match="more cells than the header has names: quote cells that hold a semicolon"):
        Manifest.read(path)
    for encoding in ("cp1252", "utf-16"):
        path.write_bytes(rows.encode(encoding))
        with pytest.raises(ValueError, match=r"data\.csv is not UTF-8: save it as UTF-8 \(in Excel: CSV UTF-8\)"):
            Manifest.read(path)
        with pytest.raises(ValueError, match=r"data\.csv is not UTF-8"):
            Manifest.from_csv(path, {"study": "study", "image": "image"})


def test_csv_of_a_spreadsheet(folder: Path) -> None:
    path = folder / "data.csv"
    path.write_bytes('\ufeffstudy,image,codes,code_system,meta\n001,ct/a.nii.gz,"[""J90""]",icd10cm,\n'.encode())
    study = Manifest.read(path)["001"]
    assert (study.codes, study.meta) == (["J90"], {})


def test_csv_with_what_excel_leaves_around_a_table(folder: Path) -> None:
    path = folder / "data.csv"
    path.write_bytes(
        b'sep=;\r\nstudy;image;report;\r\na;ct/a.nii.gz;"Clear; no\r\nnodule.";;\r\n;;;\r\nb;ct/b.nii.gz\r\n;;\r\n'
    )
    first, second = Manifest.read(path)
    assert (first.report, second.study, second.report) == ("Clear; no\r\nnodule.", "b", None)
    path.write_bytes(b"study;image;split\r\n;;\r\na;ct/a.nii.gz;Train\r\n")
    with pytest.raises(ValueError, match=r"row 3 \(study 'a'\), field 'split'"):
        Manifest.read(path)


@pytest.mark.parametrize("rows", ["a,Effusion.,ct/a.nii.gz,\n", "a,,ct/a.nii.gz,Effusion.\n"])
def test_a_column_that_would_hide_another_is_refused(folder: Path, rows: str) -> None:
    """The second `report`, often the empty one that a merge of two tables leaves, replaced the first."""
    path = folder / "data.csv"
    path.write_text("study,report,image,report\n" + rows)
    told = r"data\.csv: columns 2 and 4 are both named 'report': rename or remove one"
    with pytest.raises(ValueError, match=told):
        Manifest.read(path)
    with pytest.raises(ValueError, match=told):
        Manifest.from_csv(path, {"study": "study", "image": "image", "report": "report"})


def test_report_and_sections_stand_in_for_each_other(folder: Path) -> None:
    joined = Study("a", Path("a.nii.gz"), findings="Clear lungs.", impression="Normal.")
    assert joined.report == "FINDINGS:\nClear lungs.\n\nIMPRESSION:\nNormal."
    pytest.importorskip("vol3d.text.sections")
    found = Study("a", Path("a.nii.gz"), report=joined.report)
    assert (found.findings, found.impression) == ("Clear lungs.", "Normal.")
    assert "findings" not in found.to_row(folder), "what was derived is not written as if it had been given"
    changed = replace(found, report="FINDINGS: Ascites.\n\nIMPRESSION: Ascites.")
    assert (changed.findings, changed.impression) == ("Ascites.", "Ascites."), "not those of the old report"
    assert Study("a", Path("a.nii.gz")).report is None


def test_sequence(folder: Path) -> None:
    rows = [{"study": f"s{i}", "image": "ct/a.nii.gz", "patient": f"p{i // 2}"} for i in range(6)]
    for row, split in zip(rows, ["train"] * 4 + ["test"] * 2, strict=True):
        row["split"] = split
    manifest = Manifest.read(written(folder, *rows))
    assert [study.study for study in manifest.split("train")] == ["s0", "s1", "s2", "s3"]
    assert manifest.patients == ["p0", "p1", "p2"]
    assert len(manifest[1:3]) == 2
    assert "s5" in manifest
    assert repr(manifest) == "Manifest(6 studies of 3 patients: train 4, test 2)"
    with pytest.raises(KeyError, match=r"no study 's55' among 6 studies; did you mean 's5'"):
        manifest["s55"]
    with pytest.raises(ValueError, match="'validation' is none of train, val, test"):
        manifest.split("validation")


BAD = {
    "image": ("ct/c.nii.gz", r"no file or folder at 'ct/c.nii.gz'"),
    "mask": ("masks/a.nrrd", r"no file or folder at 'masks/a.nrrd' \(there is 'a.nii.gz'\)"),
    "split": ("validation", "is 'validation': use one of train, val, test"),
    "study": (12, "is 12, not text"),
    "codes": ("J90", "is 'J90': write a JSON list"),
    "code_system": ("ICD-10", "use one of icd10cm, icd9cm, phecode"),
    "labels_known": ({"ascites": -1}, "label -1: 1 is present, 0 absent, null not mentioned; -1 often means unknown"),
    "outcomes": ({"death": {"time": -2, "event": 1}}, "0 or more, event: 1 or 0"),
    "mask_labels": ({"liver": 1, "spleen": 1}, "label 1 to both 'liver' and 'spleen'"),
    "finding_labels": ({"cyst": 40000}, "label 40000: labels are whole numbers from 1 to 32767"),
    "boxes": ([{"label": "x", "min_mm": [0, 0, 0], "max_mm": [1, 0, 1]}], r"from \[0, 0, 0\] to \[1, 0, 1\] mm"),
    "questions": ([{"question": "?", "answer": "B", "choices": ["yes"]}], "answer 'B' is not among its choices"),
    "codes_absent": (["J90"], "repeats 'J90' of codes"),
    "meta": ([1], "write a JSON object"),
    "prior": ("a", "names the study itself"),
    "report": (" ", "only white space"),
}


@pytest.mark.parametrize("field", BAD)
def test_bad_value_names_row_study_field_and_remedy(folder: Path, field: str) -> None:
    value, message = BAD[field]
    good = {"study": "b", "image": "ct/b.nii.gz", "patient": "p2"}
    with pytest.raises(ManifestError, match=message) as error:
        Manifest.read(written(folder, good, {**FULL, field: value}))
    study = value if field == "study" else "a"
    assert str(error.value).startswith(f"manifest.jsonl, row 2 (study '{study}'), field '{field}': ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("outcomes", {"death": {"time": float("inf"), "event": 0}}),
        ("boxes", [{"label": "x", "min_mm": [0, 0, 0], "max_mm": [1, float("inf"), 1]}]),
    ],
)
def test_numbers_without_end_are_none(folder: Path, field: str, value: Any) -> None:
    """JSON knows no infinity, but Python reads it; one in a loss is the end of a training."""
    with pytest.raises(ManifestError, match=f"field '{field}'.* inf"):
        Manifest.read(written(folder, {**FULL, field: value}))


def test_all_bad_rows_are_counted_and_five_shown(folder: Path) -> None:
    rows = [{"study": f"s{i}", "image": f"ct/{i}.nii.gz", "patient": f"p{i}"} for i in range(30)]
    with pytest.raises(ManifestError, match="30 problems in 30 of 31 rows, the first 5 ") as error:
        Manifest.read(written(folder, *rows, FULL))
    assert len(error.value.problems) == 30
    assert len(str(error.value).splitlines()) == 6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "row 1 .*is not valid JSON"),
        ("[1]", "row 1 .*is not a JSON object"),
        ("[" * 100_000, "row 1 .*is nested too deeply"),
        ({"study": "x", "image": "ct/a\0.nii.gz"}, "row 1 .*no file or folder at"),
        ({"study": "x", "image": "ct\\a.nii.gz"}, r"it is there with / in place of \\\): paths"),
        ({"study": "x"}, "field 'image': is missing"),
        ({"image": "ct/a.nii.gz"}, "field 'study': is missing"),
        (
            {"study": "x", "image": "ct/a.nii.gz", "questions": [{"question": " ", "answer": "yes"}]},
            "field 'questions': question 0 is .*write {question: text",
        ),
    ],
)
def test_rows_that_are_no_studies(folder: Path, row: Any, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Manifest.read(written(folder, row))


def test_patient_in_two_splits_and_study_twice(folder: Path) -> None:
    one = {"study": "x", "image": "ct/a.nii.gz", "patient": "p1", "split": "train"}
    with pytest.raises(ManifestError, match=r"patient 'p1' is in test here and in train in row 1 \(study 'x'\)"):
        Manifest.read(written(folder, one, {**one, "study": "y", "split": "test"}))
    with pytest.raises(ManifestError, match=r"row 2 \(study 'x'\), field 'study': was already used in row 1"):
        Manifest.read(written(folder, one, one))
    with pytest.raises(ManifestError, match="patient 'p1' is in test here and in train in row 1"):
        Manifest.read(written(folder, one, {**one, "study": "y", "patient": " p1 ", "split": "test"}))
    with pytest.raises(ManifestError, match="'x' is of patient 'p1', this study of 'p2'"):
        Manifest.read(written(folder, one, {**one, "study": "y", "patient": "p2", "prior": "x"}))


def test_priors_in_a_circle(folder: Path) -> None:
    """Each would be shown a report that was written after it."""
    priors = {"a": "c", "b": "a", "c": "b", "d": "c"}
    rows = [{"study": name, "image": "ct/a.nii.gz", "patient": "p", "prior": prior} for name, prior in priors.items()]
    with pytest.raises(ManifestError, match="'c' has this study among its own priors") as told:
        Manifest.read(written(folder, *rows))
    assert [problem.study for problem in told.value.problems] == ["a", "b", "c"]
    del rows[0]["prior"]
    assert len(Manifest.read(written(folder, *rows))) == 4


def test_paths_stay_in_the_manifests_folder(folder: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()
    for name, text in (("up", "../ct/a.nii.gz"), ("link", "linked.nii.gz"), ("folder link", "ct/a.nii.gz")):
        if name == "link":
            os.symlink(folder / "ct/a.nii.gz", inner / text)
        elif name == "folder link":
            os.symlink(folder / "ct", inner / "ct")
        path = written(inner, {"study": name, "image": text, "patient": "p"})
        with pytest.raises(ManifestError, match="leads out of the manifest's folder: write the absolute path"):
            Manifest.read(path)
        assert len(Manifest.read(path, allow_outside=True)) == 1
    assert len(Manifest.read(written(inner, {"study": "b", "image": str(folder / "ct/b.nii.gz"), "patient": "p"}))) == 1


def test_warnings_are_one_line_each(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"study": f"s{i}", "image": "ct/a.nii.gz", "Reports": "x", "prior": "gone"} for i in range(5)]
    with caplog.at_level(logging.WARNING):
        manifest = Manifest.read(written(folder, *rows))
    assert manifest["s3"].patient == "s3"
    messages = sorted(record.getMessage() for record in caplog.records)
    assert len(messages) == 3
    assert "5 of 5 rows have no patient" in messages[0]
    assert "5 studies name a prior that is not in this manifest" in messages[1]
    assert "field 'Reports' (5 rows) is not one of a manifest and is ignored; did you mean 'report'?" in messages[2]


def test_files_that_are_no_manifest(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no manifest at"):
        Manifest.read(folder / "gone.jsonl")
    with pytest.raises(ValueError, match=r"ends in \.jsonl, \.csv"):
        Manifest.read(folder / "ct/a.nii.gz")
    with pytest.raises(ValueError, match="has no rows"):
        Manifest.read(written(folder))


def test_reading_time_grows_with_rows_only(folder: Path) -> None:
    rows = [{**FULL, "study": f"s{i}", "patient": f"p{i}", "report": "x" * 2000} for i in range(2_000)]
    seconds = {}
    for count in (250, 2_000):
        path, taken = written(folder, *rows[:count]), []
        for _ in range(3):
            start = time.process_time()
            assert len(Manifest.read(path)) == count
            taken.append(time.process_time() - start)
        seconds[count] = min(taken)
    assert seconds[2_000] < 2 * 8 * seconds[250], "eight times the rows; by their square it were 64 times"


def test_write_leaves_the_old_file_when_it_fails(folder: Path) -> None:
    path = Manifest.read(written(folder, FULL)).path
    assert path is not None
    before = path.read_bytes()
    with pytest.raises(TypeError):
        Manifest([Study("a", Path("a"), meta={"x": object()})]).write(path)
    assert path.read_bytes() == before
    assert not list(folder.glob(".*part*"))


def test_reading_a_manifest_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, vol3d.data.manifest; print(sorted({'torch', 'numpy', 'monai', 'lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
