"""A DICOM folder, zip or multi-frame file → one volume: which series, which files, which class of object."""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from vol3d.volume.dicom_pixels import decode, expand_frames, quiet
from vol3d.volume.dicom_slices import Slice, stack
from vol3d.volume.files import Bounded, Stream, brief
from vol3d.volume.loaded import Loaded

_PREFIX = "1.2.840.10008.5.1.4.1.1."
_CLASSES = {
    _PREFIX + "2": "CT", _PREFIX + "2.1": "CT", _PREFIX + "2.2": "CT",
    _PREFIX + "4": "MR", _PREFIX + "4.1": "MR", _PREFIX + "4.4": "MR",
    _PREFIX + "128": "PT", _PREFIX + "130": "PT", _PREFIX + "128.1": "PT",
}  # fmt: skip
"""Storage classes that hold slices of a volume. Everything else (secondary captures, dose and structured reports,
segmentations, presentation states …) is left aside."""
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "SamplesPerPixel", "PixelRepresentation", "BitsAllocated", "BitsStored", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "AcquisitionNumber", "PhotometricInterpretation",
]  # fmt: skip
_IMPLICIT = "1.2.840.10008.1.2"
_DEFLATED_LIMIT = 2**30
_ZIP_LIMIT = 16 * 2**30


@dataclass(frozen=True)
class Source:
    """One file of a folder or a zip, not yet opened."""

    name: str
    open: Callable[[], Stream]


@dataclass
class Series:
    """The image files of one SeriesInstanceUID."""

    uid: str
    number: str
    description: str
    modality: str
    files: list[tuple[Source, Dataset]]

    def __str__(self) -> str:
        return (
            f"number {self.number or '–'}, {self.description or 'no description'!r}, {self.modality}, "
            f"{len(self.files)} files, UID {self.uid or '–'}"
        )


def load_dicom(path: Path, *, series: str | int | None = None, irregular: Literal["resample"] | None = None) -> Loaded:
    """One series as a volume (column, row, slice); slices sorted along the normal, never by file name.

    Args:
        path: a folder (searched to its bottom), a .zip, or one multi-frame file.
        series: SeriesInstanceUID, series number, or description, when there are several.
        irregular: "resample" interpolates unevenly spaced slices to an even grid.

    Raises:
        ValueError: no image, several series, duplicate, missing or uneven slices, no pixel spacing, broken pixels.
    """
    with quiet():
        found, skipped = list_series(path)
        chosen = _choose(found, series, path, skipped)
        slices = [
            Slice.of(frame, index, source.name)
            for source, header in chosen.files
            for index, frame in expand_frames(header, source.name)
        ]
        opened = {source.name: source for source, _ in chosen.files}
        return stack(slices, path, lambda name: decode(_full(opened[name]), name), irregular=irregular,
                       modality=chosen.modality)  # fmt: skip


def list_series(path: Path) -> tuple[list[Series], Counter[str]]:
    """The series of a folder, zip or file, and what else lay there, counted by kind."""
    groups: dict[str, Series] = {}
    skipped: Counter[str] = Counter()
    for source in _sources(path):
        header = _header(source, skipped)
        if header is None:
            continue
        modality = _CLASSES.get(_class_uid(header))
        if modality is None:
            uid = _class_uid(header)
            skipped[pydicom.uid.UID(uid).name if uid else "object without SOPClassUID"] += 1
        elif "LOCALIZER" in str(header.get("ImageType")).upper():
            skipped["localizer"] += 1
        else:
            uid = str(header.get("SeriesInstanceUID") or "")
            group = groups.setdefault(uid, Series(uid, _text(header, "SeriesNumber"),
                                                  _text(header, "SeriesDescription"), modality, []))  # fmt: skip
            group.files.append((source, header))
    return list(groups.values()), skipped


def burnt_in(path: Path) -> bool:
    """Whether any DICOM file of a folder, zip or file is tagged as having text (a name?) burnt into its pixels."""
    for source in _sources(path):
        with source.open() as stream:
            if stream.read(132)[128:] != b"DICM":
                continue
            stream.seek(0)
            try:
                with quiet():
                    tags = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=["BurnedInAnnotation"])
                    found = str(tags.get("BurnedInAnnotation", "")).upper()
            except Exception as error:  # pydicom raises many kinds on bytes that are not DICOM
                raise ValueError(f"{source.name}: broken DICOM header ({brief(error)}); export it again") from error
        if found == "YES":
            return True
    return False


