"""The cache: whole entries or none, found again only while grid and files are the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from volume_files import body, dicom_series, save_dicom

from vol3d.data import cache as cache_module
from vol3d.data import entries as entries_module
from vol3d.data.cache import CacheFullError, VolumeCache, prepare, sample
from vol3d.data.doctor import doctor
from vol3d.data.entries import Compression, read_entry
from vol3d.data.identity import file_identity
from vol3d.data.manifest import Manifest, Study
from vol3d.volume.export import write
from vol3d.volume.grid import Grid
from vol3d.volume.read import read, read_mask

GRID = Grid(spacing=(2.0, 2.0, 2.0), shape=(12, 12, 8), window=(-1000.0, 1000.0))


def write_nifti(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def make_manifest(folder: Path, studies: int = 4, **fields: object) -> Manifest:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(studies):
        image = write_nifti(folder / f"{number}.nii.gz", rng.integers(-1000, 1000, (24, 24, 16)).astype(np.int16))
        mask = write_nifti(folder / f"{number}_mask.nii.gz", rng.integers(0, 3, (24, 24, 16)).astype(np.uint8))
        rows.append(Study(f"s{number}", image, mask=mask, mask_labels={"a": 1, "b": 2}, **fields))  # type: ignore[arg-type]
    return Manifest(rows)


def entries(folder: Path) -> list[Path]:
    """Those that have the name of one; a part is hidden under a name of its own."""
    return sorted(path for path in folder.rglob("*.safetensors") if not path.name.startswith("."))


def test_what_is_cached_is_what_would_be_made(tmp_path: Path) -> None:
    study = make_manifest(tmp_path)[0]
    fresh = sample(study, GRID)
    cache = VolumeCache(tmp_path / "cache", GRID)
    assert not cache.has(study)
    for got in (cache.get(study), cache.get(study)):
        assert got.hu.shape == (1, 12, 12, 8)
        assert got.hu.dtype == torch.int16
        assert got.affine.dtype == torch.float64
        assert got.mask is not None
        assert torch.equal(got.hu, fresh.hu)
        assert torch.equal(got.affine, fresh.affine)
        assert torch.equal(got.mask, fresh.mask)
        assert got.finding_mask is None
    assert cache.has(study)
    assert len(entries(tmp_path)) == 2


def test_another_grid_or_file_finds_no_entry_another_window_does(tmp_path: Path) -> None:
    study = make_manifest(tmp_path)[0]
    VolumeCache(tmp_path / "cache", GRID).get(study)
    assert VolumeCache(tmp_path / "cache", replace(GRID, window=(-160.0, 240.0))).has(study)
    assert not VolumeCache(tmp_path / "cache", replace(GRID, shape=(10, 12, 8))).has(study)
    write_nifti(study.image, np.full((24, 24, 16), -1000, np.int16) + 900 * np.eye(24, 16, dtype=np.int16))
    cache = VolumeCache(tmp_path / "cache", GRID)
    assert not cache.has(study)
    assert set(cache.get(study).hu.unique().tolist()) <= set(range(-1000, -99)), "the new file's values"
    assert not cache.has(replace(study, meta={"modality": "MR"})), "taken as something else, prepared anew"


@pytest.mark.parametrize(
    "modality", ["CT", "ct abdomen", "Computed Tomography", "Chest CT", "CHEST_CT", "NCCT", " ", None]
)
def test_a_column_that_says_ct_does_not_vouch_for_hu(tmp_path: Path, modality: str | None) -> None:
    study = replace(make_manifest(tmp_path, 1)[0], meta={"modality": modality})
    write_nifti(study.image, np.full((24, 24, 16), 1024, np.int16) + 40 * np.eye(24, 16, dtype=np.int16))
    with pytest.raises(ValueError, match=r"no air, so .*\(in a manifest: meta.modality; meta.hu: true\)"):
        sample(study, GRID)
    for about in ({"modality": modality, "hu": True}, {"hu": "true"}, {"modality": "MR"}):
        assert sample(replace(study, meta=about), GRID).hu.max() >= 1024


def test_an_entry_of_a_padded_mr_made_before_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ct = make_manifest(tmp_path)[0]
    cache = VolumeCache(tmp_path / "cache", GRID)
    kinds = {name: replace(ct, meta={"modality": name}) for name in ("CT", "MR")}
    now = {name: cache._path(study) for name, study in kinds.items()}
    masks = {name: cache._path(study, study.mask) for name, study in kinds.items()}
    monkeypatch.setattr(cache_module, "OTHER_FORMAT", 1)
    assert cache._path(kinds["CT"]) == now["CT"]
    assert cache._path(kinds["MR"]) != now["MR"]
    assert {name: cache._path(study, study.mask) for name, study in kinds.items()} == masks, "masks stay"


def test_an_entry_of_text_headers_made_before_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their units, and voxels written as text, were once read otherwise."""
    cache = VolumeCache(tmp_path / "cache", GRID)
    nifti = make_manifest(tmp_path)[0]
    image, mask = (write(read_mask(nifti.mask), tmp_path / name) for name in ("ct.nrrd", "mask.mha"))
    kinds = {"nifti": nifti, "image": replace(nifti, image=image), "mask": replace(nifti, mask=mask)}

    def keys() -> dict[str, set[Path]]:
        return {name: {cache._path(study), cache._path(study, study.mask)} for name, study in kinds.items()}

    now = keys()
    monkeypatch.setattr(cache_module, "HEADED_FORMAT", 0)
    assert {name: len(now[name] & then) for name, then in keys().items()} == {"nifti": 2, "image": 0, "mask": 1}


