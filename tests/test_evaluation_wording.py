"""Scores of texts that need a library or another model."""

import numpy as np
import pytest
from nltk.translate.meteor_score import meteor_score as nltk_meteor

from vol3d.evaluation.wording import JUDGE_VERSION, _NoSynonyms, mean_of, wording

TRUTHS = ["There is a small left pleural effusion.", "No abnormality.", "Moderate ascites."]
SAID = ["Small left effusions are seen.", "", "Moderate ascites."]


def test_meteor_without_data_is_nltks_without_synonyms():
    got = wording(meteor="", replicates=50)(TRUTHS, SAID, ["a", "b", "c"])["meteor_exact_stem"]
    each = [
        nltk_meteor(
            [["there", "is", "a", "small", "left", "pleural", "effusion"]],
            ["small", "left", "effusions", "are", "seen"],
            wordnet=_NoSynonyms(),
        ),
        0.0,
        nltk_meteor([["moderate", "ascites"]], ["moderate", "ascites"], wordnet=_NoSynonyms()),
    ]
    assert each[0] > 0.3
    assert got["value"] == pytest.approx(np.mean(each))
    assert got["low"] < got["value"] < got["high"]


def test_meteor_with_a_folder_without_wordnet(tmp_path):
    with pytest.raises(ValueError, match="has no corpora/wordnet"):
        wording(meteor=str(tmp_path))


def test_the_judge_records_its_prompt_and_says_what_it_cannot_read():
    def judge(prompt):
        assert "REFERENCE REPORT" in prompt
        return "Score: 7/10" if "left" in prompt else "I cannot tell"

    got = wording(judge=judge, replicates=50)(TRUTHS, SAID, ["a", "b", "c"])
    assert got["judge"]["value"] == pytest.approx((0.7 + 0.0) / 2)  # the empty output is 0, the third has no number
    assert got["judge"]["note"] == "1 of 3 outputs could not be scored"
    assert JUDGE_VERSION in got["judge_by"]
    assert "one whole number" in got["judge_prompt"]


def test_numbers_of_a_judge():
    from vol3d.evaluation.wording import judge_score

    for said, value in (("10", 1.0), ("3", 0.3), ("Score: 8/10.", 0.8), ("100", None), ("none", None)):
        assert judge_score(lambda prompt, said=said: said)(["t"], ["o"]) == [value]


def test_a_local_model_judges_and_bertscore_reads_a_folder(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = sorted({word.strip(".") for text in TRUTHS + SAID for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "7", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        eos_token="[SEP]",
    )  # fmt: skip
    size = {"vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for name, model in (
        ("bert", BertModel(BertConfig(**size, intermediate_size=16))),
        ("llama", LlamaForCausalLM(LlamaConfig(**size, intermediate_size=16, max_position_embeddings=512))),
    ):
        model.save_pretrained(tmp_path / name)
        fast.save_pretrained(tmp_path / name)
    both = wording(bertscore=str(tmp_path / "bert"), judge=str(tmp_path / "llama"), replicates=20)
    got = both(TRUTHS, [*SAID[:2], TRUTHS[2]], ["a", "b", "c"])
    assert 0 < got["bertscore_f1"]["value"] < 1
    assert got["bertscore_model"] == "bert"
    assert "llama" in got["judge_by"]
    with pytest.raises(ValueError, match=r"has no config\.json"):
        wording(bertscore=str(tmp_path))
    with pytest.raises(ValueError, match=r"has no config\.json"):
        wording(judge=str(tmp_path))


def test_radeval_names_its_extra():
    with pytest.raises(ImportError, match=r"vol3d\[radeval\]"):
        wording(radeval=True)


def test_nothing_chosen_and_nothing_known():
    assert wording() is None
    assert mean_of([None, None], ["a", "b"])["note"] == "none of 2 outputs could be scored"
