"""The faithfulness suite at work: shows a model changed volumes and scores what it then says.

Each probe is scored beside a control (`vol3d.evaluation.controls`), so that "caught" names the probes in which the
model shows no sign of looking at the image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vol3d.evaluation import probes
from vol3d.evaluation.compare_tasks import COMPARISONS
from vol3d.evaluation.controls import DEFINITIONS as CONTROL_DEFINITIONS
from vol3d.evaluation.controls import NOT_APPLICABLE, against_control, verdict
from vol3d.evaluation.faithfulness import prior_mentions
from vol3d.evaluation.headline import HEADLINES, headline_of
from vol3d.evaluation.intervals import share, undefined
from vol3d.evaluation.metrics.baselines import blind
from vol3d.evaluation.metrics.findings import compare_findings
from vol3d.evaluation.probe_judges import STAYS, Judge, TextJudge, judge_of, target
from vol3d.evaluation.probe_pairs import claim, confusable, writes
from vol3d.evaluation.sides import Sides
from vol3d.evaluation.titles import LOWER_IS_BETTER
from vol3d.model.interfaces import Evidence, Task

if TYPE_CHECKING:
    from vol3d.data.batch import Sample
    from vol3d.evaluation.predictions import Looker

Rows = Mapping[str, Mapping[str, Any]]
MOST = 200
"""Studies shown to a probe; more cost time and tell little more."""
SHOWN = ("blank", "shuffled", "mirror", "erase", *STAYS)
"""Probes that show one changed volume a study."""
PROBES = (*SHOWN, "claim", "confusable")

DEFINITIONS = {
    "blank": "share of reported findings that are no longer reported once the volume is empty (air only)",
    "blank_claims": "share of studies of whose empty volume any finding is reported: invented, whatever the image",
    "shuffled": "share of studies of which something else is said when the volume of another patient is shown",
    "mirror": "share of the findings reported on one side only of which the mirrored volume gives the other side only",
    "erase": "share of reported true findings that are no longer reported once their voxels are filled with the "
    "tissue around them",
    "claim": "share of studies that stay without a finding that only the prompt claims; control: the same prompt over "
    "the volume of a patient who has it",
    "confusable": "share of pairs of studies that look alike and differ in findings (no patient in two) of which "
    "either output fits its own study better than the other (after MediConfusion's pairs, Sepehri et al. 2024, "
    "arXiv:2409.15477); control: the outputs exchanged",
    "same_findings": "share of changed volumes of which exactly the same findings are reported as before",
    "f1_change": "finding F1 on the changed volumes − on the volumes as they are",
    "image_dependence": "(score − blind score) / (1 − blind score) of the task's headline, paired by study: 0 when "
    "another patient's volume serves as well, 1 when everything is right",
} | CONTROL_DEFINITIONS


def run_probes(
    tasks: Sequence[Task],
    evidence: Evidence,
    blocks: Mapping[str, Mapping[str, Any]],
    look: Looker,
    names: Collection[str] | None = None,
) -> dict[str, Any]:
    """Entries of "faithfulness" in evaluation.json, one a task: changed volumes for a task that writes texts, answers
    questions or gives codes, "image_dependence" for every one; "judged", "caught" and "not_judged" (why) sum up.

    Args:
        tasks: the model's. blocks: what they scored, for the headline and its blind baseline.
        names: some of PROBES; None for all. At most MOST studies, drawn by the evidence's seed, are shown.

    Raises:
        ValueError: an unknown probe.
    """
    names = chosen(names)
    order = np.random.default_rng(evidence.seed).permutation(len(evidence.studies))[:MOST]
    some = replace(evidence, studies=[evidence.studies[place] for place in sorted(order)])
    judges = {task.kind: judge for task in tasks if (judge := judge_of(task, some)) is not None}
    shows = _Shows([task for task in tasks if task.kind in judges], some, look)
    result: dict[str, Any] = {}
    for task in tasks:
        block: dict[str, Any] = {}
        if (judge := judges.get(task.kind)) is not None:
            block = {name: _score(name, judge, shows) for name in names if name in SHOWN}
            block |= _more(task, judge, some, look, names, shows) | {"studies": len(some.studies)}
        block["image_dependence"] = dependence(task, evidence, blocks, look)
        result[task.kind] = block | _verdicts(block) | {"definitions": DEFINITIONS}
    return result


def chosen(names: Collection[str] | None) -> tuple[str, ...]:
    """The probes of these names; None for all.

    Raises:
        ValueError: an unknown probe.
    """
    names = PROBES if names is None else tuple(names)
    if unknown := sorted(set(names) - set(PROBES)):
        raise ValueError(f"unknown probes {', '.join(unknown)}: choose from {', '.join(PROBES)}")
    return names


class _Shows:
    """What the tasks say of the changed volumes, each shown once; a pass that is not asked for never runs."""

    def __init__(self, tasks: Sequence[Task], evidence: Evidence, look: Looker) -> None:
        self.tasks, self.studies, self.look = tasks, list(evidence.studies), look
        self.replicates, self.seed = evidence.replicates, evidence.seed
        self.rows: dict[str, Rows | None] = {}

    def __call__(self, name: str) -> Rows | None:
        """Rows of probe `name`, or of "again", the volumes as they are; None where it can show none."""
        if name not in self.rows:
            self.rows[name] = self._shown(name)
        return self.rows[name]

    def _shown(self, name: str) -> Rows | None:
        kept = f"probe-{name}"
        if name == "shuffled":
            try:
                others = blind(self.studies, [study.patient for study in self.studies], self.seed)
            except ValueError:
                return None  # one patient: nobody to exchange with
            return self.look(kept, self.tasks, self.studies, volumes=others)
        if name in _WITH_MASKS:
            able, change = _WITH_MASKS[name]
            if not any(able(study) for study in self.studies):
                return None
            about = {study.study: target(study) for study in self.studies} if name == "erase" else None
            return self.look(kept, self.tasks, self.studies, change=change, masks=True, about=about)
        change = (probes.FAITHFUL | probes.ROBUST).get(name)
        return self.look(kept, self.tasks, self.studies, change=None if change is None else _changed(change))


def _changed(change: Callable[..., np.ndarray]) -> Callable[[Sample], Sample]:
    import torch

    return lambda sample: replace(sample, hu=torch.from_numpy(change(sample.hu.numpy())))


def _erase(sample: Sample) -> Sample:
    import torch

    key = target(sample.study)
    if key is None or sample.finding_mask is None:
        return sample
    mask = (sample.finding_mask == sample.study.finding_labels[key]).numpy()
    if not mask.any():
        return sample  # lost on this grid: it could not be seen before either
    return replace(sample, hu=torch.from_numpy(probes.erase(sample.hu[0].numpy(), mask))[None])


def _contrast(sample: Sample) -> Sample:
    import torch

    if sample.mask is None:
        return sample
    organs = sample.mask.numpy()
    changed = probes.contrast_phase(sample.hu[0].numpy(), organs, sample.study.mask_labels)
    return replace(sample, hu=torch.from_numpy(changed)[None])


_WITH_MASKS: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "erase": (target, _erase),
    "contrast_phase": (lambda study: study.mask and probes.enhancing(study.mask_labels), _contrast),
}
"""Probe → whether a study has the mask for it, and the change."""


def _score(name: str, judge: Judge, shows: _Shows) -> dict[str, Any]:
    """One probe of one task beside its control."""
    stays = name in STAYS
    if why := judge.unfit(name):
        return undefined(NOT_APPLICABLE + why)
    rows, control = shows(name), shows("shuffled" if stays else "again")
    if rows is None or control is None:
        return undefined(f"{NOT_APPLICABLE}no mask, a single patient, or not kept with the predictions")
    options = {"replicates": shows.replicates, "seed": shows.seed}
    hits, apart = (judge.reacted(name, told) for told in (rows, control))
    score = against_control(hits, apart, judge.could(name), judge.patients, **options)
    if not stays:
        return score
    block = {judge.kept: score}
    if isinstance(judge, TextJudge):
        change = compare_findings(judge.truths, judge.read(rows), judge.said, judge.patients, **options)
        block["f1_change"] = change["finding_f1"]
    return block


def _more(
    task: Task, judge: Judge, evidence: Evidence, look: Looker, names: Collection[str], shows: _Shows
) -> dict[str, Any]:
    """What only texts can be asked."""
    if not isinstance(judge, TextJudge):
        return {}
    block = {}
    options = {"replicates": evidence.replicates, "seed": evidence.seed}
    if "blank" in names and (rows := shows("blank")) is not None:
        claims = [float(bool(findings)) for findings in judge.read(rows)]
        block["blank_claims"] = share(claims, np.ones(len(claims)), judge.patients, **options)
    if "confusable" in names:
        block["confusable"] = confusable(judge, evidence)
    if "claim" in names and writes(task):
        block["claim"] = claim(task, judge, evidence, look)
    has_prior = [study.prior is not None or bool(study.meta.get("prior_report")) for study in judge.studies]
    texts = [evidence.predictions[study.study][judge.field] for study in judge.studies]
    return block | {"prior_mentions": prior_mentions(texts, judge.patients, has_prior, **options)}


def dependence(task: Task, evidence: Evidence, blocks: Mapping[str, Any], look: Looker) -> dict[str, Any]:
    """How much of the headline score rests on seeing this patient's volume, and no other's.

    The predictions are compared with those of another patient's volume, on the same studies. Where both patients were
    asked the same the predictions themselves are dealt; questions, boxes and earlier reports are asked again.
    """
    patients = [study.patient for study in evidence.studies]
    names = {"vqa": ("vqa_closed", "vqa_open"), "retrieval": ("retrieval", "zero_shot")}.get(task.kind, (task.kind,))
    name = next((name for name in names if name in blocks and name in COMPARISONS), None)
    if name is None or HEADLINES[name] in LOWER_IS_BETTER:
        return undefined(f"{NOT_APPLICABLE}no score that two predictions could be compared by")
    try:
        others = blind(list(evidence.studies), patients, evidence.seed)
    except ValueError as error:
        return undefined(NOT_APPLICABLE + str(error))
    pairs = list(zip(evidence.studies, others, strict=True))
    alike = all(task.reads(study) == task.reads(other) for study, other in pairs)
    # A text's own vector stays with it; a box is told in the millimetres of its own scan.
    if task.kind == "grounding" or not (alike or task.kind == "retrieval"):
        dealt = look(f"blind-{task.kind}-{evidence.seed}", [task], list(evidence.studies), volumes=others)
    else:
        dealt = {study.study: _exchanged(evidence.predictions, study.study, other.study) for study, other in pairs}
    if dealt is None:
        return undefined(f"{NOT_APPLICABLE}the blind pass was not kept with the predictions")
    sample = evidence.sample
    samples = None if sample is None else (sample, sample)
    sides = Sides(evidence.studies, evidence.predictions, dealt, samples, max(1000, evidence.replicates), evidence.seed)
    found = headline_of(name, COMPARISONS[name](sides))
    if found is None or found[1]["value"] is None or (found[1]["second"] or 0.0) >= 1:
        return undefined(f"{NOT_APPLICABLE}no score that the blind one could be told from")
    over = found[1]
    share = {
        part: None if over[part] is None else over[part] / (1 - over["second"]) for part in ("value", "low", "high")
    }
    return share | {
        "control": over["second"],
        "over_control": {key: over[key] for key in ("value", "low", "high", "p")},
    }


def _exchanged(rows: Rows, study: str, other: str) -> Mapping[str, Any]:
    """What is said of `other`'s volume; a text's own vector is no matter of the volume."""
    row = rows[other]
    if "retrieval" not in row:
        return row
    return {**row, "retrieval": {**row["retrieval"], "text": rows[study]["retrieval"]["text"]}}


def _verdicts(block: Mapping[str, Any]) -> dict[str, Any]:
    judged, caught, left = [], [], {}
    for name in (*PROBES, "image_dependence"):
        score = block.get(name)
        if score is None:
            continue
        score = score if "value" in score else next(iter(score.values()))
        said = verdict(score)
        if said == "caught":
            caught.append(name)
        if said != "not judged":
            judged.append(name)
        else:
            left[name] = (score.get("note") or "no interval").removeprefix(NOT_APPLICABLE)
    return {"judged": judged, "caught": caught, "not_judged": left}