def test_identity_follows_content_not_place(tmp_path: Path) -> None:
    image = make_manifest(tmp_path, 1)[0].image
    copy = Path(shutil.copy(image, tmp_path / "copy.nii.gz"))
    assert file_identity(copy) == file_identity(image)
    plain = tmp_path / "volume.mha"
    plain.write_bytes(bytes(300_000))
    before = file_identity(plain)
    with plain.open("r+b") as file:  # in the middle, where no hash looks; the size stays
        file.seek(150_000)
        file.write(b"x")
    os.utime(plain, ns=(0, time.time_ns() + 1))
    assert file_identity(plain) != before


def test_identity_sees_every_file_of_a_volume(tmp_path: Path) -> None:
    dicom = tmp_path / "dicom"
    dicom.mkdir()
    for number in range(12):
        (dicom / str(number)).write_bytes(bytes([number]))
    (tmp_path / "a.mhd").write_text("ObjectType = Image\nElementDataFile = voxels.raw\n")
    (tmp_path / "voxels.raw").write_bytes(b"1")
    before = [file_identity(dicom), file_identity(tmp_path / "a.mhd")]
    (dicom / "7").write_bytes(b"new")
    (tmp_path / "voxels.raw").write_bytes(b"22")
    assert file_identity(dicom) != before[0]
    assert file_identity(tmp_path / "a.mhd") != before[1]


@pytest.mark.parametrize(
    ("header", "said", "voxels"),
    [
        ("a.mhd", "ObjectType = Image\nElementDataFile = a.raw\n", "a.raw"),
        ("a.MHD", "ObjectType = Image\nElementDataFile = a.raw\n", "a.raw"),
        ("a.mha", "ObjectType = Image\nElementDataFile = a.raw\n", "a.raw"),
        ("a.nrrd", "NRRD0004\ntype: short\ndata file: a.raw\n\n", "a.raw"),
        ("a.hdr", "header", "a.img.gz"),
        ("a.hdr.gz", "header", "a.img.gz"),
        ("a.img.gz", "voxels", "a.hdr"),
    ],
)
def test_identity_sees_both_files_whatever_their_suffixes(header: str, said: str, voxels: str, tmp_path: Path) -> None:
    (tmp_path / header).write_text(said)
    (tmp_path / voxels).write_bytes(b"1")
    before = file_identity(tmp_path / header)
    (tmp_path / voxels).write_bytes(b"22")
    assert file_identity(tmp_path / header) != before


