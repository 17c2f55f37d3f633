"""Predictions on disk, written as they come: a killed evaluation goes on, and a new metric needs no GPU."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vol3d.data.formats import atomic
from vol3d.data.parallel import batched

if TYPE_CHECKING:
    from torch import Tensor

    from vol3d.data.batch import Sample
    from vol3d.data.study import Study
    from vol3d.model.inference import TrainedModel
    from vol3d.model.interfaces import Task
    from vol3d.types import Triple

Row = Mapping[str, Any]
MADE_BY = "made_by.json"
NAME = "predictions"
KEPT = (f"{NAME}.jsonl", f"{NAME}.rank*.jsonl", "blind-*.jsonl", "probe-*.jsonl")
"""The files of rows in a folder; any other that lies there (a manifest) is somebody else's."""


def fingerprint(trained: TrainedModel, studies: Iterable[Study]) -> dict[str, str]:
    """What predictions depend on: "model" (its files, or its weights when it has none), "studies" (images, and what the
    tasks read of a row, such as questions; not labels, which may be mended later), "grid"."""
    from vol3d.data.identity import file_identity

    shown = hashlib.sha256()
    for study in studies:
        image = file_identity(study.image) if study.image.exists() else str(study.image)
        read = [told for task in trained.tasks.values() if (told := task.reads(study))]
        read += [study.modality] if study.modality else []
        shown.update(json.dumps([study.study, image, read]).encode())
    if trained.folder is not None and (trained.folder / "model.safetensors").is_file():
        model = model_identity(trained.folder)
    else:
        weights = hashlib.sha256()
        for part in (trained.model, *trained.tasks.values()):
            for name, tensor in part.state_dict().items():
                weights.update(f"{name} {tuple(tensor.shape)} {float(tensor.double().sum())!r}".encode())
        model = weights.hexdigest()[:16]
    return {
        "model": model,
        "studies": shown.hexdigest()[:16],
        "grid": trained.grid.fingerprint[:16],
    }


def model_identity(folder: Path) -> str:
    """A saved model, by its settings and its weights."""
    from vol3d.data.identity import file_identity

    files = "".join(file_identity(folder / name) for name in ("config.yaml", "model.safetensors"))
    return hashlib.sha256(files.encode()).hexdigest()[:16]


class Shelf:
    """A folder's prediction files (`KEPT`): `predictions.jsonl`, and beside it those of blind passes and probes.

    `made_by.json` says by which model, on which studies and which grid. Rows made by anything else are never mixed.

    Args:
        overwrite: throw away what another model, other studies or another grid made.
        check: refuse what was made otherwise. write: False only reads.

    Raises:
        ValueError: the folder holds predictions of another model, other studies or another grid.
    """

    def __init__(
        self,
        folder: str | Path,
        made_by: Mapping[str, str],
        *,
        overwrite: bool = False,
        check: bool = True,
        write: bool = True,
    ) -> None:
        self.folder = Path(folder)
        if not write:
            return
        self.made_by: dict[str, str] | None = dict(made_by)
        """Written with the first row, so that a refusal leaves nothing behind."""
        card = self.folder / MADE_BY
        old = sorted(path for pattern in KEPT for path in self.folder.glob(pattern))
        if old and check and not overwrite:
            known = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
            differ = [f"{name} {known.get(name, 'unknown')}, now {made_by[name]}" for name in made_by]
            differ = [line for line, name in zip(differ, made_by, strict=True) if known.get(name) != made_by[name]]
            if differ:
                raise ValueError(
                    f"{self.folder} holds {old[0].name} made otherwise ({'; '.join(differ)}): give another --out, or "
                    "--overwrite to throw them away"
                )
        for path in old if overwrite else []:
            path.unlink()

    def read(self, name: str) -> dict[str, dict[str, Any]]:
        """Rows by study; a last line that was half written when the run was killed is cut off the file."""
        path = self.folder / f"{name}.jsonl"
        if not path.is_file():
            return {}
        whole = path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            with path.open("r+b") as file:
                file.truncate(end)
        return {row["study"]: row for row in _parse(whole[:end].decode(), path)}

    def sign(self) -> None:
        """Write who made the rows, once."""
        if self.made_by is not None:
            with atomic(self.folder / MADE_BY) as part:
                part.write_text(json.dumps(self.made_by, indent=1) + "\n", encoding="utf-8")
            self.made_by = None

    def append(self, name: str, rows: Iterable[Row]) -> None:
        """Written at once, in one piece."""
        self.sign()
        with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


