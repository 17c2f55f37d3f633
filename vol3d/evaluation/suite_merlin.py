"""The Merlin dataset with the labels of all six task families.

Below its folder: `reports_final.xlsx`, `zero_shot_findings_disease_cls.csv` and the volumes (`Manifest.from_merlin`),
and where they are there

- `phenotypes*.csv`: "study id", then one column a phecode; 1 is present, 0 absent, −1 and nothing unknown;
- `five_years_disease_task.csv`: "study id", then one column a disease; 1 is the disease within five years and 0 none.
  The published table also holds 2 and 3, whose meaning it does not tell: they are unknown here;
- `segmentations/<study id>/<organ>.nii.gz`: Merlin publishes no masks; its paper takes TotalSegmentator's, whose output
  folders these are.

Source: Blankemeier et al., Merlin (arXiv:2406.06512).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vol3d.data.importers import merge_masks
from vol3d.data.tables import optional, visible

if TYPE_CHECKING:
    from vol3d.data.manifest import Manifest
    from vol3d.data.study import Study

FIVE_YEARS = 1826
"""Days. A disease within five years counts as an event on the last of them, none as followed one day longer."""


def read_merlin(folder: str | Path, out: str | Path) -> Manifest:
    """The Merlin dataset for all six task families, as far as their files are there.

    Args:
        out: where the organs' masks are written as label maps.

    Raises:
        ValueError: no reports, or a label table without "study id".
    """
    from vol3d.data.manifest import Manifest

    folder, out = Path(folder).absolute(), Path(out).absolute()
    manifest = Manifest.from_merlin(folder)
    codes, diseases = (optional(folder, name, "study id") for name in ("phenotypes*", "five_years_disease_task*"))
    masks = {path.name: path for path in visible(folder, "segmentations/*") if path.is_dir()}
    organs = sorted({path.name.removesuffix(".nii.gz") for one in masks.values() for path in visible(one, "*.nii.gz")})
    numbers = {name: number for number, name in enumerate(organs, start=1)}
    studies = []
    for study in manifest:
        study = _with_codes(study, codes.get(study.study, {}))
        study = _with_outcomes(study, diseases.get(study.study, {}))
        if study.study in masks:
            merged = merge_masks(masks[study.study], numbers, out / f"{study.study}-organs")
            study = replace(study, mask=merged, mask_labels=numbers) if merged else study
        studies.append(study)
    return Manifest(studies, manifest.path)


def _labels(row: dict[str, str]) -> dict[str, int]:
    """Columns that say 1 or 0."""
    cells = {name: str(value or "").removesuffix(".0") for name, value in row.items()}
    return {name: int(value) for name, value in cells.items() if value in ("0", "1")}


def _with_codes(study: Study, row: dict[str, str]) -> Study:
    if not (known := _labels(row)):
        return study
    present, absent = ([code for code, label in known.items() if label == wanted] for wanted in (1, 0))
    return replace(study, codes=present, codes_absent=absent, code_system="phecode")


def _with_outcomes(study: Study, row: dict[str, str]) -> Study:
    known = _labels(row)
    return replace(
        study, outcomes={name: {"time": FIVE_YEARS + 1 - event, "event": event} for name, event in known.items()}
    )
