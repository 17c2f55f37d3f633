"""DICOM pixels: decoding every transfer syntax that archives hold, and the frames of multi-frame objects."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from vol3d.volume.files import brief

_FRAME_TAGS = (
    ("PlanePositionSequence", ("ImagePositionPatient",)),
    ("PlaneOrientationSequence", ("ImageOrientationPatient",)),
    ("PixelMeasuresSequence", ("PixelSpacing",)),
    ("PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept", "RescaleType")),
)


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom warns of every odd value, often quoting it; only a file that ends too early matters here: an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*[Ee]nd of file")
        yield


def expand_frames(header: Dataset, name: str) -> list[tuple[int, Dataset]]:
    """(frame number, flat header) of each frame: a plain slice is its own, multi-frame merges its groups."""
    count = int(header.get("NumberOfFrames") or 1)
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if groups is None:
        if count > 1:
            raise ValueError(f"{name}: {count} frames without functional groups: their places are unknown")
        return [(0, header)]
    if len(groups) != count:
        raise ValueError(f"{name}: {count} frames, but places for {len(groups)}; copy or export it again")
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    frames = []
    for index, group in enumerate(groups):
        frame = Dataset()
        for tag in ("Rows", "Columns", "SamplesPerPixel", "PixelRepresentation", "PixelPaddingValue",
                    "PixelPaddingRangeLimit"):  # fmt: skip
            if tag in header:
                setattr(frame, tag, header.get(tag))
        for sequence, tags in _FRAME_TAGS:
            items = group.get(sequence) or shared.get(sequence) or []
            for tag in tags:
                if len(items) and tag in items[0]:
                    setattr(frame, tag, items[0].get(tag))
        frames.append((index, frame))
    return frames


def decode(dataset: Dataset, name: str) -> NDArray[Any]:
    """Stored values (frame, row, column) of one file.

    pydicom decodes uncompressed, RLE and (with pylibjpeg-openjpeg) JPEG 2000; SimpleITK's GDCM is the fallback for
    JPEG and JPEG-LS, so that no GPL decoder is needed.

    Raises:
        ValueError: the pixels are truncated or broken, or no decoder knows their transfer syntax.
    """
    frames = int(dataset.get("NumberOfFrames") or 1)
    _check_ends(dataset, name, frames)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # pydicom only warns of pixels it had to pad or cut
            warnings.filterwarnings("ignore", message=".*(trailing padding byte|[Bb]its [Ss]tored).*")
            stored = np.asarray(dataset.pixel_array)
    except Exception as error:
        stored = _by_gdcm(dataset, name, error)
    return stored if stored.ndim == 3 else stored.reshape(frames, *stored.shape[-2:])


def _check_ends(dataset: Dataset, name: str, frames: int) -> None:
    """Refuses JPEG and JPEG-LS streams without their end marker: decoders fill what is missing with grey."""
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if not syntax.startswith("1.2.840.10008.1.2.4.") or not 50 <= int(syntax.rpartition(".")[2]) <= 81:
        return
    try:
        streams = list(generate_frames(dataset.PixelData, number_of_frames=frames))
    except Exception as error:
        raise ValueError(f"{name}: broken pixels ({brief(error)}); copy or export it again") from error
    if len(streams) != frames or not all(b"\xff\xd9" in stream[-64:] for stream in streams):
        kind = dataset.file_meta.TransferSyntaxUID.name
        raise ValueError(f"{name}: {kind} pixels without an end: truncated; copy or export it again")


def _by_gdcm(dataset: Dataset, name: str, first: Exception) -> NDArray[Any]:
    """Decoding by SimpleITK's GDCM, with the rescale it applies taken out of the file beforehand."""
    syntax = pydicom.uid.UID(dataset.file_meta.TransferSyntaxUID)
    if not syntax.is_transfer_syntax or not syntax.is_compressed:
        raise ValueError(f"{name}: truncated or broken pixels ({brief(first)}); copy or export it again") from first
    import SimpleITK as sitk  # noqa: N813

    bare = Dataset()
    for tag in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "NumberOfFrames",
                "PixelRepresentation", "PhotometricInterpretation", "PixelData"):  # fmt: skip
        if tag in dataset:
            bare[tag] = dataset[tag]
    bare.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    bare.SOPInstanceUID = pydicom.uid.generate_uid()
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = syntax
    bare.file_meta.MediaStorageSOPClassUID = bare.SOPClassUID
    bare.file_meta.MediaStorageSOPInstanceUID = bare.SOPInstanceUID
    with tempfile.TemporaryDirectory(prefix="vol3d-") as folder:
        file = Path(folder) / "pixels.dcm"
        bare.save_as(file, enforce_file_format=True)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(file))
        warned = sitk.ProcessObject.GetGlobalWarningDisplay()
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            return sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            kind = syntax.name
            raise ValueError(
                f"{name}: {kind} pixels cannot be decoded ({brief(first)}); copy or export it again"
            ) from error
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(warned)