@pytest.mark.parametrize("workers", [0, 2])
def test_prepare_lists_failures_and_resumes(tmp_path: Path, workers: int) -> None:
    manifest = make_manifest(tmp_path)
    broken = tmp_path / "2.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50])
    report = prepare(manifest, GRID, tmp_path / "cache", workers, progress=False)
    assert (report.studies, report.made, report.ready, report.failed) == (4, 3, 0, 1)
    assert report.failures is not None
    [failure] = [json.loads(line) for line in report.failures.read_text().splitlines()]
    assert failure["study"] == "s2"
    assert failure["error"].startswith("study 's2': ")
    broken.write_bytes(whole)
    again = prepare(manifest, GRID, tmp_path / "cache", workers, progress=False)
    assert (again.made, again.ready, again.failed, again.failures) == (1, 3, 0, None)
    assert not report.failures.exists()
    assert len(entries(tmp_path)) == 8


def test_mask_of_another_place_fails_with_the_studys_name(tmp_path: Path) -> None:
    study = make_manifest(tmp_path, 1)[0]
    assert study.mask is not None
    far = np.eye(4)
    far[:3, 3] = 500
    nib.save(nib.Nifti1Image(np.ones((24, 24, 16), np.uint8), far), study.mask)
    with pytest.raises(ValueError, match=r"study 's0': .*do not overlap"):
        VolumeCache(tmp_path / "cache", GRID).get(study)


def test_image_with_and_without_masks_is_the_same(tmp_path: Path) -> None:
    study = make_manifest(tmp_path, 1)[0]
    alone = sample(replace(study, mask=None), GRID)
    assert alone.mask is None
    assert torch.equal(alone.hu, sample(study, GRID).hu)


@pytest.mark.parametrize("compression", [None, "blosc2"])
def test_damaged_entry_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, compression: Compression | None
) -> None:
    study = make_manifest(tmp_path, 1)[0]
    cache = VolumeCache(tmp_path / "cache", GRID, compression)
    wanted = cache.get(study).hu
    for entry in entries(tmp_path):
        entry.write_bytes(entry.read_bytes()[:-10])
    assert torch.equal(cache.get(study).hu, wanted)
    assert caplog.text.count("is damaged") == 2, "image and mask"
    if compression:  # whole as a file, broken inside
        image = max(entries(tmp_path), key=lambda path: path.stat().st_size)
        whole = image.read_bytes()
        start = 8 + int.from_bytes(whole[:8], "little") + 128  # header, affine
        image.write_bytes(whole[:start] + bytes(len(whole) - start))
        assert torch.equal(cache.get(study).hu, wanted)
        assert caplog.text.count("is damaged") == 3


def test_compressed_and_plain_entries_serve_each_other(tmp_path: Path) -> None:
    flat = write_nifti(tmp_path / "flat.nii.gz", np.repeat(np.int16([[[-900, 40]]]), 12, 2).repeat(24, 0).repeat(24, 1))
    studies = [Study("flat", flat), make_manifest(tmp_path, 1)[0]]
    plain, packed = VolumeCache(tmp_path / "a", GRID), VolumeCache(tmp_path / "b", GRID, "blosc2")
    for study in studies:
        wanted, _ = plain.get(study), packed.get(study)
        for got in (packed.get(study), VolumeCache(tmp_path / "b", GRID).get(study)):
            assert torch.equal(got.hu, wanted.hu)
            assert torch.equal(got.affine, wanted.affine)
            assert (got.mask is None) == (wanted.mask is None)
            assert got.mask is None or torch.equal(got.mask, wanted.mask)
        assert VolumeCache(tmp_path / "a", GRID, "blosc2").has(study), "the same name: nothing is made twice"
    disk = [sum(path.stat().st_size for path in entries(tmp_path / folder)) for folder in "ab"]
    assert disk[1] < 0.8 * disk[0]


def test_compression_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"compression 'zip': choose 'blosc2', or None"):
        entries_module.check_compression("zip")
    monkeypatch.setitem(sys.modules, "blosc2", None)
    with pytest.raises(ImportError, match=r"pip install 'vol3d\[blosc2\]'"):
        VolumeCache(tmp_path, GRID, "blosc2")


