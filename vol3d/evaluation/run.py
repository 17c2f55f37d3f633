"""`vol3d evaluate`: predict a manifest with a saved model, score, and write json, jsonl and the page."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vol3d import __version__
from vol3d.data.formats import atomic
from vol3d.data.study import TEXTS
from vol3d.evaluation.predictions import NAME, Looker, Shelf, check_rows, fingerprint, read_predictions
from vol3d.model.interfaces import Evidence, Task, predicting

if TYPE_CHECKING:
    from vol3d.data.manifest import Manifest
    from vol3d.data.study import Study
    from vol3d.model.inference import TrainedModel

log = logging.getLogger(__name__)


def evaluate(
    model: TrainedModel | str | Path,
    manifest: Manifest | str | Path,
    *,
    out: str | Path,
    split: str | None = None,
    batch_size: int = 16,
    workers: int = 0,
    history: str | Path | None = None,
    replicates: int = 1000,
    seed: int = 0,
    progress: bool = False,
    predictions: str | Path | None = None,
    overwrite: bool = False,
    probes: bool | Collection[str] = False,
    by: Sequence[str] = (),
    duplicates: bool = False,
    base: str | Path | None = None,
    extra: Callable[[Sequence[str], Sequence[str], Sequence[str]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Run every task that model and manifest share and write `evaluation.json`, `predictions.jsonl`, `evaluation.html`.

    Predictions are written as they come: the same call after a crash goes on where it stopped. Rows whose meta says
    `twin_of` are counterfactuals: they are scored under "faithfulness" and nowhere else.

    Args:
        model: a loaded model or its folder.
        split: rows to score; None takes "test", or every row when the manifest has no split.
        workers: processes that read volumes ahead of the model; what they read is kept where the model has a cache.
        history: a run's metrics.csv, for the loss curve on the page; None takes the one beside the model's folder.
        replicates: bootstrap draws for each interval. seed: of the bootstrap and of the blind baseline.
        predictions: score this file (or folder, or what `vol3d predict` wrote) without showing the model a volume.
        overwrite: throw away predictions that another model, manifest or grid left in `out`.
        probes: also show changed volumes (`vol3d.evaluation.probing`): True for all, or some of their names.
        by: fields of `meta` to score groups of ("sex", "scanner").
        duplicates: also read every volume of the manifest to find duplicates across splits.
        base: the folder of the base model's evaluation of the same manifest, with which the page opens, and
            `comparison.json` and `comparison.html` are written too; None takes that of the model which this one was
            fine-tuned from (`VolumeModule(base=…)`), where it lies beside it.
        extra: more scores of reports, (truths, outputs, patients) → scores; see `vol3d.evaluation.wording`.

    Returns:
        what evaluation.json holds.

    Raises:
        ValueError: the split is empty, model and manifest have no task in common, or `out` holds other predictions.
    """
    from vol3d.data.manifest import Manifest
    from vol3d.data.priors import with_prior_reports
    from vol3d.evaluation.abstention import abstention
    from vol3d.evaluation.against_base import against_base
    from vol3d.evaluation.groups import check_fields, score_groups
    from vol3d.evaluation.leakage import check_leakage, looks
    from vol3d.evaluation.probing import chosen, run_probes
    from vol3d.evaluation.twins import twins_of
    from vol3d.model.inference import TrainedModel, load

    start = time.perf_counter()
    trained = model if isinstance(model, TrainedModel) else load(model)
    whole = with_prior_reports(manifest if isinstance(manifest, Manifest) else Manifest.read(manifest))
    whole = whole.by_name()  # patients are drawn and dealt by their place: the order of rows must decide nothing
    split = _split(whole, split)
    studies = list(whole if split is None else whole.split(split))
    scored = [study for study in studies if "twin_of" not in study.meta]
    judged = _judged(trained, scored)
    # What else was asked for is refused before a volume is shown.
    probed = chosen(None if probes is True else probes) if probes else ()
    check_fields(scored, by)
    if base is not None:
        _check_base(base, scored)
    validation = _validation(judged, whole, studies)
    seen = looks(whole, progress=progress) if duplicates else None
    leakage = check_leakage(whole, test=split or "test", looks=seen)
    out, shown = Path(out), [*studies, *validation]
    look, rows = _predict(trained, judged, shown, out, predictions, overwrite, batch_size, workers, progress)
    checked = check_rows(rows, shown)
    rows, notes = checked.rows, checked.notes
    scored = [study for study in scored if study.study in rows]
    if not scored:
        raise ValueError(f"none of {len(studies)} studies has a prediction that can be scored: {'; '.join(notes)}")
    evidence = Evidence(
        scored,
        rows,
        training=whole.split("train"),
        validation=[study for study in validation if study.study in rows],
        sample=trained.sample,
        replicates=replicates,
        seed=seed,
    )
    tasks = _score(judged, evidence, look)
    if extra is not None:
        _score_wording(tasks, scored, rows, extra)
    result: dict[str, Any] = {
        "model": str(trained.folder or "model"),
        "manifest": str((whole.path or "in memory") if isinstance(manifest, Manifest) else manifest),
        "split": split,
        "studies": len(scored),
        "patients": len({study.patient for study in scored}),
        "seconds": 0.0,
        "version": __version__,
        "notes": notes,
        "tasks": tasks,
        "faithfulness": twins_of([s for s in studies if s.study in rows], rows, replicates, seed),
        "leakage": leakage,
    }
    if probed:
        result["faithfulness"] |= run_probes(judged, evidence, tasks, look, probed)
    if by:
        result["subgroups"] = score_groups(judged, evidence, tasks, by)
    if curves := abstention(judged, evidence):
        result["abstention"] = curves
    result["seconds"] = round(time.perf_counter() - start, 1)
    _write(out / "evaluation.json", json.dumps(result, indent=1) + "\n")
    result["base"] = against_base(trained, out, base, manifest=whole, replicates=replicates, seed=seed)
    _write(out / "evaluation.json", json.dumps(result, indent=1) + "\n")
    _page(result, trained, scored, rows, history, out / "evaluation.html")
    return result