def read_predictions(path: str | Path) -> dict[str, dict[str, Any]]:
    """Rows by study of a predictions file, or of a folder's `predictions*.jsonl`.

    Files of single ranks beside it (`predictions.rank1.jsonl`) are read together with it. A study that stands in
    several (samplers fill up the last batch) counts once.

    Raises:
        ValueError: no such file, no row, or a line that is no row (its number is named).
    """
    path = Path(path)
    first = path / f"{NAME}.jsonl" if path.is_dir() else path
    files = [first] if first.is_file() else []
    files += sorted(first.parent.glob(f"{first.stem}.rank*.jsonl"))
    if not files:
        raise ValueError(f"{first}: no such file; write it with `vol3d evaluate` or `vol3d predict`")
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        for row in _parse(file.read_text(encoding="utf-8"), file):
            rows.setdefault(row["study"], row)
    if not rows:
        raise ValueError(f"{first}: 0 rows; write it with `vol3d evaluate` or `vol3d predict`")
    return rows


def _parse(text: str, path: Path) -> Iterator[dict[str, Any]]:
    # A text may hold what `splitlines` takes for the end of a line (U+0085, U+2028), a JSON line only "\n".
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg}): remove the line and run again") from None
        if not isinstance(row, dict) or "study" not in row:
            raise ValueError(f"{path}, line {number}: a row needs the field 'study'")
        yield row


@dataclass(frozen=True)
class Checked:
    """Rows that can be scored, and a line for each kind that cannot."""

    rows: dict[str, dict[str, Any]]
    notes: list[str]


def check_rows(rows: Mapping[str, Mapping[str, Any]], studies: Sequence[Study]) -> Checked:
    """Leaves out studies without a prediction, with a missing field, or with a number that is none.

    An empty text is an answer (and scores as one); a null one is read as empty.
    """
    fields = {name for row in rows.values() for name in row} - {"study"}
    texts = {name for name in fields if any(isinstance(row.get(name), str) for row in rows.values())}
    good: dict[str, dict[str, Any]] = {}
    bad: dict[str, list[str]] = {}
    for study in studies:
        row = rows.get(study.study)
        if row is None:
            bad.setdefault("have no prediction", []).append(study.study)
        elif missing := sorted(fields - row.keys()):
            bad.setdefault(f"lack the field {', '.join(missing)}", []).append(study.study)
        elif not _finite(row):
            bad.setdefault("have a prediction with NaN or infinity", []).append(study.study)
        else:
            good[study.study] = dict(row) | {name: row[name] or "" for name in texts}
    notes = [
        f"{len(names)} of {len(studies)} studies {what} and are not scored ({', '.join(names[:3])}"
        f"{', …' if len(names) > 3 else ''})"
        for what, names in bad.items()
    ]
    return Checked(good, notes)


def _finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        # Long lists are vectors and run lengths: one sum tells.
        plain = value and isinstance(value[0], (int, float))
        return (
            math.isfinite(math.fsum(value))
            if plain and len(value) > 8 and _numbers(value)
            else all(map(_finite, value))
        )
    return True


def _numbers(values: list[Any]) -> bool:
    return all(type(value) in (int, float) for value in values)


