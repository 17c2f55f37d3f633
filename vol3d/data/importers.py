"""Published datasets and your own tables as manifests, each with the meaning its authors gave the labels.

Nothing is downloaded: give the folder as its authors publish it. Images are not copied.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vol3d.data.formats import decode_cells
from vol3d.data.manifest import Manifest, Problem, check_across, check_rows
from vol3d.data.tables import Row, numbered, optional, required, visible

log = logging.getLogger(__name__)


def from_csv(
    path: str | Path,
    columns: Mapping[str, str],
    *,
    labels: Iterable[str] = (),
    folder: str | Path | None = None,
) -> Manifest:
    """Your own table (.csv, .tsv, .xlsx).

    Args:
        columns: manifest field → your column, such as {"study": "AccessionNumber", "image": "path"}; cells of lists
            and objects are JSON, such as ["J90"]. Your other columns go to `meta`.
        labels: columns of findings: 1 is present, 0 absent; −1 and an empty cell are unknown.
        folder: where relative image paths start; the table's own folder when left out.

    Raises:
        ValueError: a column that the table lacks, rows that make no study (each named), a study named twice, a
            patient in two splits.

    Example:
        >>> Manifest.from_csv("ct.csv", {"study": "id", "image": "file", "report": "text"})  # doctest: +SKIP
    """
    path = Path(path).absolute()
    rows = list(numbered(path))
    if not rows:
        raise ValueError(f"{path.name} has no rows: write one study a row")
    header = next((row for _, row in rows if isinstance(row, dict)), {})
    missing = [name for name in (*columns.values(), *labels) if header and name not in header]
    if missing:
        raise ValueError(f"{path.name} has no column {missing[0]!r}; it has {', '.join(map(repr, header))}")
    ours = ((number, row if isinstance(row, str) else _own_row(row, columns, labels)) for number, row in rows)
    studies, problems, _ = check_rows(path.name, ours, Path(folder or path.parent).absolute(), allow_outside=True)
    _refuse(path.name, problems + check_across(studies))
    return Manifest(study for _, study in studies)


def _own_row(row: Row, columns: Mapping[str, str], labels: Iterable[str]) -> Row | str:
    ours = decode_cells({field: row[column] for field, column in columns.items()})
    if isinstance(ours, str):
        return ours
    labels = set(labels)
    try:
        known = _labels({name: row[name] for name in sorted(labels)})
    except ValueError as error:
        return str(error)
    rest = {name: value for name, value in row.items() if name not in {*columns.values(), *labels}}
    for field, more in (("labels_known", known), ("meta", _given(rest))):
        told = ours.get(field, {})
        ours[field] = {**told, **more} if isinstance(told, dict) else told
    return ours


def from_merlin(folder: str | Path) -> Manifest:
    """The Merlin Abdominal CT Dataset (Stanford AIMI), as downloaded.

    Read are `reports_final.xlsx` (study id, Findings, Split), `zero_shot_findings_disease_cls.csv` and
    `metadata.csv`; the volumes are found by name anywhere below. In the labels 1 is present and 0 absent; −1 means
    unknown to its authors and becomes null. Rows whose volume was not downloaded are left out and counted.

    Source: Blankemeier et al., Merlin (arXiv:2406.06512).
    """
    folder = Path(folder).absolute()
    volumes = {_stem(path): path for path in visible(folder, "**/*.nii.gz")}
    labels = optional(folder, "zero_shot_findings_disease_cls", "study id")
    meta = optional(folder, "metadata", "study id")
    reports = required(folder, "reports_final", "study id")
    rows = []
    for study, row in reports.items():
        if study not in volumes:
            continue
        extra = _given(meta.get(study, {}))
        findings, impression = _split_merlin(row.get("Findings") or "")
        rows.append(
            {
                "study": study,
                "image": str(volumes[study]),
                "patient": _first(extra, "patient id", "patient_id", "patient"),
                "split": _SPLITS.get((row.get("Split") or "").lower()),
                "findings": findings,
                "impression": impression,
                "labels_known": _labels(labels.get(study, {}), f"study {study!r}, "),
                "meta": extra,
            }
        )
    if len(rows) < len(reports):
        log.warning(
            "%s: %d of %d volumes are not there; their rows are left out",
            folder.name,
            len(reports) - len(rows),
            len(reports),
        )
    return _manifest("reports_final", rows, folder)


def from_ct_rate(folder: str | Path, *, original: bool = False) -> Manifest:
    """CT-RATE, version 2: `dataset/train_fixed`, `dataset/valid_fixed`, and its CSV tables.

    Its 18 labels were mined from the reports; all are 1 or 0. Reconstructions of one exam are separate studies of
    one patient. `valid` becomes "val".

    Args:
        original: take `train` and `valid` as first released, whose files lack the rescale intercept (the reader
            refuses those as not HU).

    Source: Hamamci et al., CT-CLIP and CT-RATE (arXiv:2403.17834).
    """
    folder = Path(folder).absolute()
    folder = folder / "dataset" if (folder / "dataset").is_dir() else folder
    reports = required(folder, "*_reports", "VolumeName")
    labels = optional(folder, "*_predicted_labels", "VolumeName")
    meta = optional(folder, "*metadata", "VolumeName")
    rows = []
    for name, split in (("train", "train"), ("valid", "val")):
        for path in visible(folder / (name if original else f"{name}_fixed"), "**/*.nii.gz"):
            report, about = reports.get(path.name, {}), meta.get(path.name, {})
            rows.append(
                {
                    "study": _stem(path),
                    "image": str(path),
                    "patient": "_".join(path.name.split("_")[:2]),
                    "split": split,
                    "findings": report.get("Findings_EN"),
                    "impression": report.get("Impressions_EN"),
                    "labels_known": _labels(labels.get(path.name, {}), f"{path.name}, "),
                    "meta": _given(about),
                }
            )
    return _manifest("CT-RATE", rows, folder)


def from_m3d(path: str | Path, out: str | Path) -> Manifest:
    """M3D-Cap: the JSON of {split: [{image, text}]} with `.npy` volumes and `.txt` captions beside it.

    The published volumes are (1, 32, 256, 256) in the order (slice, row, column), scaled to 0–1, without spacing or
    HU; which way the slices run is not said. They are written to `out` as NIfTI of 1 mm voxels, 0–1 as 0 to 10,000
    since a grid holds whole numbers ("minmax", M3D's own window, sees no difference), and carry
    `meta.modality` = "M3D" and `meta.spacing` = "unknown", so that nobody takes them for CT in HU. `validation`
    becomes "val", `test` and its subsets "test".

    Source: Bai et al., M3D (arXiv:2404.00578).
    """
    path, out = Path(path).absolute(), Path(out).absolute()
    rows: dict[str, Row] = {}
    for name, items in json.loads(path.read_text(encoding="utf-8")).items():
        for item in items:
            study = re.sub(r"[^\w.-]+", "_", str(Path(item["image"]).with_suffix("")))
            rows.setdefault(
                study,
                {
                    "study": study,
                    "image": str(npy_to_nifti(path.parent / item["image"], out / f"{study}.nii.gz")),
                    "patient": "_".join(Path(item["image"]).parts[-3:-1]) or study,
                    "split": "test" if name.startswith(("test", "hard")) else _SPLITS.get(name),
                    "report": (path.parent / item["text"]).read_text(encoding="utf-8").strip(),
                    "meta": {"modality": "M3D", "spacing": "unknown"},
                },
            )
    return _manifest(path.name, rows.values(), out)


def npy_to_nifti(source: Path, target: Path) -> Path:
    """One of M3D's volumes, (1, slice, row, column), 0–1, as `array_to_nifti` writes it, 0 to 10,000; one that is there
    stays."""
    if target.exists():
        return target
    array = np.load(source, allow_pickle=False, mmap_mode="r")
    if array.ndim != 4 or array.shape[0] != 1:
        raise ValueError(f"{source.name} is {array.shape}, M3D's volumes are (1, slices, rows, columns)")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ValueError(f"{source.name} holds {low:g} to {high:g}, M3D's volumes 0 to 1: scale it as M3D does")
    return array_to_nifti((np.asarray(array[0], np.float32) * 10_000).round().astype(np.int16), target)


def array_to_nifti(array: np.ndarray, target: Path) -> Path:
    """(slice, row, column), rows from anterior, columns from the patient's right → NIfTI of 1 mm voxels in RAS."""
    import nibabel as nib

    from vol3d.volume.atomic import atomic

    target.parent.mkdir(parents=True, exist_ok=True)
    volume = array.transpose(2, 1, 0)  # (column, row, slice), as NIfTI's LPS
    with atomic(target) as part:
        nib.save(nib.Nifti1Image(volume, np.diag([-1.0, -1.0, 1.0, 1.0])), part)
    return target


def from_totalsegmentator(folder: str | Path, out: str | Path) -> Manifest:
    """The TotalSegmentator dataset: `s0000/ct.nii.gz`, `s0000/segmentations/*.nii.gz`, `meta.csv`.

    Its one-structure masks are merged into one label map a study, written to `out`; the labels are numbered by the
    sorted names of all structures, the same in every study. Where two overlap, the later name wins and is logged.
    A label map is written once: only other structures or other numbers, as more of the dataset arrives, make another.

    Source: Wasserthal et al., TotalSegmentator (doi:10.1148/ryai.230024).
    """
    folder, out = Path(folder).absolute(), Path(out).absolute()
    meta = optional(folder, "meta", "image_id")
    studies = [path.parent for path in visible(folder, "*/ct.nii.gz")]
    names = sorted({_stem(path) for study in studies for path in visible(study, "segmentations/*.nii.gz")})
    numbers = {name: number for number, name in enumerate(names, start=1)}
    rows = []
    for study in studies:
        about = meta.get(study.name, {})
        mask = merge_masks(study / "segmentations", numbers, out / study.name)
        rows.append(
            {
                "study": study.name,
                "image": str(study / "ct.nii.gz"),
                "split": _SPLITS.get(about.get("split") or ""),
                "mask": None if mask is None else str(mask),
                "mask_labels": numbers if mask else None,
                "meta": _given(about, "split"),
            }
        )
    return _manifest("TotalSegmentator", rows, folder)


def merge_masks(folder: Path, numbers: Mapping[str, int], stem: Path) -> Path | None:
    """TotalSegmentator's output folder, one mask a structure, as one label map; None for an empty folder.

    The file is `stem` and a hash of the structures and their numbers: one that is there holds just these, and a
    manifest that was made under other numbers keeps its own.
    """
    import nibabel as nib

    from vol3d.volume.atomic import atomic

    parts = visible(folder, "*.nii.gz")
    if not parts:
        return None
    named = {_stem(path): numbers[_stem(path)] for path in parts}
    key = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:12]
    target = stem.with_name(f"{stem.name}-{key}.nii.gz")
    if target.exists():
        return target
    first: Any = nib.load(parts[0])
    merged = np.zeros(first.shape, np.uint8 if max(numbers.values()) < 256 else np.int16)
    for path in parts:
        image: Any = nib.load(path)
        if image.shape != merged.shape or not np.allclose(image.affine, first.affine, atol=1e-3):
            raise ValueError(f"{path}: {image.shape} is not on the grid of {parts[0].name}, {merged.shape}")
        inside = np.asanyarray(image.dataobj) > 0
        if overlap := int((merged[inside] > 0).sum()):
            log.warning("%s: %s overlaps earlier structures in %d voxels", target.name, _stem(path), overlap)
        merged[inside] = named[_stem(path)]
    with atomic(target) as part:
        nib.save(nib.Nifti1Image(merged, first.affine), part)
    return target


