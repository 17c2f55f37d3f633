"""The faithfulness suite at work: shows a model changed volumes and scores what it then says.

Reports are judged by their findings (`vol3d.evaluation.probes`), answers and codes by whether they move. Probes after
which a faithful output must change come with a verdict: "caught" names those that the model fails, because it says
the same whatever it is shown.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vol3d.evaluation import probes
from vol3d.evaluation.headline import headline_of
from vol3d.evaluation.intervals import share, undefined
from vol3d.evaluation.metrics.findings import study_f1
from vol3d.model.interfaces import Evidence, Features, Task

if TYPE_CHECKING:
    from vol3d.data.batch import Batch, Sample
    from vol3d.data.study import Study
    from vol3d.evaluation.predictions import Looker
    from vol3d.model.volume_lm import VolumeLM

Rows = Mapping[str, Mapping[str, Any]]
MOST = 200
"""Studies shown to a probe; more cost time and tell little more."""
PROBES = ("blank", "shuffled", "mirror", "erase", "claim", "confusable", *probes.ROBUST)
MUST_CHANGE = ("blank", "shuffled", "mirror", "erase", "confusable", "image_dependence")
"""After these a model that looks says something else."""
NO_SIGN = 0.05
TEXTS = ("report", "findings", "impression")
_SIDES = {"left": "right", "right": "left"}

DEFINITIONS = {
    "shuffled": "share of studies of which something else is said when the volume of another patient is shown",
    "claim": "share of studies of which a finding is reported only because the prompt claims it (lower is better)",
    "confusable": "share of pairs of studies that look alike and differ in findings in which either output fits its "
    "own study better than the other (after MediConfusion's pairs, Sepehri et al. 2024, arXiv:2409.15477)",
    "caught": "probes that must change the output and show no sign of it: the 95 % interval begins below 0.05 (a model "
    "that ignores the image scores 0 in each), or there was nothing to judge by",
}


def run_probes(
    tasks: Sequence[Task],
    evidence: Evidence,
    blocks: Mapping[str, Mapping[str, Any]],
    look: Looker,
    names: Collection[str] | None = None,
) -> dict[str, Any]:
    """Entries of "faithfulness" in evaluation.json, one a task that writes text, answers questions or gives codes.

    Args:
        tasks: the model's. blocks: what they scored, for the headline and its blind baseline.
        names: some of PROBES; None for all. At most MOST studies, drawn by the evidence's seed, are shown.

    Raises:
        ValueError: an unknown probe.
    """
    names = PROBES if names is None else tuple(names)
    if unknown := sorted(set(names) - set(PROBES)):
        raise ValueError(f"unknown probes {', '.join(unknown)}: choose from {', '.join(PROBES)}")
    able = [task for task in tasks if _judge(task, evidence) is not None]
    if not able:
        return {}
    order = np.random.default_rng(evidence.seed).permutation(len(evidence.studies))[:MOST]
    some = replace(evidence, studies=[evidence.studies[place] for place in sorted(order)])
    shown = {name: rows for name in names if (rows := _show(name, able, some, look)) is not None}
    result: dict[str, Any] = {}
    for task in able:
        judge = _judge(task, evidence)
        assert judge is not None
        block = judge(task, some, {name: rows for name, rows in shown.items() if name != "claim"}, names)
        if "claim" in names and block and _writes(task):
            block["claim"] = _claim(task, some, look)
        if block:
            block["image_dependence"] = dependence(task, blocks)
            block["studies"] = len(some.studies)
            block["caught"] = _caught(block)
            block["definitions"] = DEFINITIONS
            result[task.kind] = block
    return result


def dependence(task: Task, blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """(score − blind score) / (1 − blind score) of the task's headline, the blind score held fixed in the interval."""
    name = task.kind if task.kind in blocks else next((n for n in blocks if n.startswith(task.kind)), "")
    found = headline_of(name, blocks[name]) if name else None
    if found is None or found[2] is None or found[1].get("value") is None or found[2] >= 1:
        return undefined("no score with a blind baseline")
    _, score, blind = found
    return {
        part: None if score.get(part) is None else (score[part] - blind) / (1 - blind)
        for part in ("value", "low", "high")
    }