class Looker:
    """Shows a model volumes and keeps what it says; what is kept already is not asked again.

    Another study's volume is shown where the study's own lies: in its frame (affine and shape on the grid), to which
    its boxes in millimetres belong. A model that ignores the image then sees no difference.

    Args:
        workers: processes that read volumes ahead.
        may_run: False reads only: a pass that is not complete on the shelf is then None.
    """

    def __init__(
        self,
        trained: TrainedModel,
        shelf: Shelf,
        batch_size: int = 16,
        workers: int = 0,
        *,
        may_run: bool = True,
        progress: bool = False,
    ) -> None:
        self.trained, self.shelf, self.batch_size, self.workers = trained, shelf, batch_size, workers
        self.may_run, self.progress = may_run, progress
        self.seconds = 0.0
        self._frames: dict[str, tuple[Tensor, Triple]] = {}

    def __call__(
        self,
        name: str,
        tasks: Sequence[Task],
        studies: Sequence[Study],
        *,
        volumes: Sequence[Study] | None = None,
        change: Callable[[Sample], Sample] | None = None,
        masks: bool = False,
        about: Mapping[str, str | None] | None = None,
    ) -> dict[str, dict[str, Any]] | None:
        """Rows of `studies` by name.

        Args:
            name: of the file, without its ending.
            volumes: whose image is shown, without masks, instead of each study's own.
            change: what is done to each volume first. masks: load label maps too, for `change`.
            about: what of a study's labels was asked, kept in its row: after the labels are mended it is asked anew.
        """
        told = {} if about is None else {study.study: {"about": about[study.study]} for study in studies}
        rows = self.shelf.read(name)
        rows = {study: row for study, row in rows.items() if told.get(study, {}).items() <= row.items()}
        missing = [place for place, study in enumerate(studies) if study.study not in rows]
        if missing and not self.may_run:
            return None
        start = time.perf_counter()
        asked = [studies[place] for place in missing]
        shown = self._own(asked, masks) if volumes is None else self._dealt(asked, [volumes[p] for p in missing])
        for batch in self._watched(name, shown, len(missing), len(studies)):
            samples = batch if change is None else [change(sample) for sample in batch]
            predicted = [row | told.get(row["study"], {}) for row in self.trained.predict(samples, tasks)]
            self.shelf.append(name, predicted)
            rows |= {row["study"]: row for row in predicted}
        self.seconds += time.perf_counter() - start
        return {study.study: rows[study.study] for study in studies}

    def _own(self, studies: Sequence[Study], masks: bool = False) -> Iterator[Sample]:
        """Each study as it is. A prediction reads no mask, so none is loaded unless a change needs it."""
        for sample in self.trained.read_ahead(studies, masks=masks, workers=self.workers):
            self._frames[sample.study.study] = sample.affine.clone(), tuple(sample.hu.shape[1:])
            yield sample

    def _dealt(self, studies: Sequence[Study], volumes: Sequence[Study]) -> Iterator[Sample]:
        """Each study with the volume of another in its own frame; a frame that is not known yet is read first."""
        for _ in self._own([study for study in studies if study.study not in self._frames]):
            pass
        read = self.trained.read_ahead(volumes, masks=False, workers=self.workers)
        for study, sample in zip(studies, read, strict=True):
            affine, shape = self._frames[study.study]
            hu = cut_or_pad(sample.hu, shape, self.trained.grid.outside(sample.hu, sample.study.modality))
            yield replace(sample, study=study, hu=hu, affine=affine, mask=None, finding_mask=None)

    def _watched(self, name: str, samples: Iterable[Sample], left: int, total: int) -> Iterator[list[Sample]]:
        from tqdm import tqdm

        with tqdm(
            total=total, initial=total - left, desc=name, unit="study", disable=not (self.progress and left)
        ) as bar:
            for batch in batched(samples, self.batch_size):
                yield batch
                bar.update(len(batch))


def cut_or_pad(hu: Tensor, shape: Triple, pad: int) -> Tensor:
    """A volume (…, x, y, z) cut or filled up with `pad` HU around its centre to `shape`."""
    from torch.nn.functional import pad as padded

    ends: list[int] = []
    for have, wanted in zip(reversed(hu.shape[-3:]), reversed(shape), strict=True):
        low = (wanted - have) // 2
        ends += [low, wanted - have - low]
    return padded(hu, ends, value=pad) if any(ends) else hu