def _check_base(base: str | Path, studies: Sequence[Study]) -> None:
    if (other := read_predictions(base)).keys().isdisjoint(study.study for study in studies):
        raise ValueError(
            f"{base} has {len(other)} studies, {len(studies)} are scored here, 0 of them are in both: give one of "
            "the same studies"
        )


def _judged(trained: TrainedModel, studies: Sequence[Study]) -> list[Task]:
    """The tasks some study carries a label for; one that only has `score` says by its result whether there were any."""
    judged = [
        task
        for task in predicting(trained.tasks).values()
        if any(task.labelled(study) for study in studies)
        or (type(task).labelled is Task.labelled and type(task).score is not Task.score)
    ]
    if not judged:
        raise ValueError(
            f"{len(studies)} studies and the model's tasks ({', '.join(trained.tasks)}) share no label to score: add "
            "the labels of one of these tasks to the manifest, or evaluate a model trained for another"
        )
    return judged


def _validation(tasks: Sequence[Task], manifest: Manifest, scored: Sequence[Study]) -> list[Study]:
    """Studies to fix thresholds on, when a task asks for them; never ones that are scored."""
    if not any(task.calibrates for task in tasks):
        return []
    names = {study.study for study in scored}
    return [study for study in manifest.split("val") if study.study not in names and "twin_of" not in study.meta]