def _caught(block: Mapping[str, Any]) -> list[str]:
    """A value well below 1 may still be caught by nobody: how well a probe is followed is told by its value."""
    failed = []
    for name in MUST_CHANGE:
        score = block.get(name)
        if score is None or (score.get("note") or "").startswith("not applicable"):
            continue
        # One patient has no interval; then the value stands for itself.
        low = score["value"] if score["low"] is None else score["low"]
        if low is None or low < NO_SIGN:
            failed.append(name)
    return failed


Judge = Callable[[Task, Evidence, Mapping[str, Rows], Collection[str]], dict[str, Any]]


def _judge(task: Task, evidence: Evidence) -> Judge | None:
    field = {"vqa": "answers", "codes": "codes"}.get(task.kind, task.kind)
    rows = [evidence.predictions[study.study] for study in evidence.studies]
    if not any(field in row for row in rows):
        return None
    if field in TEXTS:
        return _judge_texts
    return {"answers": _judge_answers, "codes": _judge_codes}.get(field)


def _show(name: str, tasks: Sequence[Task], evidence: Evidence, look: Looker) -> dict[str, dict[str, Any]] | None:
    """Rows of the changed volumes; None where this probe shows none, or it may not run and was not kept."""
    from vol3d.evaluation.metrics.baselines import blind

    studies = list(evidence.studies)
    kept = f"probe-{name}"
    if name == "shuffled":
        try:
            others = blind(studies, [study.patient for study in studies], evidence.seed)
        except ValueError:
            return None  # one patient: nobody to exchange with
        return look(kept, tasks, studies, volumes=others)
    if name == "erase":
        return look(kept, tasks, studies, change=_erase, masks=True) if any(map(target, studies)) else None
    change = (probes.FAITHFUL | probes.ROBUST).get(name)
    return None if change is None else look(kept, tasks, studies, change=_changed(change))


def _changed(change: Callable[..., np.ndarray]) -> Callable[[Sample], Sample]:
    import torch

    return lambda sample: replace(sample, hu=torch.from_numpy(change(sample.hu.numpy())))


def target(study: Study) -> str | None:
    """The finding erased from a study: of those that are there and have a mask, the one with the smallest box (a whole
    organ that is filled with its surroundings looks ill, too), or one drawn by the study's name."""
    from vol3d.text.parser import finding_keys

    there = {name for name, known in study.labels_known.items() if known == 1} | set(finding_keys(study.report or ""))
    masked = sorted(there & study.finding_labels.keys()) if study.finding_mask else []
    sizes = {
        box["label"]: float(np.prod(np.subtract(box["max_mm"], box["min_mm"])))
        for box in study.boxes
        if box.get("label") in masked
    }
    if sizes:
        return min(sizes, key=sizes.__getitem__)
    return masked[zlib.crc32(study.study.encode()) % len(masked)] if masked else None


def _erase(sample: Sample) -> Sample:
    import torch

    key = target(sample.study)
    if key is None or sample.finding_mask is None:
        return sample
    mask = (sample.finding_mask == sample.study.finding_labels[key]).numpy()
    if not mask.any():
        return sample  # lost on this grid: it could not be seen before either
    return replace(sample, hu=torch.from_numpy(probes.erase(sample.hu[0].numpy(), mask))[None])