def test_only_the_masks_asked_for_are_read(tmp_path: Path) -> None:
    study = make_manifest(tmp_path, 1)[0]
    study = replace(study, finding_mask=study.mask, finding_labels={"a": 1})
    cache = VolumeCache(tmp_path / "cache", GRID)
    both = cache.get(study)
    assert both.mask is not None
    assert both.finding_mask is not None
    assert torch.equal(both.mask, both.finding_mask), "one file, one entry"
    assert len(entries(tmp_path)) == 2
    assert cache.get(study, masks=()).mask is None
    assert cache.get(study, masks=["finding_mask"]).mask is None
    study.mask.write_bytes(b"no mask")  # type: ignore[union-attr]
    assert torch.equal(cache.get(study, masks=()).hu, both.hu)
    with pytest.raises(ValueError, match="study 's0': "):
        cache.get(study, masks=["finding_mask"])


def test_disk_full_stops_with_a_clear_error_and_whole_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_manifest(tmp_path)
    real = safetensors.torch.save_file

    def small_disk(tensors: Any, path: Path, metadata: Any) -> None:
        real(tensors, path, metadata)
        if len(entries(tmp_path)) == 3:  # and this one
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", small_disk)
    with pytest.raises(CacheFullError, match=r"the disk is full .*goes on where it stopped; 1 of 4 studies are ready"):
        prepare(manifest, GRID, tmp_path / "cache", progress=False)
    monkeypatch.undo()
    assert len(entries(tmp_path)) == 3
    assert prepare(manifest, GRID, tmp_path / "cache", progress=False).ready == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"series": 7}, r"2 series; choose one .*\(in a manifest: store it once, vol3d\.write\(.*series=….*as image\)"),
        (
            {"irregular": "resample"},
            r"1 slices missing.*\(in a manifest: store it once.*irregular='resample'.*image",
        ),
    ],
)
def test_a_dicom_folder_that_needs_a_choice(tmp_path: Path, argument: dict[str, Any], message: str) -> None:
    """The message says what to do about a row, and that does it."""
    slices = dicom_series(body())
    if "series" in argument:
        slices += dicom_series(body(), SeriesInstanceUID="1.2.3.5", SeriesNumber=7)
    else:
        del slices[5]
    study = Study("s0", save_dicom(tmp_path / "series", slices))
    with pytest.raises(ValueError, match=f"study 's0': .*{message}"):
        sample(study, GRID)
    [note] = [f for f in doctor(Manifest([study])) if f["severity"] == "error"]
    assert re.search(message, note["message"])
    once = write(read(study.image, **argument), tmp_path / "ct.nii.gz")
    assert sample(replace(study, image=once), GRID).hu.shape == (1, 12, 12, 8)


