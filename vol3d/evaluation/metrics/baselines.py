"""What a score has to beat: the same outputs for the wrong studies, and answers that look at no image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar

import numpy as np

Output = TypeVar("Output")
Value = TypeVar("Value", str, int)

NORMAL_REPORT = "FINDINGS:\nNo abnormality.\n\nIMPRESSION:\nNormal examination."


def blind(predictions: Sequence[Output], patients: Sequence[Hashable], seed: int = 0) -> list[Output]:
    """The same outputs dealt to other patients' studies: what the model scores without looking.

    Study i gets the output of a study of another patient, and every output is used once. Patients are laid out in
    random order, studies of one patient side by side, and the row is turned by at least the largest patient.

    Raises:
        ValueError: one patient has more than half of the studies, so that no such deal exists.
    """
    if len(predictions) != len(patients):
        raise ValueError(f"{len(predictions)} predictions, {len(patients)} patients: give one patient a study")
    studies = len(patients)
    if not studies:
        return []
    rng = np.random.default_rng(seed)
    groups: dict[Hashable, list[int]] = {}
    for number, patient in enumerate(patients):
        groups.setdefault(patient, []).append(number)
    largest = max(groups, key=lambda patient: len(groups[patient]))
    most = len(groups[largest])
    if 2 * most > studies:
        raise ValueError(
            f"patient {largest!r} has {most} of {studies} studies: the blind baseline deals every output to another "
            "patient, so no patient may have more than half; evaluate on more patients"
        )
    members = list(groups.values())
    row = [number for place in rng.permutation(len(members)) for number in members[place]]
    turn = int(rng.integers(most, studies - most + 1))
    dealt: list[Output] = list(predictions)
    for place, number in enumerate(row):
        dealt[number] = predictions[row[(place + turn) % studies]]
    return dealt


def always_normal(count: int, reports: Sequence[str] = (), keys: Sequence[AbstractSet[str]] = ()) -> list[str]:
    """The most common report without a finding, for every study; a fixed normal report when there is none.

    Args:
        reports, keys: training reports and their finding keys, from which the normal wording is taken.
    """
    normal = [report for report, found in zip(reports, keys, strict=True) if not found]
    return text_prior(normal, count) if normal else [NORMAL_REPORT] * count


def text_prior(answers: Sequence[str], count: int) -> list[str]:
    """The most common answer (of training, or of the truths when nothing else is at hand), for every study."""
    if not answers:
        raise ValueError(f"0 answers to take the most common of, for {count} studies: give the training reports")
    return [most_common(answers)] * count


def key_prior(keys: Sequence[AbstractSet[str]], count: int) -> list[frozenset[str]]:
    """The most common set of finding keys, for every study."""
    sets = {"\n".join(sorted(found)): frozenset(found) for found in keys}
    return [sets[most_common("\n".join(sorted(found)) for found in keys)]] * count


def most_common(values: Iterable[Value]) -> Value:
    """The value that occurs most often; of several the smallest, so that no order of rows decides."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def unique_share(texts: Sequence[str]) -> float:
    """Share of different texts among all: near 1 / len(texts) when a model says the same whatever it sees."""
    return len({" ".join(text.split()) for text in texts}) / len(texts) if texts else float("nan")


def collapse(texts: Sequence[str], truths: Sequence[str] = ()) -> dict[str, Any]:
    """Does the model repeat itself?

    Returns:
        "unique_share", "most_common_share", "empty" (texts without a word), and "truth_unique_share" beside it:
        reports of normal studies are alike in truth, too. "collapsed" is true when the most common text makes up
        more than half of the outputs and more than twice its share in truth.
    """
    top = Counter(" ".join(text.split()) for text in texts).most_common(1)
    result: dict[str, Any] = {
        "unique_share": unique_share(texts) if texts else None,
        "most_common_share": top[0][1] / len(texts) if texts else None,
        "empty": sum(not text.strip() for text in texts),
    }
    truth_share = 0.0
    if truths:
        result["truth_unique_share"] = unique_share(truths)
        truth_share = Counter(" ".join(text.split()) for text in truths).most_common(1)[0][1] / len(truths)
    share = result["most_common_share"] or 0.0
    return result | {"collapsed": len(texts) > 1 and share > max(0.5, 2 * truth_share)}