def _judge_texts(task: Task, evidence: Evidence, shown: Mapping[str, Rows], names: Collection[str]) -> dict[str, Any]:
    from vol3d.evaluation.faithfulness import prior_mentions
    from vol3d.text.parser import finding_keys

    field = task.kind
    studies = [study for study in evidence.studies if getattr(study, field)]
    if not studies:
        return {}
    patients = [study.patient for study in studies]
    options = {"replicates": evidence.replicates, "seed": evidence.seed}
    truths = [set(finding_keys(getattr(study, field))) for study in studies]
    own = [evidence.predictions[study.study][field] for study in studies]
    predicted = [set(finding_keys(text)) for text in own]
    probed = {
        name: [set(finding_keys(rows[study.study].get(field) or "")) for study in studies]
        for name, rows in shown.items()
        if name != "shuffled"
    }
    block = probes.score_probes(
        truths, predicted, probed, patients, erased=[target(study) for study in studies], **options
    )
    if "shuffled" in shown:
        other = [set(finding_keys(shown["shuffled"][study.study].get(field) or "")) for study in studies]
        block["shuffled"] = _moved([one != two for one, two in zip(predicted, other, strict=True)], patients, options)
    if "confusable" in names:
        block["confusable"] = _confusable(studies, truths, predicted, evidence, options)
    without = [study.prior is None and not study.meta.get("prior_report") for study in studies]
    block["prior_mentions"] = prior_mentions(own, patients, [not free for free in without], **options)
    return block


