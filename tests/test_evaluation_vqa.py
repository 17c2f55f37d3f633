"""Questions: how answers are read, and where M3D-Bench's reading differs."""

import pytest

from vol3d.evaluation.metrics.vqa import (
    m3d_substring_correct,
    plain,
    read_choice,
    score_closed,
    score_open,
    score_questions,
    token_f1,
)

CHOICES = ["Left kidney", "Right kidney", "Liver", "The spleen"]


@pytest.mark.parametrize(
    ("output", "choice"),
    [
        ("B", 1), ("B.", 1), ("(B)", 1), ("b", None), ("B. Right kidney", 1), ("Answer: C", 2), ("The answer is D.", 3),
        ("right kidney", 1), ("It is the right kidney.", 1), ("spleen", 3), ("Liver", 2), ("Left or right kidney", 1),
        ("A. B. C. D.", None), ("A. Left kidney B. Right kidney", None), ("", None), ("the pancreas", None),
        ("left kidney and liver", None), ("E. heart", None), ("A mass is seen", None),
    ],
)  # fmt: skip
def test_reading_a_choice(output, choice):
    assert read_choice(output, CHOICES) == choice


STANFORD = ["Haematoma", "Dissection (Stanford B)", "Dissection (Stanford A)", "≥ 5 mm", "< 5 mm"]


@pytest.mark.parametrize("place", range(5))
def test_a_choice_that_ends_in_another_ones_letter_is_read(place):
    words, letter = STANFORD[place], "ABCDE"[place]
    for said in (words, f"{letter}. {words}", f"({letter}) {words}", f"Answer: {letter}. {words}"):
        assert read_choice(said, STANFORD) == place, said
    assert read_choice("D. Dissection (Stanford B)", STANFORD) is None
    assert read_choice("mm 5", STANFORD) is None
    asked = {"s": [{"question": "What?", "answer": words, "choices": STANFORD}]}
    got = score_questions(asked, {"s": [{"answer": words}]}, {"s": "p"}, replicates=5)["vqa_closed"]
    assert [got[name]["value"] for name in ("accuracy", "readable", "m3d_substring_accuracy")] == [1, 1, 1]


def test_m3d_counts_an_output_that_lists_every_letter():
    outputs, answers = ["A. B. C. D.", "B", "B. Right kidney"], [2, 1, 1]
    assert [m3d_substring_correct(o, a) for o, a in zip(outputs, answers, strict=True)] == [True, False, True]
    got = score_closed(outputs, [CHOICES] * 3, answers, list("abc"), replicates=50)
    assert got["accuracy"]["value"] == pytest.approx(2 / 3)
    assert got["m3d_substring_accuracy"]["value"] == pytest.approx(2 / 3)
    assert got["readable"]["value"] == pytest.approx(2 / 3)
    assert got["baselines"]["chance"]["accuracy"] == 0.25
    assert got["baselines"]["text_prior"]["accuracy"] == pytest.approx(2 / 3)


def test_a_choice_behind_z_is_read_by_its_words():
    choices = [f"segment {number}" for number in range(40)]
    got = score_closed([choices[30], choices[3]], [choices] * 2, [30, 3], "ab", blind_outputs=["x", choices[30]])
    assert got["accuracy"]["value"] == got["readable"]["value"] == 1
    assert got["m3d_substring_accuracy"]["value"] == 0.5, "M3D-Bench knows choices by letters alone"


def test_blind_of_one_patient_is_undefined():
    got = score_closed(["A", "B"], [CHOICES] * 2, [0, 1], ["a", "a"], replicates=10)
    assert got["accuracy"]["value"] == 1
    assert "2 of 2 studies" in got["baselines"]["blind"]["note"]


def test_a_model_that_always_says_the_same_is_no_better_than_blind():
    got = score_closed(["A"] * 8, [CHOICES] * 8, [0, 1] * 4, list("abcdefgh"), replicates=10)
    assert got["accuracy"]["value"] == got["baselines"]["blind"]["accuracy"] == 0.5


def test_open_answers():
    got = score_open(["The left kidney.", "2 cm"], ["left kidney", "three cm"], ["a", "b"], replicates=20)
    assert got["exact_match"]["value"] == 0.5
    assert got["token_f1"]["value"] == pytest.approx((1 + 0.5) / 2)
    assert 0 < got["bleu_1"]["value"] < 1
    assert got["baselines"]["text_prior"]["exact_match"] == 0.5
    assert {"bleu_1", "rouge_l", "m3d_bleu", "token_f1"} <= got["baselines"]["text_prior"].keys()


def test_what_training_never_answered_is_guessed_by_the_most_common_truth():
    closed = [{"question": f"Q{n}?", "choices": CHOICES[:2], "answer": CHOICES[n == 3]} for n in range(4)]
    opened = [{"question": f"O{n}?", "answer": "a cyst" if n < 3 else "a stone"} for n in range(4)]
    asked = {f"s{n}": [closed[n], opened[n]] for n in range(4)}
    said = {study: [{"answer": CHOICES[1]}, {"answer": "no"}] for study in asked}
    # Of four questions training knows one, another with answers that are no choice here.
    training = [closed[3], {**closed[0], "answer": "neither"}, opened[3]]
    got = score_questions(asked, said, {study: study for study in asked}, training=training, replicates=5)
    assert got["vqa_closed"]["baselines"]["text_prior"]["accuracy"] == 1.0
    assert got["vqa_open"]["baselines"]["text_prior"]["exact_match"] == 1.0
    none = score_questions(asked, said, {study: study for study in asked}, replicates=5)
    assert none["vqa_closed"]["baselines"]["text_prior"]["accuracy"] == 0.75


def test_words():
    assert plain("The  Left-sided, a mass.") == "left sided mass"
    assert token_f1("", "") == 1
    assert token_f1("a b b", "b c") == pytest.approx(2 * 1 / 4)


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="1 outputs, 1 choices, 2 answers, 1 patients"):
        score_closed(["A"], [CHOICES], [0, 1], ["a"])
