"""Phantoms on disk: the files and the manifest rows agree, and a seed gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from vol3d import phantom
from vol3d.text.ontology import KEYS

SHAPE = (32, 32, 24)


def rows_of(manifest: Path) -> list[dict]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write(tmp_path_factory.mktemp("phantoms"), studies=12, seed=4, shape=SHAPE, split=(5, 2, 5), twins=2)


def test_rows_hold_what_the_contract_names_and_twins_come_last(manifest: Path) -> None:
    rows = rows_of(manifest)
    assert [row["study"] for row in rows[:12]] == [f"study-{n:05d}" for n in range(12)]
    splits = [row["split"] for row in rows[:12]]
    assert [splits.count(name) for name in ("train", "val", "test")] == [5, 2, 5]
    names = {row["study"]: row for row in rows}
    assert len(rows) == 14 == len(names)
    for twin in rows[12:]:
        original = names[twin["meta"]["twin_of"]]
        assert twin["split"] == original["split"] == "test"
        assert twin["patient"] == original["patient"]
        assert twin["meta"]["changed"] in original["meta"]["findings"]
        assert twin["report"] != original["report"]
    for row in rows:
        assert set(row["labels_known"]) == set(phantom.FINDINGS) | set(KEYS)
        assert row["findings"] in row["report"]
        assert row["impression"] in row["report"]
        assert row["code_system"] == "icd10cm"
        assert not set(row["codes"]) & set(row["codes_absent"])
        assert row["outcomes"]["death"]["time"] > 0
        assert row["outcomes"]["death"]["event"] in (0, 1)


def test_files_are_ras_nifti_on_one_grid_and_match_the_study_in_memory(manifest: Path) -> None:
    row = next(row for row in rows_of(manifest) if row["boxes"])
    study = phantom.make(row["meta"]["seed"], shape=SHAPE)
    image, organs, findings = (nibabel.load(manifest.parent / row[k]) for k in ("image", "mask", "finding_mask"))
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    for file in (image, organs, findings):
        np.testing.assert_allclose(file.affine, study.affine, atol=1e-4)
        assert file.shape == SHAPE
    np.testing.assert_array_equal(np.asarray(image.dataobj), study.hu)
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(organs.dataobj), study.organs)
    np.testing.assert_array_equal(np.asarray(findings.dataobj), study.finding_mask)
    assert row["mask_labels"]["liver"] == study.organ_labels["liver"]
    assert row["report"] == study.report.text


def test_a_seed_gives_the_same_bytes_with_any_number_of_workers(manifest: Path, tmp_path: Path) -> None:
    again = phantom.write(tmp_path, studies=12, seed=4, shape=SHAPE, split=(5, 2, 5), twins=2, workers=2)
    files = sorted(p.relative_to(manifest.parent) for p in manifest.parent.rglob("*.*"))
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.*"))
    assert all((manifest.parent / file).read_bytes() == (again.parent / file).read_bytes() for file in files)


def test_shares_are_rounded_to_the_number_of_studies(tmp_path: Path) -> None:
    rows = rows_of(phantom.write(tmp_path, studies=10, seed=0, shape=(16, 16, 16), findings=["ascites"]))
    splits = [row["split"] for row in rows]
    assert [splits.count(name) for name in ("train", "val", "test")] == [6, 2, 2]
    assert all(set(row["labels_known"]) == {"ascites"} for row in rows)


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"split \(3, 3, 3\) sums to 9, studies is 10"):
        phantom.write(tmp_path / "a", studies=10, split=(3, 3, 3))
    with pytest.raises(ValueError, match=r"sums to 1\.5"):
        phantom.write(tmp_path / "a", studies=10, split=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="5 twins asked for, but only 0 of 3 test studies"):
        phantom.write(tmp_path / "a", studies=10, split=(4, 3, 3), twins=5, prevalence=0.0)
    with pytest.raises(ValueError, match="studies is 0"):
        phantom.write(tmp_path / "a", studies=0)
    with pytest.raises(ValueError, match=r"shape is \(8, 64, 32\): give three sizes of at least 16"):
        phantom.write(tmp_path / "a", studies=1, shape=(8, 64, 32))
    with pytest.raises(ValueError, match=r"prevalence is 2\.0"):
        phantom.write(tmp_path / "a", studies=1, prevalence=2.0)
    with pytest.raises(ValueError, match="seed is -1: give 0 or more"):
        phantom.write(tmp_path / "a", studies=1, seed=-1)
    assert not (tmp_path / "a").exists()


def test_a_broken_run_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vol3d.phantom import files

    calls = []

    def fail_on_third(*args: object, **kwargs: object) -> phantom.PhantomStudy:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("disk full")
        return phantom.make(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "make", fail_on_third)
    with pytest.raises(RuntimeError, match="disk full"):
        phantom.write(tmp_path, studies=4, shape=(16, 16, 16))
    assert not (tmp_path / "manifest.jsonl").exists()
    assert not list(tmp_path.rglob("*.tmp"))
