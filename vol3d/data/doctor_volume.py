"""What one study's files show: readable, plausible HU, the right way round, masks that fit."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vol3d.data.boxes import visible_share
from vol3d.data.study import Study, in_manifest_words

if TYPE_CHECKING:
    from monai.data import MetaTensor

BODY_HU = -300
SEEN = 128
"""Most voxels an axis that the heuristics look at."""
LOOK = 16
"""Voxels an axis of the small picture by which near-duplicates are found."""
EXPECTED_SIDE = {"liver": "right", "gallbladder": "right", "spleen": "left", "stomach": "left"}
_SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])")
_IN_VIEW = 0.5
"""Share of a box that lies in a sound study's image."""
_SLACK_MM = 15.0
"""How far over the midline a centre may lie before we speak of the wrong side."""


@dataclass(frozen=True)
class Note:
    """One thing the doctor found; `study` is empty for the dataset as a whole."""

    study: str
    file: str
    check: str
    severity: str
    message: str


@dataclass
class Probe:
    """The few numbers that are kept of a study's files.

    `look` is a picture of 16×16×16 voxels in a soft-tissue window; `present` the finding labels that have voxels;
    `sided` whether a mask or the anatomy could tell left from right.
    """

    shape: list[int] = field(default_factory=list)
    spacing: list[float] = field(default_factory=list)
    content: str = ""
    look: str = ""
    present: list[str] = field(default_factory=list)
    sided: bool = False
    notes: list[Note] = field(default_factory=list)

    def to_row(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Probe:
        return cls(**{**row, "notes": [Note(**note) for note in row["notes"]]})

    def pixels(self) -> NDArray[np.uint8]:
        """`look` as (16·16·16,) grey values."""
        return np.frombuffer(zlib.decompress(base64.b64decode(self.look)), np.uint8)


def probe(study: Study) -> Probe:
    """Reads a study's image and masks and notes what is wrong with them."""
    found = Probe()

    def note(path: Path, check: str, severity: str, message: str) -> None:
        found.notes.append(Note(study.study, path.name, check, severity, message))

    try:
        volume = read_volume(study)
    except Exception as error:
        note(study.image, "unreadable", "error", _one_line(error))
        return found
    found.shape = [int(size) for size in volume.shape[1:]]
    found.spacing = [round(float(step), 4) for step in np.linalg.norm(_affine(volume)[:3, :3], axis=0)]
    for text in volume.meta.get("notes", ()):
        note(study.image, "geometry", "warning", str(text))
    step = [max(1, size // SEEN) for size in found.shape]
    seen = volume[0].numpy()[:: step[0], :: step[1], :: step[2]]
    found.content = blake2b(np.ascontiguousarray(seen, np.float32).tobytes(), digest_size=16).hexdigest()
    found.look = _look(seen)
    ct = study.modality in (None, "CT")
    for check, severity, message in _check_image(seen, found, ct=ct):
        note(study.image, check, severity, message)
    if _burnt_in(study.image):
        note(study.image, "privacy", "warning", "its BurnedInAnnotation tag says YES: names may be in the pixels")
    if ct:
        for check, severity, message in _check_lie(seen, found, step):
            note(study.image, check, severity, message)
    middle = _middle(seen, _affine(volume), step)
    for path, names, which in (
        (study.mask, study.mask_labels, "mask"),
        (study.finding_mask, study.finding_labels, "finding_mask"),
    ):
        if path is not None:
            for check, severity, message in _check_mask(path, names, which, volume, middle, found):
                note(path, check, severity, message)
    for check, severity, message in _check_boxes(study, volume, middle):
        note(study.image, check, severity, message)
    return found


def read_volume(study: Study) -> MetaTensor:
    """The image as the manifest says it is."""
    from vol3d.volume.read import read

    return read(study.image, modality=study.modality)


def _affine(volume: MetaTensor) -> NDArray[np.float64]:
    return np.asarray(volume.affine, dtype=np.float64)


def _one_line(error: Exception) -> str:
    text = str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
    return in_manifest_words(" ".join(text.split()))


def _look(seen: NDArray[np.float32]) -> str:
    import torch

    window = torch.from_numpy(np.clip((seen + 160) / 400, 0, 1).astype(np.float32))
    small = torch.nn.functional.adaptive_avg_pool3d(window[None, None], LOOK)
    return base64.b64encode(zlib.compress((small.flatten() * 255).to(torch.uint8).numpy().tobytes())).decode()


Remark = tuple[str, str, str]
"""check, severity, message."""


def _check_image(seen: NDArray[np.float32], found: Probe, *, ct: bool) -> Iterator[Remark]:
    """What size and values of an image alone can tell."""
    extent = [size * step for size, step in zip(found.shape, found.spacing, strict=True)]
    if min(found.shape) < 8:
        yield "grid", "warning", f"{_times(found.shape)} voxels: too few along one axis for a 3D model"
    if min(found.spacing) < 0.05 or max(found.spacing) > 20:
        yield "grid", "warning", f"spacing {_times(found.spacing)} mm is not a CT's: is the header in other units?"
    elif max(extent[:2]) > 750 or max(extent) < 60 or extent[2] > 2200:
        yield "grid", "warning", f"it spans {_times([round(e) for e in extent])} mm: is its spacing right?"
    if ct:
        yield from _check_values(seen)


def _check_values(seen: NDArray[np.float32]) -> Iterator[Remark]:
    high = float(seen.max())
    if float((seen >= high).mean()) > 0.005:
        yield (
            "hu",
            "warning",
            f"{100 * float((seen >= high).mean()):.1f} % of voxels are exactly {high:.0f} HU: a window was saved in it",
        )
    elif high < 200:
        yield "hu", "warning", f"nothing is above {high:.0f} HU: no bone, or a window was saved in it"
    air = seen[seen < -700]
    if air.size > 0.02 * seen.size:
        lowest = float(np.percentile(seen, 0.1))
        if lowest > -900:
            yield (
                "hu",
                "warning",
                f"air is at {lowest:.0f} HU, not near −1000: was the rescale intercept applied right?",
            )
    soft = seen[(seen > -250) & (seen < 400)]
    if soft.size:
        histogram, edges = np.histogram(soft, bins=65, range=(-250, 400))
        mode = float(edges[histogram.argmax()]) + 5
        if not -140 <= mode <= 140:
            yield (
                "hu",
                "warning",
                f"soft tissue peaks at {mode:.0f} HU, expected −140 to 140: slope or intercept is off",
            )


_LIES = {
    "left-right": "the thickest solid organ, which should be the liver, lies on the patient's left: is the header "
    "mirrored? (or situs inversus)",
    "front-back": "the spine lies in front of the body's middle: are front and back swapped, or the scan prone and "
    "its header not?",
    "head-feet": "the belly lies above the lungs: are head and feet swapped?",
}


def _check_lie(seen: NDArray[np.float32], found: Probe, step: list[int]) -> Iterator[Remark]:
    """Whether anatomy alone, without a mask, contradicts the header."""
    from vol3d.data.doctor_sides import sides

    spacing = tuple(size * every for size, every in zip(found.spacing, step, strict=True))
    verdicts = sides(seen, spacing)
    found.sided = verdicts["left-right"] != "unknown"
    for axis, verdict in verdicts.items():
        if verdict == "wrong":
            yield "orientation", "warning", _LIES[axis]


def _middle(seen: NDArray[np.float32], affine: NDArray[np.float64], step: list[int]) -> NDArray[np.float64] | None:
    """The body's middle in RAS mm, or None when there is hardly any body."""
    inside = np.argwhere(seen > BODY_HU)
    if len(inside) < 0.01 * seen.size:
        return None
    return affine[:3, :3] @ (np.median(inside, axis=0) * step) + affine[:3, 3]


def _check_boxes(study: Study, volume: MetaTensor, middle: NDArray[np.float64] | None) -> Iterator[Remark]:
    """Boxes that are not in the image, and boxes on the other side than their name says."""
    from vol3d.volume.geometry import Geometry

    own = Geometry.of(volume)
    for box in study.boxes:
        share = visible_share(box, own.affine, own.shape)
        if share < _IN_VIEW:
            low, high = own.extent
            yield (
                "box",
                "warning" if share else "error",
                f"box {box['label']!r} from {_ends(box['min_mm'])} to {_ends(box['max_mm'])} mm lies "
                f"{100 * (1 - share):.0f} % outside the image, which spans {_ends(low)} to {_ends(high)} mm: "
                "boxes are in RAS millimetres (of DICOM's and ITK's LPS, x and y change their sign)",
            )
            continue
        x = (box["min_mm"][0] + box["max_mm"][0]) / 2
        if middle is not None and _on_wrong_side(box["label"], x, middle):
            yield "side", "error", f"box {box['label']!r} lies {_beside(x, middle)} of the midline"


def _ends(point: Iterable[float | int]) -> str:
    return "(" + ", ".join(f"{value:.0f}" for value in point) + ")"


def _check_mask(
    path: Path,
    names: Mapping[str, int],
    which: str,
    volume: MetaTensor,
    middle: NDArray[np.float64] | None,
    found: Probe,
) -> Iterator[Remark]:
    from vol3d.volume.alignment import check_overlap
    from vol3d.volume.geometry import Geometry
    from vol3d.volume.read import read_mask

    try:
        mask = read_mask(path)
    except Exception as error:
        yield "unreadable", "error", _one_line(error)
        return
    own, of_image = Geometry.of(mask), Geometry.of(volume)
    if not own.is_close(of_image):
        where = f"{which} is on {own}, its image on {of_image}"
        try:
            check_overlap(own, of_image)
        except ValueError:
            yield "mask_grid", "error", f"{where}: they do not overlap"
        else:
            yield "mask_grid", "warning", f"{where}: resample it with vol3d.resample(mask, like=image)"
    values, counts = np.unique(mask.numpy(), return_counts=True)
    sizes = {int(value): int(count) for value, count in zip(values, counts, strict=True) if value != 0}
    if not sizes and which == "mask":  # a finding mask is empty where nothing was found
        yield "mask_empty", "warning", "mask has no labelled voxel"
    if nameless := sorted(set(sizes) - set(names.values())):
        yield (
            "mask_labels",
            "warning",
            f"{which} holds labels without a name: {nameless[:10]}; name them in {which.split('_')[0]}_labels",
        )
    if mixed := _contradicted(mask.meta["labels"], names):
        yield "mask_labels", "error", f"{which} itself says that {mixed}: correct {which.split('_')[0]}_labels"
    centres = {name: _centre(mask, label) for name, label in names.items() if sizes.get(label, 0) >= 20}
    if which == "finding_mask":
        found.present = [name for name, label in names.items() if sizes.get(label, 0)]
    if middle is not None:
        yield from _check_places(centres, middle, which, found)


def _contradicted(own: Mapping[int, str], names: Mapping[str, int]) -> str:
    """Where a mask that names its labels gives one of the row's names another number; empty: nowhere."""
    numbers = {_letters(name): number for number, name in own.items()}
    wrong = [(name, label, numbers[key]) for name, label in names.items() if (key := _letters(name)) in numbers]
    return ", ".join(f"{name!r} is {own}, not {label}" for name, label, own in wrong if own != label)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def _check_places(
    centres: Mapping[str, NDArray[np.float64]], middle: NDArray[np.float64], which: str, found: Probe
) -> Iterator[Remark]:
    """Left things left, the spine behind, lungs above the liver."""
    plain = {re.sub(r"[^a-z]+", " ", name.lower()).strip(): centre for name, centre in centres.items()}
    sided = {name: centre for name, centre in plain.items() if _side(name)}
    wrong = [name for name, centre in sided.items() if _on_wrong_side(name, centre[0], middle)]
    if which == "mask":
        found.sided |= bool(sided)
    if wrong and which == "mask":
        name = "liver" if "liver" in wrong else wrong[0]
        message = (
            f"{len(wrong)} of {len(sided)} sided structures lie across the midline ({name}: "
            f"{_beside(plain[name][0], middle)}): is the image or the mask mirrored? (or situs inversus)"
        )
        yield "orientation", "error", message
    elif wrong:
        for name in wrong:
            where = _beside(plain[name][0], middle)
            yield "side", "error", f"{name!r} lies {where} of the midline: the mask's name and place contradict"
    for name, centre in plain.items():
        if re.match(r"(vertebra|spine|sacrum)", name) and centre[1] > middle[1] + _SLACK_MM:
            yield (
                "orientation",
                "error",
                f"{name} lies {centre[1] - middle[1]:.0f} mm in front of the body's middle: front and back are swapped",
            )
            break
    lungs = [centre[2] for name, centre in plain.items() if "lung" in name and "nodule" not in name]
    if which == "mask" and lungs and "liver" in plain and min(lungs) < plain["liver"][2] - _SLACK_MM:
        yield (
            "orientation",
            "error",
            f"a lung lies {plain['liver'][2] - min(lungs):.0f} mm below the liver: head and feet are swapped",
        )


def _side(name: str) -> str | None:
    found = _SIDE.search(name.lower().replace("_", " "))
    return found[1] if found else EXPECTED_SIDE.get(name.lower())


def _on_wrong_side(name: str, x: float, middle: NDArray[np.float64]) -> bool:
    away = float(x - middle[0])  # RAS: x grows to the patient's right
    return {"left": away > _SLACK_MM, "right": away < -_SLACK_MM, None: False}[_side(name)]


def _beside(x: float, middle: NDArray[np.float64]) -> str:
    away = x - middle[0]
    return f"{abs(away):.0f} mm to the patient's {'right' if away > 0 else 'left'}"


def _centre(mask: MetaTensor, label: int) -> NDArray[np.float64]:
    affine = _affine(mask)
    return affine[:3, :3] @ np.argwhere(mask[0].numpy() == label).mean(axis=0) + affine[:3, 3]


def _burnt_in(path: Path) -> bool:
    """Whether a DICOM folder, zip or file says that text is part of its pixels."""
    from vol3d.volume.dicom import burnt_in

    try:
        return burnt_in(path)
    except (ValueError, OSError):  # the reader has told it already
        return False


def _times(numbers: list[Any]) -> str:
    return "×".join(f"{number:g}" for number in numbers)
