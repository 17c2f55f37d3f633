"""Constrained decoding: at each step only those tokens that a grammar allows, so that what is written always parses.

A grammar is put together from `Literal`, `Either`, `Sequence` and `Repeat` over characters, turned into a finite
automaton, and walked along a trie of the tokenizer's tokens: any tokenizer works, tokens need not fall on the
grammar's boundaries. The number of tokens that each state still needs to reach the end is known, so that a text is
never cut off half-way by the longest length: where room gets short, only tokens that lead home are allowed.

Source: finite-state guided decoding as in Willard & Louf 2023 (arXiv:2307.09702), here with a bound on the length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

State = frozenset[int]


@dataclass(frozen=True)
class Literal:
    """This text."""

    text: str


@dataclass(frozen=True)
class Either:
    """One of these."""

    options: tuple[Grammar, ...]


@dataclass(frozen=True)
class Sequence:
    """These, one after the other."""

    parts: tuple[Grammar, ...]


@dataclass(frozen=True)
class Repeat:
    """None, or any number of these with a separator between them."""

    item: Grammar
    separator: Literal


Grammar = Literal | Either | Sequence | Repeat


def words(options: Iterable[str]) -> Either:
    """One of these texts."""
    return Either(tuple(Literal(text) for text in options))


def whole_number(digits: int) -> Either:
    """1, 2, …, up to so many digits, without leading zeros."""
    figure, later = words("123456789"), words("0123456789")
    return Either(tuple(Sequence((figure, *[later] * count)) for count in range(digits)))


class Automaton:
    """A grammar as a finite automaton over characters; a state is the set of places one may stand at."""

    def __init__(self, grammar: Grammar) -> None:
        self.edges: list[dict[str, set[int]]] = []
        self.free: list[set[int]] = []
        first, self.last = self._node(), self._node()
        self._add(grammar, first, self.last)
        self.start = self._closed({first})
        self._steps: dict[tuple[State, str], State] = {}

    def step(self, state: State, character: str) -> State:
        """Where a character leads; the empty set where it is not allowed."""
        if (state, character) not in self._steps:
            reached = {node for place in state for node in self.edges[place].get(character, ())}
            self._steps[state, character] = self._closed(reached)
        return self._steps[state, character]

    def characters(self, state: State) -> set[str]:
        return {character for place in state for character in self.edges[place]}

    def accepts(self, state: State) -> bool:
        return self.last in state

    def _node(self) -> int:
        self.edges.append({})
        self.free.append(set())
        return len(self.edges) - 1

    def _add(self, grammar: Grammar, start: int, end: int) -> None:
        if isinstance(grammar, Literal):
            for character in grammar.text:
                node = self._node()
                self.edges[start].setdefault(character, set()).add(node)
                start = node
            self.free[start].add(end)
        elif isinstance(grammar, Either):
            for option in grammar.options:
                self._add(option, start, end)
        elif isinstance(grammar, Sequence):
            for part in grammar.parts:
                node = self._node()
                self._add(part, start, node)
                start = node
            self.free[start].add(end)
        else:
            before, after = self._node(), self._node()
            self.free[start] |= {before, end}
            self._add(grammar.item, before, after)
            self._add(grammar.separator, after, before)
            self.free[after].add(end)

    def _closed(self, nodes: set[int]) -> State:
        """With all that is reached without a character."""
        found, open_ = set(nodes), list(nodes)
        while open_:
            for node in self.free[open_.pop()] - found:
                found.add(node)
                open_.append(node)
        return frozenset(found)


class TokenGrammar:
    """Which tokens a grammar allows in each of its states, and how many it takes to reach the end.

    Args:
        tokenizer: any; tokens that are no plain text (special ones, parts of a character) are never allowed.

    Raises:
        ValueError: the tokenizer has no tokens for some text of the grammar.
    """

    def __init__(self, grammar: Grammar, tokenizer: PreTrainedTokenizerBase) -> None:
        self.automaton = Automaton(grammar)
        self.size = len(tokenizer)
        self.trie = _trie(token_texts(tokenizer))
        self.moves: dict[State, dict[int, State]] = {}
        self._explore()
        self.needed = self._tokens_to_end()
        if self.automaton.start not in self.needed:
            raise ValueError(
                f"none of the tokenizer's {self.size} tokens spell what the grammar asks for: it lacks characters; use "
                "a byte-level tokenizer"
            )

    @property
    def shortest(self) -> int:
        """Tokens of the shortest text, the end of the sequence not counted."""
        return self.needed[self.automaton.start]

    def _explore(self) -> None:
        open_ = [self.automaton.start]
        while open_:
            state = open_.pop()
            if state in self.moves:
                continue
            self.moves[state] = dict(self._walk(self.trie, state))
            open_ += set(self.moves[state].values()) - self.moves.keys()

    def _walk(self, node: Mapping[str | None, Any], state: State) -> Iterable[tuple[int, State]]:
        for character in self.automaton.characters(state) & node.keys():
            below, reached = node[character], self.automaton.step(state, character)
            for token in below.get(None, ()):
                yield token, reached
            yield from self._walk(below, reached)

    def _tokens_to_end(self) -> dict[State, int]:
        """Fewest tokens from each state to an accepted text, by breadth-first search backwards."""
        sources: dict[State, set[State]] = {}
        for state, moves in self.moves.items():
            for reached in moves.values():
                sources.setdefault(reached, set()).add(state)
        needed = {state: 0 for state in self.moves if self.automaton.accepts(state)}
        queue = deque(needed)
        while queue:
            state = queue.popleft()
            for source in sources.get(state, ()):
                if source not in needed:
                    needed[source] = needed[state] + 1
                    queue.append(source)
        return needed

    def allowed(self, state: State, room: int) -> list[int]:
        """Tokens after which the text can still be ended within `room` tokens, the token itself counted."""
        return [token for token, to in self.moves[state].items() if self.needed.get(to, room) < room]


class GrammarProcessor:
    """A logits processor for transformers' `generate`: keeps each row inside the grammar.

    Args:
        tokens: the grammar over the model's tokenizer. stop_ids: tokens that end a text.
        max_new_tokens: as given to `generate`; a text ends within it, its end of sequence included.

    Raises:
        ValueError: `max_new_tokens` is too few for the shortest text (both numbers given).
    """

    def __init__(self, tokens: TokenGrammar, stop_ids: list[int], max_new_tokens: int) -> None:
        if max_new_tokens < tokens.shortest + 1:
            raise ValueError(
                f"the shortest text of the grammar takes {tokens.shortest + 1} tokens, max_new_tokens is "
                f"{max_new_tokens}: raise it, or use fewer visual tokens"
            )
        self.tokens, self.stop_ids, self.max_new_tokens = tokens, stop_ids, max_new_tokens
        self.states: dict[tuple[int, ...], State | None] = {(): tokens.automaton.start}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Shape: input_ids (rows, tokens written so far), scores (rows, vocabulary) → scores."""
        kept = torch.full_like(scores, -torch.inf)
        room = self.max_new_tokens - input_ids.shape[1]
        for row, ids in enumerate(input_ids.tolist()):
            state = self._state(tuple(ids))
            if state is None:  # ended: what comes is padding
                kept[row] = scores[row]
                continue
            # One token is kept back for the end of the sequence.
            allowed = self.tokens.allowed(state, room - 1)
            if self.tokens.automaton.accepts(state):
                allowed = allowed + self.stop_ids
            kept[row, allowed] = scores[row, allowed]
        return kept

    def _state(self, ids: tuple[int, ...]) -> State | None:
        if ids not in self.states:
            before = self._state(ids[:-1])
            ended = before is None or ids[-1] in self.stop_ids
            self.states[ids] = None if ended else self.tokens.moves[before][ids[-1]]
        return self.states[ids]


def token_texts(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """What each plain token adds to a text in the middle of it; tokens that hold part of a character are left out."""
    # Decoded behind another token, because many tokenizers drop a space at the start of a text.
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(anchor, **options)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    plain = [token for token in range(len(tokenizer)) if token not in special]
    texts = tokenizer.batch_decode([[*anchor, token] for token in plain], **options)
    added = {token: text[len(before) :] for token, text in zip(plain, texts, strict=True) if text.startswith(before)}
    return {token: text for token, text in added.items() if text and "\ufffd" not in text}


def _trie(texts: Mapping[int, str]) -> dict[str | None, Any]:
    """Nested dictionaries by character; None → the tokens that end there."""
    root: dict[str | None, Any] = {}
    for token, text in texts.items():
        node = root
        for character in text:
            node = node.setdefault(character, {})
        node.setdefault(None, []).append(token)
    return root