def _predict(
    trained: TrainedModel,
    tasks: Sequence[Task],
    studies: Sequence[Study],
    out: Path,
    given: str | Path | None,
    overwrite: bool,
    batch_size: int,
    workers: int,
    progress: bool,
) -> tuple[Looker, dict[str, dict[str, Any]]]:
    """The rows, and who may show the model more volumes."""
    made_by = fingerprint(trained, studies)
    if given is None:
        look = Looker(trained, Shelf(out, made_by, overwrite=overwrite), batch_size, workers, progress=progress)
        return look, look(NAME, tasks, studies) or {}
    rows = read_predictions(given)
    folder = Path(given) if Path(given).is_dir() else Path(given).parent
    card = folder / "made_by.json"
    maker = json.loads(card.read_text(encoding="utf-8"))["model"] if card.is_file() else made_by["model"]
    if maker != made_by["model"]:
        raise ValueError(
            f"{given} was written by model {maker}, {trained.folder} is {made_by['model']}: score it with the model "
            "that wrote it"
        )
    if folder.resolve() != out.resolve():
        shelf = Shelf(out, made_by, overwrite=overwrite)
        shelf.sign()
        _write(out / f"{NAME}.jsonl", "".join(json.dumps(row) + "\n" for row in rows.values()))
    else:
        shelf = Shelf(out, json.loads(card.read_text(encoding="utf-8")) if card.is_file() else made_by, check=False)
    kept = shelf if folder.resolve() == out.resolve() else Shelf(folder, made_by, check=False, write=False)
    return Looker(trained, kept, may_run=False), rows


def _score(tasks: Sequence[Task], evidence: Evidence, look: Looker) -> dict[str, Any]:
    """Every task's blocks, with their curves; a task whose field no prediction has is told so."""
    from vol3d.evaluation.curves import curves_of

    blocks: dict[str, Any] = {}
    for task in tasks:
        try:
            blocks |= task.score(replace(evidence, blind=_blind(task, evidence, look)))
        except KeyError as error:
            log.debug("task %s", task.kind, exc_info=True)
            blocks[task.kind or type(task).__name__] = {
                "note": f"not scored: the predictions have no field {error}; predict again with --overwrite"
            }
    for name, curves in curves_of(tasks, evidence).items():
        blocks.setdefault(name, {})["curves"] = curves
    return blocks


def _blind(task: Task, evidence: Evidence, look: Looker) -> Callable[[], Mapping[str, Mapping[str, Any]]] | None:
    """What `task` predicts of each study when it is shown another patient's volume; None where no deal exists."""
    from vol3d.evaluation.metrics.baselines import blind

    studies = list(evidence.studies)
    try:
        others = blind(studies, [study.patient for study in studies], evidence.seed)
    except ValueError as error:
        log.warning("no blind baseline: %s", error)
        return None
    ask = partial(look, f"blind-{task.kind}-{evidence.seed}", [task], studies, volumes=others)
    if not look.may_run:
        kept = ask()
        return None if kept is None else lambda: kept
    return lambda: ask() or {}


def _score_wording(
    tasks: dict[str, Any],
    studies: Sequence[Study],
    rows: Mapping[str, Mapping[str, Any]],
    extra: Callable[[Sequence[str], Sequence[str], Sequence[str]], dict[str, Any]],
) -> None:
    """Adds the scores of `extra` to each block of written texts."""
    for name in TEXTS:
        own = [s for s in studies if getattr(s, name) and isinstance(rows[s.study].get(name), str)]
        if own and name in tasks:
            texts = [getattr(study, name) for study in own], [rows[study.study][name] for study in own]
            tasks[name] |= extra(*texts, [study.patient for study in own])


def _split(manifest: Manifest, split: str | None) -> str | None:
    """The split that is scored; None for every row."""
    splits = {study.split for study in manifest}
    if split is None and splits <= {None}:
        return None
    split = split or "test"
    if split not in splits:
        raise ValueError(
            f"{manifest.path}: no row has split {split!r}, the splits are "
            f"{sorted(name for name in splits if name)}: choose one with --split"
        )
    return split


def _page(
    result: dict[str, Any],
    trained: TrainedModel,
    studies: Sequence[Study],
    predictions: Mapping[str, Mapping[str, Any]],
    history: str | Path | None,
    path: Path,
) -> None:
    from vol3d.evaluation.cases import read_history, show_cases
    from vol3d.evaluation.page import write_page

    if history is None and trained.folder is not None:
        history = trained.folder.parent / "metrics.csv"
    write_page(result, show_cases(trained, studies, predictions), read_history(history), path)


def _write(path: Path, text: str) -> None:
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")
