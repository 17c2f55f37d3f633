"""M3D-Bench's data as its authors publish it: captions, questions, masks, and masks asked for in words.

Below one folder, as their loaders expect them (paths in the files start at that folder or at the file's own):

- `M3D_Cap*/*.json`: {split: [{image, text}]}, with `.npy` volumes and `.txt` captions;
- `M3D_VQA*/*.csv`: Image Path, Question, Choice A … D, Answer, Answer Choice, Question Type;
- `M3D_Seg*/dataset_info.json`: {dataset: [class names]}, and `M3D_Seg*/0003/0003.json`: {test: [{image, label}]}, where
  label is `…/mask_<class>.npy`;
- `M3D_RefSeg*/*.csv`: Image, Mask, Mask_ID, Question, Answer.

Volumes and masks are (1, slice, row, column) arrays.

Source: Bai et al., M3D (arXiv:2404.00578).
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from vol3d.data.importers import array_to_nifti, npy_to_nifti
from vol3d.data.study import Study
from vol3d.data.tables import visible

if TYPE_CHECKING:
    from vol3d.data.manifest import Manifest

UNKNOWN = {"modality": "M3D", "spacing": "unknown"}
_VQA = ("Image Path", "Question", "Choice A", "Choice B", "Choice C", "Choice D", "Answer")
_REFSEG = ("Image", "Mask", "Mask_ID", "Question")


def read_m3d_bench(source: str | Path, out: str | Path) -> Manifest:
    """All of M3D-Bench's eight tasks, as far as their files are below `source`.

    A VQA row is asked twice, as M3D-Bench does: closed, with choices, and open; a row whose image the captions lack is
    left out. The test masks of M3D-Seg become organ masks, with a box around each; a sentence of M3D-RefSeg becomes the
    name of its mask.

    Args:
        source: M3D-Cap's JSON, its folder, or the folder that holds them all.
        out: where volumes and label maps are written as NIfTI.

    Raises:
        ValueError: nothing of the kind below `source`, a table without its columns, or a class without a name.
    """
    from vol3d.data.manifest import Manifest

    source, out = Path(source).absolute(), Path(out).absolute()
    root = source.parent if source.is_file() else source
    studies = _captioned([source] if source.is_file() else _below(root, "json"), root, out)
    studies += _segmented(root, out / "seg")
    studies += _referred(root, out / "refseg")
    if not studies:
        raise ValueError(
            f"{source}: no JSON of {{split: [{{image, text}}]}}, no M3D-Seg and no M3D-RefSeg there: give M3D-Cap's "
            "JSON, its folder, or the folder that holds them all"
        )
    return Manifest(studies)


def _below(root: Path, end: str) -> list[Path]:
    """Files beside the data's folders and in them, not among the cases."""
    return sorted({*visible(root, f"*.{end}"), *visible(root, f"*/*.{end}")})


# --- captions and questions -------------------------------------------------------------------------------------


def _captioned(cards: list[Path], root: Path, out: Path) -> list[Study]:
    from vol3d.data.manifest import Manifest

    cards = [card for card in cards if _is_captions(card)]
    if not cards:
        return []
    asked: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for table in _below(root, "csv"):
        if "vqa" in table.name.lower():
            for row in _rows(table, _VQA):
                asked[_key(row["Image Path"])] += _questions(row)
    return [replace(study, questions=_asked_of(study, asked)) for study in Manifest.from_m3d(cards[0], out)]


