"""Headers with bytes changed, inserted or cut: a volume, or a ValueError that names the file; never anything else."""

from __future__ import annotations

import re
import time
import tracemalloc
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from volume_files import body, dicom_series, oblique, save_dicom, save_nifti

from vol3d.volume.read import read

SHAPE = (12, 11, 5)
MEGABYTES, SECONDS = 48, 5.0
"""What reading a file of a few kilobytes may take, however wrong its header."""


def itk(path: Path, *, packed: bool) -> Path:
    image = sitk.GetImageFromArray(np.ascontiguousarray(body(SHAPE).transpose(2, 1, 0)))
    image.SetSpacing((0.8, 0.9, 2.0))
    sitk.WriteImage(image, str(path), useCompression=packed)
    return path


@cache
def series() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        return {file.name: file.read_bytes() for file in save_dicom(Path(folder), dicom_series(body(SHAPE))).iterdir()}


def dicom(folder: Path) -> Path:
    """A DICOM folder; the path of one of its files."""
    folder.mkdir(exist_ok=True)
    for name, raw in series().items():
        (folder / name).write_bytes(raw)
    return folder / max(series())


KINDS = {
    "ct.nii": (lambda f: save_nifti(f / "ct.nii", body(SHAPE), oblique()), 352),
    "ct.nii.gz": (lambda f: save_nifti(f / "ct.nii.gz", body(SHAPE), oblique()), 10**6),
    "ct.nrrd": (lambda f: itk(f / "ct.nrrd", packed=False), 420),
    "packed.nrrd": (lambda f: itk(f / "packed.nrrd", packed=True), 10**6),
    "ct.mha": (lambda f: itk(f / "ct.mha", packed=False), 330),
    "packed.mha": (lambda f: itk(f / "packed.mha", packed=True), 10**6),
    "slice": (dicom, 1000),
}
"""A sound file, and how far its header reaches (of a compressed file all bytes are tried)."""


@cache
def sound(kind: str) -> bytes:
    with TemporaryDirectory() as folder:
        return KINDS[kind][0](Path(folder)).read_bytes()


@cache
def warm_up() -> None:
    """What readers and decoders import is not the file's doing."""
    import pydicom.pixels.decoders  # noqa: F401

    with TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder) / kind
            if kind == "slice":
                dicom(path)
                broken = sorted(path.iterdir())[0]
                broken.write_bytes(broken.read_bytes()[:-40])
            else:
                path.write_bytes(sound(kind))
            with suppress(ValueError):
                read(path)


@st.composite
def changes(draw: st.DrawFn) -> tuple[list[tuple[str, float, bytes]], float]:
    """Up to four places (as a share of the header) with what happens there, and how much of the file is kept."""
    pieces = st.one_of(
        st.binary(min_size=1, max_size=4),
        st.text("0123456789 .-:=()\n", min_size=1, max_size=6).map(str.encode),
        st.sampled_from([b"\xff\xff\xff\x7f", b"\x00" * 4, b"\xff" * 8, b"1e309", b"nan", b"-1", b"9" * 40, b"\n\n"]),
    )
    edits = st.tuples(st.sampled_from(["put", "put", "insert", "cut"]), st.floats(0, 1), pieces)
    kept = draw(st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1)))
    return draw(st.lists(edits, min_size=1, max_size=4)), kept


def damaged(good: bytes, reach: int, edits: list[tuple[str, float, bytes]], kept: float) -> bytes:
    raw = bytearray(good)
    for kind, share, piece in edits:
        at = int(share * min(reach, len(good)))
        if kind == "put":
            raw[at : at + len(piece)] = piece
        elif kind == "insert":
            raw[at:at] = piece
        else:
            del raw[at : at + len(piece)]
    return bytes(raw[: int(kept * len(raw))])


def check(path: Path, victim: Path) -> None:
    """Reads `path`, of which `victim` is damaged."""
    warm_up()
    tracemalloc.start()
    start = time.perf_counter()
    try:
        volume = read(path)
        assert volume.ndim == 4
        assert volume.numel() <= 64 * np.prod(SHAPE)
        assert np.isfinite(volume.numpy()).all()
        assert abs(np.linalg.det(volume.affine.numpy()[:3, :3])) > 0
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert "Secret" not in str(error)  # noqa: PT017
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MEGABYTES * 2**20, f"{peak / 2**20:.0f} MiB for {victim.stat().st_size} bytes"
    assert time.perf_counter() - start < SECONDS


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(change=changes())
def test_damaged_headers(kind: str, change: tuple) -> None:
    with TemporaryDirectory(prefix="vol3d-test-") as folder:
        path = victim = Path(folder) / kind
        if kind == "slice":
            victim = dicom(path)
        victim.write_bytes(damaged(sound(kind), KINDS[kind][1], *change))
        check(path, victim)


@pytest.mark.parametrize("kind", ["ct.nii.gz", "packed.nrrd", "packed.mha"])
def test_damaged_voxels_are_never_returned(kind: str, tmp_path: Path) -> None:
    """A compressed file carries a checksum: any bit changed in its voxels is seen."""
    whole = sound(kind)
    path = tmp_path / kind
    path.write_bytes(whole)
    true = read(path).numpy()
    rng = np.random.default_rng(0)
    for at in rng.integers(len(whole) // 2, len(whole), 40):
        raw = bytearray(whole)
        raw[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(raw)
        try:
            np.testing.assert_array_equal(read(path).numpy(), true)
        except ValueError as error:
            assert re.search("broken|truncated|header", str(error))  # noqa: PT017


def test_damage_where_nothing_is_read_changes_nothing(tmp_path: Path) -> None:
    """Free text of a NIfTI header (descrip, aux_file, intent_name): the volume is equal to the original."""
    path = tmp_path / "ct.nii"
    path.write_bytes(sound("ct.nii"))
    true = read(path)
    raw = bytearray(sound("ct.nii"))
    for first, last in ((4, 40), (148, 252), (328, 344)):
        raw[first:last] = b"\xfe" * (last - first)
    path.write_bytes(raw)
    np.testing.assert_array_equal(read(path).numpy(), true.numpy())
    np.testing.assert_array_equal(read(path).affine.numpy(), true.affine.numpy())