def from_nnunet(folder: str | Path) -> Manifest:
    """A raw nnU-Net (v1 or v2) or Decathlon dataset: `dataset.json`, `imagesTr`, `labelsTr`, `imagesTs`.

    Training cases get the split "train" and test cases "test" (nnU-Net's folds are not read). Only one channel is
    taken, and it must be CT.

    Source: Isensee et al., nnU-Net (doi:10.1038/s41592-020-01008-z).
    """
    folder = Path(folder).absolute()
    card = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    channels = card.get("channel_names", card.get("modality", {"0": "CT"}))
    if len(channels) > 1 or str(next(iter(channels.values()))).upper() != "CT":
        raise ValueError(f"{folder.name} has the channels {channels}: vol3d takes one channel of CT")
    end = card.get("file_ending", ".nii.gz")
    labels = _nnunet_labels(card["labels"], folder.name)
    rows = []
    for images, truth, split in (("imagesTr", "labelsTr", "train"), ("imagesTs", "labelsTs", "test")):
        for path in visible(folder / images, f"*{end}"):
            case = re.sub(r"_0000$", "", path.name.removesuffix(end))
            mask = folder / truth / f"{case}{end}"
            row = {"study": case, "image": str(path), "split": split}
            rows.append({**row, "mask": str(mask), "mask_labels": labels} if mask.exists() else row)
    return _manifest(folder.name, rows, folder)