def _choose(found: list[Series], series: str | int | None, path: Path, skipped: Counter[str]) -> Series:
    if not found:
        what = ", ".join(f"{count} × {kind}" for kind, count in skipped.most_common()) or "no file at all"
        remedy = "give the folder of one image series"
        if any(word in what for word in ("Segmentation", "Structure Set")):
            remedy += ", or, as a mask, these contours saved as a label map (NIfTI or .seg.nrrd, by 3D Slicer)"
        raise ValueError(f"{path}: no CT, MR or PET image in it ({what}); {remedy}")
    listed = "; ".join(map(str, found))
    if series is None:
        if len(found) > 1:
            raise ValueError(f"{path}: {len(found)} series; choose one with series= (UID, number or text): {listed}")
        return found[0]
    wanted = str(series).strip()
    for matches in (
        [one for one in found if one.uid == wanted],
        [one for one in found if one.number == wanted],
        [one for one in found if one.description.casefold() == wanted.casefold()],
        [one for one in found if wanted.casefold() in one.description.casefold()],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ValueError(f"{path}: series={series!r} fits {len(matches)} of {len(found)}; use the UID: {listed}")
    raise ValueError(f"{path}: series={series!r} is none of the {len(found)}: {listed}")


def _text(header: Dataset, name: str) -> str:
    value = header.get(name)
    return "" if value is None else str(value).strip()


def _class_uid(header: Dataset) -> str:
    """SOPClassUID; anonymisers that empty it leave the one in the file meta."""
    meta = getattr(header, "file_meta", None)
    return str(header.get("SOPClassUID") or (meta.get("MediaStorageSOPClassUID") if meta else "") or "")


def _header(source: Source, skipped: Counter[str]) -> Dataset | None:
    """The tags we need, without pixels; None for what is not DICOM."""
    with source.open() as stream:
        start = stream.read(1024)
        if start[128:132] != b"DICM" and start[:2] not in (b"\x08\x00", b"\x02\x00"):  # no preamble: group 2 or 8
            skipped["file that is not DICOM"] += 1
            return None
        deflated = DeflatedExplicitVRLittleEndian.encode() in start
        if deflated:
            _check_deflated(stream, source)
        stream.seek(0)
        try:
            with quiet():
                header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS, force=True)
            ended = not deflated and not stream.read(1)
            for name in ("ImageType", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "SOPClassUID"):
                header.get(name)
        except Exception as error:  # pydicom raises many kinds on bytes that are not DICOM
            raise ValueError(f"{source.name}: broken DICOM header ({brief(error)}); copy or export it again") from error
    if ended and _CLASSES.get(_class_uid(header)):
        raise ValueError(f"{source.name}: ends before its pixels: truncated; copy or export it again")
    return None if _class_uid(header) == "1.2.840.10008.1.3.10" else header  # a DICOMDIR is only an index


def _check_deflated(stream: Stream, source: Source) -> None:
    """Refuses a deflated file that unpacks to more than a gibibyte; never holds more than a piece of it."""
    stream.seek(0)
    packed = stream.read()
    at = packed.find(b"\x02\x00\x00\x00UL\x04\x00")  # group length: how long the uncompressed meta group is
    after = at + 12 + int.from_bytes(packed[at + 8 : at + 12], "little")
    inflate, size, rest = zlib.decompressobj(-15), 0, packed[after:]
    try:
        while rest and size <= _DEFLATED_LIMIT:
            size += len(inflate.decompress(rest, 1 << 24))
            rest = inflate.unconsumed_tail
    except zlib.error as error:
        raise ValueError(f"{source.name}: broken compressed data ({brief(error)}); copy or export it again") from error
    if size > _DEFLATED_LIMIT:
        raise ValueError(f"{source.name}: {len(packed)} bytes unpack to over {_DEFLATED_LIMIT}: a decompression bomb")


def _full(source: Source) -> Dataset:
    """The file with its pixels; a bare data set gets the transfer syntax that it was read by."""
    with source.open() as stream:
        try:
            with quiet():
                dataset = pydicom.dcmread(stream, force=True)
            if not dataset.file_meta.get("TransferSyntaxUID"):
                implicit, little = dataset.original_encoding
                syntaxes = {(True, True): "", (False, True): ".1", (False, False): ".2"}
                dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(_IMPLICIT + syntaxes[implicit, little])
        except Exception as error:  # pydicom raises many kinds on bytes that are not DICOM
            raise ValueError(f"{source.name}: truncated or broken ({brief(error)}); copy or export it again") from error
    if "PixelData" not in dataset:
        raise ValueError(f"{source.name}: no pixel data (truncated?); copy or export it again")
    return dataset


def _sources(path: Path) -> list[Source]:
    if path.is_dir():
        return _folder(path)
    if zipfile.is_zipfile(path):
        return _zip(path)
    return [Source(str(path), lambda: Bounded(path))]


def _folder(path: Path) -> list[Source]:
    """Every file below a folder. A link that leaves the folder is refused: it would read another patient's data."""
    root = path.resolve()
    sources = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder) / name
            if name.startswith(".") or name in ("Thumbs.db", "desktop.ini"):
                continue
            if file.is_symlink() and not file.resolve().is_relative_to(root):
                raise ValueError(f"{file}: a link that leaves {path}; copy the file it points to")
            if stat.S_ISREG(file.stat().st_mode):
                sources.append(Source(str(file), lambda file=file: Bounded(file)))
    if not sources:
        raise ValueError(f"{path}: an empty folder; give the folder that holds the DICOM files")
    return sources


def _zip(path: Path) -> list[Source]:
    """Every file of a zip, read in memory one by one: nothing is ever written to a path that the zip names."""
    archive = zipfile.ZipFile(path)
    sources, total = [], 0
    for entry in archive.infolist():
        parts = entry.filename.replace("\\", "/").split("/")
        if ".." in parts or entry.filename.startswith(("/", "\\")) or ":" in parts[0]:
            raise ValueError(f"{path}: entry {entry.filename!r} points outside the zip: refused")
        if entry.flag_bits & 1:
            raise ValueError(f"{path}: encrypted zip; unpack it and give the folder")
        total += entry.file_size
        if total > _ZIP_LIMIT or entry.file_size > 2**31 or entry.file_size > 1100 * max(entry.compress_size, 1):
            raise ValueError(
                f"{path}: entry {entry.filename!r} unpacks {entry.compress_size} to {entry.file_size} bytes ({total} "
                "so far): refused as a decompression bomb; unpack it and give the folder"
            )
        if not entry.is_dir() and not parts[-1].startswith(".") and parts[0] != "__MACOSX":
            sources.append(Source(f"{path}/{entry.filename}", lambda entry=entry: _entry(archive, entry, path)))
    if not sources:
        raise ValueError(f"{path}: an empty zip; give a zip that holds DICOM files")
    return sources


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> Stream:
    try:
        return io.BytesIO(archive.read(entry))
    except Exception as error:
        raise ValueError(f"{path}: entry {entry.filename!r} is broken ({brief(error)}); copy the zip again") from error
