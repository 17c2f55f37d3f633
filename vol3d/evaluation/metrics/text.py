"""BLEU-1…4 and ROUGE-1, -2, -L of whole reports: how alike the wording is, which says little about being right.

Counts are kept per study, so that the patient-clustered bootstrap is a matrix product. Equal to torchmetrics'
SacreBLEUScore (tokens "13a", lower case, no smoothing) and ROUGEScore in the tests.

Two averages are in use and differ: corpus BLEU adds the counts of all reports before dividing (sacrebleu, most
papers), M3D-Bench averages the BLEU-1 of single reports (`m3d_bleu`). Both are given.

Source: Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE), Post 2018 (tokens "13a").
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from vol3d.evaluation.intervals import clustered_bootstrap
from vol3d.evaluation.metrics.grams import Words, overlap

ORDER = 4
TEXT_METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "m3d_bleu", "rouge_1", "rouge_2", "rouge_l")
DEFINITIONS = {
    "bleu_1": "corpus BLEU, 1-grams, tokens 13a, lower case, brevity penalty, no smoothing (bleu_2…4: up to n-grams)",
    "m3d_bleu": "M3D-Bench: mean over reports of BLEU with 1-grams, tokens 13a, case kept",
    "rouge_l": "mean over reports of the F1 of the longest common subsequence of words a–z, 0–9 (rouge_1, rouge_2: of "
    "n-grams)",
}
_APART = str.maketrans({char: f" {char} " for char in '{|}~[\\]^_`!"#$%&()*+:;<=>?@/'})
_NAMED = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}
_STOP = re.compile(r"\.(?![0-9])|(?<![0-9])\.")
_COMMA = re.compile(r",(?![0-9])|(?<![0-9]),")
_DASH = re.compile(r"(?<=[0-9])-")
_WORD = re.compile(r"[a-z0-9]+")


def tokens_13a(text: str) -> list[str]:
    """Tokens of mteval-v13a, sacrebleu's default: punctuation apart, numbers kept whole."""
    text = text.replace("<skipped>", "").replace("-\n", "")  # a word that was cut at the end of its line is whole
    for name, char in _NAMED.items() if "&" in text else ():
        text = text.replace(name, char)
    text = f" {' '.join(text.split())} ".translate(_APART)
    return _DASH.sub(" - ", _COMMA.sub(" , ", _STOP.sub(" . ", text))).split()


def score_text(
    truths: Sequence[str],
    predicted: Sequence[str],
    patients: Sequence[Hashable],
    *,
    known: Texts | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The eight TEXT_METRICS, each `{"value", "low", "high"}` on a scale of 0 to 1 with a 95 % interval.

    An empty output scores 0.

    Args:
        known: these texts, already cut into words, when they are scored more than once.

    Raises:
        ValueError: the sequences differ in length, or are empty.
    """
    if not len(truths) == len(predicted) == len(patients):
        raise ValueError(
            f"{len(truths)} truths, {len(predicted)} predictions, {len(patients)} patients: give one of each a study"
        )
    statistic = TextCounts(truths, predicted, known).statistic
    people = len(set(patients))
    estimates = clustered_bootstrap(statistic, patients, trials=people, replicates=replicates, seed=seed)
    return dict(zip(TEXT_METRICS, estimates, strict=True))


class Texts:
    """Different texts, each cut into words and n-grams once, however often it is compared."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.row = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        cased, names = Words.of(map(tokens_13a, self.row))
        lower = Words.of([[name.lower() for name in names]])[0].numbers
        self.tokens = cased.lengths
        self.cased = cased.grams(1)
        self.lower = cased.renamed(lower).grams(ORDER)
        self.words, _ = Words.of(_WORD.findall(text.lower()) for text in self.row)
        self.word_grams = self.words.grams(2)

    def rows(self, texts: Sequence[str]) -> ndarray:
        return np.array([self.row[text] for text in texts], dtype=np.int64)


class TextCounts:
    """What each pair of reports adds to the text scores.

    Shape:
        bleu: (studies, 2 + 2 * ORDER): length of output, length of truth, matched n-grams, n-grams in the output.
        means: (studies, 4): BLEU-1 of the single report, ROUGE-1, ROUGE-2, ROUGE-L F1.
    """

    bleu: Float[ndarray, "studies counts"]
    means: Float[ndarray, "studies scores"]

    def __init__(self, truths: Sequence[str], predicted: Sequence[str], known: Texts | None = None) -> None:
        texts = Texts([*truths, *predicted]) if known is None else known
        pair = texts.rows(truths), texts.rows(predicted)
        lengths = [texts.tokens[side] for side in reversed(pair)]
        total = [np.maximum(lengths[0] - order, 0) for order in range(ORDER)]
        self.bleu = np.column_stack([*lengths, *(overlap(grams, *pair) for grams in texts.lower), *total])
        cased = np.column_stack([*lengths, overlap(texts.cased[0], *pair), lengths[0]])
        rouge = [
            2 * overlap(grams, *pair) / np.maximum(sum(grams.sum(1)[side] for side in pair), 1)
            for grams in texts.word_grams
        ]
        longest = [rouge_l(texts.words[truth], texts.words[said]) for truth, said in np.stack(pair, axis=1).tolist()]
        self.means = np.column_stack([bleu_score(cased, 1), *rouge, longest])

    def statistic(self, weights: ndarray) -> ndarray:
        """Study weights (replicates, studies) → (replicates, 8) in TEXT_METRICS' order."""
        sums = weights @ self.bleu
        means = weights @ self.means / weights.sum(1, keepdims=True)
        return np.column_stack([*(bleu_score(sums, order) for order in range(1, ORDER + 1)), means])


def bleu_score(counts: Float[ndarray, "rows counts"], order: int) -> Float[ndarray, " rows"]:
    """BLEU of summed counts, one score a row; 0 when an order has no match."""
    output, truth = counts[:, 0], counts[:, 1]
    orders = counts.shape[1] // 2 - 1
    matched, total = counts[:, 2 : 2 + order], counts[:, 2 + orders : 2 + orders + order]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(matched / total).mean(1))
        brevity = np.where(output < truth, np.exp(1 - truth / output), 1.0)
    return np.nan_to_num(precision * brevity, nan=0.0)


def rouge_l(truth: Sequence[Hashable], output: Sequence[Hashable]) -> float:
    """F1 of the longest common subsequence of words.

    The subsequence is counted with one big integer a report (Hyyrö 2004), a hundred times faster than the table.
    """
    where: dict[Hashable, int] = {}
    for place, word in enumerate(truth):
        where[word] = where.get(word, 0) | 1 << place
    full = (1 << len(truth)) - 1
    row = full
    for word in output:
        match = row & where.get(word, 0)
        if match:
            row = ((row + match) | (row - match)) & full
    common = len(truth) - row.bit_count()
    return 2 * common / (len(output) + len(truth)) if common else 0.0
