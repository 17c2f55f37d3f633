"""Single studies on the page: three pictures, and the truth beside the output with what agrees and what does not."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy import ndarray

from vol3d.evaluation.metrics.findings import study_f1

_PLANES = ("Axial", "Coronal", "Sagittal")
_EDGES = (("R", "L"), ("R", "L"), ("A", "P"))
_TRUE, _PREDICTED = (255, 176, 32), (64, 190, 255)
_HEADER = re.compile(r"^\s*(?:[A-Z][A-Z ]+|[A-Z][A-Za-z ,/&-]{2,40}):\s*")
_SENTENCE = re.compile(r"\s*\S.*?(?:[.!?](?=\s|$)|$)\s*")


@dataclass
class Case:
    """One study on the page.

    Args:
        slices: axial, coronal and sagittal uint8 pictures, (rows, columns), as `vol3d.evaluation.slices` makes them.
        truth, generated: the two reports.
        truth_keys, predicted_keys: their finding keys.
        overlays: three boolean pictures of the same sizes, the truth's mask, drawn as an orange outline.
        predicted_overlays: the same of the model's mask, drawn in blue.
        heads: what stands above the two texts.
        outlined: what the outlines are of ("spleen, Dice 0.91").
        note: why this case is shown ("best", "median", "worst", "twin of …").
        window: which HU window the pictures have.
        meta: what else to say of the study ({"age": 61}).
    """

    study: str
    slices: Sequence[ndarray]
    truth: str
    generated: str
    truth_keys: set[str]
    predicted_keys: set[str]
    overlays: Sequence[ndarray] | None = None
    predicted_overlays: Sequence[ndarray] | None = None
    heads: tuple[str, str] = ("TRUE REPORT", "GENERATED REPORT")
    outlined: str = ""
    note: str = ""
    window: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


def choose_cases(
    truths: Sequence[AbstractSet[str]],
    predicted: Sequence[AbstractSet[str]],
    count: int = 8,
    seed: int = 0,
    *,
    scores: Sequence[float] | None = None,
) -> list[tuple[int, str]]:
    """Which studies to show: the worst, the median, the best by their F1, and some at random, a quarter each.

    Studies with more findings come first where F1 is the same, since they show more. No study comes twice.

    Args:
        scores: rank by these instead of by F1.

    Returns:
        (index, "worst" / "median" / "best" / "random"), in this order.
    """
    rng = np.random.default_rng(seed)
    chance = rng.permutation(len(truths))
    marks = list(scores) if scores is not None else [study_f1(*pair) for pair in zip(truths, predicted, strict=True)]
    order = sorted(range(len(truths)), key=lambda i: (marks[i], -len(truths[i] | predicted[i]), chance[i]))
    best = sorted(order, key=lambda i: (-marks[i], -len(truths[i]), chance[i]))
    median = marks[order[len(order) // 2]] if order else 0.0
    near = sorted(best, key=lambda i: abs(marks[i] - median))
    chosen: dict[int, str] = {}
    each = -(-count // 4)
    for note, ranked in (("worst", order), ("median", near), ("best", best), ("random", list(np.argsort(chance)))):
        fresh = [int(i) for i in ranked if int(i) not in chosen]
        chosen |= dict.fromkeys(fresh[: min(each, count - len(chosen))], note)
    return list(chosen.items())


def case_view(case: Case) -> dict[str, Any]:
    """What the template needs of a case.

    Raises:
        ValueError: not three two-dimensional uint8 pictures (the study is named).
    """
    if len(case.slices) != 3 or any(plane.ndim != 2 or plane.dtype != np.uint8 for plane in case.slices):
        got = ", ".join(f"{plane.shape} {plane.dtype}" for plane in case.slices)
        raise ValueError(
            f"study {case.study!r}: 3 two-dimensional uint8 pictures are needed, got {len(case.slices)} ({got}): "
            "make them with vol3d.evaluation.slices.slices"
        )
    truth, output = case.truth_keys, case.predicted_keys
    return {
        "study": case.study,
        "note": case.note,
        "window": case.window,
        "meta": ", ".join(f"{name} {value}" for name, value in case.meta.items()),
        "pictures": _pictures(case),
        "heads": case.heads,
        "outlined": case.outlined,
        "kinds": [case.overlays is not None, case.predicted_overlays is not None],
        "truth": mark(case.truth, truth, output, "missed"),
        "generated": mark(case.generated, output, truth, "invented"),
        "agreeing": sorted(truth & output),
        "missed": sorted(truth - output),
        "invented": sorted(output - truth),
    }


def mark(
    text: str,
    own: AbstractSet[str],
    other: AbstractSet[str],
    otherwise: str,
    keys_of: Callable[[str], AbstractSet[str]] | None = None,
) -> list[list[tuple[str, str]]]:
    """Lines of (piece, class): "agree" when all a sentence says stands in the other report too, else `otherwise`.

    Section headers have the class "head", other sentences without a finding the class "". A sentence with both
    kinds of finding gets `otherwise`, so that no disagreement hides behind an agreement.
    """
    if keys_of is None:
        from vol3d.text.parser import finding_keys

        keys_of = finding_keys
    lines = []
    for line in text.strip().splitlines():
        header = _HEADER.match(line)
        pieces = [(header.group(), "head")] if header else []
        for sentence in _SENTENCE.findall(line[header.end() :] if header else line):
            found = set(keys_of(sentence)) & own
            said = sentence.rstrip()
            pieces.append((said, "" if not found else "agree" if found <= other else otherwise))
            pieces.append((sentence[len(said) :], ""))
        lines.append([piece for piece in pieces if piece[0]])
    return lines


def _pictures(case: Case) -> list[dict[str, Any]]:
    none = (None, None, None)
    pairs = zip(case.overlays or none, case.predicted_overlays or none, strict=True)
    return [
        {
            "name": name,
            "source": _data_uri(plane, true, said),
            "width": plane.shape[1],
            "height": plane.shape[0],
            "grow": round(plane.shape[1] / plane.shape[0], 4),
            "edges": edges,
        }
        for name, plane, (true, said), edges in zip(_PLANES, case.slices, pairs, _EDGES, strict=True)
    ]


def _data_uri(plane: ndarray, true: ndarray | None, said: ndarray | None) -> str:
    """The truth's outline lies around its mask, the model's inside its own, so that neither hides the other."""
    from PIL import Image
    from scipy.ndimage import binary_dilation, binary_erosion

    plane = np.repeat(plane[..., None], 3, axis=2)
    if true is not None:
        plane[binary_dilation(true) & ~true] = _TRUE
    if said is not None:
        plane[said & ~binary_erosion(said)] = _PREDICTED
    if (plane == plane[..., :1]).all():
        plane = plane[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(plane)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
