"""Writing: several volumes in a prompt, stop rules, streaming, beams and sampling, conversations."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from small_language import PROMPTS, volume_lm

import vol3d
from vol3d.model.generation import pieces, shared_length
from vol3d.model.interfaces import Features
from vol3d.model.language import LanguageModel
from vol3d.model.pretrained import build, save
from vol3d.model.volume_lm import VolumeLM

COMPARE = "Earlier: <volume> Now: <volume> Report:"


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 1, 8, 8, 8)


# --- several volumes -------------------------------------------------------------------------------------------


def test_two_volumes_stand_where_their_placeholders_stand() -> None:
    model = volume_lm()
    features = model.encode(images(3))
    prompts = [COMPARE, PROMPTS[0]]
    both = model.generate(features, prompts, max_new_tokens=12)
    assert model.generate(features[[0, 1]], [COMPARE], max_new_tokens=12) == both[:1]
    assert model.generate(features[[2]], [PROMPTS[0]], max_new_tokens=12) == both[1:]
    # Exchanged, they say something else; and each of both is seen.
    loss = model.language_loss(features[[0, 1]], [COMPARE], ["The liver is normal."])
    for rows in ([1, 0], [0, 2], [2, 1]):
        other = model.language_loss(features[rows], [COMPARE], ["The liver is normal."])
        assert abs(other - loss) > 1e-4


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.5}, {"repetition_penalty": 2, "num_beams": 2}])
def test_a_penalty_counts_from_the_first_token_whatever_the_neighbours(options: dict) -> None:
    """transformers spared as many new tokens as padding stood before the prompt."""
    model = volume_lm()
    with torch.no_grad():
        for parameter in model.language.parameters():
            parameter.mul_(3)  # an untrained model would hardly repeat itself
    features, prompts = model.encode(images(4)), [PROMPTS[0] + " There is a left pleural effusion.", *[PROMPTS[0]] * 3]
    together = model.generate(features, prompts, max_new_tokens=16, **options)
    assert together == [
        model.generate(features[[row]], [prompt], max_new_tokens=16, **options)[0] for row, prompt in enumerate(prompts)
    ]


def test_volumes_of_two_grids_go_into_one_prompt() -> None:
    model = volume_lm(projector=partial(vol3d.MLPProjector))
    prior, now = model.encode(torch.randn(2, 1, 8, 8, 4)), model.encode(images(2))
    seen: list[Features] = [prior[[0]], now[[0]], prior[[1]], now[[1]]]
    together = model.generate(seen, [COMPARE] * 2, max_new_tokens=8)
    assert [model.generate(seen[i : i + 2], [COMPARE], max_new_tokens=8)[0] for i in (0, 2)] == together
    ids = model.language.prompt_ids(COMPARE, [4, 8])
    assert ids.count(model.language.volume_id) == 12
    model.language_loss(seen, [COMPARE] * 2, ["The liver is normal."] * 2, pack=128).backward()


def test_prompts_and_volumes_that_do_not_match_give_both_numbers() -> None:
    model = volume_lm()
    features = model.encode(images(3))
    with pytest.raises(ValueError, match=r"2 prompts for 3 volumes: the prompts hold 4 <volume> placeholders"):
        model.generate(features, [COMPARE] * 2)
    with pytest.raises(ValueError, match=r"1 prompts for 3 volumes: the prompts hold 1"):
        model.generate(features, PROMPTS[:1])
    with pytest.raises(ValueError, match=r"prompt has 0 <volume> placeholders, needs 1"):
        model.generate(features[[0]], ["Report:"])
    with pytest.raises(ValueError, match=r"one volume at a time, a prompt holds 2"):
        model.generate_many(features, [COMPARE])


def test_a_conversation_takes_the_chat_template_and_is_refused_without_one() -> None:
    turns = [
        {"role": "user", "content": "<volume> Report:"},
        {"role": "assistant", "content": "The liver is normal."},
        {"role": "user", "content": "And this one? <volume>"},
    ]
    model = volume_lm(template=True)
    text = model.language.tokenizer.decode(model.language.prompt_ids(turns, [1, 1]))
    assert text == ("[user]<volume> Report:[assistant]The liver is normal.[user]And this one? <volume>[assistant]")
    assert len(model.generate(model.encode(images(2)), [turns], max_new_tokens=4)) == 1
    model.language.tokenizer.chat_template = "{{ raise_exception('only user and assistant') }}"
    with pytest.raises(ValueError, match=r"refuses a conversation of 3 turns \(user, assistant, user\): only user"):
        model.language.prompt_ids(turns, [1, 1])
    with pytest.raises(ValueError, match=r"conversation of 3 turns, the tokenizer has no chat template"):
        volume_lm().language.prompt_ids(turns, [1, 1])


# --- stopping, streaming, searching ------------------------------------------------------------------------------


def written(model: VolumeLM, features: Features, **options: object) -> list[str]:
    return model.generate(features, PROMPTS, max_new_tokens=20, **options)


@pytest.mark.parametrize("lean", [True, False])
def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(lean: bool) -> None:
    model = volume_lm(template=True)
    features = model.encode(images(2))
    whole = written(model, features)
    word = whole[0][4:6]
    assert written(model, features, stop=word, lean=lean) == [text.split(word)[0].strip() for text in whole]
    assert written(model, features, stop=["@@@", word], lean=lean)[0] == whole[0].split(word)[0].strip()
    assert written(model, features, stop="", lean=lean) == written(model, features, stop=[""], lean=lean) == whole


@pytest.mark.parametrize("lean", [True, False])
def test_every_token_that_the_models_settings_call_an_end_ends(lean: bool) -> None:
    """A chat model ends its turn with another token than its text."""
    model = volume_lm()
    features = model.encode(images(1))
    first = model.language.encode(model.generate(features, PROMPTS[:1], max_new_tokens=1)[0])
    model.language.causal_lm.generation_config.eos_token_id = [2, *first]
    assert model.generate(features, PROMPTS[:1], max_new_tokens=9, lean=lean) == [""]


def test_the_models_own_penalty_is_left_out_however_it_writes_and_after_saving(tmp_path: Path) -> None:
    """Qwen2.5 brings a repetition_penalty: only some ways of writing honoured it, and a saved model lost it."""
    plain = volume_lm()
    lm = plain.language.causal_lm
    lm.generation_config.update(repetition_penalty=1.5, no_repeat_ngram_size=2, top_k=1, eos_token_id=[2, 7])
    model = VolumeLM(plain.encoder, plain.projector, LanguageModel(lm, plain.language.tokenizer)).eval()
    features = model.encode(images(2))
    save(tmp_path / "model", model, {}, vol3d.Grid(spacing=(4, 4, 4), shape=(8, 8, 8), window=(-1000, 1000)))
    again = build(tmp_path / "model")[0]
    found = written(model, features)
    assert written(model, features, lean=False) == found == written(again, features)
    assert ["".join(model.stream(features[[i]], PROMPTS[i], max_new_tokens=20)) for i in range(2)] == found
    many = model.generate_many(features, PROMPTS, max_new_tokens=20)
    assert [many[i][i] for i in range(2)] == found
    assert written(model, features, num_beams=3) == written(again, features, num_beams=3)
    assert written(model, features, repetition_penalty=1.5) == written(again, features, repetition_penalty=1.5) != found
    assert model.language.stop_ids == again.language.stop_ids == [2, 7]
    drawn = []
    for made in (model, again):
        torch.manual_seed(0)
        drawn.append(written(made, features, do_sample=True))
    assert drawn[0] == drawn[1] != found


def test_what_is_streamed_joins_to_what_is_written() -> None:
    model = volume_lm(template=True)
    features = model.encode(images(1))
    whole = model.generate(features, PROMPTS[:1], max_new_tokens=24)[0]
    found = list(model.stream(features, PROMPTS[0], max_new_tokens=24))
    assert "".join(found) == whole
    assert len(found) > 3
    word = whole[5:8]
    assert "".join(model.stream(features, PROMPTS[0], max_new_tokens=24, stop=word)) == whole.split(word)[0].strip()


def test_pieces_end_at_whole_characters_and_never_show_a_stop_text() -> None:
    language = volume_lm().language
    ids = [*language.encode(" ≥ 5 µm ###x"), language.tokenizer.eos_token_id]
    found = list(pieces(language, iter(torch.tensor(ids)[:, None]), ["###"]))
    assert "".join(found) == "≥ 5 µm"
    assert not any("\ufffd" in piece or "#" in piece for piece in found)


def test_beams_find_a_likelier_text_and_sampling_repeats_with_its_seed() -> None:
    model = volume_lm(template=True)
    features = model.encode(images(2))
    beams = written(model, features, num_beams=4)
    assert [model.generate(features[[i]], [PROMPTS[i]], max_new_tokens=20, num_beams=4)[0] for i in range(2)] == beams
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(written(model, features, do_sample=True, temperature=2.0))
    assert drawn[0] == drawn[1] != written(model, features)


def test_a_streamer_of_transformers_gets_the_tokens() -> None:
    class Streamer:
        tokens = 0

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.numel()

        def end(self) -> None:
            self.ended = True

    model, streamer = volume_lm(), Streamer()
    model.generate(model.encode(images(1)), PROMPTS[:1], max_new_tokens=6, streamer=streamer)
    assert streamer.ended
    assert streamer.tokens == 6


def test_a_full_window_gives_both_lengths() -> None:
    model = volume_lm()
    with pytest.raises(ValueError, match=r"the prompt takes \d{3} tokens, the language model holds 256: use fewer"):
        model.generate(model.encode(images(1)), ["<volume>" + "liver " * 250])


def test_prompts_share_what_they_have_in_common_and_keep_a_token_of_their_own() -> None:
    assert shared_length([[1, 2, 3, 4], [1, 2, 5, 6]]) == 2
    assert shared_length([[1, 2, 3], [1, 2, 3, 4]]) == 2
    assert shared_length([[1], [1]]) == 0


def test_many_prompts_read_the_volume_once() -> None:
    model = volume_lm()
    features, lengths = model.encode(images(1)), []
    inner = model.language.causal_lm.get_decoder()
    inner.register_forward_pre_hook(lambda *call: lengths.append(call[2]["inputs_embeds"].shape[:2]), with_kwargs=True)
    prompts = [f"<volume>Report of the {organ}:" for organ in ("liver", "spleen", "left lung")]
    model.generate_many(features, prompts, max_new_tokens=4)
    assert lengths[0][0] == 1
    assert lengths[0][1] >= 4 + len(model.language.encode("<bos>Report of the"))
    assert lengths[1][0] == 3
    assert lengths[1][1] <= len(model.language.encode(" spleen:")) + 1
    # Where they part before the volume, each is read whole, with the same answers as one by one.
    early = [f"{organ}: <volume>Report" for organ in ("liver", "spleen")]
    apart = [model.generate(features, [prompt], max_new_tokens=4)[0] for prompt in early]
    assert model.generate_many(features, early, max_new_tokens=4) == [apart]