def _nnunet_labels(labels: Mapping[str, Any], name: str) -> dict[str, int]:
    """v2 writes {name: number}, v1 {number: name}; regions (lists of numbers) are no label map."""
    regions = [key for key, value in labels.items() if isinstance(value, list)]
    if regions:
        raise ValueError(f"{name}: {regions[0]!r} is a region of several labels: vol3d needs one number a name")
    pairs = [(key, value) if not str(key).isdigit() else (value, key) for key, value in labels.items()]
    if any(label == "ignore" for label, _ in pairs):
        log.warning("%s: voxels of its label 'ignore' count as background: leave out cases that have many", name)
    return {str(label): int(number) for label, number in pairs if int(number) > 0 and label != "ignore"}


_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def _manifest(name: str, rows: Iterable[Row], folder: Path) -> Manifest:
    """A published dataset's. Its splits are its authors': a patient in two of them is told, and refused on reading."""
    studies, problems, _ = check_rows(name, ((0, row) for row in rows), folder, allow_outside=True)
    _refuse(name, problems)
    if not studies:
        raise ValueError(f"{name}: no study found in {folder.name}: is it the folder as its authors publish it?")
    if shared := check_across(studies):
        log.warning("%s: %d studies break a manifest's rules, the first: %s", name, len(shared), shared[0])
    return Manifest(study for _, study in studies)