def _asked_of(study: Study, asked: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The questions of the image that a study is named after, from whatever folder its path starts."""
    words = _key(study.study).split("_")
    ends = ("_".join(words[start:]) for start in range(len(words)))
    return next((asked[end] for end in ends if end in asked), [])


def _is_captions(path: Path) -> bool:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    lists = list(card.values()) if isinstance(card, dict) else []
    return any(isinstance(items, list) and items and {"image", "text"} <= set(items[0]) for items in lists)


def _questions(row: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row's question, closed and open."""
    given = list(dict.fromkeys(row[f"Choice {letter}"].strip() for letter in "ABCD" if row[f"Choice {letter}"].strip()))
    question = {
        "question": row["Question"].strip(),
        "answer": row["Answer"].strip(),
        "kind": (row.get("Question Type") or "other").strip(),
    }
    closed = [question | {"choices": given}] if question["answer"] in given and len(given) > 1 else []
    return [*closed, question]


def _key(name: str) -> str:
    """The same image is named from different folders in M3D's files: the last three parts of its path tell it."""
    return re.sub(r"[\W_]+", "_", "_".join(name.removesuffix(".npy").split("/")[-3:])).lower()


# --- masks --------------------------------------------------------------------------------------------------------


def _segmented(root: Path, out: Path) -> list[Study]:
    """The test volumes of M3D-Seg, each with a label map of its classes and a box around each."""
    studies = []
    for card in sorted({*visible(root, "[0-9]*/*.json"), *visible(root, "*/[0-9]*/*.json")}):
        if card.stem != card.parent.name:
            continue
        pairs: dict[str, list[str]] = defaultdict(list)
        for pair in json.loads(card.read_text(encoding="utf-8")).get("test") or []:
            pairs[pair["image"]].append(pair["label"])
        names = _class_names(card) if pairs else []
        studies += [_segmented_study(card, names, image, masks, out) for image, masks in pairs.items()]
    return studies


def _class_names(card: Path) -> list[str]:
    info = card.parent.parent / "dataset_info.json"
    known = json.loads(info.read_text(encoding="utf-8")) if info.is_file() else {}
    if card.stem not in known:
        raise ValueError(
            f"{info} does not name the classes of dataset {card.stem!r}: put M3D-Seg's dataset_info.json there"
        )
    return list(known[card.stem])


def _segmented_study(card: Path, names: list[str], image: str, masks: list[str], out: Path) -> Study:
    folder = card.parent.parent
    study = f"{card.stem}_{Path(image).parent.name}"
    labels: dict[str, int] = {}
    merged: ndarray | None = None
    for path in sorted(masks):
        number = int(Path(path).stem.split("_")[1])
        if number >= len(names):
            raise ValueError(f"{path} is class {number}, dataset_info.json names {len(names)} of {card.stem!r}")
        mask = np.load(_found(path, folder), allow_pickle=False)[0] > 0
        merged = np.zeros(mask.shape, np.int16) if merged is None else merged
        labels[names[number]] = number + 1
        merged[mask] = number + 1
    target = array_to_nifti(np.zeros((1, 1, 1)) if merged is None else merged, out / f"{study}-mask.nii.gz")
    return Study(
        study=study,
        image=npy_to_nifti(_found(image, folder), out / f"{study}.nii.gz"),
        split="test",
        mask=target,
        mask_labels=labels,
        boxes=[] if merged is None else _boxes(merged, labels),
        meta=UNKNOWN | {"dataset": f"M3D-Seg {card.stem}"},
    )


def _boxes(labels: ndarray, names: Mapping[str, int]) -> list[dict[str, Any]]:
    """The box of each label of a (slice, row, column) map in RAS mm, from voxel edge to voxel edge."""
    found = []
    for name, number in names.items():
        places = np.nonzero(labels == number)
        if len(places[0]):
            (z0, z1), (y0, y1), (x0, x1) = [(int(place.min()) - 0.5, int(place.max()) + 0.5) for place in places]
            # NIfTI's affine turns columns and rows around: they run from the right and from the front.
            found.append({"label": name, "min_mm": [-x1, -y1, z0], "max_mm": [-x0, -y0, z1]})
    return found


def _referred(root: Path, out: Path) -> list[Study]:
    """The test volumes of M3D-RefSeg; the sentence that asks for a mask is its name."""
    asked: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    tables: dict[tuple[str, str], Path] = {}
    for table in _below(root, "csv"):
        if "refseg" in table.name.lower() and "train" not in table.name.lower():
            for row in _rows(table, _REFSEG):
                pair = row["Image"], row["Mask"]
                asked[pair][row["Question"].strip()] = int(float(row["Mask_ID"]))
                tables[pair] = table
    studies = []
    for (image, mask), labels in asked.items():
        folder = tables[image, mask].parent
        name = "_".join(Path(image).with_suffix("").parts[-2:])
        array = np.load(_found(mask, folder), allow_pickle=False)[0]
        studies.append(
            Study(
                study=f"refseg_{name}",
                image=npy_to_nifti(_found(image, folder), out / f"{name}.nii.gz"),
                split="test",
                # Numbers that no sentence asks for are no finding.
                finding_mask=array_to_nifti(
                    np.where(np.isin(array, list(labels.values())), array, 0).astype(np.int16),
                    out / f"{name}-mask.nii.gz",
                ),
                finding_labels=labels,
                meta=UNKNOWN | {"dataset": "M3D-RefSeg"},
            )
        )
    return studies


def _found(path: str, folder: Path) -> Path:
    """A path of M3D's files: as it is, from the file's folder or the one above it, or, where it was written on another
    machine, from its last parts."""
    parts = Path(path).parts
    ends = [Path(*parts[start:]) for start in range(len(parts)) if parts[start] != "/"]
    for candidate in (Path(path), *(base / end for end in ends for base in (folder, folder.parent))):
        if candidate.is_file():
            return candidate
    raise ValueError(f"{path}: no such file from {folder} or {folder.parent}: keep M3D's folders side by side")


def _rows(table: Path, wanted: tuple[str, ...]) -> Iterator[dict[str, str]]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            if missing := [column for column in wanted if column not in row]:
                raise ValueError(f"{table.name} has no column {missing[0]!r}; it has {', '.join(map(repr, row))}")
            yield row
