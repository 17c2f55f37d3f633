"""BLEU and ROUGE equal torchmetrics, report by report and in sum."""

import numpy as np
import pytest

from vol3d.evaluation.metrics.text import TEXT_METRICS, rouge_l, score_text, tokens_13a

TRUTHS = [
    "FINDINGS:\nThere is a large left pleural effusion. No pneumothorax.\n\nIMPRESSION:\nLeft effusion (12.5 mm).",
    "The liver is normal in size, without focal lesion; spleen measures 14 cm.",
    "Normal examination.",
    "Multiple right-sided rib fractures: 3-5.",
]
OUTPUTS = [
    "FINDINGS:\nThere is a small right pleural effusion. No pneumothorax.\n\nIMPRESSION:\nRight effusion.",
    "The spleen is normal in size. Liver without focal lesion.",
    "Normal examination.",
    "",
]
PATIENTS = ["a", "b", "b", "c"]


def test_bleu_equals_torchmetrics():
    from torchmetrics.functional.text import sacre_bleu_score

    got = score_text(TRUTHS, OUTPUTS, PATIENTS, replicates=20)
    for order in range(1, 5):
        theirs = sacre_bleu_score(OUTPUTS, [[text] for text in TRUTHS], n_gram=order, tokenize="13a", lowercase=True)
        assert got[f"bleu_{order}"]["value"] == pytest.approx(float(theirs), abs=1e-6)


def test_equals_sacrebleu_and_rouge_score():
    """Values of sacrebleu 2.6.0 (lowercase, smooth_method none) and rouge-score 0.1.2 on these reports."""
    theirs = {
        "bleu_1": 0.5249967291336599,
        "bleu_2": 0.43380064541456186,
        "bleu_3": 0.3782777859665677,
        "bleu_4": 0.3222151453584199,
        "rouge_1": 0.6398050974512743,
        "rouge_2": 0.4986772486772487,
        "rouge_l": 0.5963268365817092,
    }
    got = score_text(TRUTHS, OUTPUTS, PATIENTS, replicates=5)
    assert {name: got[name]["value"] for name in theirs} == pytest.approx(theirs)


def test_m3d_bleu_is_the_mean_of_single_cased_reports():
    from torchmetrics.functional.text import sacre_bleu_score

    theirs = [float(sacre_bleu_score([o], [[t]], n_gram=1)) for t, o in zip(TRUTHS, OUTPUTS, strict=True)]
    got = score_text(TRUTHS, OUTPUTS, PATIENTS, replicates=20)
    assert got["m3d_bleu"]["value"] == pytest.approx(np.mean(theirs), abs=1e-6)
    assert abs(got["m3d_bleu"]["value"] - got["bleu_1"]["value"]) > 0.01


def test_rouge_equals_torchmetrics():
    from torchmetrics.functional.text import rouge_score

    got = score_text(TRUTHS, OUTPUTS, PATIENTS, replicates=20)
    theirs = rouge_score(OUTPUTS, TRUTHS, rouge_keys=("rouge1", "rouge2", "rougeL"))
    for ours, key in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        assert got[ours]["value"] == pytest.approx(float(theirs[f"{key}_fmeasure"]), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_longest_common_subsequence_equals_the_table(seed):
    rng = np.random.default_rng(seed)
    one, two = (["abcde"[i] for i in rng.integers(0, 5, size)] for size in (70, 90))
    table = np.zeros((71, 91), dtype=int)
    for i in range(70):
        for j in range(90):
            table[i + 1, j + 1] = table[i, j] + 1 if one[i] == two[j] else max(table[i, j + 1], table[i + 1, j])
    assert rouge_l(one, two) == pytest.approx(2 * table[-1, -1] / 160)


def test_tokens():
    assert tokens_13a("Size: 12.5 mm, (left).") == ["Size", ":", "12.5", "mm", ",", "(", "left", ")", "."]


@pytest.mark.parametrize("seed", range(4))
def test_tokens_equal_torchmetrics_on_noise(seed):
    from torchmetrics.functional.text.sacre_bleu import _SacreBLEUTokenizer

    rng = np.random.default_rng(seed)
    for _ in range(300):
        text = "".join(rng.choice(list("ab12 .,-:;()[]{}'/&%$+*=<>?!@_^~|\"\\`é×"), rng.integers(1, 40)))
        assert tokens_13a(text) == list(_SacreBLEUTokenizer.tokenize(text, "13a"))


def test_named_characters_and_words_cut_at_the_end_of_a_line():
    from torchmetrics.functional.text.sacre_bleu import _SacreBLEUTokenizer

    text = "Nodule &lt; 5 mm, &quot;ground-\nglass&quot; &amp; atelec-\ntasis.\nNo effusion."
    assert tokens_13a(text) == list(_SacreBLEUTokenizer.tokenize(text, "13a"))
    assert "groundglass" in tokens_13a(text)


def test_empty_and_equal():
    assert all(score["value"] == 0 for score in score_text(["a b c d e"], [""], ["p"], replicates=5).values())
    assert all(score["value"] == 1 for score in score_text(["a b c d e"], ["a b c d e"], ["p"], replicates=5).values())
    assert list(score_text(["a"], ["a"], ["p"], replicates=5)) == list(TEXT_METRICS)


def test_equal_words_of_few_patients_claim_no_certainty():
    said = [f"there is a finding of size {number} mm" for number in range(10)]
    scores = score_text(said, said, list(range(10)), replicates=20)
    assert {name: score["value"] for name, score in scores.items()} == dict.fromkeys(TEXT_METRICS, 1.0)
    assert all(score["low"] == pytest.approx(0.025**0.1) for score in scores.values())


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="1 truths, 2 predictions, 1 patients"):
        score_text(["a"], ["a", "b"], ["p"])
