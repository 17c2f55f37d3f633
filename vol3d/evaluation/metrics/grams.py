"""Words of many texts as numbers, so that n-grams of ten thousand pairs of reports are compared at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.sparse import csr_array

Rows = Int[ndarray, " pairs"]


class Words:
    """Each text's words as numbers, equal for equal words.

    Shape:
        numbers: (words,), text behind text. lengths: (texts,).
    """

    def __init__(self, numbers: Int[ndarray, " words"], lengths: Int[ndarray, " texts"]) -> None:
        self.numbers, self.lengths = numbers, lengths
        self._ends = np.cumsum(lengths)

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]]) -> tuple[Words, list[str]]:
        """The texts' words, and what each number stands for."""
        vocabulary: defaultdict[str, int] = defaultdict()
        vocabulary.default_factory = vocabulary.__len__
        parts = [np.array([vocabulary[word] for word in words], dtype=np.int64) for words in texts]
        lengths = np.array([len(part) for part in parts], dtype=np.int64)
        return cls(np.concatenate([*parts, np.empty(0, np.int64)]), lengths), list(vocabulary)

    def renamed(self, numbers: Int[ndarray, " vocabulary"]) -> Words:
        """The same texts with other numbers for the words: equal ones where two words shall be the same."""
        return Words(numbers[self.numbers], self.lengths)

    def __getitem__(self, text: int) -> list[int]:
        return self.numbers[self._ends[text] - self.lengths[text] : self._ends[text]].tolist()

    def grams(self, orders: int) -> list[csr_array]:
        """For n = 1…orders, how often each n-gram occurs in each text, (texts, n-grams)."""
        text = np.repeat(np.arange(len(self.lengths)), self.lengths)
        left = np.repeat(self._ends, self.lengths) - np.arange(len(self.numbers))
        gram, width = self.numbers, int(self.numbers.max(initial=0)) + 1
        counts = []
        for order in range(1, orders + 1):
            start = np.flatnonzero(left >= order)
            pair = gram[start] if order == 1 else gram[start] * width + self.numbers[start + order - 1]
            kinds, kind = np.unique(pair, return_inverse=True)
            counts.append(csr_array((np.ones(len(kind)), (text[start], kind)), shape=(len(self.lengths), len(kinds))))
            gram = np.zeros_like(gram)
            gram[start] = kind
        return counts


def overlap(counts: csr_array, first: Rows, second: Rows) -> Float[ndarray, " pairs"]:
    """How many n-grams each pair of texts shares, each as often as it occurs in both."""
    return np.asarray(counts[first].minimum(counts[second]).sum(1))