def _moved(moved: Sequence[bool], patients: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    return share([float(one) for one in moved], [1.0] * len(moved), patients, **options)


def _confusable(
    studies: Sequence[Study],
    truths: Sequence[set[str]],
    predicted: Sequence[set[str]],
    evidence: Evidence,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Each study with the one of another patient that looks most like it and has other findings."""
    if evidence.sample is None or len(studies) < 2:
        return undefined("not applicable: fewer than two studies to look at")
    looks = np.stack(
        [thumbnail(evidence.sample(replace(s, mask=None, finding_mask=None)).hu[0].numpy()) for s in studies]
    )
    alike = looks @ looks.T
    right, who = [], []
    for row, study in enumerate(studies):
        others = [
            column
            for column in np.argsort(-alike[row]).tolist()
            if studies[column].patient != study.patient and truths[column] != truths[row]
        ]
        if others:
            column = others[0]
            fits = [
                study_f1(truths[one], predicted[one]) > study_f1(truths[two], predicted[one])
                for one, two in ((row, column), (column, row))
            ]
            right.append(float(all(fits)))
            who.append(study.patient)
    if not right:
        return undefined("not applicable: no two patients differ in findings")
    return share(right, [1.0] * len(right), who, **options)


def thumbnail(hu: np.ndarray, size: int = 16) -> np.ndarray:
    """The volume as a unit vector of size³ mean grey values in a soft-tissue window, mean removed."""
    for axis in range(3):
        edges = np.linspace(0, hu.shape[axis], min(size, hu.shape[axis]), endpoint=False).astype(int)
        counts = np.diff(np.append(edges, hu.shape[axis]))
        shape = [-1 if place == axis else 1 for place in range(3)]
        hu = np.add.reduceat(hu.astype(np.float32).clip(-1000, 400), edges, axis=axis) / counts.reshape(shape)
    vector = hu.ravel() - hu.mean()
    return vector / (np.linalg.norm(vector) + 1e-6)


def _judge_answers(task: Any, evidence: Evidence, shown: Mapping[str, Rows], names: Collection[str]) -> dict[str, Any]:
    asked = [
        _Asked(study, place, question)
        for study in evidence.studies
        for place, question in enumerate(task.questions(study))
        if len(evidence.predictions[study.study].get("answers") or ()) > place
    ]
    if not asked:
        return {}
    patients = [ask.study.patient for ask in asked]
    options = {"replicates": evidence.replicates, "seed": evidence.seed}
    own = [ask.answer(evidence.predictions) for ask in asked]
    block: dict[str, Any] = {}
    for name, rows in shown.items():
        new = [ask.answer(rows) for ask in asked]
        if name in probes.ROBUST:
            same = [one["answer"] == two["answer"] for one, two in zip(own, new, strict=True)]
            block[name] = {"same_answers": _moved(same, patients, options)}
        elif name in ("blank", "shuffled"):
            block[name] = _moved([one != two for one, two in zip(own, new, strict=True)], patients, options)
        else:
            pairs = [ask.turned(name, *pair) for ask, *pair in zip(asked, own, new, strict=True)]
            hits, totals = ([float(pair[part]) for pair in pairs] for part in (0, 1))
            none = undefined(f"not applicable: no answer that {name} can change")
            block[name] = share(hits, totals, patients, **options) if any(totals) else none
    return block


@dataclass(frozen=True)
class _Asked:
    """One question of one study."""

    study: Study
    place: int
    question: Mapping[str, Any]

    def answer(self, rows: Rows) -> Mapping[str, Any]:
        return rows[self.study.study]["answers"][self.place]

    def turned(self, probe: str, own: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[bool, bool]:
        """Did the answer turn as it must, and could it?"""
        before, after = str(own["answer"]).lower(), str(new["answer"]).lower()
        if probe == "mirror":
            return after == _SIDES.get(before), before in _SIDES
        yes = before == "yes" == str(self.question.get("answer")).lower()
        could = yes and self.question.get("finding") == target(self.study)
        return could and after == "no", could


def _judge_codes(task: Task, evidence: Evidence, shown: Mapping[str, Rows], names: Collection[str]) -> dict[str, Any]:
    studies = [study for study in evidence.studies if "codes" in evidence.predictions[study.study]]
    patients = [study.patient for study in studies]
    options = {"replicates": evidence.replicates, "seed": evidence.seed}
    block: dict[str, Any] = {}
    for name, rows in shown.items():
        own, new = ([source[study.study]["codes"] for study in studies] for source in (evidence.predictions, rows))
        if name in ("blank", "shuffled"):
            moved = [max(abs(one[code] - two[code]) for code in one) > 0.01 for one, two in zip(own, new, strict=True)]
            block[name] = _moved(moved, patients, options)
        elif name in probes.ROBUST:
            same = [_said(one) == _said(two) for one, two in zip(own, new, strict=True)]
            block[name] = {"same_codes": _moved(same, patients, options)}
    return block


def _said(codes: Mapping[str, float]) -> set[str]:
    return {code for code, probability in codes.items() if probability >= 0.5}


# --- text against image ---------------------------------------------------------------------------------------


def _writes(task: Task) -> bool:
    return task.kind in TEXTS and all(hasattr(task, name) for name in ("asked", "write", "prompt"))


class _Claiming(Task):
    """A report task whose prompt claims, of each study, a finding that is not there."""

    def __init__(self, task: Task, claims: dict[str, str]) -> None:
        super().__init__()
        self.task, self.claims, self.kind, self.uses = task, claims, task.kind, task.uses

    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> Any:
        raise NotImplementedError("a probe is not trained")

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        from vol3d.model.language import VOLUME_TOKEN

        task: Any = self.task
        prompts = []
        for study in batch.studies:
            said = f"{VOLUME_TOKEN}\nHistory: there is a {self.claims[study.study]}.\n"
            prompts.append(task.asked(study, task.prompt.replace(f"{VOLUME_TOKEN}\n", said, 1)))
        return [{self.kind: text} for text in task.write(model, features, prompts)]


def _claim(task: Task, evidence: Evidence, look: Looker) -> dict[str, Any]:
    """How often a claimed, absent finding is reported that is not reported unasked."""
    from vol3d.text.parser import finding_keys

    studies = [study for study in evidence.studies if getattr(study, task.kind)]
    truths = {study.study: set(finding_keys(getattr(study, task.kind))) for study in studies}
    known = sorted(set().union(*truths.values()))
    claims = {}
    for study in studies:
        absent = [key for key in known if key not in truths[study.study]]
        if absent:
            claims[study.study] = absent[zlib.crc32(study.study.encode()) % len(absent)]
    studies = [study for study in studies if study.study in claims]
    if not studies:
        return undefined("not applicable: no finding to claim")
    rows = look(f"probe-claim-{task.kind}", [_Claiming(task, claims)], studies)
    if rows is None:
        return undefined("not applicable: this probe was not kept with the predictions")
    before = [claims[s.study] in finding_keys(evidence.predictions[s.study][task.kind]) for s in studies]
    after = [claims[s.study] in finding_keys(rows[s.study][task.kind]) for s in studies]
    hits = [float(late and not early) for early, late in zip(before, after, strict=True)]
    return share(
        hits, [float(not early) for early in before], [s.patient for s in studies],
        replicates=evidence.replicates, seed=evidence.seed,
    )  # fmt: skip
