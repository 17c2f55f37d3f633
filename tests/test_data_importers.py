"""Importers, each on a small tree laid out as its authors publish it."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import nibabel as nib
import numpy as np
import pytest

from vol3d.data.excel import read_excel
from vol3d.data.importers import npy_to_nifti
from vol3d.data.manifest import Manifest
from vol3d.data.study import Study
from vol3d.volume.grid import Grid
from vol3d.volume.read import read


def nifti(path: Path, array: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8) if array is None else array, np.eye(4)), path)
    return path


def table(path: Path, *rows: list[Any], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(delimiter.join(str(cell) for cell in row) for row in rows) + "\n")
    return path


def excel(path: Path, *rows: list[str]) -> Path:
    """A sheet whose first column is shared texts and whose others are inline, with a gap where a cell is empty."""
    shared = [row[0] for row in rows]
    lines = []
    for number, row in enumerate(rows, start=1):
        cells = [f'<c r="A{number}" t="s"><v>{number - 1}</v></c>']
        cells += [
            f'<c r="{"ABCDEF"[column]}{number}" t="inlineStr"><is><t>{escape(text)}</t></is></c>'
            for column, text in enumerate(row)
            if column and text
        ]
        lines.append(f'<row r="{number}">{"".join(cells)}</row>')
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    with zipfile.ZipFile(path, "w") as archive:
        texts = "".join(f"<si><r><t>{text[:1]}</t></r><r><t>{text[1:]}</t></r></si>" for text in shared)
        archive.writestr("xl/sharedStrings.xml", f"<sst {space}>{texts}</sst>")
        archive.writestr(
            "xl/worksheets/sheet1.xml", f"<worksheet {space}><sheetData>{''.join(lines)}</sheetData></worksheet>"
        )
    return path


def test_merlin_minus_one_is_unknown(tmp_path: Path) -> None:
    for name in ("AC1", "AC2"):
        nifti(tmp_path / "merlin_data" / f"{name}.nii.gz")
    excel(
        tmp_path / "reports_final.xlsx",
        ["study id", "Findings", "Split", "Few Shot"],
        ["AC1", "FINDINGS: Liver: Fatty & large.\nIMPRESSION: Steatosis.", "train", ""],
        ["AC2", "Normal.", "test", ""],
        ["AC3", "Not downloaded.", "test", ""],
    )
    table(
        tmp_path / "zero_shot_findings_disease_cls.csv",
        ["study id", "steatosis", "ascites"],
        ["AC1", 1, -1],
        ["AC2", 0, 0],
    )
    manifest = Manifest.from_merlin(tmp_path)
    assert [study.study for study in manifest] == ["AC1", "AC2"]
    first = manifest["AC1"]
    assert first.labels_known == {"steatosis": 1, "ascites": None}
    assert (first.findings, first.impression) == ("Liver: Fatty & large.", "Steatosis.")
    assert (first.split, manifest["AC2"].split) == ("train", "test")
    assert Manifest.read(manifest.write(tmp_path / "manifest.jsonl"))["AC1"] == first


def test_ct_rate_takes_the_fixed_volumes_and_keeps_patients_together(tmp_path: Path) -> None:
    data = tmp_path / "dataset"
    for name in (
        "train_fixed/train_1/train_1_a/train_1_a_1",
        "train_fixed/train_1/train_1_b/train_1_b_1",
        "train/train_1/train_1_a/train_1_a_1",
    ):
        nifti(data / f"{name}.nii.gz")
    nifti(data / "valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz")
    header = ["VolumeName", "Findings_EN", "Impressions_EN"]
    table(data / "radiology_text_reports/train_reports.csv", header, ["train_1_a_1.nii.gz", "Clear.", "Normal."])
    table(data / "radiology_text_reports/validation_reports.csv", header, ["valid_1_a_1.nii.gz", "Nodule.", "Nodule."])
    labels = ["VolumeName", "Cardiomegaly", "Lung nodule"]
    table(data / "multi_abnormality_labels/train_predicted_labels.csv", labels, ["train_1_a_1.nii.gz", 0, 1])
    table(data / "metadata/train_metadata.csv", ["VolumeName", "PatientSex"], ["train_1_a_1.nii.gz", "F"])
    manifest = Manifest.from_ct_rate(tmp_path)
    assert [(s.study, s.patient, s.split) for s in manifest] == [
        ("train_1_a_1", "train_1", "train"),
        ("train_1_b_1", "train_1", "train"),
        ("valid_1_a_1", "valid_1", "val"),
    ]
    study = manifest["train_1_a_1"]
    assert study.image.parts[-4] == "train_fixed"
    assert study.labels_known == {"Cardiomegaly": 0, "Lung nodule": 1}
    assert (study.findings, study.impression, study.meta) == ("Clear.", "Normal.", {"PatientSex": "F"})
    assert Manifest.from_ct_rate(tmp_path, original=True)[0].image.parts[-4] == "train"


def test_m3d_is_written_as_what_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "ct_case" / "000006"
    folder.mkdir(parents=True)
    volume = np.zeros((1, 4, 6, 8), np.float32)
    volume[0, 1, 2, 7] = 1  # slice 1, row 2, last column: the patient's left
    np.save(folder / "Axial.npy", volume)
    (folder / "text.txt").write_text("A caption.")
    item = {"image": "ct_case/000006/Axial.npy", "text": "ct_case/000006/text.txt"}
    (tmp_path / "M3D_Cap.json").write_text(json.dumps({"train": [item], "test1k": []}))
    [study] = Manifest.from_m3d(tmp_path / "M3D_Cap.json", tmp_path / "out")
    assert (study.report, study.split, study.patient) == ("A caption.", "train", "ct_case_000006")
    assert study.meta == {"modality": "M3D", "spacing": "unknown"}
    on_disk = read(study.image, modality="M3D")
    assert on_disk.shape == (1, 8, 6, 4)
    [spot] = np.argwhere(on_disk[0].numpy() == 10_000)
    assert spot.tolist() == [0, 3, 1], "x grows to the right: the left is at 0"


def test_m3d_keeps_its_shades_on_the_grid(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((1, 4, 6, 8)).astype(np.float32)
    np.save(tmp_path / "a.npy", volume)
    path = npy_to_nifti(tmp_path / "a.npy", tmp_path / "a.nii.gz")
    grid = Grid(shape=(8, 6, 4), window="minmax", orientation="LPS")
    seen = grid(read(path, modality="M3D"))[0].numpy().transpose(2, 1, 0)
    shades = (volume[0] - volume.min()) / (volume.max() - volume.min())
    np.testing.assert_allclose(seen, shades, atol=1e-4)
    np.save(tmp_path / "hu.npy", 100 * volume)
    with pytest.raises(ValueError, match=r"hu.npy holds .* M3D's volumes 0 to 1"):
        npy_to_nifti(tmp_path / "hu.npy", tmp_path / "hu.nii.gz")


def test_totalsegmentator_merges_masks_under_the_same_numbers(tmp_path: Path) -> None:
    for study, names in (("s0000", ("liver", "spleen")), ("s0001", ("aorta", "spleen"))):
        nifti(tmp_path / study / "ct.nii.gz")
        for place, name in enumerate(names):
            mask = np.zeros((4, 4, 4), np.uint8)
            mask[place] = 1
            nifti(tmp_path / study / "segmentations" / f"{name}.nii.gz", mask)
    nifti(tmp_path / "s0002" / "ct.nii.gz")
    table(
        tmp_path / "meta.csv",
        ["image_id", "age", "split"],
        ["s0000", 61, "train"],
        ["s0001", 50, "test"],
        delimiter=";",
    )
    manifest = Manifest.from_totalsegmentator(tmp_path, tmp_path / "out")
    assert manifest["s0000"].mask_labels == manifest["s0001"].mask_labels == {"aorta": 1, "liver": 2, "spleen": 3}
    merged = np.asarray(nib.load(manifest["s0000"].mask).dataobj)
    assert (merged[0, 0, 0], merged[1, 0, 0], merged[2, 0, 0]) == (2, 3, 0)
    assert (manifest["s0001"].split, manifest["s0000"].meta) == ("test", {"age": "61"})
    assert manifest["s0002"].mask is None


def test_totalsegmentator_again_when_more_of_it_has_arrived(tmp_path: Path) -> None:
    def add(study: str, *names: str) -> None:
        nifti(tmp_path / study / "ct.nii.gz")
        for name in names:
            mask = np.zeros((4, 4, 4), np.uint8)
            mask[("aorta", "liver", "spleen").index(name)] = 1
            nifti(tmp_path / study / "segmentations" / f"{name}.nii.gz", mask)

    def told() -> tuple[Path, list[str]]:
        """The mask of s0000, and the names that it gives to the places of each structure."""
        study = Manifest.from_totalsegmentator(tmp_path, tmp_path / "out")["s0000"]
        names = {number: name for name, number in study.mask_labels.items()} | {0: "nothing"}
        stored = np.asarray(nib.load(study.mask).dataobj)
        return study.mask, [names[number] for number in stored[:3, 0, 0].tolist()]

    add("s0000", "liver", "spleen")
    first, names = told()
    assert names == ["nothing", "liver", "spleen"]
    assert told() == (first, names)
    before = first.read_bytes()
    add("s0001", "aorta")  # liver and spleen become 2 and 3
    assert told()[1] == names
    assert first.read_bytes() == before, "the manifest that was made first keeps its own"
    add("s0000", "aorta")  # under the same numbers
    assert told()[1] == ["aorta", "liver", "spleen"]


@pytest.mark.parametrize(
    "labels", [{"background": 0, "liver": 1, "tumor": 2}, {"0": "background", "1": "liver", "2": "tumor"}]
)
def test_nnunet_both_versions(tmp_path: Path, labels: dict[str, Any]) -> None:
    nifti(tmp_path / "imagesTr/case_01_0000.nii.gz")
    nifti(tmp_path / "labelsTr/case_01.nii.gz")
    nifti(tmp_path / "imagesTs/case_02_0000.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "CT"}}))
    manifest = Manifest.from_nnunet(tmp_path)
    assert [(s.study, s.split, s.mask is None) for s in manifest] == [
        ("case_01", "train", False),
        ("case_02", "test", True),
    ]
    assert manifest[0].mask_labels == {"liver": 1, "tumor": 2}


def test_nnunet_voxels_to_be_ignored_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nifti(tmp_path / "imagesTr/a_0000.nii.gz")
    nifti(tmp_path / "labelsTr/a.nii.gz")
    card = {"labels": {"background": 0, "liver": 1, "ignore": 2}, "channel_names": {"0": "CT"}}
    (tmp_path / "dataset.json").write_text(json.dumps(card))
    assert Manifest.from_nnunet(tmp_path)[0].mask_labels == {"liver": 1}
    assert "voxels of its label 'ignore' count as background" in caplog.text


def test_hidden_files_of_an_archive_are_no_studies(tmp_path: Path) -> None:
    """macOS puts a ._file beside each file of an archive."""

    def hidden(path: Path) -> None:
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(200))

    for name in ("nn/imagesTr/a_0000", "nn/labelsTr/a", "ts/s0/ct", "ts/s0/segmentations/liver"):
        hidden(nifti(tmp_path / f"{name}.nii.gz"))
    hidden(nifti(tmp_path / "rate/dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz"))
    hidden(table(tmp_path / "rate/dataset/train_reports.csv", ["VolumeName", "Findings_EN"], ["train_1_a_1", "Clear."]))
    (tmp_path / "nn/dataset.json").write_text(json.dumps({"labels": {"liver": 1}, "channel_names": {"0": "CT"}}))
    assert [study.study for study in Manifest.from_nnunet(tmp_path / "nn")] == ["a"]
    assert [study.study for study in Manifest.from_ct_rate(tmp_path / "rate")] == ["train_1_a_1"]
    [study] = Manifest.from_totalsegmentator(tmp_path / "ts", tmp_path / "out")
    assert (study.study, study.mask_labels) == ("s0", {"liver": 1})


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"labels": {"whole": [1, 2]}, "channel_names": {"0": "CT"}}, "'whole' is a region of several labels"),
        ({"labels": {"a": 1}, "channel_names": {"0": "T1"}}, "has the channels {'0': 'T1'}"),
    ],
)
def test_nnunet_that_is_no_ct_label_map(tmp_path: Path, card: dict[str, Any], message: str) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=message):
        Manifest.from_nnunet(tmp_path)


def test_own_table(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz")
    path = table(
        tmp_path / "own.csv",
        ["id", "file", "ascites", "kernel"],
        ["7", "a.nii.gz", -1, "B30"],
        ["8", "a.nii.gz", 1, ""],
    )
    manifest = Manifest.from_csv(path, {"study": "id", "image": "file"}, labels=["ascites"])
    assert [s.labels_known for s in manifest] == [{"ascites": None}, {"ascites": 1}]
    assert [s.meta for s in manifest] == [{"kernel": "B30"}, {}]
    with pytest.raises(ValueError, match=r"own\.csv has no column 'path'; it has 'id', 'file'"):
        Manifest.from_csv(path, {"study": "id", "image": "path"})
    table(path, ["id", "file"], ["7", "gone.nii.gz"])
    with pytest.raises(ValueError, match=r"row 2 \(study '7'\), field 'image': no file or folder at 'gone.nii.gz'"):
        Manifest.from_csv(path, {"study": "id", "image": "file"})


def test_own_table_of_lists_and_objects(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz")
    path = tmp_path / "own.csv"
    rows = [
        ["id", "file", "icd", "system", "asked", "known", "more", "ascites", "kernel"],
        ["7", "a.nii.gz", '["J90", "K80.20"]', "icd10cm", '[{"question": "Where?", "answer": "left, below"}]',
         '{"nodule": 1}', '{"age": 61}', 0, "B30"],
    ]  # fmt: skip
    columns = {"study": "id", "image": "file", "codes": "icd", "code_system": "system", "questions": "asked"}
    columns |= {"labels_known": "known", "meta": "more"}

    def read() -> Manifest:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        return Manifest.from_csv(path, columns, labels=["ascites"])

    [study] = read()
    assert study.codes == ["J90", "K80.20"]
    assert study.questions == [{"question": "Where?", "answer": "left, below"}]
    assert (study.labels_known, study.meta) == ({"nodule": 1, "ascites": 0}, {"age": 61, "kernel": "B30"})
    rows[1][2] = "J90"
    with pytest.raises(ValueError, match=r"own\.csv: row 2 .*field 'codes' is not valid JSON"):
        read()
    rows[1][2], rows[1][6] = "", "[61]"
    with pytest.raises(ValueError, match=r"row 2 \(study '7'\), field 'meta': is \[61\]: write a JSON object"):
        read()


@pytest.mark.parametrize(("delimiter", "mark"), [(",", "comma"), (";", "semicolon")])
def test_own_table_with_a_cell_that_is_not_quoted(tmp_path: Path, delimiter: str, mark: str) -> None:
    nifti(tmp_path / "a.nii.gz")
    report = f"No effusion{delimiter} no nodule"
    path = table(
        tmp_path / "own.csv",
        ["id", "file", "text"],
        ["7", "a.nii.gz", "Clear."],
        ["8", "a.nii.gz", report],
        ["9", "b.nii.gz", "Clear."],
        delimiter=delimiter,
    )
    message = (
        rf"own\.csv: row 3 .*has more cells than the header has names: quote cells that hold a {mark}\n"
        r"row 4 \(study '9'\), field 'image': no file"
    )
    with pytest.raises(ValueError, match=message):
        Manifest.from_csv(path, {"study": "id", "image": "file", "report": "text"})
    table(tmp_path / "reports_final.csv", ["study id", "Findings"], ["AC1", report], delimiter=delimiter)
    with pytest.raises(ValueError, match=rf"reports_final\.csv, row 2: has more cells .* a {mark}"):
        Manifest.from_merlin(tmp_path)


def test_own_table_with_a_patient_in_two_splits(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz")
    rows = [["7", "a.nii.gz", "p1", "train"], ["8", "a.nii.gz", "p1", "test"], ["7", "gone.nii.gz", "p2", "test"]]
    path = table(tmp_path / "own.csv", ["id", "file", "who", "part"], *rows)
    columns = {"study": "id", "image": "file", "patient": "who", "split": "part"}
    message = r"row 3 \(study '8'\), field 'split': patient 'p1' is in test here and in train in row 2 \(study '7'\)"
    with pytest.raises(ValueError, match=message) as caught:
        Manifest.from_csv(path, columns)
    assert "'gone.nii.gz'" in str(caught.value), "all that is wrong is told at once"
    table(path, ["id", "file", "who", "part"], rows[0], ["7", "a.nii.gz", "p1", "train"])
    with pytest.raises(ValueError, match=r"row 3 \(study '7'\), field 'study': was already used in row 2"):
        Manifest.from_csv(path, columns)
    table(path, ["id", "file"])
    with pytest.raises(ValueError, match=r"own\.csv has no rows"):
        Manifest.from_csv(path, columns)


def test_published_splits_that_share_a_patient_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("AC1", "AC2"):
        nifti(tmp_path / f"{name}.nii.gz")
    rows = ["AC1", "Clear.", "train"], ["AC2", "Clear.", "test"]
    table(tmp_path / "reports_final.csv", ["study id", "Findings", "Split"], *rows)
    table(tmp_path / "metadata.csv", ["study id", "patient id"], ["AC1", "p1"], ["AC2", "p1"])
    assert len(Manifest.from_merlin(tmp_path)) == 2
    message = "study 'AC2', field 'split': patient 'p1' is in test here and in train in study 'AC1': keep all studies"
    assert message in caplog.text


def test_own_table_whose_folder_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nifti(tmp_path / "ct/a.nii.gz")
    table(tmp_path / "own.csv", ["id", "file"], ["7", "a.nii.gz"])
    manifest = Manifest.from_csv("own.csv", {"study": "id", "image": "file"}, folder="ct")
    assert manifest[0].image == tmp_path / "ct/a.nii.gz"
    assert Manifest.read(manifest.write("data/manifest.jsonl"))[0] == manifest[0]
    mine = Manifest([Study("7", Path("ct/a.nii.gz"))])  # relative to where we are, wherever it is written
    assert Manifest.read(mine.write("data/mine.jsonl"))[0].image == tmp_path / "ct/a.nii.gz"


def test_wrong_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows of reports_final"):
        Manifest.from_merlin(tmp_path)
    with pytest.raises(ValueError, match="TotalSegmentator: no study found"):
        Manifest.from_totalsegmentator(tmp_path, tmp_path / "out")
    table(tmp_path / "reports_final.csv", ["id", "Findings"], ["AC1", "x"])
    with pytest.raises(ValueError, match=r"reports_final\.csv has no column 'study id'; it has 'id'"):
        Manifest.from_merlin(tmp_path)


def test_excel_with_two_columns_of_one_name_and_with_empty_rows(tmp_path: Path) -> None:
    excel(tmp_path / "a.xlsx", ["study", "report", "report"], ["a", "Effusion.", ""])
    with pytest.raises(ValueError, match=r"a\.xlsx: columns 2 and 3 are both named 'report': rename or remove one"):
        Manifest.from_csv(tmp_path / "a.xlsx", {"study": "study", "image": "report"})
    image = str(nifti(tmp_path / "ct.nii.gz"))
    excel(tmp_path / "b.xlsx", ["study", "image"], ["a", image], ["", ""])
    assert len(Manifest.from_csv(tmp_path / "b.xlsx", {"study": "study", "image": "image"})) == 1


def test_file_that_is_no_excel(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"a\.xlsx is not an \.xlsx file"):
        list(read_excel(tmp_path / "a.xlsx"))


@pytest.mark.parametrize("value", ["yes", "2"])
def test_a_label_that_is_none_is_told_with_its_row(value: str, tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz")
    path = table(tmp_path / "t.csv", ["id", "file", "cyst"], ["s1", "a.nii.gz", "1"], ["s2", "a.nii.gz", value])
    with pytest.raises(ValueError, match=rf"t.csv: row 3 .*column 'cyst': label '{value}': 1 is present, 0 absent"):
        Manifest.from_csv(path, {"study": "id", "image": "file"}, labels=["cyst"])