@pytest.mark.parametrize(
    ("compression", "share", "told"),
    [
        (None, 1.99, r"4 studies need .* GB, .* choose .*fewer studies, a coarser grid or compression \(blosc2\)"),
        (None, 2.01, ""),
        ("blosc2", 0.19, r"4 studies need at least .* GB, .* choose .*fewer studies or a coarser grid"),
        ("blosc2", 0.5, r"4 studies need .* to .* GB compressed, .* what is ready stays"),
        ("blosc2", 0.76, ""),
    ],
)
def test_room_that_a_compression_needs(
    compression: Compression | None, share: float, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """`share` of what the images alone take as int16 is free; each has a mask."""
    manifest = make_manifest(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    free = int(share * len(manifest) * 2 * 12 * 12 * 8)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    if "choose" in told:
        with pytest.raises(CacheFullError, match=told):
            prepare(manifest, GRID, tmp_path / "cache", compression=compression, progress=False)
        assert not entries(tmp_path)
    else:
        assert prepare(manifest, GRID, tmp_path / "cache", compression=compression, progress=False).made == 4
        assert re.search(told, caplog.text) if told else not caplog.text


def test_what_cannot_fit_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_manifest(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(CacheFullError, match=r"1 studies need 0\.0 GB, 0\.0 GB are free"):
        prepare(manifest, GRID, tmp_path / "cache", progress=False)
    assert not entries(tmp_path)


def test_other_format_is_refused(tmp_path: Path) -> None:
    VolumeCache(tmp_path, GRID)
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(ValueError, match=r"cache\.json: not the card of a cache"):
        VolumeCache(tmp_path, GRID)
    (tmp_path / "cache.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="a cache of format 99, this version reads and writes 1"):
        VolumeCache(tmp_path, GRID)


def _fill(folder: Path) -> None:
    torch.set_num_threads(1)
    manifest = Manifest(Study(f"s{i}", folder / f"{i}.nii.gz", mask=folder / f"{i}_mask.nii.gz") for i in range(16))
    prepare(manifest, GRID, folder / "cache", progress=False)


def test_killed_and_doubled_prepare_leave_only_whole_entries(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, 16)
    wanted = sample(manifest[15], GRID).hu  # all is imported before the fork
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_fill, args=(tmp_path,)) for _ in range(2)]
    for process in both:
        process.start()
    while len(entries(tmp_path)) < 10 and any(process.is_alive() for process in both):
        time.sleep(0.001)
    os.kill(both[0].pid or 0, signal.SIGKILL)
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [-signal.SIGKILL, 0]
    cache = VolumeCache(tmp_path / "cache", GRID)
    assert all(cache.has(study) for study in manifest)
    for entry in entries(tmp_path):
        assert read_entry(entry) is not None
    assert torch.equal(cache.get(manifest[15]).hu, wanted)


def _fill_until_half_an_entry(folder: Path) -> None:
    """Works through three entries and then hangs with half of the fourth on the disk."""
    whole, written = entries_module.save_tensors, []

    def slow_disk(tensors: Any, path: Path, metadata: Any) -> None:
        written.append(path)
        whole(tensors, path, metadata)
        if len(written) < 4:
            return
        with path.open("rb+") as file:
            file.truncate(path.stat().st_size // 2)
            os.fsync(file.fileno())
        (folder / "half").touch()
        time.sleep(60)

    entries_module.save_tensors = slow_disk
    _fill(folder)


def test_what_another_process_made_is_not_counted_as_made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(cache: VolumeCache, missing: list[Study]) -> None:
        VolumeCache(tmp_path / "cache", GRID).get(missing[0])

    monkeypatch.setattr(VolumeCache, "_check_room", meanwhile)
    report = prepare(make_manifest(tmp_path, 3), GRID, tmp_path / "cache", progress=False)
    assert (report.made, report.ready, report.failed) == (2, 1, 0)


def test_killed_in_the_middle_of_an_entry(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, 16)
    process = multiprocessing.get_context("fork").Process(target=_fill_until_half_an_entry, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "half").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    found = entries(tmp_path)
    assert len(found) == 3, "the half one has no name that anybody would read"
    assert all(read_entry(entry) is not None for entry in found)
    [part] = [path for path in (tmp_path / "cache").rglob(".*") if cache_module.PART in path.name]
    assert read_entry(part) is None
    report = prepare(manifest, GRID, tmp_path / "cache", progress=False)
    assert (report.ready, report.made, report.failed) == (1, 15, 0)


def test_leftovers_of_killed_runs_are_removed_later(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, 1)
    cache = VolumeCache(tmp_path / "cache", GRID)
    cache.get(manifest[0])
    old, young = (entries(tmp_path)[0].with_name(f".x.{n}{cache_module.PART}.safetensors") for n in (1, 2))
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    cache.fill(manifest, progress=False)
    assert (old.exists(), young.exists()) == (False, True)


def test_nothing_of_the_patient_is_stored(tmp_path: Path) -> None:
    image = make_manifest(tmp_path, 1)[0].image
    named = Path(shutil.copy(image, tmp_path / "Doe_Jane.nii.gz"))
    VolumeCache(tmp_path / "cache", GRID).get(Study("s", named, patient="Doe Jane", report="Jane Doe, 61"))
    stored = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert b"Doe" not in stored
