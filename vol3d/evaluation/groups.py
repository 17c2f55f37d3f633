"""Every score by groups of studies: is the model as good for everybody?"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vol3d.data.study import TEXTS
from vol3d.evaluation.headline import headline_of, is_score
from vol3d.evaluation.intervals import undefined
from vol3d.model.interfaces import Evidence, Task

if TYPE_CHECKING:
    from vol3d.data.study import Study

BANDS = 4
"""A number (age) with more different values than this is cut into its quarters."""


def check_fields(studies: Sequence[Study], by: Sequence[str]) -> None:
    """Refuse fields of `meta` that no study has.

    Raises:
        ValueError: naming the field, and those that there are.
    """
    for field in by:
        if all(study.meta.get(field) is None for study in studies):
            known = ", ".join(sorted({name for study in studies for name in study.meta})) or "no field at all"
            raise ValueError(f"none of {len(studies)} studies has meta.{field}; there is {known}")


def score_groups(
    tasks: Sequence[Task], evidence: Evidence, blocks: Mapping[str, Mapping[str, Any]], by: Sequence[str]
) -> dict[str, Any]:
    """Every metric in each group of `meta`, with intervals and the largest gap.

    Args:
        blocks: what the tasks scored on all studies; the same is scored again in each group.
        by: fields of `meta`. Numbers are cut into quarters.

    Returns:
        {field: {block: {"metric", "groups", "largest_gap", "unknown", "scores"}}} (see `by_subgroup`): of the block's
        headline, and under "scores" {metric: {"groups", "largest_gap"}} of every metric.

    Raises:
        ValueError: no study has such a field.
    """
    studies = evidence.studies
    result: dict[str, Any] = {}
    check_fields(studies, by)
    for field in by:
        values = [study.meta.get(field) for study in studies]
        groups = _bands(values)
        # One scoring a group and task gives all of its blocks.
        scored: dict[tuple[int, ...], dict[str, Any]] = {}

        def score(
            rows: list[int], name: str, metric: str, scored: dict[tuple[int, ...], dict[str, Any]] = scored
        ) -> dict[str, Any]:
            key = tuple(rows)
            if key not in scored:
                own = [studies[row] for row in rows]
                others = [study for row, study in enumerate(studies) if row not in set(rows)]
                part = replace(evidence, studies=own, others=others, blind=None)
                scored[key] = {}
                for task in tasks:
                    scored[key] |= _try(task, part)
            found = (scored[key].get(name) or {}).get(metric)
            return dict(found) if is_score(found) else undefined("no score in this group")

        result[field] = {}
        for name, block in blocks.items():
            if found := headline_of(name, block):
                judged = _judged(name, tasks, studies)
                told = {
                    metric: by_subgroup(
                        lambda rows, name=name, metric=metric: score(rows, name, metric), groups, judged=judged
                    )
                    for metric, value in block.items()
                    if is_score(value)
                }
                every = {m: {part: one[part] for part in ("groups", "largest_gap")} for m, one in told.items()}
                result[field][name] = {"metric": found[0]} | told[found[0]] | {"scores": every}
    return result


def by_subgroup(
    score: Callable[[list[int]], Mapping[str, Any]],
    groups: Sequence[Hashable | None],
    *,
    judged: Sequence[bool] | None = None,
    least: int = 10,
) -> dict[str, Any]:
    """One score for each group of studies, and the largest gap between groups.

    Args:
        score: indices of studies → {"value", "low", "high"}.
        groups: the group of each study (`meta["sex"]`), None where unknown.
        judged: which studies carry a label for the score; the others are not counted. None: all do.
        least: groups with fewer studies are counted but not scored.

    Returns:
        "groups" {group: score + "studies"}, "largest_gap" (value, and between which), "unknown" (studies without a
        group).
    """
    members: dict[Hashable, list[int]] = {group: [] for group in groups if group is not None}
    counted = [True] * len(groups) if judged is None else judged
    for number, group in enumerate(groups):
        if group is not None and counted[number]:
            members[group].append(number)
    scores: dict[str, dict[str, Any]] = {}
    for group in sorted(members, key=str):
        few = len(members[group]) < least
        own = undefined(f"fewer than {least} studies") if few else dict(score(members[group]))
        scores[str(group)] = own | {"studies": len(members[group])}
    known = {group: own["value"] for group, own in scores.items() if own["value"] is not None}
    gap: dict[str, Any] = {"value": None, "between": []}
    if len(known) > 1:
        best, worst = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
        gap = {"value": known[best] - known[worst], "between": [best, worst]}
    return {"groups": scores, "largest_gap": gap, "unknown": _unknown(groups, counted)}


def _unknown(groups: Sequence[Hashable | None], counted: Sequence[bool]) -> int:
    return sum(group is None and there for group, there in zip(groups, counted, strict=True))


def _judged(name: str, tasks: Sequence[Task], studies: Sequence[Study]) -> list[bool]:
    """Which studies carry a label for a block of evaluation.json; all, where the task cannot tell before it scores."""
    if name in TEXTS:
        return [bool(getattr(study, name)) for study in studies]
    for task in tasks:
        if name in (task.kind, f"{task.kind}_closed", f"{task.kind}_open"):
            own = type(task).labelled is not Task.labelled
            return [task.labelled(study) if own else True for study in studies]
    return [True] * len(studies)


def _try(task: Task, evidence: Evidence) -> dict[str, Any]:
    """A group may be too small or too plain for a score; then it has none."""
    try:
        return task.score(evidence)
    except (KeyError, ValueError):
        return {}


def _bands(values: Sequence[Any]) -> list[str | None]:
    """Groups as text; many different numbers as their quarters ("52 – 61")."""
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(set(numbers)) <= BANDS or len(numbers) < sum(value is not None for value in values):
        return [None if value is None else str(value) for value in values]
    import numpy as np

    edges = np.quantile(numbers, np.linspace(0, 1, BANDS + 1)[1:-1], method="lower").tolist()
    place = [None if value is None else sum(value > edge for edge in edges) for value in values]
    ranges = {}
    for band in sorted({band for band in place if band is not None}):
        own = [value for value, mine in zip(values, place, strict=True) if mine == band]
        ranges[band] = f"{min(own):g} – {max(own):g}"
    return [None if band is None else ranges[band] for band in place]
