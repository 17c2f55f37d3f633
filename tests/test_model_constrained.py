"""Constrained decoding: the grammar by hand, and JSON that always parses, whatever the model would rather say."""

import json
import re
from functools import partial

import pytest
import torch

import vol3d
from vol3d.model.constrained import (
    Automaton,
    Either,
    GrammarProcessor,
    Literal,
    Repeat,
    Sequence,
    TokenGrammar,
    token_texts,
    whole_number,
    words,
)
from vol3d.tasks import StructuredReport
from vol3d.text.structured import from_json

TEXTS = ['Small left pleural effusion, 12 mm. [{"finding": "ascites", "side": null, "size_mm": null}]', "Normal."]


def accepted(grammar, text: str) -> bool:
    automaton = Automaton(grammar)
    state = automaton.start
    for character in text:
        state = automaton.step(state, character)
    return automaton.accepts(state)


@pytest.mark.parametrize(
    ("text", "fits"),
    [("[]", True), ("[a]", True), ("[a, b, a]", True), ("[a,b]", False), ("[a, ]", False), ("[", False), ("", False)],
)
def test_a_repeat_has_separators_between_and_nothing_else(text: str, fits: bool) -> None:
    grammar = Sequence((Literal("["), Repeat(words("ab"), Literal(", ")), Literal("]")))
    assert accepted(grammar, text) is fits


def test_whole_numbers() -> None:
    found = [text for text in ("0", "1", "07", "10", "999", "1000", "", "1.5") if accepted(whole_number(3), text)]
    assert found == ["1", "10", "999"]


@pytest.fixture(scope="module")
def language() -> vol3d.LanguageModel:
    torch.manual_seed(0)
    return vol3d.LanguageModel.scratch(TEXTS, embed_dim=32, depth=1, num_heads=2, vocab_size=330, max_length=512).eval()


def test_token_texts_join_to_the_text(language: vol3d.LanguageModel) -> None:
    texts = token_texts(language.tokenizer)
    ids = language.encode(TEXTS[0])
    assert "".join(texts[token] for token in ids) == TEXTS[0]
    assert not {*language.tokenizer.all_special_ids} & texts.keys()


def test_the_tokens_needed_are_the_shortest_way_home(language: vol3d.LanguageModel) -> None:
    grammar = TokenGrammar(Either((Literal("Normal."), Literal("zqx"))), language.tokenizer)
    texts = set(token_texts(language.tokenizer).values())
    # "Normal." merges into few tokens, "zqx" never occurred and takes three; whichever is shorter counts.
    assert grammar.shortest == min(3, len(language.encode("Normal.")))
    assert "zq" not in texts


def walk(tokens: TokenGrammar, stop: int, room: int, seed: int) -> list[int]:
    """What a model with random preferences writes within `room` tokens."""
    processor, ids = GrammarProcessor(tokens, [stop], room), []
    generator = torch.Generator().manual_seed(seed)
    for _ in range(room):
        scores = torch.randn(1, tokens.size, generator=generator)
        token = int(processor(torch.tensor([ids], dtype=torch.long), scores).argmax())
        if token == stop:
            return ids
        ids.append(token)
    raise AssertionError(f"no end within {room} tokens")


@pytest.mark.parametrize("room", [12, 60, 200])
def test_random_preferences_always_give_json_of_the_schema(room: int, language: vol3d.LanguageModel) -> None:
    task = StructuredReport(model_of(language), findings=["pleural effusion", "ascites", "renal stone"])
    tokens = task.tokens(language.tokenizer)
    stop, longest = language.tokenizer.eos_token_id, 0
    for seed in range(12):
        text = language.tokenizer.decode(walk(tokens, stop, room, seed))
        rows = from_json(text)
        longest = max(longest, len(rows))
        for row in json.loads(text):
            assert row["finding"] in task.findings
            assert row["side"] is None or row["finding"] != "ascites"
            assert row["size_mm"] is None or (row["finding"] == "renal stone" and 1 <= row["size_mm"] <= 999)
    assert (longest > 0) == (room > 12)


def test_too_little_room_gives_both_numbers(language: vol3d.LanguageModel) -> None:
    tokens = TokenGrammar(Literal("zqxzqxzqx"), language.tokenizer)
    with pytest.raises(ValueError, match=r"takes 10 tokens, max_new_tokens is 9"):
        GrammarProcessor(tokens, [language.tokenizer.eos_token_id], 9)


def test_a_grammar_without_tokens_is_refused(language: vol3d.LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"none of the tokenizer's \d+ tokens"):
        TokenGrammar(Literal("\ufffd"), language.tokenizer)


def model_of(language: vol3d.LanguageModel) -> vol3d.VolumeLM:
    encoder = vol3d.encoders.create("vit3d-tiny", embed_dim=24, depth=1, num_heads=2, patch_size=(4, 4, 4))
    return vol3d.VolumeLM(encoder, partial(vol3d.PerceiverProjector, num_latents=4, num_heads=2), language).eval()


def test_an_untrained_model_writes_valid_json_in_a_batch(language: vol3d.LanguageModel) -> None:
    """And without the grammar it does not."""
    from pathlib import Path

    from vol3d.data.batch import Batch
    from vol3d.data.study import Study

    model = model_of(language)
    studies = [Study(study=f"s{number}", image=Path("none.nii.gz")) for number in range(3)]
    torch.manual_seed(1)
    features = model.encode(torch.randn(3, 1, 8, 8, 8))
    batch = Batch(studies, torch.zeros(3, 1, 8, 8, 8), torch.eye(4, dtype=torch.float64).repeat(3, 1, 1))
    rows = StructuredReport(model, max_new_tokens=90).predict(model, features, batch)
    assert [set(row) for row in rows] == [{"structured"}] * 3
    free = model.generate(features, ["<volume>JSON:"] * 3, max_new_tokens=90)
    assert not any(re.fullmatch(r"\[.*\]", text, re.DOTALL) for text in free)


def test_a_list_closes_within_its_own_room_whatever_the_neighbours(language: vol3d.LanguageModel) -> None:
    """A neighbour's long prior report leaves fewer tokens for its list alone."""
    from pathlib import Path

    from vol3d.data.batch import Batch
    from vol3d.data.study import Study

    model = model_of(language)
    image = Path("none.nii.gz")
    studies = [Study("a", image), Study("b", image, meta={"prior_report": "The liver is normal. " * 8})]
    torch.manual_seed(1)
    features = model.encode(torch.randn(2, 1, 8, 8, 8))
    batch = Batch(studies, torch.zeros(2, 1, 8, 8, 8), torch.eye(4, dtype=torch.float64).repeat(2, 1, 1))
    task = StructuredReport(model, prior=True, max_new_tokens=100_000)
    rooms: list[int] = []
    write = model.generate
    model.generate = lambda *given, **options: rooms.append(options["max_new_tokens"]) or write(*given, **options)
    together = task.predict(model, features, batch)
    assert together == [task.predict(model, features[[row]], batch.select([row]))[0] for row in range(2)]
    assert sorted(rooms[:2]) == sorted(rooms[2:])
    assert len(set(rooms)) == 2
