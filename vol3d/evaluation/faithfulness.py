"""Does the report follow the image? Pairs of volumes that differ in one thing, and exams that do not exist.

A twin differs from its study in exactly one finding (`vol3d.phantom`): removed, moved to the other side, added or
resized. A faithful model changes that finding and nothing else. The four shares TU, IG, SB and ID are BEAF's
(Ye-Bin et al. 2024, arXiv:2407.13442), asked of reports instead of yes/no questions.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vol3d.evaluation.controls import against_control, verdict
from vol3d.evaluation.intervals import share, undefined
from vol3d.evaluation.metrics.findings import split_side

if TYPE_CHECKING:
    from vol3d.data.study import Study

Change = Literal["remove", "add", "swap", "resize"]
_OPPOSITE = {"left": "right", "right": "left"}
_PRIOR = re.compile(
    r"\b(?:(?:compar(?:ed|ison)|since|than|from)\b[^.]{0,30}\b(?:prior|previous|earlier|last)\b"
    r"|(?:un|inter)changed\b|interval (?:in|de)crease|interval (?:development|resolution|change|growth)"
    r"|previously (?:seen|noted|described|demonstrated)|again (?:seen|noted|demonstrated)"
    r"|(?:has|have) (?:in|de)creased|new since|stable (?:compared|since|appearance|in size))",
    re.IGNORECASE,
)

DEFINITIONS = {
    "changed": "share of pairs whose changed finding changes accordingly in the output: removed, it is reported "
    "before and not after; moved, it is reported on the old side before and on the new side after; BEAF's TU. "
    "Control: the two outputs exchanged",
    "unchanged": "share of pairs in which all other finding keys are the same before and after",
    "both": "share of pairs with both",
    "sb": "stubborn: the changed finding is reported alike before and after",
    "ig": "ignorant: wrong before and wrong after",
    "id": "indecisive: share of the other findings mentioned in either output that come or go although nothing of "
    "them changed",
}


@dataclass(frozen=True)
class TwinPair:
    """What a model said of a study and of its twin.

    `key` is the finding that differs ("left pleural effusion"): present in the study, except for change "add",
    where it is present in the twin. For "swap" the twin has it on the other side. `sizes_mm` are the sizes read
    from the two outputs and `true_sizes_mm` those of the two truths; only "resize" needs them.
    """

    study: str
    twin: str
    patient: str
    change: Change
    key: str
    before: frozenset[str]
    after: frozenset[str]
    sizes_mm: tuple[float, float] | None = None
    true_sizes_mm: tuple[float, float] | None = None

    @property
    def touched(self) -> frozenset[str]:
        """The keys that may differ between the two outputs."""
        return frozenset({self.key, swap_side(self.key)} if self.change == "swap" else {self.key})

    @property
    def expected(self) -> tuple[frozenset[str], frozenset[str]]:
        """The touched keys a right report has before and after."""
        here = frozenset({self.key})
        after = {"remove": frozenset(), "add": here, "swap": frozenset({swap_side(self.key)}), "resize": here}
        return (frozenset() if self.change == "add" else here), after[self.change]

    @property
    def right(self) -> tuple[bool, bool]:
        """Is the changed finding told rightly before, and after?"""
        before, after = self.expected
        return self.before & self.touched == before, self.after & self.touched == after

    @property
    def changed(self) -> bool | None:
        """Did the output follow the change? None when a resize cannot be judged (no size in the outputs)."""
        if self.change == "resize":
            if self.sizes_mm is None or self.true_sizes_mm is None:
                return None
            (a, b), (c, d) = self.sizes_mm, self.true_sizes_mm
            return bool((b - a) * (d - c) > 0)
        return all(self.right)

    @property
    def crossed(self) -> bool:
        """Would the outputs, exchanged, have followed the change? As likely as `changed` when nothing was looked at."""
        return replace(
            self,
            before=self.after,
            after=self.before,
            sizes_mm=None if self.sizes_mm is None else self.sizes_mm[::-1],
        ).changed is True  # fmt: skip

    @property
    def others(self) -> tuple[int, int]:
        """Of the untouched findings in either output: how many came or went, and how many there are."""
        before, after = self.before - self.touched, self.after - self.touched
        return len(before ^ after), len(before | after)


def swap_side(key: str) -> str:
    """ "right pleural effusion" for "left pleural effusion"; a key without side is its own mirror image."""
    side, name = split_side(key)
    return f"{_OPPOSITE[side]} {name}" if side else key


def twin_pairs(studies: Iterable[Study], keys: Mapping[str, AbstractSet[str]]) -> list[TwinPair]:
    """The pairs of a manifest: rows whose meta says `twin_of`, `changed` (key) and `change`.

    Args:
        studies: manifest rows, twins among them.
        keys: finding keys of the output, by study name.

    Raises:
        ValueError: a twin or its original has no prediction.
    """
    pairs = []
    for study in studies:
        original = (study.meta or {}).get("twin_of")
        if original is None:
            continue
        for name in (original, study.study):
            if name not in keys:
                raise ValueError(f"twin pair {original!r} / {study.study!r}: no prediction for {name!r}; predict both")
        pairs.append(
            TwinPair(
                study=original,
                twin=study.study,
                patient=study.patient,
                change=study.meta["change"],
                key=study.meta["changed"],
                before=frozenset(keys[original]),
                after=frozenset(keys[study.study]),
            )
        )
    return pairs


def twin_consistency(pairs: Sequence[TwinPair], *, replicates: int = 1000, seed: int = 0) -> dict[str, Any]:
    """How often the changed finding changes in the output, and how often nothing else does.

    "changed" stands beside its control (`vol3d.evaluation.controls`), the same two outputs exchanged.

    Returns:
        "changed", "unchanged", "both", "sb", "ig", "id" (DEFINITIONS), each with a 95 % interval clustered on
        patients; "judged", ["changed"] unless too few patients have a twin; "caught", the same where it does not lie
        above its control; "pairs" (how many), "not_judged" (resized pairs without sizes), "by_change" {change:
        {"changed", "unchanged", "pairs"}}.
    """
    if not pairs:
        return {name: undefined("no twin pairs") for name in ("changed", "unchanged", "both")} | {"pairs": 0}
    result: dict[str, Any] = _shares(pairs, replicates, seed)
    result["changed"] = against_control(
        [float(pair.changed is True) for pair in pairs],
        [float(pair.crossed) for pair in pairs],
        [float(pair.changed is not None) for pair in pairs],
        [pair.patient for pair in pairs],
        replicates=replicates,
        seed=seed,
    )
    said = verdict(result["changed"])
    result["judged"] = [] if said == "not judged" else ["changed"]
    result["caught"] = ["changed"] if said == "caught" else []
    result["pairs"] = len(pairs)
    result["not_judged"] = sum(pair.changed is None for pair in pairs)
    result["by_change"] = {}
    for change in sorted({pair.change for pair in pairs}):
        some = [pair for pair in pairs if pair.change == change]
        shares = _shares(some, replicates, seed)
        result["by_change"][change] = {name: shares[name] for name in ("changed", "unchanged")} | {"pairs": len(some)}
    return result


def _shares(pairs: Sequence[TwinPair], replicates: int, seed: int) -> dict[str, dict[str, Any]]:
    patients = [pair.patient for pair in pairs]
    changed = np.array([pair.changed is True for pair in pairs], dtype=np.float64)
    judged = np.array([pair.changed is not None for pair in pairs], dtype=np.float64)
    keyed = np.array([pair.change != "resize" for pair in pairs], dtype=np.float64)
    right = np.array([pair.right for pair in pairs])
    moved, others = np.array([pair.others for pair in pairs], dtype=np.float64).T
    alike = np.array([pair.before & pair.touched == pair.after & pair.touched for pair in pairs])
    steady = (moved == 0).astype(np.float64)
    counts = {
        "changed": (changed, judged),
        "unchanged": (steady, np.ones(len(pairs))),
        "both": (changed * steady, judged),
        "sb": (keyed * alike, keyed),
        "ig": (keyed * ~right.any(1) * ~alike, keyed),
        "id": (moved, others),
    }
    return {
        name: share(hits, totals, patients, replicates=replicates, seed=seed) for name, (hits, totals) in counts.items()
    }


def prior_mentions(
    reports: Sequence[str],
    patients: Sequence[Hashable],
    has_prior: Sequence[bool] | None = None,
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Share of reports that compare with an earlier exam although there is none, with a 95 % interval."""
    without = np.ones(len(reports)) if has_prior is None else 1.0 - np.array(has_prior, dtype=np.float64)
    said = np.array([bool(_PRIOR.search(report)) for report in reports], dtype=np.float64)
    return share(said * without, without, patients, replicates=replicates, seed=seed)