def _refuse(name: str, problems: list[Problem]) -> None:
    """All bad rows are named at once."""
    if problems:
        more = f"\n… {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(f"{name}: " + "\n".join(map(str, problems[:20])) + more)


def _labels(cells: Mapping[str, Any], where: str = "") -> dict[str, int | None]:
    """1 and 0 as they are; −1 and nothing are unknown.

    Args:
        where: the row, for the error, where nobody else names it.
    """
    return {name: _label(value, f"{where}column {name!r}") for name, value in cells.items()}


def _label(value: Any, where: str) -> int | None:
    text = "" if value is None else str(value).strip().lower()
    try:
        number = float(text or "nan") if text != "none" else math.nan
    except ValueError:
        number = math.inf
    if math.isnan(number) or number == -1:
        return None
    if number not in (0, 1):
        raise ValueError(f"{where}: label {value!r}: 1 is present, 0 absent, -1 or nothing unknown")
    return int(number)


def _split_merlin(text: str) -> tuple[str, str]:
    """Merlin's Findings column holds the impression too, behind its header."""
    findings, _, impression = text.partition("IMPRESSION:")
    return findings.removeprefix("FINDINGS:").strip(), impression.strip()


def _first(row: Row, *names: str) -> str | None:
    return next((str(row[name]) for name in names if row.get(name)), None)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _given(row: Row, *without: str) -> Row:
    return {name: value for name, value in row.items() if name not in without and value not in (None, "")}
